"""Per-example gradients, Fisher information and influence against the loops of published code, with the same answers.

    python -m benchmarks influence woodfisher fisher fisher_new --rounds 1

The plain sides: one example at a time through the model (influence), one rank after another (the textbook WoodFisher),
one autograd call an example through the graph of a batch (fisher), one backward pass for each class (fisher_new).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Case, Context, row
from benchmarks.inputs import make_data, make_model
from unlearn import influence, persample

ARCH = "resnet20s"
LOOP, RANKS, GRAPH, SHARE, CLASSES = (400, 12), (200, 10), (128, 8), (32, 4), (64, 8)  # examples, and at toy size
COUNT, DAMPING = 1000, 1.0
EXACT = "off float64"  # ours; a plain way in float32 rounds too


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
    kept, below = torch.empty_like(rows), torch.empty(n, device=rows.device)

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


def solved(rows: Tensor, v: Tensor) -> Tensor:
    """(damping I + G^T G / n)^-1 v in float64, by a dense solve over the examples."""
    g, u, n = rows.double(), v.double(), len(rows)
    inside = n * DAMPING * torch.eye(n, dtype=g.dtype, device=g.device) + g @ g.T
    return (u - g.T @ torch.linalg.solve(inside, g @ u)) / DAMPING


def diagonal(model: nn.Module, x: Tensor, y: Tensor, share: int) -> list[Tensor]:
    """Mean square of the gradients of the first examples of a batch, one call each through the batch's graph."""
    likelihood = nn.functional.log_softmax(model(x), 1)[torch.arange(len(y), device=y.device), y]
    total = [torch.zeros_like(p) for p in model.parameters()]
    for value in likelihood[:share]:
        for t, g in zip(total, torch.autograd.grad(value, list(model.parameters()), retain_graph=True), strict=True):
            t += g.square() / share
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


def setting(c: Context, count: int) -> tuple[Any, Any, Any]:
    """A loader of so many retained examples, the same as arrays, and a vector of the model's size."""
    data, (x, y, *_) = make_data(c.rt, c.size(1422, 100), 16, c.size(128, 10))
    index = data.splits.retain[:count]
    size = sum(p.numel() for p in make_model(c.rt, c.arch(ARCH)).parameters())
    v = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 0.01  # on the host, so that every device has the same
    return data.subset(index), (x[index], y[index]), v.to(c.rt.device)


def ours_and_plain(c: Context) -> tuple[nn.Module, nn.Module]:
    ours, theirs = (make_model(c.rt, c.arch(ARCH), channels_last).eval() for channels_last in (True, False))
    return ours, theirs


def singles(x: Any, y: Any, model: nn.Module, batch_size: int = 1) -> Any:
    """Batches of the plain loader on the model's device, as often as they are asked for."""
    from benchmarks import plain

    batches = plain.loader(x, y, batch_size=batch_size)

    class Again:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(plain.moved(batches, model))

        def __len__(self) -> int:
            return len(batches)

    return Again()


def gap(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def apart(base: Tensor | float = 0.0) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """``base`` is taken away from both answers before they are compared: what the method adds is what counts."""
    return lambda answers: {"relative difference": gap(answers["ours"] - base, answers["plain"] - base)}


@row("influence", "the published influence recursion on 400 examples, on one thread too", seconds=80)
def bench_influence(c: Context) -> Iterator[Case]:
    count = c.size(*LOOP)
    samples, arrays, v = setting(c, count)
    ours, theirs = ours_and_plain(c)
    sides = {"ours": lambda: lambda: influence.published_recursion(ours, samples, v.double(), COUNT),
             "plain": lambda: lambda b=singles(*arrays, theirs): recursion(theirs, b, v)}
    for told, threads in (("", None), (", one thread", 1)):
        yield Case(f"influence recursion {c.arch(ARCH)}, {count} examples{told}", sides, check=apart(), threads=threads)


@row("woodfisher", "textbook WoodFisher in closed form against the recursion over 200 examples", seconds=60)
def bench_woodfisher(c: Context) -> Iterator[Case]:
    count = c.size(*RANKS)
    samples, arrays, v = setting(c, count)
    ours, theirs = ours_and_plain(c)
    kept, name = v / DAMPING, f"textbook WoodFisher {c.arch(ARCH)}, {count} examples"

    def given(solve: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        rows = persample.gradients(ours, samples)
        return lambda: solve(rows, v)

    def checked(answers: dict[str, Any]) -> dict[str, Any]:
        exact = solved(persample.gradients(ours, samples), v)
        return apart(kept)(answers) | {EXACT: gap(answers["ours"] - kept, exact - kept)}

    mine = {"ours": lambda: given(closed_form)}
    yield Case(name, mine | {"plain": lambda: given(ranks)}, check=checked)
    yield Case(f"{name}, plain by matrix products", mine | {
        "plain": lambda: given(lambda rows, v: ranks(rows, v, together=True))}, check=apart(kept))
    yield Case(f"{name}, gradients included", {
        "ours": lambda: lambda: closed_form(persample.gradients(ours, samples), v),
        "plain": lambda: lambda b=singles(*arrays, theirs): ranks(torch.stack(list(one_by_one(theirs, b))), v)},
        check=apart(kept))


@row("fisher", "squared gradients of each example of a batch of 128", seconds=100)
def bench_fisher(c: Context) -> Iterator[Case]:
    graph, share = c.size(*GRAPH), c.size(*SHARE)
    samples, arrays, _ = setting(c, graph)
    ours, theirs = ours_and_plain(c)
    part = persample.piece(samples, 0, share)

    def plain_side() -> Callable[[], Tensor]:
        images, labels = next(iter(singles(*arrays, theirs, batch_size=graph)))
        return lambda: persample.flat(diagonal(theirs, images, labels, share))

    def checked(answers: dict[str, Any]) -> dict[str, Any]:
        batches = [(x.double(), y) for x, y in singles(*(values[:share] for values in arrays), theirs)]
        exact = torch.stack([g.square() for g in one_by_one(copy.deepcopy(theirs).double(), batches)]).mean(0)
        return apart()(answers) | {EXACT: gap(answers["ours"], exact)}

    yield Case(f"per-example Fisher {c.arch(ARCH)}, {share} of a batch of {graph}",
               {"ours": lambda: lambda: persample.flat(persample.squared(ours, part).values()), "plain": plain_side},
               check=checked)


@row("fisher_new", "one backward pass for each class, as published", seconds=20)
def bench_fisher_new(c: Context) -> Iterator[Case]:
    count = c.size(*CLASSES)
    samples, arrays, _ = setting(c, count)
    ours, theirs = ours_and_plain(c)
    samples.batch_size = 32

    def checked(answers: dict[str, Any]) -> dict[str, Any]:
        batches = [(x.double(), y) for x, y in singles(*arrays, theirs, batch_size=32)]
        exact = persample.flat(class_loop(copy.deepcopy(theirs).double(), batches))
        return apart()(answers) | {EXACT: gap(answers["ours"], exact)}

    yield Case(f"published fisher_new {c.arch(ARCH)}, {count} examples", {
        "ours": lambda: lambda: persample.flat(persample.squared_means(ours, samples, persample.every_label).values()),
        "plain": lambda: lambda b=singles(*arrays, theirs, batch_size=32): persample.flat(class_loop(theirs, b))},
        check=checked)
