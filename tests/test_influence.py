"""Influence unlearning: three solvers against an explicit inverse in float64, the published recursion to the letter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import equal, make_data, snapshot, tiny_net
from looped import ExactNet, rows_of
from torch.nn import functional as F

from dataset import Data
from pruner.magnitude import apply_mask
from pruner.mask import both
from unlearn import METHODS, Task, persample
from unlearn.influence import OF_SOLVERS, SOLVERS, fisher_product, published_recursion, top_eigenvalue
from utils import BadInput, Mask, Runtime

METHOD = METHODS["wfisher"]


@pytest.fixture
def problem(rt: Runtime) -> tuple[Task, Any, torch.Tensor, torch.Tensor]:
    """A model of 131 parameters in float64, 42 examples, their gradients, and a right side; new in each run's seed."""
    data, model = make_data(rt, batch_size=8), ExactNet()
    samples = data.subset(data.index("retain"))
    v = torch.randn(131, dtype=torch.float64, generator=torch.Generator().manual_seed(12))
    return Task(METHOD, model, data, rt, None, None, "strict"), samples, rows_of(model, samples), v


def settings(solver: str, **values: Any) -> Any:
    """Of the values those that the solver has a use for."""
    idle = OF_SOLVERS["lissa"] - OF_SOLVERS[solver]
    return METHOD.config(solver=solver, **{name: value for name, value in values.items() if name not in idle})


def loss_of(model: torch.nn.Module, data: Data, part: str) -> float:
    loader = data.loader(part)
    with torch.no_grad():
        return float(F.cross_entropy(torch.cat([model.eval()(batch.x) for batch in loader]), loader.labels))


def damped(rows: torch.Tensor, share: float, top: float) -> torch.Tensor:
    """share top I + G^T G / n, float64 [D, D]."""
    return share * top * torch.eye(rows.shape[1], dtype=torch.float64) + rows.T @ rows / len(rows)


@pytest.mark.parametrize(("solver", "share"), [("woodbury", 1.0), ("woodbury", 1e-3), ("cg", 1.0), ("cg", 1e-3),
                                               ("lissa", 0.1)])
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_solvers_against_an_explicit_inverse(solver: str, share: float, size: float, problem: tuple) -> None:
    """(damping I + G^T G / n)^-1 v within 1e-8 of its length, for a share of the largest eigenvalue as damping.

    Whatever size the gradients have: an absolute damping makes the inverse the identity where they are small.
    """
    task, samples, rows, v = problem
    assert rows.shape == (42, 131)
    for name in ("weight", "bias"):  # outputs, and with them all gradients before the head, shrink
        getattr(task.model.fc, name).data.mul_(size)
    rows = rows_of(task.model, samples)
    found, top = SOLVERS[solver](task, samples, v, settings(solver, damping=share, solver_tolerance=1e-10, lissa_scale=0.6))
    assert top == pytest.approx(float(torch.linalg.eigvalsh(rows.T @ rows / 42)[-1]), rel=1e-4)
    expected = torch.linalg.inv(damped(rows, share, top)) @ v
    assert float((found - expected).norm() / expected.norm()) < 1e-8
    assert float((expected - v / (share * top)).norm() / expected.norm()) > 0.01  # the Fisher matrix matters


def test_top_eigenvalue_of_a_matrix() -> None:
    """Also of one without any, and of one that is no number."""
    values = torch.tensor([0.1, 3.0, 1.0, 2.9], dtype=torch.float64)
    assert top_eigenvalue(lambda x: values * x, torch.ones_like(values), 1e-12, 1000) == pytest.approx(3.0, rel=1e-9)
    assert top_eigenvalue(lambda x: 0 * x, torch.ones_like(values), 1e-9, 10) == 0
    assert math.isnan(top_eigenvalue(lambda x: torch.nan * x, torch.ones_like(values), 1e-9, 10))


