"""Engines that train models of a pool: they agree with one another, and a plain loop; flags of another are refused."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import equal, quiet_runtime, snapshot
from pools import filled, make_pool, make_setup, quick, refusal, subsets
from torch import Tensor, nn

from memorization import engines
from memorization.engines import Stack, Together, serial, stacked, train_one, train_stack
from memorization.factory import PoolConfig, fill
from memorization.feldman import memorization
from utils import BadInput


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("aug", [False, True])
def test_stack_agrees_with_one_after_another_after_a_step(dtype: torch.dtype, limit: float, aug: bool) -> None:
    """Weights, running statistics and counters; a step moves the weights by far more than they may differ."""
    setup = make_setup(dtype, aug, label_smoothing=0.1)
    cuts = subsets(setup, [5, 2, 9], 16)
    states = train_stack(setup, [5, 2, 9], cuts).states()
    for number, cut, state in zip([5, 2, 9], cuts, states, strict=True):
        alone = train_one(setup, number, cut)
        assert int(state["bn1.num_batches_tracked"]) == 1 and state["fc.weight"].dtype == dtype
        assert apart(snapshot(alone), state) < limit < 1e-3 < apart(snapshot(setup.new(number)), state)


def test_stack_agrees_with_one_after_another_over_three_epochs() -> None:
    """float64, uneven last batch, warm-up, momentum, decay: 1e-6."""
    setup = make_setup(torch.float64, pool_epochs=3, schedule="linear", warmup=1, label_smoothing=0.05)
    cuts = subsets(setup, [0, 1], 42)
    for number, cut, state in zip([0, 1], cuts, train_stack(setup, [0, 1], cuts).states(), strict=True):
        assert apart(snapshot(train_one(setup, number, cut)), state) < 1e-6
        assert int(state["bn1.num_batches_tracked"]) == 9


def test_training_is_a_plain_loop() -> None:
    """Order, rates, smoothing, momentum and decay of one model against SGD written out here (1e-9, float64)."""
    setup = make_setup(torch.float64, pool_epochs=4, decreasing_lr=(1, 3), label_smoothing=0.2)
    cut = subsets(setup, [3], 40)[0]
    theirs, images = setup.new(3).train(), setup.data.images
    momenta = [torch.zeros_like(p) for p in theirs.parameters()]
    order = quiet_runtime().generator("order/pool/3")
    for rate in (0.05, 0.005, 0.005, 0.0005):
        drawn = torch.from_numpy(cut)[torch.randperm(40, generator=order)]
        for batch in drawn.split(16):
            log_p = theirs((images.x[batch].permute(0, 3, 1, 2) / 255).double()).log_softmax(1)
            wanted = F.one_hot(images.y[batch], 3).double() * 0.8 + 0.2 / 3
            grads = torch.autograd.grad(-(wanted * log_p).sum(1).mean(), list(theirs.parameters()))
            with torch.no_grad():
                for p, momentum, grad in zip(theirs.parameters(), momenta, grads, strict=True):
                    momentum.mul_(0.9).add_(grad + 5e-4 * p)
                    p.sub_(rate * momentum)
    assert apart(snapshot(theirs), snapshot(train_one(setup, 3, cut))) < 1e-9


def test_recipes_default_is_the_papers() -> None:
    """30 epochs, 512 a step, rate 0.01, of which a tenth from epoch 16, a hundredth from 21, a thousandth from 26."""
    cfg = PoolConfig.named("paper")
    assert cfg == PoolConfig() and (cfg.pool_epochs, cfg.pool_batch, cfg.models, cfg.fraction) == (30, 512, 400, 0.7)
    setup = make_setup(torch.float32)
    opt = engines.Descent(setup.new(0), cfg, lr=cfg.pool_lr, epochs=cfg.pool_epochs, rt=setup.rt, purpose="train")
    rates = []
    for opt.at in range(30):
        rates.append(opt.rate(1))
    assert rates == pytest.approx([1e-2] * 16 + [1e-3] * 5 + [1e-4] * 5 + [1e-5] * 4)


def test_fast_recipe_is_eight_epochs_under_a_triangle() -> None:
    """The README's 8 epochs of 128 images a step: the rate rises to 0.1 over two of them and falls to 0 over six."""
    fast = PoolConfig.named("fast", models=10)
    own = {"pool_epochs": 8, "pool_lr": 0.1, "pool_batch": 128, "schedule": "linear", "warmup": 2}
    assert {name: getattr(fast, name) for name in own} == own
    assert dataclasses.replace(fast, **{name: getattr(PoolConfig(), name) for name in own}) == PoolConfig(
        recipe="fast", models=10)
    setup, rates = make_setup(torch.float32), []
    opt = engines.Descent(setup.new(0), fast, lr=fast.pool_lr, epochs=fast.pool_epochs, rt=setup.rt, purpose="pool/0")
    for opt.at in range(8):
        rates.append(opt.rate(1))
    assert rates == pytest.approx([0.05, 0.1, *(0.1 * left / 6 for left in (5, 4, 3, 2, 1, 0))])


