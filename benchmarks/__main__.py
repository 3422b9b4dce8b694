"""Measure loader, training step, evaluation, attack, pool and the second-order methods against the plain way, interleaved.

Medians of rounds.

python -m benchmarks                     all
python -m benchmarks attack --rows 10000 --rounds 1
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import models
from benchmarks import plain, pool, second_order
from dataset import Data, Images, Splits
from evaluation import mia, svc
from evaluation.accuracy import EvaluationConfig, summarise
from sources import SOURCES
from trainer import Descent, ScheduleConfig, cross_entropy, predict
from utils import Runtime, RuntimeConfig

Side = Callable[[], object]


def peak_of(what: str, side: str, args: argparse.Namespace) -> float:
    """Largest resident memory in MiB of a process of its own that does one side of a benchmark once."""
    command = [sys.executable, "-m", "benchmarks", what, "--side", side, "--threads", str(args.threads), "--arch", args.arch,
               "--rows", str(args.rows), "--scale", str(args.scale)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(said.strip().splitlines()[-1])


def interleaved(ours: Side | dict[str, Side], theirs: Side, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """For each of our sides: wall and CPU seconds of both (medians), and the median over rounds of plain / ours."""
    sides = {**(ours if isinstance(ours, dict) else {"": ours}), "plain": theirs}
    for name, side in sides.items():  # the warm-up, or all that is asked for
        if args.side is None or (args.side == "plain") == (name == "plain"):
            side()
    if args.side is not None:
        return {name: {} for name in sides if name != "plain"}
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, side in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            side()
            seen[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    plain_wall, plain_cpu = (statistics.median(pair[i] for pair in seen["plain"]) for i in (0, 1))
    return {name: {
        "wall s": statistics.median(wall for wall, _ in times), "plain wall s": plain_wall,
        "cpu s": statistics.median(cpu for _, cpu in times), "plain cpu s": plain_cpu,
        "ratio wall": statistics.median(p[0] / o[0] for p, o in zip(seen["plain"], times, strict=True)),
        "ratio cpu": statistics.median(p[1] / o[1] for p, o in zip(seen["plain"], times, strict=True)),
    } for name, times in seen.items() if name != "plain"}


def make_data(rt: Runtime, train: int, test: int, forget: int, aug: bool = True) -> tuple[Data, tuple[np.ndarray, ...]]:
    """Random images of CIFAR's shape: what is measured does not look at them."""
    random, source = np.random.default_rng(0), SOURCES["cifar10"]
    arrays = [random.integers(0, 256, (n, 32, 32, 3), np.uint8) for n in (train, test)]
    labels = [random.integers(0, 10, n) for n in (train, test)]
    cut = train // 10
    splits = Splits(np.arange(cut, train), np.arange(cut), np.arange(cut + forget, train), np.arange(cut, cut + forget), (),
                    "benchmark", "benchmark")
    images, tests = (Images(x, y, source, rt) for x, y in zip(arrays, labels, strict=True))
    data = Data(source, images, tests, 10, splits, 256, aug)
    return data, (arrays[0], labels[0], arrays[1], labels[1])


def make_model(rt: Runtime, arch: str, channels_last: bool) -> torch.nn.Module:
    source = SOURCES["cifar10"]
    with rt.seeded("benchmark"):
        model = models.build(arch, 10, source.mean, source.std)
    return model.to(rt.device, memory_format=torch.channels_last) if channels_last else model


def bench_loader(rt: Runtime, args: argparse.Namespace) -> list[tuple[str, dict[str, float]]]:
    data, (x, y, *_) = make_data(rt, 5120, 256, 256)
    index = data.splits.train
    rows = []
    for name, train in (("loader, crop and flip", True), ("loader, evaluation", False)):
        batches = data.loader("train", rt, "benchmark") if train else data.loader("train")
        theirs = plain.loader(x[index], y[index], train=train)
        found = interleaved(lambda b=batches: [None for _ in b], lambda t=theirs: [None for _ in t], args)
        rows.append((name, found[""]))
    return rows