@pytest.fixture
def mask() -> Mask:
    """A third of the weights of two tensors is free, and all of the others, which it does not name."""
    stream, weights = torch.Generator().manual_seed(8), dict(ExactNet().named_parameters())
    return {name: torch.rand(weights[name].shape, generator=stream) < 0.3 for name in ("conv.weight", "fc.weight")}


def of_free(mask: Mask) -> torch.Tensor:
    """Indices of the free weights among all 131."""
    every = {name: torch.ones(p.shape) for name, p in ExactNet().named_parameters()} | mask
    return torch.cat([part.flatten().bool() for part in every.values()]).nonzero()[:, 0]


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("budget", [None, 12 * 131 * 8])
def test_masked_weights_are_no_part_of_the_matrix(solver: str, budget: int | None, mask: Mask, problem: tuple,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """The inverse of the free weights' own Fisher matrix; the whole one's inverse, cut to them, is another step."""
    task, samples, rows, v = problem
    task.mask, free = mask, of_free(mask)
    if budget is not None:
        monkeypatch.setattr(persample, "_budget", lambda device: budget)
    v = torch.zeros_like(v).index_copy(0, free, v[free])
    found, top = SOLVERS[solver](task, samples, v, settings(solver, damping=0.1, solver_tolerance=1e-10, lissa_scale=0.6))
    assert top == pytest.approx(float(torch.linalg.eigvalsh(rows[:, free].T @ rows[:, free] / 42)[-1]), rel=1e-4)
    matrix, expected = damped(rows, 0.1, top), torch.zeros(131, dtype=torch.float64)
    expected[free] = torch.linalg.inv(matrix[free][:, free]) @ v[free]
    assert float((found - expected).norm() / expected.norm()) < 1e-8
    cut = (torch.linalg.inv(matrix) @ v)[free]
    assert float((cut - expected[free]).norm() / expected.norm()) > 1e-3


@pytest.mark.parametrize("mode", ["exact", "published"])
def test_step_of_a_masked_model(mode: str, mask: Mask, rt: Runtime) -> None:
    """The whole method against the loop's rows, all of retain as samples: v, the solution and the step on free weights.

    A pruned model in the published mode, where other held weights do take part.
    """
    data, model = make_data(rt), ExactNet()
    if mode == "published":
        apply_mask(model, mask)
    before, free = [snapshot(model)[name] for name, _ in model.named_parameters()], of_free(mask)
    forget, retain = (rows_of(model, data.subset(data.index(part)))[:, free] for part in ("forget", "retain"))
    n_f, n_r = len(forget), len(retain)
    v = forget.sum(0) / (n_f + n_r) - retain.sum(0) * n_f / ((n_f + n_r) * n_r)
    k, o = v.clone(), retain[0].clone()
    for g in retain[1:]:
        k, o = k - (k @ g) / (n_r + o @ g) * o, o - (o @ g) / (n_r + o @ g) * o
    inverse = torch.linalg.inv(damped(retain, 0.2, float(torch.linalg.eigvalsh(retain.T @ retain / n_r)[-1])))
    expected = torch.cat([p.flatten() for p in before]).index_add(0, free, 0.5 * (k if mode == "published" else inverse @ v))
    how = dict(damping=0.2, step_limit=100.0) if mode == "exact" else dict(wfisher_mode=mode)
    METHOD.apply(model, data, METHOD.config(alpha=0.5, fisher_samples=n_r, **how), rt, None, mask)
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in model.parameters()]), expected, rtol=1e-8, atol=1e-10)


