"""SynFlow, pruning by magnitude, and training under a pruning mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.harness import Case, Context, row
from benchmarks.inputs import make_model
from benchmarks.training import RATE, sgd, whole
from pruner import magnitude, synflow
from trainer import Descent, ScheduleConfig, cross_entropy

SHARE = 0.05  # of the weights that stay


@row("synflow", "rounds of SynFlow on resnet18 to 95 %", seconds=60)
def flow(c: Context) -> Iterator[Case]:
    arch, rounds = c.arch("resnet18"), c.size(5, 2)

    def ours() -> Callable[[], Any]:
        model = make_model(c.rt, arch)
        return lambda: list(synflow.prune(model, SHARE, rounds, (3, 32, 32), []).values())

    def theirs() -> Callable[[], Any]:
        from benchmarks import plain

        model = make_model(c.rt, arch, channels_last=False)
        return lambda: plain.synflow(model, SHARE, rounds)

    def apart(answers: dict[str, Any]) -> dict[str, Any]:
        pairs = list(zip(answers["ours"], answers["plain"], strict=True))
        return {"weights chosen otherwise": sum(int((a.cpu() != (b > 0).cpu()).sum()) for a, b in pairs)}

    yield Case(f"SynFlow {arch}, {rounds} rounds", {"ours": ours, "plain": theirs}, check=apart)


@row("omp", "a prune by magnitude, and training under its mask", seconds=90)
def omp(c: Context) -> Iterator[Case]:
    arch, small, images, batch = c.arch("resnet18"), c.arch("resnet20s"), c.size(1280, 40), c.size(256, 20)

    def our_prune() -> Callable[[], Any]:
        model = make_model(c.rt, arch)

        def run() -> list[int]:
            free = magnitude.keep_largest(magnitude.magnitudes(magnitude.prunable(model)), 1 - SHARE)
            magnitude.apply_mask(model, free)
            return [int(part.sum()) for part in free.values()]

        return run

    def plain_prune() -> Callable[[], Any]:
        from benchmarks import plain

        model = make_model(c.rt, arch, channels_last=False)

        def run() -> list[int]:
            plain.prune_globally(model, 1 - SHARE)
            kept = [int(layer.weight_mask.sum()) for layer in plain.convolutions(model)]
            plain.make_permanent(model)
            return kept

        return run

    def our_training() -> Callable[[], Any]:
        data, _ = whole(c, small, images, batch)
        model = make_model(c.rt, small)
        free = magnitude.keep_largest(magnitude.magnitudes(magnitude.prunable(model)), 1 - SHARE)
        magnitude.apply_mask(model, free)
        opt = Descent(model, ScheduleConfig(), lr=RATE, epochs=1, rt=c.rt, purpose="benchmark", mask=free)
        batches = data.loader("train", c.rt, "benchmark")
        return lambda: opt.epoch(batches, cross_entropy)

    def plain_training() -> Callable[[], Any]:
        from benchmarks import plain

        _, (x, y) = whole(c, small, images, batch)
        model = make_model(c.rt, small, channels_last=False)
        plain.prune_globally(model, 1 - SHARE)
        optimizer, batches = sgd(model), plain.loader(x, y, batch, train=True)
        return lambda: plain.train_epoch(model, batches, optimizer)

    def apart(answers: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(answers["ours"], answers["plain"], strict=True)
        return {"layers that keep another number": sum(a != b for a, b in pairs)}

    yield Case(f"prune {arch} by magnitude", {"ours": our_prune, "plain": plain_prune}, check=apart)
    yield Case(f"epoch of a pruned {small}", {"ours": our_training, "plain": plain_training}, work=images, unit="img/s")