def bench_step(rt: Runtime, args: argparse.Namespace) -> list[tuple[str, dict[str, float]]]:
    data, (x, y, *_) = make_data(rt, 1422, 256, 128)  # five batches
    index = data.splits.train
    model, twin = make_model(rt, args.arch, True), make_model(rt, args.arch, False)
    opt = Descent(model, ScheduleConfig(), lr=0.01, epochs=1, rt=rt, purpose="benchmark")
    other = torch.optim.SGD(twin.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    batches, theirs = data.loader("train", rt, "benchmark"), plain.loader(x[index], y[index], train=True)
    found = interleaved(lambda: opt.epoch(batches, cross_entropy), lambda: plain.train_epoch(twin, theirs, other), args)
    return [(f"training step {args.arch}, batch 256", found[""])]


def bench_evaluation(rt: Runtime, args: argparse.Namespace) -> list[tuple[str, dict[str, float]]]:
    """One unlearned model of CIFAR-10's size times ``scale``: accuracies and membership, as the published mains do them."""
    size = int(1000 * args.scale)
    data, (x, y, x_test, y_test) = make_data(rt, 50 * size, 10 * size, 3 * size)
    s = data.splits
    model, twin = make_model(rt, args.arch, True), make_model(rt, args.arch, False)
    opt = Descent(model, ScheduleConfig(), lr=0.01, epochs=1, rt=rt, purpose="benchmark")
    for _ in range(20):  # batch norm must have seen data: untrained statistics give logits no real model has
        opt.epoch(data.loader("forget", rt, "benchmark"), cross_entropy)
    twin.load_state_dict(model.state_dict())
    groups = [s.train[i * size : (i + 1) * size] for i in range(3)]

    def ours(rule: str) -> object:
        arrays = {}
        for part in ("retain", "forget", "val", "test"):
            logits, labels = predict(model, data.loader(part), rt)
            arrays |= {f"{part}_logits": logits.numpy(), f"{part}_labels": labels.numpy()}
        # the plain way has one draw; a support vector machine on ten is no matter of speed
        return summarise(arrays, (), EvaluationConfig(mia=rule, mia_fits=1), 0)

    def theirs() -> object:
        for index in (s.retain, s.forget, s.val, *groups):
            plain.accuracy(twin, plain.loader(x[index], y[index]))
        plain.accuracy(twin, plain.loader(x_test, y_test))
        member = plain.probabilities(twin, plain.loader(x[s.retain[: 10 * size]], y[s.retain[: 10 * size]]))
        nonmember = plain.probabilities(twin, plain.loader(x_test, y_test))
        target = plain.probabilities(twin, plain.loader(x[s.forget], y[s.forget]))
        return plain.attack(*(feature_rows(*part) for part in (target, member, nonmember)))

    found = interleaved({rule: lambda r=rule: ours(r) for rule in ("threshold", "svc")}, theirs, args)
    return [(f"evaluation {args.arch}, {60 * size} images, --mia {rule}", row) for rule, row in found.items()]


def feature_rows(probs: torch.Tensor, labels: torch.Tensor) -> list[np.ndarray]:
    found = mia.features(mia.Outputs(probs.clamp_min(1e-12).log(), labels))
    return [np.asarray(value, np.float64).reshape(len(labels), -1) for value in found.values()]


def bench_attack(rt: Runtime, args: argparse.Namespace) -> list[tuple[str, dict[str, float]]]:
    """Five features; members somewhat more confident than non-members, largely overlapping, as after real training."""
    draw = torch.Generator().manual_seed(0)

    def outputs(count: int, gain: float) -> list[np.ndarray]:
        labels = torch.randint(10, (count,), generator=draw)
        logits = torch.randn(count, 10, generator=draw) * 1.5
        logits[torch.arange(count), labels] += gain + 2.5 * torch.randn(count, generator=draw)
        return feature_rows(logits.softmax(1), labels)

    member, nonmember, target = outputs(args.rows, 6.0), outputs(args.rows, 4.5), outputs(1000, 5.0)
    inside = np.repeat([True, False], args.rows)
    shares: dict[str, list[float]] = {}

    def ours() -> None:
        fits = [svc.fit(np.concatenate([m, n]), inside) for m, n in zip(member, nonmember, strict=True)]
        shares["ours"] = [float(1 - fit.decide(t).mean()) for fit, t in zip(fits, target, strict=True)]
        shares["solvers"] = [fit.solver for fit in fits]

    def theirs() -> None:
        shares["plain"] = plain.attack(target, member, nonmember)

    found = interleaved(ours, theirs, args)[""]
    if args.side is not None:
        return []
    found["largest difference of a share"] = max(abs(a - b) for a, b in zip(shares["ours"], shares["plain"], strict=True))
    found["solvers"] = ", ".join(shares["solvers"])  # type: ignore[assignment]
    return [(f"RBF-SVC attack, five features, {args.rows} + {args.rows} rows", found)]


BENCHES = {"loader": bench_loader, "step": bench_step, "evaluation": bench_evaluation, "attack": bench_attack,
           "pool": pool.bench, **second_order.benches(interleaved, make_data, make_model)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=[*BENCHES, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2000, help="members, and as many non-members, of the attack")
    parser.add_argument("--scale", type=float, default=0.1, help="share of CIFAR-10's size, of the evaluation")
    parser.add_argument("--arch", default="resnet20s")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--side", choices=("ours", "plain"), help="do one side once and print the process's peak MiB")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rt = Runtime(RuntimeConfig(device="cpu", progress=False))
    if args.side is not None:
        BENCHES[args.what[0]](rt, args)
        # not getrusage: its maximum counts the parent's memory before exec
        high = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(int(high.split()[1]) / 1024)
        return
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, torch {torch.__version__}, "
          f"{args.rounds} rounds, medians; load average {os.getloadavg()[0]:.1f}", flush=True)
    for what in args.what or BENCHES:
        for name, found in BENCHES[what](rt, args):
            numbers = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())
            print(f"{name}: {numbers}", flush=True)
        if what == "pool":  # its processes' memory is not this one's
            continue
        ours, theirs = (peak_of(what, side, args) for side in ("ours", "plain"))
        print(f"{what}: peak memory of a process {ours:.0f} MiB, plain {theirs:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
