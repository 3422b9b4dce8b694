"""Evaluation of a model, its membership attack, and the distribution of forgotten points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Case, Context, row
from benchmarks.inputs import make_data, make_model, settled
from evaluation import distribution, mia, svc
from evaluation.accuracy import EvaluationConfig, summarise
from trainer import predict_all


@row("evaluation", "accuracies of all parts and the membership attack, a tenth of CIFAR-10's size", seconds=300)
def evaluation(c: Context) -> Iterator[Case]:
    size = c.size(100, 4)  # a hundredth of the training images
    arch, read = c.arch("resnet20s"), {}

    def parts() -> Any:
        data, arrays = make_data(c.rt, 50 * size, 10 * size, 3 * size)
        model = make_model(c.rt, arch, channels_last=False)
        model.load_state_dict(settled(c.rt, arch, c.size(20, 1)))
        return data, arrays, model

    def ours(rule: str) -> Callable[[], Any]:
        data, _, model = parts()
        model.to(memory_format=torch.channels_last)

        def run() -> Any:
            before = c.rt.tally.images
            names = ("retain", "forget", "val", "test")
            found = predict_all(model, [data.loader(part) for part in names], c.rt)
            read["images"] = c.rt.tally.images - before
            arrays = {}
            for part, (logits, labels) in zip(names, found, strict=True):
                arrays |= {f"{part}_logits": logits.cpu().numpy(), f"{part}_labels": labels.cpu().numpy()}
            # the plain way has one draw; a support vector machine on ten is no matter of speed
            return summarise(arrays, (), EvaluationConfig(mia=rule, mia_fits=1), 0)

        return run

    def theirs() -> Callable[[], Any]:
        from benchmarks import plain

        data, (x, y, *test), model = parts()
        s = data.splits
        groups = [s.train[i * size : (i + 1) * size] for i in range(3)]
        return lambda: plain.evaluate(model, x, y, {"retain": s.retain, "forget": s.forget, "val": s.val}, groups, tuple(test))

    yield Case(f"evaluation {arch}", {"ours": lambda: ours("threshold"), "--mia svc": lambda: ours("svc"), "plain": theirs},
               check=lambda _: {"images predicted": read["images"], "images of the parts": 60 * size})


@row("attack", "five RBF support vector machines on members and non-members, 2,000 and 10,000 of each", seconds=430)
def attack(c: Context) -> Iterator[Case]:
    """Members somewhat more confident than non-members, largely overlapping, as after real training."""
    for count in (c.size(2000, 60), c.size(10_000, 80)):
        draw = torch.Generator().manual_seed(0)

        def outputs(count: int, gain: float, draw: torch.Generator = draw) -> list[np.ndarray]:
            labels = torch.randint(10, (count,), generator=draw)
            logits = torch.randn(count, 10, generator=draw) * 1.5
            logits[torch.arange(count), labels] += gain + 2.5 * torch.randn(count, generator=draw)
            found = mia.features(mia.Outputs(logits, labels))
            return [np.asarray(value.cpu(), np.float64).reshape(len(labels), -1) for value in found.values()]

        member, nonmember, target = outputs(count, 6.0), outputs(count, 4.5), outputs(c.size(1000, 40), 5.0)
        inside, solvers = np.repeat([True, False], count), []

        def ours(member: Any = member, nonmember: Any = nonmember, target: Any = target, inside: Any = inside,
                 solvers: list = solvers) -> list[float]:
            fits = [svc.fit(np.concatenate([m, n]), inside) for m, n in zip(member, nonmember, strict=True)]
            solvers[:] = sorted({fit.solver for fit in fits})
            return [float(1 - fit.decide(t).mean()) for fit, t in zip(fits, target, strict=True)]

        def theirs(member: Any = member, nonmember: Any = nonmember, target: Any = target) -> Callable[[], list[float]]:
            from benchmarks import plain

            return lambda: plain.attack(target, member, nonmember)

        def apart(answers: dict[str, Any], solvers: list = solvers) -> dict[str, Any]:
            pairs = zip(answers["ours"], answers["plain"], strict=True)
            return {"largest difference": max(abs(a - b) for a, b in pairs), "solvers": " + ".join(solvers)}

        yield Case(f"SVC attack, {count:,} + {count:,} rows", {"ours": lambda o=ours: o, "plain": theirs}, check=apart)


@row("m_entropy", "the released modified entropy of 10,000 outputs", seconds=40)
def m_entropy(c: Context) -> Iterator[Case]:
    count = c.size(10_000, 50)
    draw = torch.Generator().manual_seed(0)
    probs = (3 * torch.randn(count, 10, generator=draw, dtype=torch.float64)).softmax(1)
    labels = torch.randint(10, (count,), generator=draw)

    def theirs() -> Callable[[], Any]:
        from benchmarks import plain

        return lambda: plain.m_entropy(probs.numpy(), labels.numpy())  # host arrays throughout

    yield Case(f"published m_entropy, {count:,} rows", {"ours": lambda: lambda: mia.published_m_entropy(probs, labels),
                                                        "plain": theirs},
               check=lambda a: {"largest difference": float(np.abs(a["ours"].cpu().numpy() - a["plain"]).max())})


@row("distribution", "variance, silhouette and overlap of the forgotten points among all others", seconds=120)
def spread(c: Context) -> Iterator[Case]:
    each, classes, width = c.size(300, 24), 15, c.size(512, 8)
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), each)
    points = (draw.normal(size=(classes, width))[labels] * 0.3 + draw.normal(size=(len(labels), width))).astype(np.float32)
    ours = np.where(labels == 0, distribution.FORGOTTEN, labels)

    def theirs() -> Callable[[], Any]:
        from benchmarks import plain

        return lambda: plain.distribution(points.astype(np.float64), labels, 0)

    def apart(answers: dict[str, Any]) -> dict[str, Any]:
        a, b = answers["ours"], answers["plain"]
        return {f"difference of {name}": abs(a[name] - b[name]) for name in ("variance", "silhouette_all")}

    yield Case(f"distribution, {len(labels):,} points of {width} features",
               {"ours": lambda: lambda: distribution.in_space(points, ours), "plain": theirs}, check=apart)
