"""What to look at first on a machine with a GPU, beside the tests; benchmarks/first_minutes.sh has the order of everything.

    python -m benchmarks.first_minutes probe       differences and memory that were read or emulated, never seen
    python -m benchmarks.first_minutes speed       kernels a step, the GPU's share of it, images a second, setting by setting
    python -m benchmarks.first_minutes compiled    the same under torch.compile
    python -m benchmarks.first_minutes speed --toy     on any machine, in seconds; the figures mean nothing

A line for each attempt. One that fails says so, and the others go on; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.inputs import make_data, make_model
from dataset import Batch
from memorization import engines, events
from memorization.engines import Recipe, Setup
from models import ARCHS, ModelConfig
from trainer import Descent, ScheduleConfig, cross_entropy, predict
from unlearn import METHODS, persample
from utils import Runtime, RuntimeConfig, say


@dataclasses.dataclass(frozen=True)
class Size:
    """What is measured: the networks, small and large, and how much of each."""

    archs: tuple[str, ...] = ("resnet18", "resnet20s")
    small: str = "resnet20s"
    few: int = 200  # images where only the outcome counts
    images: int = 25_600
    batch: int = 256
    models: int = 16  # of a stack
    pool_batch: int = 512
    examples: int = 1024  # in one call of per-example gradients
    steps: int = 20
    methods: tuple[str, ...] = ("NG", "fisher", "RL_proximal", "wfisher", "SCRUB")  # of every way to walk through the parts


TOY = Size(("resnet8s",), "resnet8s", 12, 40, 16, 2, 8, 8, 2, ("NG",))


def runtime(**more: Any) -> Runtime:
    return Runtime(RuntimeConfig(**{"seed": 5, "progress": False, **more}))


def attempt(name: str, job: Callable[..., str], *args: Any) -> bool:
    """Say what it found, or how it failed, and the seconds."""
    start, well = time.perf_counter(), True
    try:
        found = job(*args)
    except Exception as error:  # a first look: whatever goes wrong, the next one may go well
        found, well = f"FAILS {type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}", False
    say(f"{name}: {found}  [{time.perf_counter() - start:.1f} s]")
    return well


def descent(rt: Runtime, model: nn.Module, l1: float = 0.0) -> Descent:
    return Descent(model, ScheduleConfig(), lr=0.01, epochs=1, rt=rt, purpose="first", l1=l1)


def batch_of(rt: Runtime, count: int, classes: int = 10, side: int = 32) -> Batch:
    index = torch.arange(count, device=rt.device)
    return Batch(torch.rand(count, 3, side, side, device=rt.device), index % classes, index)


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# --------------------------------------------------------------------------------------------------------------- probe


def stack(size: Size, precision: str, graphs: bool) -> str:
    """Half of a few augmented images each, so that every last batch is a short one."""
    rt, half = runtime(precision=precision), size.few // 2
    data, _ = make_data(rt, size.few, 8, size.few // 5)
    setup = Setup(data, ModelConfig(arch=size.small), Recipe(pool_epochs=2, pool_batch=half // 3), rt)
    cuts = [np.arange(k, k + half) for k in range(min(4, size.models))]
    alone = setup.evaluate(engines.train_one(setup, 0, cuts[0]))["train"]
    both = setup.evaluate(engines.train_stack(setup, range(len(cuts)), cuts, graphs))["train"][:, 0]
    return f"off one after another by {apart(both, alone):.1e} of the largest logit"


def planned(size: Size, arch: str) -> str:
    """As many models at once as fit; the rest of the pool's memory follows from it."""
    rt = runtime()
    data, _ = make_data(rt, 4 * size.pool_batch, 64, 20)
    setup = Setup(data, ModelConfig(arch=arch), Recipe(pool_batch=size.pool_batch), rt)
    count, each = engines.fitting(setup, np.arange(2 * size.pool_batch), size.models)
    return f"{count} of {size.models} models at once, {1 / each:,.0f} img/s in all, peak {peak(rt)}"


def peak(rt: Runtime) -> str:
    return f"{rt.facts().get('peak_memory_mib', float('nan')):,.0f} MiB"