def test_published_step_is_cut_to_the_salient_weights(mask: Mask, rt: Runtime) -> None:
    """The step of the whole model with a saliency mask on what comes out; pruned weights are left out from the start."""
    pruned = {"conv.weight": mask["conv.weight"]}
    found = []
    for held in (pruned, both(pruned, {"fc.weight": mask["fc.weight"]})):
        model = ExactNet()
        apply_mask(model, pruned)
        before = snapshot(model)
        METHOD.apply(model, make_data(rt), METHOD.config(alpha=0.5, wfisher_mode="published"), rt, None, held)
        found.append({name: value - before[name] for name, value in snapshot(model).items()})
    whole, salient = found
    assert bool(whole["fc.weight"][~mask["fc.weight"]].any())
    for name, step in salient.items():
        expected = whole[name] * mask[name] if name == "fc.weight" else whole[name]
        torch.testing.assert_close(step, expected, rtol=1e-10, atol=1e-14)


def test_lissa_is_its_series(problem: tuple) -> None:
    """By an explicit recursion of as many steps as the tolerance takes."""
    task, samples, rows, v = problem
    found, top = SOLVERS["lissa"](task, samples, v, settings("lissa", damping=0.3, lissa_scale=2.0, solver_tolerance=0.01))
    matrix, scale, x, steps = damped(rows, 0.3, top), 2 * 1.3 * top, v.clone(), 0
    while float((v - matrix @ x / scale).norm()) > 0.01 * float(v.norm()):
        x, steps = v + x - matrix @ x / scale, steps + 1
    torch.testing.assert_close(found, x / scale, rtol=1e-9, atol=1e-12)
    assert steps > 5


def test_fisher_product(problem: tuple) -> None:
    task, samples, rows, v = problem
    found = fisher_product(task.model, samples, v, 0.7)
    torch.testing.assert_close(found, 0.7 * v + rows.T @ (rows @ v) / 42, rtol=1e-11, atol=1e-12)


