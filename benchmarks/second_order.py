"""Per-example gradients, Fisher information and influence against the loops of published code, with the same answers.

    python -m benchmarks influence woodfisher fisher fisher_new --rounds 1

The plain sides: one example at a time through the model (influence), one rank after another (the textbook WoodFisher),
one autograd call an example through the graph of a batch (fisher), one backward pass for each class (fisher_new).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import plain
from unlearn import influence, persample
from utils import Runtime

Rows = list[tuple[str, dict[str, float]]]
LOOP, RANKS, GRAPH, SHARE, CLASSES = 400, 200, 128, 32, 64  # examples
COUNT, DAMPING = 1000, 1.0


def one_by_one(model: nn.Module, batches: Any) -> Any:
    """The gradient of every batch's loss, as one vector."""
    for x, y in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        yield torch.cat([p.grad.flatten() for p in model.parameters()])


def recursion(model: nn.Module, batches: Any, v: Tensor) -> Tensor:
    """The published "WoodFisher", with whole vectors."""
    k, o = v.clone(), None
    for g in one_by_one(model, batches):
        if o is None:
            o = g.clone()
            continue
        k = k - torch.dot(k, g) / (COUNT + torch.dot(o, g)) * o
        o = o - torch.dot(o, g) / (COUNT + torch.dot(o, g)) * o
    return k


def ranks(rows: Tensor, v: Tensor, together: bool = False) -> Tensor:
    """Textbook WoodFisher: with o_i = F_(i-1)^-1 g_i, F_i^-1 u = F_(i-1)^-1 u - o_i (o_i.u) / (n + g_i.o_i).

    One rank after another, as it is written down; or, ``together``, all earlier ranks of a sample by two matrix products.
    In float32, as here, it rounds: of what it adds to v about 1e-2, or ``together`` 1e-3, is off the float64 solution, where
    the closed form is off by 2e-5 (resnet20s, 200 examples); the differences that the benchmark prints are its own.
    """
    n = len(rows)
    kept, below = torch.empty_like(rows), torch.empty(n)

    def solve(u: Tensor, i: int) -> Tensor:
        if together:
            return u / DAMPING - kept[:i].T @ (kept[:i] @ u / below[:i])
        found = u / DAMPING
        for o, b in zip(kept[:i], below[:i], strict=True):
            found = found - o * (torch.dot(o, u) / b)
        return found

    for i, g in enumerate(rows):
        kept[i] = solve(g, i)
        below[i] = n + torch.dot(g, kept[i])
    return solve(v, n)


def closed_form(rows: Tensor, v: Tensor) -> Tensor:
    """The same from the same gradients, by the Gram matrix."""
    share = influence.coefficients(persample.inner(rows, rows), (rows @ v).double()[:, None], DAMPING)
    return (v - rows.T @ share.float()) / DAMPING


def diagonal(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Mean square of the gradients of the first examples of a batch, one call each through the batch's graph."""
    likelihood = nn.functional.log_softmax(model(x), 1)[torch.arange(len(y)), y]
    total = [torch.zeros_like(p) for p in model.parameters()]
    for value in likelihood[:SHARE]:
        for t, g in zip(total, torch.autograd.grad(value, list(model.parameters()), retain_graph=True), strict=True):
            t += g.square() / SHARE
    return total


def class_loop(model: nn.Module, batches: Any) -> list[Tensor]:
    """Squared batch-mean gradients for each class, weighted with its mean probability."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for x, y in batches:
        out = model(x)
        p = out.softmax(1).detach()
        for c in range(p.shape[1]):
            model.zero_grad()
            nn.functional.cross_entropy(out, torch.full_like(y, c)).backward(retain_graph=True)
            for t, q in zip(total, model.parameters(), strict=True):
                t += p[:, c].mean() * q.grad.square()
    return [t / len(batches) for t in total]


def gap(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def benches(interleaved: Callable, make_data: Callable, make_model: Callable) -> dict[str, Callable[..., Rows]]:
    """The benchmarks by name, on the shared harness."""

    def setting(rt: Runtime, args: argparse.Namespace, count: int) -> tuple:
        data, (x, y, *_) = make_data(rt, 1422, 256, 128)
        index = data.splits.retain[:count]
        model, twin = (make_model(rt, args.arch, channels_last).eval() for channels_last in (True, False))
        v = torch.randn(sum(p.numel() for p in model.parameters()), generator=torch.Generator().manual_seed(0)) * 0.01
        return data.subset(index), x[index], y[index], model, twin, v

    def measured(name: str, ours: Callable, theirs: Callable, base: Tensor | float, args: argparse.Namespace) -> Rows:
        """``base`` is taken away from both answers before they are compared: what the method adds is what counts."""
        answers: dict[str, Tensor] = {}
        sides = [lambda key=key, side=side: answers.update({key: side()}) for key, side in (("a", ours), ("b", theirs))]
        found = interleaved(*sides, args)[""]
        if args.side is None:
            found["relative difference"] = gap(answers["a"] - base, answers["b"] - base)
        return [(name, found)]

    def bench_influence(rt: Runtime, args: argparse.Namespace) -> Rows:
        samples, x, y, model, twin, v = setting(rt, args, LOOP)
        singles = plain.loader(x, y, batch_size=1)
        return measured(f"published influence recursion {args.arch}, {LOOP} examples",
                        lambda: influence.published_recursion(model, samples, v.double(), COUNT),
                        lambda: recursion(twin, singles, v), 0.0, args)

    def bench_woodfisher(rt: Runtime, args: argparse.Namespace) -> Rows:
        samples, x, y, model, twin, v = setting(rt, args, RANKS)
        rows, singles = persample.gradients(model, samples), plain.loader(x, y, batch_size=1)
        name, kept = f"textbook WoodFisher {args.arch}, {RANKS} examples", v / DAMPING
        found = measured(name, lambda: closed_form(rows, v), lambda: ranks(rows, v), kept, args)
        if args.side is None:
            found += measured(name + ", plain by matrix products", lambda: closed_form(rows, v),
                              lambda: ranks(rows, v, together=True), kept, args)
            found += measured(name + ", gradients included", lambda: closed_form(persample.gradients(model, samples), v),
                              lambda: ranks(torch.stack(list(one_by_one(twin, singles))), v), kept, args)
        return found

    def bench_fisher(rt: Runtime, args: argparse.Namespace) -> Rows:
        samples, x, y, model, twin, _ = setting(rt, args, GRAPH)
        images, labels = (next(iter(plain.loader(x, y, batch_size=GRAPH)))[i] for i in (0, 1))
        part = persample.piece(samples, 0, SHARE)
        return measured(f"per-example Fisher diagonal {args.arch}, {SHARE} examples of a batch of {GRAPH}",
                        lambda: persample.flat(persample.squared(model, part).values()),
                        lambda: persample.flat(diagonal(twin, images, labels)), 0.0, args)

    def bench_fisher_new(rt: Runtime, args: argparse.Namespace) -> Rows:
        samples, x, y, model, twin, _ = setting(rt, args, CLASSES)
        samples.batch_size = 32
        batches = plain.loader(x, y, batch_size=32)
        return measured(f"published fisher_new {args.arch}, {CLASSES} examples",
                        lambda: persample.flat(persample.squared_means(model, samples, persample.every_label).values()),
                        lambda: persample.flat(class_loop(twin, batches)), 0.0, args)

    return {"influence": bench_influence, "woodfisher": bench_woodfisher, "fisher": bench_fisher,
            "fisher_new": bench_fisher_new}