def batches(size: Size) -> str:
    """Augmented batches of images on the device, and on the host, against those of the CPU; and methods on the latter."""
    theirs = list(make_data(runtime(device="cpu"), size.few, 8, size.few // 5)[0].loader("train", runtime(device="cpu"), "p"))
    said = []
    for free in (None, (0, 1)):
        small = mock.patch.object(torch.cuda, "mem_get_info", lambda device=None, free=free: free)
        with small if free else contextlib.nullcontext():
            data, rt = make_data(runtime(), size.few, 8, size.few // 5)[0], runtime()
        ours = list(data.loader("train", rt, "p"))
        same = all(torch.equal(a.x.cpu(), b.x) for a, b in zip(ours, theirs, strict=True))
        said.append(f"on {data.images.home.type}: {'as' if same else 'NOT as'} on the CPU")
    for name in size.methods:
        METHODS[name].apply(make_model(rt, size.small), data, METHODS[name].config(), rt)
    return "; ".join([*said, f"methods that ran on the latter: {len(size.methods)}"])


def deterministic(arch: str, imagenet: bool) -> str:
    rt = runtime(deterministic=True)
    with rt.seeded("m"):
        model = ARCHS[arch].make(10, imagenet=imagenet).to(rt.device, memory_format=torch.channels_last)
    return f"mean loss {descent(rt, model).epoch([batch_of(rt, 8)] * 2, cross_entropy):.3f}"


def curvature(size: Size, arch: str) -> str:
    """By how much TF32 would be off, after some steps on noise: what ``full_float32`` is for."""
    rt = runtime(precision="fp32")
    model, batch, found = make_model(rt, arch), batch_of(rt, size.batch), []
    descent(rt, model).epoch([batch] * size.steps, cross_entropy)
    found.append(events.curvature(model.eval(), batch.x, batch.y, 0.01))
    with mock.patch.object(events, "full_float32", contextlib.nullcontext):
        found.append(events.curvature(model.eval(), batch.x, batch.y, 0.01))
    off = (found[1] - found[0]).abs() / found[0]
    return f"TF32 would be off by {float(off.median()):.1%} (median), {float(off.quantile(0.9)):.1%} (90th percentile)"


def fisher(size: Size, arch: str) -> str:
    rt = runtime()
    model, batch = make_model(rt, arch), batch_of(rt, size.examples)
    for _ in range(2):  # the first chooses kernels
        rt.drain()
        start = time.perf_counter()
        persample.squared(model, [batch])
        rt.drain()
    return f"{size.examples / (time.perf_counter() - start):,.0f} examples/s, peak {peak(rt)}"


def probe(size: Size) -> Iterator[tuple[str, Callable[..., str], Any]]:
    for precision, graphs in itertools.product(("fp32", "bf16"), (False, True) if torch.cuda.is_available() else (False,)):
        yield f"stack in {precision}{', graphs' if graphs else ''}", stack, size, precision, graphs
    yield "batches", batches, size
    for arch in size.archs:
        yield f"stack of {arch}", planned, size, arch
    large = (("resnet18", True), ("vgg16_bn", False), ("vgg16_bn", True))
    for arch, imagenet in large if size is not TOY else ((size.small, False),):
        yield f"deterministic {arch}{', ImageNet stem' if imagenet else ''}", deterministic, arch, imagenet
    for arch in size.archs:
        yield f"curvature of {arch}", curvature, size, arch
        yield f"per-example gradients of {arch}", fisher, size, arch


# --------------------------------------------------------------------------------------------------------------- speed


def pace(size: Size, arch: str, watch: bool = False, l1: float = 0.0, benchmark: bool = False, **more: Any) -> str:
    """Three epochs of augmented training, of which the last counts, a profile of two steps, and an evaluation."""
    rt = runtime(**more)
    torch.backends.cudnn.benchmark = benchmark
    data, _ = make_data(rt, size.images, 64, size.batch, batch_size=size.batch)
    model, seen, loader = make_model(rt, arch), events.Events(len(data.images.y), rt), data.loader("train", rt, "pace")
    seen.begin(0, 10)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.x).float()
        if watch:
            seen.after(batch, logits.detach())
        return F.cross_entropy(logits, batch.y)

    opt, spent = descent(rt, model, l1), []
    for _ in range(3):
        start = time.perf_counter()
        opt.epoch(loader, loss)
        rt.drain()
        spent.append(time.perf_counter() - start)
    ran = _profiled(rt, lambda: opt.epoch(itertools.islice(iter(loader), 2), loss, 2))
    many = sum("multi_tensor" in event.name for event in ran) / 2
    busy = sum(event.time_range.elapsed_us() for event in ran) / 2000
    start = time.perf_counter()
    predict(model, data.loader("train"), rt)
    rt.drain()
    look = time.perf_counter() - start
    torch.backends.cudnn.benchmark = False
    each = f"{1000 * spent[2] / len(loader):.2f} ms a step, {busy:.2f} of them on the GPU in {len(ran) / 2:.0f} kernels"
    return (f"{loader.size / spent[2]:,.0f} img/s, {each} ({many:.0f} foreach), first epoch {spent[0]:.1f} s, evaluation "
            f"{loader.size / look:,.0f} img/s, peak {peak(rt)}")


def _profiled(rt: Runtime, work: Callable[[], Any]) -> list[Any]:
    """What ran on the GPU."""
    if not rt.cuda:
        work()
        return []
    with torch.profiler.profile() as profile:
        work()
        rt.drain()
    return [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]


def speed(size: Size) -> Iterator[tuple[str, Callable[..., str], Any]]:
    settings = [{}, {"benchmark": True}, {"watch": True}, {"l1": 5e-4}, {"precision": "fp32"}, {"deterministic": True}]
    for arch, more in itertools.product(size.archs, settings):
        name = ", ".join(f"{key} {value}" for key, value in more.items()) or "as it is"
        yield f"{arch}, {name}", lambda arch=arch, more=more: pace(size, arch, **more)


def compiled(size: Size) -> Iterator[tuple[str, Callable[..., str], Any]]:
    for mode in ("default", "reduce-overhead"):
        yield f"{size.archs[0]}, compile {mode}", lambda mode=mode: pace(size, size.archs[0], compile=mode)


BLOCKS = {"probe": probe, "speed": speed, "compiled": compiled}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_minutes", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("block", choices=tuple(BLOCKS))
    parser.add_argument("--toy", action="store_true", help="toy sizes; the figures mean nothing")
    args = parser.parse_args(argv)
    attempts = [attempt(name, job, *rest) for name, job, *rest in BLOCKS[args.block](TOY if args.toy else Size())]
    if not all(attempts):
        say(f"{attempts.count(False)} of {len(attempts)} failed")
        sys.exit(1)


if __name__ == "__main__":
    main()
