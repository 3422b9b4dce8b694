"""The table for a CUDA device, in blocks with a budget of time: ResNet-18 on CIFAR-10, parity, and goals G1 to G8.

    python -m benchmarks.gpu --data FOLDER --budget 1800 --append
    python -m benchmarks.gpu --toy --device cpu --save_dir FOLDER       (toy size on any device; the figures mean nothing)

Blocks, in the order of their worth: steps (images/s at two batch sizes, eager to compiled, and the share of the roofline),
quiet (waits for the device inside an epoch, share of the loader), original (30 epochs as a process), methods (the ten rows with
evaluation), parity (as it runs against eager float32, over the seeds), pool (seconds a model), table (ten rows for every seed).
A block that does not fit what is left of the budget is left out and said; runs that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.goals import on_a_gpu
from benchmarks.harness import ROOT, Context, python
from benchmarks.inputs import make_data, make_model
from benchmarks.results import PLACE, Head, put_file
from scripts import recipe
from trainer import Descent, ScheduleConfig, cross_entropy
from utils import BadInput, Runtime, RuntimeConfig, Saved, find_runs, say
from utils.words import as_line, put

RECIPE = ROOT / "scripts" / "recipes" / "cifar10_resnet18.json"
# the ten rows: the method, and the stage that runs it
METHODS = {"retrain": "main_forget.py", "FT": "main_forget.py", "FT_l1": "main_forget.py", "GA": "main_forget.py",
           "NG": "main_forget.py", "SCRUB": "main_forget.py", "RL": "main_random.py", "RL_og": "main_random.py",
           "wfisher": "main_forget.py"}
SWEEPS = 14  # over the activations in a training step: 5 forward, 9 backward, where norm and ReLU are fused
AT_LEAST = {"steps": 60, "quiet": 10, "original": 40, "methods": 60, "parity": 120, "pool": 30, "table": 120}  # seconds


@dataclasses.dataclass(frozen=True)
class Size:
    """What is measured, at full size or as a toy."""

    toy: bool
    arch: str
    data: tuple[str, ...]
    epochs: int
    batches: tuple[int, ...]
    steps: int
    forget: int
    method_epochs: int | None  # None: those of the recipe
    models: int

    @classmethod
    def of(cls, toy: bool) -> Size:
        if toy:
            words = ("--dataset", "digits", "--classes", "0-2", "--batch_size", "64")
            return cls(True, "resnet8s", words, 1, (8, 12), 2, 20, 1, 2)
        return cls(False, "resnet18", ("--dataset", "cifar10", "--no_download"), 30, (256, 1024), 60, 3000, None, 4)


@dataclasses.dataclass
class Bench:
    """Where and how; ``left`` seconds of the budget. found: goal -> what was measured."""

    rt: Runtime
    size: Size
    data: str
    save_dir: Path
    seeds: tuple[int, ...]
    ends: float
    found: dict[str, float | None] = dataclasses.field(default_factory=dict)

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def call(self, stage: str, *words: Any, seed: int = 1) -> float:
        """A stage as a process within what is left; its wall seconds."""
        base = ["--save_dir", self.save_dir, "--device", self.rt.device.type, "--no_progress", "--seed", seed]
        start = time.perf_counter()
        execute([stage, *map(str, (*base, *words))], max(1.0, self.left))
        return time.perf_counter() - start

    @property
    def training(self) -> list[Any]:
        """The flags of an original."""
        return [*self.size.data, "--data", self.data, "--arch", self.size.arch, "--epochs", self.size.epochs, "--no_aug"]

    def original(self, seed: int) -> Saved:
        """The original of a seed, trained where it is not there yet."""
        took = self.call("main_train.py", *self.training, seed=seed)
        (found,) = [run for run in find_runs(self.save_dir, ("train",)) if run.setting("seed") == seed]
        self.found.setdefault("original", took)
        return found


def execute(words: list[str], seconds: float) -> None:
    """Run a stage; BadInput where it fails or does not end in time."""
    try:
        done = subprocess.run(python(*words), cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise BadInput(f"{words[0]} took longer than the {seconds:.0f} s that were left; give a larger --budget") from None
    if done.returncode:
        raise BadInput(f"{' '.join(words[:2])} ended with code {done.returncode}: {done.stderr.strip()[-200:]}")


# --------------------------------------------------------------------------------------------------------------- steps


class Way(NamedTuple):
    """How a step computes: of the runtime, memory layout, and whether TF32 is allowed."""

    settings: dict[str, Any]
    channels_last: bool = True
    tf32: bool = False


WAYS = {"float32, contiguous": Way({"precision": "fp32"}, False), "float32": Way({"precision": "fp32"}),
        "TF32": Way({"precision": "fp32"}, tf32=True), "bf16": Way({"precision": "bf16"}),
        "bf16, compiled": Way({"precision": "bf16", "compile": "default"}),
        "bf16, compiled with graphs": Way({"precision": "bf16", "compile": "reduce-overhead"})}


def training(b: Bench, way: Way, batch: int) -> Callable[[int], float]:
    """What makes so many steps on one data set and says its seconds, the device waited for."""
    rt = Runtime(RuntimeConfig(device=b.rt.device.type, progress=False, **way.settings))
    if rt.cuda:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = way.tf32
    data, _ = make_data(rt, max(40, 3 * batch), 16, 4, batch_size=batch)
    model = make_model(rt, b.size.arch, way.channels_last)
    opt = Descent(model, ScheduleConfig(), lr=0.01, epochs=1, rt=rt, purpose="benchmark")
    loader = data.loader("train", rt, "benchmark")

    def run(steps: int) -> float:
        def batches() -> Iterator[Any]:  # whole ones alone, so that there is one shape
            made = 0
            while made < steps:
                for one in loader:
                    if len(one.y) == batch and made < steps:
                        made += 1
                        yield one

        rt.drain()
        start = time.perf_counter()
        opt.epoch(batches(), cross_entropy, steps)
        rt.drain()
        return time.perf_counter() - start

    return run


def block_steps(b: Bench) -> str:
    """Images a second of every way, medians of three; the roof is of what this device was seen to do."""
    flops, sweep = work_of(b)
    roofs = {way: roof(b, flops, sweep, "bf16" in way) for way in ("float32", "bf16")}
    rows = [f"Work of an image in a step: {flops / 1e9:.3g} GFLOP; convolutions' outputs {sweep / 1e6:.3g} million values, "
            f"{SWEEPS} sweeps; matrix and memory work one after the other: at best {roofs['float32']:,.0f} img/s in float32, "
            f"{roofs['bf16']:,.0f} in bf16 by this device's own matrix product and copy.", "",
            "| way | batch | img/s | range | share of the roof |", "| --- | ---: | ---: | ---: | ---: |"]
    for batch in b.size.batches:
        for name, way in WAYS.items():
            try:
                run = training(b, way, batch)
                run(2)
                run(2)  # compiled and warm
                rates = [b.size.steps * batch / run(b.size.steps) for _ in range(3)]
            except Exception as error:  # a way that fails is a finding, and the others go on
                rows.append(f"| {name} | {batch} | fails: {type(error).__name__}: {as_line(str(error))[:80]} | | |")
                continue
            rate = statistics.median(rates)
            share = rate / roofs["bf16" if "bf16" in name else "float32"]
            rows.append(f"| {name} | {batch} | {rate:,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {share:.0%} |")
            if batch == b.size.batches[0] and "bf16" in name:
                b.found["G1"] = max(b.found.get("G1", 0.0), rate)
    return "\n".join(rows)


def work_of(b: Bench) -> tuple[float, float]:
    """FLOP of a training step an image, and values in the outputs of its convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    model = make_model(b.rt, b.size.arch)
    values: list[int] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: values.append(out[0].numel()))
             for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.rand(2, 3, 32, 32, device=b.rt.device)).sum().backward()
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() / 2, float(sum(values))