def test_small_memory_gives_the_same_solution(problem: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of 12 examples' gradients: blocks are computed again, the solution stays within 1e-7."""
    task, samples, _, v = problem
    cfg = METHOD.config(damping=0.1)
    plenty, _ = SOLVERS["woodbury"](task, samples, v, cfg)
    monkeypatch.setattr(persample, "_budget", lambda device: 12 * 131 * 8)
    torch.testing.assert_close(SOLVERS["woodbury"](task, samples, v, cfg)[0], plenty, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("count", [3, 20, 1000])
def test_published_recursion_to_the_letter(count: int, problem: tuple) -> None:
    """One example at a time with whole vectors, o starting as the first one's gradient; and it is v + c g_1."""
    task, samples, rows, v = problem
    k, o = v.clone(), rows[0].clone()
    for g in rows[1:]:
        k = k - (k @ g) / (count + o @ g) * o
        o = o - (o @ g) / (count + o @ g) * o
    found = published_recursion(task.model, samples, v, count)
    torch.testing.assert_close(found, k, rtol=1e-10, atol=1e-12)
    assert abs(float(F.cosine_similarity(found - v, rows[0], dim=0))) == pytest.approx(1, abs=1e-9)


def test_published_mode_takes_the_first_examples(rt: Runtime) -> None:
    """--fisher_samples + 2 of retain in the data set's order: others may change, these may not."""
    def step(changed: int) -> dict[str, torch.Tensor]:
        data, model = make_data(rt), ExactNet()
        task = Task(METHOD, model, data, rt, None, None, "strict")
        retain = task.in_order("retain")
        chosen = persample.piece(retain, 0, 6)
        of_first = persample.weighted(model, retain)  # any right side, of the unchanged images
        data.images.x[retain.index[changed]] = 255 - data.images.x[retain.index[changed]]
        return {"": published_recursion(model, chosen, of_first, 4)}

    same, inside, outside = step(6), step(5), step(7)
    assert equal(same, outside) and not equal(same, inside)


def test_step_is_away_from_the_forget_set_and_stays_with_retain(rt: Runtime) -> None:
    """A short step raises the forget loss; its size is alpha times the perturbation, up to the limit."""
    data = make_data(rt)
    before, moves = loss_of(tiny_net(rt), data, "forget"), []
    for alpha, limit in ((0.5, 10.0), (1.0, 10.0), (1.0, 0.01)):
        model = tiny_net(rt)
        start = snapshot(model)
        METHOD.apply(model, data, METHOD.config(alpha=alpha, damping=0.1, step_limit=limit), rt)
        moves.append(torch.cat([(p.detach() - start[name]).flatten() for name, p in model.named_parameters()]))
        assert loss_of(model, data, "forget") > before + 1e-4
    torch.testing.assert_close(moves[1], 2 * moves[0], rtol=1e-3, atol=1e-6)
    weights = torch.cat([p.detach().flatten() for p in tiny_net(rt).parameters()])
    assert float(moves[2].norm()) == pytest.approx(0.01 * float(weights.norm()), rel=1e-3)
    assert float(F.cosine_similarity(moves[2], moves[1], dim=0)) > 0.999


def test_samples_are_drawn_without_repetition_from_all_of_retain(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first in order, which a sorted data set would have of one class; more than there are means all."""
    seen, real = [], persample.gram
    monkeypatch.setattr(persample, "gram", lambda model, loader, **rest: seen.append(loader.index.tolist())
                        or real(model, loader, **rest))
    data = make_data(rt)
    for count in (20, 20, 500):
        METHOD.apply(tiny_net(rt), data, METHOD.config(fisher_samples=count), rt)
    retain = data.index("retain").tolist()
    assert seen[0] == seen[1] and len(set(seen[0])) == 20 and set(seen[0]) <= set(retain)
    assert sorted(seen[0]) != retain[:20] and sorted(seen[2]) == retain


@pytest.mark.parametrize(("values", "why"), [
    (dict(solver="cg", solver_steps=2, solver_tolerance=1e-6, damping=0.01), "cg leaves .* take more"),
    (dict(solver="lissa"), r"lissa leaves .* take more --solver_steps \(several times scale / damping, 1001\)")])
def test_solver_that_does_not_arrive_is_refused(values: dict[str, Any], why: str, rt: Runtime) -> None:
    model = tiny_net(rt)
    before = snapshot(model)
    with pytest.raises(BadInput, match=why) as raised:
        METHOD.apply(model, make_data(rt), METHOD.config(**values), rt)
    assert "\n" not in str(raised.value) and equal(snapshot(model), before)


@pytest.mark.parametrize(("values", "where"), [
    (dict(wfisher_mode="published", damping=2.0), "--wfisher_mode published"),
    (dict(wfisher_mode="published", step_limit=2.0), "--wfisher_mode published"),
    (dict(wfisher_mode="published", solver="cg"), "--wfisher_mode published"),
    (dict(wfisher_mode="published", solver_steps=5), "--wfisher_mode published"),
    (dict(solver_tolerance=0.1), "--solver woodbury"), (dict(lissa_scale=5.0), "--solver woodbury"),
    (dict(solver="cg", lissa_scale=5.0), "--solver cg")])
def test_setting_without_effect_is_refused(values: dict[str, Any], where: str) -> None:
    """It would be another run of the same weights; what a solver does use is taken."""
    with pytest.raises(BadInput, match=f"--{list(values)[-1]} has no effect under {where}; leave it away"):
        METHOD.config(**values)
    METHOD.config(solver="lissa", damping=2.0, solver_steps=5, solver_tolerance=0.1, lissa_scale=5.0)
    METHOD.config(solver="cg", solver_steps=5, solver_tolerance=0.1)
    METHOD.config(wfisher_mode="published", alpha=3.0, fisher_samples=7)


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_model_without_finite_gradients_is_refused(solver: str, rt: Runtime) -> None:
    model = tiny_net(rt)
    with torch.no_grad():
        model.fc.bias[0] = torch.nan
    with pytest.raises(BadInput, match="gradients are not finite"):
        METHOD.apply(model, make_data(rt), METHOD.config(solver=solver), rt)