def test_models_of_a_pool_begin_with_weights_of_their_own() -> None:
    """Two numbers share no tensor that is drawn; one number has the same ones whenever it is made."""
    setup = make_setup(torch.float32)
    first, again, other = (snapshot(setup.new(number)) for number in (0, 0, 1))
    drawn = [name for name, value in first.items() if value.dim() > 1]
    assert equal(first, again) and len(drawn) > 6 and not [name for name in drawn if torch.equal(first[name], other[name])]


def test_models_of_a_pool_crop_and_flip_by_streams_of_their_own() -> None:
    """Of one image in every place, so that no order shows in the batches."""
    setup = make_setup(torch.float32, aug=True)
    setup.data.images.x[:] = setup.data.images.x[0].clone()
    (cut,) = subsets(setup, [0], 40)
    first, again, other = (torch.cat([batch.x for batch in setup.loader(number, cut)]) for number in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_outputs_of_the_engines_are_those_of_the_trained_models() -> None:
    """Logits in the images' order, of each model by its number, against the plain forward in eval mode (1e-4)."""
    setup = make_setup(torch.float32, pool_epochs=2)
    cuts = {number: cut for number, cut in zip([7, 1, 4], subsets(setup, [7, 1, 4], 30), strict=True)}
    one = {t.number: t for t in serial(setup, cuts.__getitem__, [7, 1, 4])}
    many = {t.number: t for t in stacked(setup, cuts.__getitem__, [7, 1, 4], size=2)}
    assert list(one) == list(many) == [7, 1, 4] and all(t.seconds > 0 for t in [*one.values(), *many.values()])
    for number, cut in cuts.items():
        model = train_one(setup, number, cut).eval()
        with torch.no_grad():
            expected = model(setup.data.images.x.permute(0, 3, 1, 2) / 255), model(setup.data.test.x.permute(0, 3, 1, 2) / 255)
        for found in (one[number], many[number]):
            for part, logits in zip(("train", "test"), expected, strict=True):
                assert (found.logits[part] - logits).abs().max() < 1e-3, (part, number)


def test_seconds_are_a_models_own_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by 12 s whenever it is read: of a stack a share each, of an image in a step its part."""
    setup, clock = make_setup(torch.float32), itertools.count(0, 12)
    monkeypatch.setattr(engines, "time", SimpleNamespace(perf_counter=clock.__next__))
    cuts = dict(enumerate(subsets(setup, [0, 1, 2, 3], 30)))
    assert [t.seconds for t in serial(setup, cuts.__getitem__, [0, 1])] == [12, 12]
    assert [t.seconds for t in stacked(setup, cuts.__getitem__, range(4), size=3)] == [4, 4, 4, 12]
    assert [engines.pace(setup, cuts[0], size) for size in (1, 3)] == [12 / 30, 12 / 30 / 3]


def test_scores_of_the_engines_agree(tmp_path: Path) -> None:
    """Memorization of each image within two standard errors, and by far more closely on average."""
    scores = []
    for engine in ("serial", "stack"):
        pool = filled(tmp_path / engine, models=12, subset="half", engine=engine, pool_epochs=4)
        scores.append(memorization(pool.masks(), pool.correct("train")))
    gap = np.abs(scores[0]["memorization"] - scores[1]["memorization"])
    assert (gap <= 2 * scores[0]["std_error"]).all() and gap.mean() < 0.1 and scores[0]["memorization"].std() > 0.1


def test_stack_takes_subsets_of_one_size_alone() -> None:
    setup = make_setup(torch.float32)
    cuts = [subsets(setup, [0], 20)[0], subsets(setup, [1], 24)[0]]
    with pytest.raises(BadInput, match="20 to 24 examples.*--engine serial"):
        train_stack(setup, [0, 1], cuts)
    assert {t.number for t in stacked(setup, lambda number: cuts[number % 2], range(5), size=2)} == set(range(5))


def test_stack_refuses_dropout() -> None:
    class Dropping(nn.Sequential):
        pass

    with pytest.raises(BadInput, match="dropout"):
        Stack([Dropping(nn.Linear(2, 2), nn.Dropout(0.5)) for _ in range(2)])
    Stack([Dropping(nn.Linear(2, 2), nn.Dropout(0.0)) for _ in range(2)])


def test_batches_side_by_side_are_those_of_the_loaders() -> None:
    setup = make_setup(torch.float32, aug=True)
    cuts = subsets(setup, [0, 1, 2], 40)
    together = list(Together([setup.loader(n, cut) for n, cut in enumerate(cuts)]))
    assert len(together) == len(Together([setup.loader(0, cuts[0])])) == 3
    for number, cut in enumerate(cuts):
        for batch, alone in zip(together, setup.loader(number, cut), strict=True):
            assert all(torch.equal(many[number], one) for many, one in zip(batch, alone, strict=True))
    assert len({tuple(b.index[k].tolist()) for b in together[:1] for k in range(3)}) == 3


def test_stack_leaves_global_random_state_and_model_alone() -> None:
    setup = make_setup(torch.float32)
    singles = [setup.new(0), setup.new(1)]
    before, state = [snapshot(one) for one in singles], torch.get_rng_state()
    stack = Stack(singles).train()
    stack(torch.zeros(2, 8, 3, 6, 6)).sum().backward()
    train_stack(setup, [0, 1], subsets(setup, [0, 1], 20))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(equal(snapshot(one), kept) for one, kept in zip(singles, before, strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_captured_steps_leave_no_trace(fails: bool, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    """With a stand-in for the capture, whose trial runs move running statistics as CUDA's do, the weights are the same.

    Its recorded forward takes batches of one shape alone; a capture that fails is said.
    """
    setup = make_setup(torch.float32, pool_epochs=2)
    cuts, shapes = subsets(setup, [0, 1], 40), []

    def capture(stack: Stack, sample: tuple[Tensor, ...]) -> None:
        plain = stack.forward
        plain(torch.ones_like(sample[0]))
        if fails:
            raise RuntimeError("no graph\nand a trace")

        def replay(x: Tensor) -> Tensor:
            shapes.append(x.shape)
            return plain(x)

        stack.forward = replay

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    stack = Stack([setup.new(0), setup.new(1)])
    with engines.graphed(stack, setup, torch.zeros(2, 16, 3, 6, 6)):
        batches = Together([setup.loader(number, cut) for number, cut in enumerate(cuts)])
        setup.fit(stack, batches, setup.stacked_loss, "pool")
    expected = train_stack(setup, [0, 1], cuts).states()
    assert all(equal(a, b) for a, b in zip(stack.states(), expected, strict=True)) and "forward" not in vars(stack)
    assert shapes == ([] if fails else [(2, 16, 3, 6, 6)] * 4)  # two of three batches in each epoch
    assert capsys.readouterr().out == ("notice: no CUDA graph could be captured (no graph); the steps run without\n"
                                       if fails else "")


def test_divergence_names_the_model() -> None:
    setup = make_setup(torch.float32, pool_lr=1e30, pool_epochs=2)
    cuts = subsets(setup, [2, 6], 30)
    with pytest.raises(BadInput, match="model 6 of the pool: the loss became"):
        train_one(setup, 6, cuts[1])
    with pytest.raises(BadInput, match="model 2, 6 of the pool: the loss became"):
        train_stack(setup, [2, 6], cuts)


def test_a_model_that_diverged_in_its_last_step_is_named_and_not_kept(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, pool_lr=1e30, models=2, subset="half", pool_batch=64)
    with pytest.raises(BadInput, match="model 0 of the pool: .*has diverged"):
        fill(pool)
    assert pool.present() == []


@pytest.mark.parametrize(("flags", "words"), [
    ({"engine": "serial", "stack": 4}, "--stack"), ({"engine": "processes", "graphs": True}, "--graphs"),
    ({"engine": "serial", "pool_workers": 2}, "--pool_workers"), ({"engine": "stack", "pool_workers": 2}, "--pool_workers")])
def test_flags_of_another_engine_are_refused(flags: dict[str, Any], words: str) -> None:
    refusal(lambda: quick(**flags), words, f"--engine {flags['engine']}")


def test_auto_refuses_the_stacks_flags_where_it_takes_another_engine(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, engine="auto", stack=2)
    refusal(lambda: fill(pool), "--stack", "serial here", "--engine stack")
    fill(make_pool(tmp_path, engine="stack", stack=2))


def test_model_does_not_depend_on_engine_order_or_neighbours(tmp_path: Path) -> None:
    setup = make_setup(torch.float32)
    cuts = subsets(setup, [0, 1, 2], 30)
    forward = {t.number: t.logits["test"] for t in serial(setup, cuts.__getitem__, [0, 1, 2])}
    backward = {t.number: t.logits["test"] for t in serial(make_setup(torch.float32), cuts.__getitem__, [2, 0])}
    assert torch.equal(forward[2], backward[2]) and torch.equal(forward[0], backward[0])
    assert not torch.equal(forward[0], forward[1])