def roof(b: Bench, flops: float, values: float, half: bool) -> float:
    """Images a second if products ran as one large product does and sweeps as a copy does, one after the other."""
    kind, n = (torch.bfloat16 if half else torch.float32), 8192 if b.rt.cuda else 256
    a = torch.rand(n, n, device=b.rt.device).to(kind)
    product = 2 * n**3 / fastest(b, lambda: a @ a)
    big = torch.empty(n * n * 4, device=b.rt.device, dtype=kind)
    copy = 2 * big.nbytes / fastest(b, lambda: big.clone())
    return 1 / (flops / product + SWEEPS * values * a.element_size() / copy)


def fastest(b: Bench, work: Callable[[], Any]) -> float:
    """Seconds of a call, the least of some."""
    seen = []
    for _ in range(8):
        b.rt.drain()
        start = time.perf_counter()
        work()
        b.rt.drain()
        seen.append(time.perf_counter() - start)
    return min(seen)


def block_quiet(b: Bench) -> str:
    """Waits for the device in the steps of an epoch (its own one at the end not counted), and the loader's share."""
    batch = b.size.batches[0]
    data, _ = make_data(b.rt, max(40, 3 * batch), 16, 4, batch_size=batch)
    model, loader = make_model(b.rt, b.size.arch), data.loader("train", b.rt, "benchmark")
    opt = Descent(model, ScheduleConfig(), lr=0.01, epochs=1, rt=b.rt, purpose="benchmark")
    opt.epoch(loader, cross_entropy)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if b.rt.cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            opt.epoch(loader, cross_entropy)
        finally:
            if b.rt.cuda:
                torch.cuda.set_sync_debug_mode("default")
    waits = max(0, sum("synchroniz" in str(one.message) for one in seen) - 1)
    whole = fastest(b, lambda: opt.epoch(loader, cross_entropy))
    alone = fastest(b, lambda: [None for _ in loader])
    b.found |= {"G7 waits": waits if b.rt.cuda else None, "G7 share": alone / whole}
    return f"Waits for the device inside an epoch: {waits}. Loader alone {alone / whole:.2%} of an epoch's time."


# ----------------------------------------------------------------------------------------------------- whole processes


def block_original(b: Bench) -> str:
    run = b.original(b.seeds[0])
    if "original" in b.found:
        b.found["G2"] = b.found["original"]
    seconds = run.record["seconds"]
    return (f"{b.size.epochs} epochs of {b.size.arch}: {b.found['original']:.1f} s as a process; training "
            f"{seconds['train']:.1f} s, evaluation {seconds['evaluate']:.1f} s; test {run.record['metrics']['test']:.2f} %.")


def rows_of(b: Bench, seed: int) -> Iterator[tuple[str, float, Saved]]:
    """(row, wall seconds of its process, its run) of the nine methods on the original of a seed."""
    original, entries = b.original(seed), recipe.read(RECIPE)
    chosen = ["--checkpoint", original.folder, "--data", b.data, "--num_indexes_to_replace", b.size.forget]
    for name, stage in METHODS.items():
        words = recipe.flags(entries[name]) if name in entries else []
        if b.size.method_epochs is not None:
            words = [] if name == "wfisher" else ["--unlearn_epochs", b.size.method_epochs]
        took = 0.0
        if name == "RL":
            took = b.call("generate_mask.py", *chosen, "--density", 0.5, seed=seed)
            words = [*words, "--path", b.save_dir]
        took += b.call(stage, *chosen, "--unlearn", name, *words, seed=seed)
        (found,) = [run for run in find_runs(b.save_dir, ("forget",))
                    if (run.setting("unlearn"), run.setting("seed")) == (name, seed)]
        yield name, took, found


def block_methods(b: Bench) -> str:
    rows = ["| row | process, s | method, s | evaluation, s | images read |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, took, run in rows_of(b, b.seeds[0]):
        seconds = run.record["seconds"]
        read = sum(run.record.get("images_read", {}).get(part, 0) for part in ("unlearn", "mask"))
        rows.append(f"| {name} | {took:.1f} | {seconds.get('unlearn', 0.0):.2f} | {seconds['evaluate']:.2f} | {read:,} |")
        b.found["G5"] = max(b.found.get("G5", 0.0), seconds["evaluate"])
        if name == "FT":
            b.found["G3"] = took
    return "\n".join(rows)


def block_parity(b: Bench) -> str:
    """Test accuracy as it runs by default, and in eager float32 without TF32, from the same seeds."""
    quick = [b.original(seed).record["metrics"]["test"] for seed in b.seeds]
    slow = []
    for seed in b.seeds:
        other = dataclasses.replace(b, save_dir=b.save_dir / "float32")
        other.call("main_train.py", *b.training, "--precision", "fp32", "--deterministic", seed=seed)
        (run,) = [one for one in find_runs(other.save_dir, ("train",)) if one.setting("seed") == seed]
        slow.append(run.record["metrics"]["test"])
    apart = statistics.fmean(quick) - statistics.fmean(slow)
    noise = statistics.stdev([*quick, *slow]) if len(quick) > 1 else float("nan")
    if len(quick) > 1:
        b.found |= {"G8": abs(apart), "G8 noise": noise}
    told = [", ".join(f"{value:.2f}" for value in values) for values in (quick, slow)]
    return (f"Test accuracy over seeds {', '.join(map(str, b.seeds))}: as it runs {told[0]} %, eager float32 {told[1]} %; the "
            f"means differ by {apart:+.2f} points, the deviation of one run is {noise:.2f}.")


def block_pool(b: Bench) -> str:
    shard = ["--models", 400, "--shard", f"1/{400 // b.size.models}"]
    took = b.call("main_memorization.py", *b.size.data, "--data", b.data, "--arch", b.size.arch, *shard,
                  *(["--recipe", "fast", "--pool_epochs", 1] if b.size.toy else []))
    b.found["G6"] = took / b.size.models
    each = took / b.size.models
    return f"{b.size.models} of 400 models by the default engine: {took:.1f} s, {each:.2f} s each, start included."


def block_table(b: Bench) -> str:
    start = time.perf_counter()
    took = [sum(seconds for _, seconds, _ in rows_of(b, seed)) for seed in b.seeds[1:]]
    whole = time.perf_counter() - start
    if took:
        b.found["G4"] = whole / len(took) * len(b.seeds)
    return (f"Original and nine rows, process by process, on seeds {', '.join(map(str, b.seeds[1:])) or 'none'}: "
            f"{', '.join(f'{one:.0f}' for one in took) or '–'} s of methods; {b.found.get('G4', float('nan')):.0f} s for "
            f"{len(b.seeds)} seeds.")


BLOCKS: dict[str, Callable[[Bench], str]] = {
    "steps": block_steps, "quiet": block_quiet, "original": block_original, "methods": block_methods, "parity": block_parity,
    "pool": block_pool, "table": block_table}


# ---------------------------------------------------------------------------------------------------------------- main


def run(b: Bench, names: list[str], keep: Callable[[str], None]) -> str:
    """The blocks that fit; ``keep`` gets the text so far after each."""
    parts: list[str] = []
    for name in names:
        if b.left < AT_LEAST[name] and not b.size.toy:
            told = f"Left out: {b.left:.0f} s of the budget are left and it takes {AT_LEAST[name]} at least."
        else:
            start = time.monotonic()
            try:
                told = BLOCKS[name](b)
            except BadInput as error:
                told = f"Not finished: {as_line(str(error))}"
            told += f" [{time.monotonic() - start:.0f} s]" if "\n" not in told else ""
        say(f"{name}: {told}\n")
        parts.append(f"**{name}**\n\n{told}\n")
        keep("\n".join([*parts, f"**goals**\n\n{on_a_gpu(b.found)}\n"]))
    say(on_a_gpu(b.found))
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="./data", help="folder with CIFAR-10's files or a prepared cifar10.npz")
    parser.add_argument("--save_dir", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--budget", type=float, default=1800, help="seconds in all")
    parser.add_argument("--blocks", default=",".join(BLOCKS), help="which, in this order")
    parser.add_argument("--seeds", default=(1, 2, 3), type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--toy", action="store_true", help="toy size, to see that everything runs")
    parser.add_argument("--append", action="store_true", help="write into RESULTS.md, block after block")
    parser.add_argument("--out", type=Path, default=PLACE, help="another file than RESULTS.md")
    args = parser.parse_args(argv)
    try:
        names = args.blocks.split(",")
        if wrong := [name for name in names if name not in BLOCKS]:
            raise BadInput(f"--blocks: no block is called {', '.join(wrong)}; there are {', '.join(BLOCKS)}")
        rt = Runtime(RuntimeConfig(device=args.device, progress=False))
        head = Head.of(Context(rt, torch.get_num_threads()), 3)
        bench = Bench(rt, Size.of(args.toy), args.data, args.save_dir, args.seeds, time.monotonic() + args.budget)
        section = f"## `python -m benchmarks.gpu`: {head.machine}"
        run(bench, names, lambda text: put_file(args.out, section, head.title, text) if args.append else None)
    except BadInput as error:
        put(f"{as_line(f'error: {error}')}\n", sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
