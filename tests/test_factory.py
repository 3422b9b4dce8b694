"""The model factory: engines that agree, pools that grow, resume and are shared out, files that are checked."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TOY, equal, quiet_runtime, snapshot, toy_arrays
from torch import Tensor, nn

import dataset
from dataset import Data, DataConfig, Images, Splits
from memorization import engines, factory
from memorization.engines import Recipe, Setup, Stack, Together, serial, spread, stacked, train_one, train_stack
from memorization.factory import Pool, PoolConfig, fill, prepare
from memorization.feldman import memorization
from memorization.registry import Job
from models import ModelConfig
from utils import BadInput, CannotWrite, RunConfig, Runtime

SMALL = ModelConfig(arch="resnet8s")
ROOT = Path(__file__).resolve().parent.parent


def make_toy(rt: Runtime, count: int = 60, tests: int = 20, aug: bool = False, seed: int = 0) -> Data:
    x, y = toy_arrays(count, seed)
    x_test, y_test = toy_arrays(tests, seed + 1, wrong=0.0)
    train = np.arange(count)
    splits = Splits(train[6:], train[:6], train[6:], train[:0], (), "toy", "toy", f"toy-{seed}-{count}")
    return Data(TOY, Images(x, y, TOY, rt), Images(x_test, y_test, TOY, rt), 3, splits, 16, aug)


def make_setup(dtype: torch.dtype, aug: bool = False, **recipe: Any) -> Setup:
    rt = quiet_runtime()
    values = {"pool_epochs": 1, "pool_lr": 0.05, "pool_batch": 16} | recipe
    return Setup(make_toy(rt, aug=aug), SMALL, Recipe(**values), rt, dtype)


def quick(**values: Any) -> PoolConfig:
    return PoolConfig(**{"models": 4, "pool_epochs": 1, "pool_lr": 0.05, "pool_batch": 32, "engine": "serial"} | values)


def make_pool(folder: Path, rt: Runtime | None = None, data: Data | None = None, **values: Any) -> Pool:
    rt = rt or quiet_runtime()
    return Pool(folder, quick(**values), data or make_toy(rt), SMALL, rt)


def filled(folder: Path, **values: Any) -> Pool:
    pool = make_pool(folder, **values)
    fill(pool)
    return pool


def contents(pool: Pool, number: int) -> dict[str, np.ndarray]:
    """A model's file without its seconds."""
    with np.load(pool.path(number), allow_pickle=False) as file:
        return {name: value for name, value in file.items() if name != "seconds"}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def subsets(setup: Setup, numbers: list[int], size: int) -> list[np.ndarray]:
    return [np.sort(np.random.default_rng(number).permutation(len(setup.data.images.y))[:size]) for number in numbers]


# --------------------------------------------------------------------------------------------------- engines that agree


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
    opt = engines.Sgd(setup.new(0), cfg, lr=cfg.pool_lr, epochs=cfg.pool_epochs, rt=setup.rt)
    rates = []
    for opt.at in range(30):
        rates.append(opt.rate(1))
    assert rates == pytest.approx([1e-2] * 16 + [1e-3] * 5 + [1e-4] * 5 + [1e-5] * 4)
    fast = PoolConfig.named("fast", models=10)
    assert fast.pool_epochs < 12 and fast.schedule == "linear" and fast.warmup > 0 and fast.models == 10


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
        setup.fit(stack, Together([setup.loader(number, cut) for number, cut in enumerate(cuts)]), setup.stacked_loss)
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


# -------------------------------------------------------------------------------------------------------------- subsets


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_fraction_is_exact_uniform_and_differs_by_model_and_seed(share: float, tmp_path: Path) -> None:
    pool = make_pool(tmp_path, models=300, fraction=share)
    masks = np.stack([pool.mask(number) for number in range(300)])
    assert (masks.sum(1) == round(share * 60)).all() and len(np.unique(masks, axis=0)) == 300
    assert np.abs(masks.mean(0) - share).max() < 5 * (share * (1 - share) / 300) ** 0.5
    together = (masks[:, :1] & masks[:, 1:]).mean()
    assert together == pytest.approx(share * (round(share * 60) - 1) / 59, abs=0.05)
    other = make_pool(tmp_path, quiet_runtime(6), models=300, fraction=share)
    assert not np.array_equal(other.subset(0), pool.subset(0)) and other.folder != pool.folder


@pytest.mark.parametrize("count", [60, 61])
def test_half_shows_every_image_to_exactly_half_of_the_models(count: int, tmp_path: Path) -> None:
    rt = quiet_runtime()
    pool = make_pool(tmp_path, rt, make_toy(rt, count), models=10, subset="half")
    masks = np.stack([pool.mask(number) for number in range(10)])
    assert (masks.sum(0) == 5).all() and (masks[::2] == ~masks[1::2]).all() and len(np.unique(masks[::2], axis=0)) == 5
    assert set(masks.sum(1)) == {count // 2, count - count // 2}
    with pytest.raises(BadInput, match="--models 11: .*even"):
        quick(models=11, subset="half")


def test_given_subsets_are_what_the_models_see(tmp_path: Path) -> None:
    """Masks of different sizes, with the stack too; the content, not the file's name, makes the pool."""
    masks = np.random.default_rng(0).random((5, 60)) < 0.5
    for name, values in (("a", masks), ("b", masks), ("c", ~masks)):
        np.savez(tmp_path / f"{name}.npz", masks=values)
    pools = [make_pool(tmp_path, models=4, subset="given", subsets=str(tmp_path / f"{name}.npz"), engine="stack")
             for name in "abc"]
    assert pools[0].folder == pools[1].folder != pools[2].folder
    fill(pools[0])
    assert np.array_equal(pools[0].masks(), masks[:4]) and np.array_equal(pools[1].masks(), masks[:4])
    assert pools[2].present() == []


def refusal(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(BadInput) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_bad_subsets_are_refused(tmp_path: Path) -> None:
    def given(name: str, **values: Any) -> Callable[[], Pool]:
        np.savez(tmp_path / name, **values)
        return lambda: make_pool(tmp_path, subset="given", subsets=str(tmp_path / name))

    fine = np.ones((4, 60), bool)
    refusal(given("a.npz", other=fine), "--subsets", "masks")
    refusal(given("b.npz", masks=fine.astype(int)), "bool masks [models, 60]", "int64")
    refusal(given("c.npz", masks=fine[:, :59]), "[4, 59]")
    refusal(given("d.npz", masks=fine[:3]), "3 masks", "--models 3")
    refusal(given("e.npz", masks=fine & (np.arange(4) != 2)[:, None]), "mask 2", "fewer than two")
    refusal(lambda: make_pool(tmp_path, subset="given", subsets=str(tmp_path / "none.npz")), "cannot read --subsets")
    refusal(lambda: quick(subset="given"), "--subsets FILE")
    refusal(lambda: quick(subsets="x.npz"), "--subset given")
    refusal(lambda: quick(subset="half", models=4, fraction=0.5), "--fraction is of --subset fraction", "half")
    refusal(lambda: quick(influence_above=0.5), "give --influence")
    refusal(lambda: make_pool(tmp_path, fraction=0.99), "fewer than two")
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize(("shard", "word"), [("2/2", "counts from 0"), ("3/2", "counts from 0"), ("0/0", "0/1 is all"),
                                             ("1", "i/n"), ("a/2", "i/n"), ("-1/2", "i/n"), ("0/", "i/n")])
def test_bad_shards_are_refused(shard: str, word: str) -> None:
    refusal(lambda: quick(shard=shard), word, shard)


# ---------------------------------------------------------------------------------------------------------------- pools


def test_pool_keeps_masks_correctness_and_margins(tmp_path: Path) -> None:
    """Each against the models trained here again: margins log p_y - log (1 - p_y) to float16's precision."""
    pool = filled(tmp_path, models=3, keep_logits=True)
    assert pool.present() == [0, 1, 2] and pool.missing() == []
    records = list(pool.records())
    for t in serial(pool.setup, pool.subset, range(3)):
        for part, images in (("train", pool.data.images), ("test", pool.data.test)):
            p = t.logits[part].double().softmax(1).gather(1, images.y[:, None]).squeeze(1).numpy()
            right = t.logits[part].argmax(1).numpy() == images.y.numpy()
            assert np.array_equal(pool.correct(part)[t.number], right) and (part == "test" or 0 < right.mean() < 1)
            found = pool.margins(part)[t.number]
            assert found.dtype == np.float16 and np.allclose(found, np.log(p) - np.log1p(-p), rtol=2e-3, atol=1e-3)
            logits = records[t.number].logits[part]
            assert logits.dtype == np.float16 and np.allclose(logits, t.logits[part].numpy(), rtol=2e-3, atol=1e-3)
    assert np.array_equal(pool.masks().sum(1), [42, 42, 42]) and pool.masks()[1][pool.subset(1)].all()
    assert pool.seconds() == pytest.approx(sum(record.seconds for record in records)) and pool.seconds() > 0
    about = json.loads((pool.folder / "pool.json").read_text())
    assert (about["dataset"], about["arch"], about["seed"], about["recipe"]["pool_batch"]) == ("toy", "resnet8s", 5, 32)
    assert not list(pool.folder.glob("*.part")) and not list(pool.folder.glob("*.pt"))


def test_margins_beyond_float16_are_cut(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    pool.folder.mkdir(parents=True)
    logits = {"train": torch.zeros(60, 3), "test": torch.zeros(20, 3)}
    logits["train"][:, 0] = 1e6
    pool.save(engines.Trained(0, logits, 1.0))
    record = pool.read(0)
    assert np.isfinite(record.margins["train"]).all() and np.abs(record.margins["train"]).max() == 65504
    assert np.array_equal(record.correct["train"], pool.data.images.y.numpy() == 0)


def test_pool_grows_and_a_lost_model_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is there stays untouched; what was lost or damaged is bit for bit what it was, apart from its seconds."""
    small = filled(tmp_path, models=3)
    kept = [(small.path(n).read_bytes(), small.path(n).stat().st_mtime_ns) for n in range(3)]
    large = filled(tmp_path, models=5)
    assert large.folder == small.folder and large.present() == [0, 1, 2, 3, 4] and small.present() == [0, 1, 2]
    assert [(small.path(n).read_bytes(), small.path(n).stat().st_mtime_ns) for n in range(3)] == kept
    assert "5 models, 2 of them to train here" in capsys.readouterr().out and len(small.masks()) == 3
    before = [contents(large, n) for n in range(5)]
    assert not same(before[0], before[1])
    large.path(1).unlink()
    large.path(3).write_bytes(large.path(3).read_bytes()[:-300])
    assert large.missing() == [1, 3]
    fill(large)
    assert f"{large.path(3)} is damaged" in capsys.readouterr().out
    assert all(same(contents(large, n), before[n]) for n in range(5))


def test_every_damage_of_a_file_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = filled(tmp_path, models=2)
    whole = pool.path(0).read_bytes()
    before, noticed = contents(pool, 0), 0
    for place in np.random.default_rng(0).integers(0, len(whole), 30):
        spoiled = bytearray(whole)
        spoiled[place] ^= 0xFF
        pool.path(0).write_bytes(spoiled)
        if pool.read(0) is None:
            noticed += 1
        else:  # in the archive's padding, where nothing is read
            assert same(contents(pool, 0), before)
    assert noticed > 15 and capsys.readouterr().out.count("is damaged") == noticed
    for content in (b"", b"no archive", pool.path(1).read_bytes()):  # the last: a whole file of another model
        pool.path(0).write_bytes(content)
        assert pool.read(0) is None and "trained anew" in capsys.readouterr().out
    pool.path(0).write_bytes(whole)
    assert pool.read(0) is not None
    foreign = make_pool(tmp_path, models=2, pool_lr=0.06)
    foreign.folder.mkdir()
    foreign.path(0).write_bytes(whole)
    assert foreign.read(0) is None and "another pool" in capsys.readouterr().out


def test_logits_asked_for_later_are_added(tmp_path: Path) -> None:
    plain = filled(tmp_path, models=2)
    before = [contents(plain, n) for n in range(2)]
    asked = make_pool(tmp_path, models=2, keep_logits=True)
    assert asked.folder == plain.folder and asked.missing() == [0, 1]
    fill(asked)
    assert asked.missing() == plain.missing() == []
    for n in range(2):
        now = contents(asked, n)
        assert {"logits_train", "logits_test"} == now.keys() - before[n].keys()
        assert all(np.array_equal(now[name], before[n][name]) for name in before[n])


def test_identity_is_of_what_decides_the_models_and_nothing_else(tmp_path: Path) -> None:
    rt = quiet_runtime()
    base = make_pool(tmp_path, rt)
    alike = [dict(models=9), dict(shard="1/3"), dict(engine="stack", stack=2), dict(keep_logits=True), dict(influence=True),
             dict(recipe="fast"), dict(engine="processes", pool_workers=3)]
    assert all(make_pool(tmp_path, rt, **values).folder == base.folder for values in alike)
    different = [dict(pool_epochs=2), dict(pool_lr=0.06), dict(pool_batch=31), dict(momentum=0.8), dict(weight_decay=0.0),
                 dict(schedule="linear"), dict(warmup=1), dict(decreasing_lr=(3,)), dict(lr_gamma=0.2),
                 dict(label_smoothing=0.1), dict(fraction=0.6), dict(subset="half")]
    folders = [make_pool(tmp_path, rt, **values).folder for values in different]
    folders += [make_pool(tmp_path, rt, make_toy(rt, **values)).folder for values in (dict(aug=True), dict(seed=2))]
    folders += [make_pool(tmp_path, Runtime(dataclasses.replace(rt.cfg, **values))).folder
                for values in (dict(seed=6), dict(precision="bf16"))]
    folders += [Pool(tmp_path, quick(), make_toy(rt), ModelConfig(arch="resnet20s"), rt).folder]
    assert len({base.folder, *folders}) == len(folders) + 1


def test_model_does_not_depend_on_engine_order_or_neighbours(tmp_path: Path) -> None:
    setup = make_setup(torch.float32)
    cuts = subsets(setup, [0, 1, 2], 30)
    forward = {t.number: t.logits["test"] for t in serial(setup, cuts.__getitem__, [0, 1, 2])}
    backward = {t.number: t.logits["test"] for t in serial(make_setup(torch.float32), cuts.__getitem__, [2, 0])}
    assert torch.equal(forward[2], backward[2]) and torch.equal(forward[0], backward[0])
    assert not torch.equal(forward[0], forward[1])


# --------------------------------------------------------------------------------------------------- shards and processes


def make_job(folder: Path, dataset_name: str = "digits") -> Job:
    rt = quiet_runtime()
    config = DataConfig(dataset=dataset_name, data=str(folder), classes="0,1", val_fraction=0.2)
    return Job(data=dataset.load(config, rt), rt=rt, data_config=config, config=SMALL, where=RunConfig(save_dir=str(folder)))


def test_shards_make_the_same_pool_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first shard says what is missing and returns nothing; the last one to finish returns the pool."""
    one = prepare(make_job(tmp_path / "one"), quick())
    assert prepare(make_job(tmp_path / "two"), quick(shard="1/2")) is None
    said = capsys.readouterr().out
    assert "2 of 4 models are missing" in said and "--shard 0/2" in said
    assert [p.name for p in sorted((tmp_path / "two").rglob("model*"))] == ["model-00001.npz", "model-00003.npz"]
    two = prepare(make_job(tmp_path / "two"), quick(shard="0/2"))
    assert all(same(contents(one, n), contents(two, n)) for n in range(4)) and one.folder.name == two.folder.name
    capsys.readouterr()
    assert prepare(make_job(tmp_path / "two"), quick(shard="1/2")).present() == [0, 1, 2, 3]
    assert not capsys.readouterr().out


def test_processes_make_the_same_models(tmp_path: Path) -> None:
    """Two new processes on one thread each against this process, which has one too: bit for bit."""
    one = prepare(make_job(tmp_path / "one"), quick(models=3))
    two = prepare(make_job(tmp_path / "two"), quick(models=3, engine="processes", pool_workers=2))
    assert all(same(contents(one, n), contents(two, n)) for n in range(3))


def explain(order: str) -> Callable[[int], float]:
    """What the processes of the next tests do; here, since a new process imports it by name."""
    def act(number: int) -> float:
        if order == "bad" and number == 1:
            raise BadInput("model 1 cannot be")
        if order == "full":
            raise CannotWrite("no room")
        if order == "error":
            raise KeyError("lost")
        if order == "killed" and number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "slow":
            time.sleep(60)
        return number + float(os.environ["PLACE"])

    return act


@pytest.mark.parametrize(("order", "kind", "words"), [
    ("bad", BadInput, "model 1 cannot be"), ("full", CannotWrite, "no room"), ("error", RuntimeError, "KeyError: 'lost'")])
def test_error_of_a_process_reaches_the_caller(order: str, kind: type[Exception], words: str,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same kind; a process's own code, run here at one end of the pipe. It computes on one thread."""
    monkeypatch.setattr(engines.signal, "signal", lambda *args: None)
    monkeypatch.setenv("PLACE", "")
    ours, theirs = engines.multiprocessing.Pipe()
    ours.send(1)
    torch.set_num_threads(2)
    engines._worker(theirs, explain, order, {"PLACE": "0"})
    assert torch.get_num_threads() == 1
    with pytest.raises(kind, match=words) as error:
        engines._answer(ours, None)
    assert type(error.value) is kind


def test_killed_process_stops_all_and_is_explained() -> None:
    with pytest.raises(BadInput, match="ended with code -9.*fewer --pool_workers"):
        list(spread(explain, "killed", range(1, 3), [{"PLACE": "0.5"}]))
    assert not engines.multiprocessing.active_children()


def test_numbers_are_spread_over_the_processes() -> None:
    """Every number once, in both environments, and no process is left."""
    done = list(spread(explain, "fine", range(7), [{"PLACE": "0.5"}, {"PLACE": "0.25"}]))
    assert sorted(number for number, _ in done) == list(range(7))
    assert {value - number for number, value in done} == {0.5, 0.25}
    assert not engines.multiprocessing.active_children()


def test_ctrl_c_ends_all_processes(tmp_path: Path) -> None:
    """The interrupted parent is gone soon, and so are its children, which would have slept for a minute."""
    script = tmp_path / "interrupted.py"
    script.write_text(f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
                      "import test_factory\nfrom memorization.engines import spread\n"
                      "if __name__ == '__main__':\n"
                      "    print('ready', flush=True)\n"
                      "    list(spread(test_factory.explain, 'slow', range(2), [{'PLACE': '0'}]))\n")
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              start_new_session=True)
    assert parent.stdout.readline() == "ready\n"
    children = []
    for _ in range(300):
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        workers = [c for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
        if workers:
            break
        time.sleep(0.1)
    assert workers
    os.killpg(parent.pid, signal.SIGINT)
    parent.wait(20)
    time.sleep(0.2)
    assert parent.returncode != 0 and not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_changed_data_stop_the_processes(tmp_path: Path) -> None:
    """A process reads the data anew; if they are others by then, no model of theirs is mixed in."""
    job = make_job(tmp_path)
    pool = Pool(tmp_path, quick(), job.data, SMALL, job.rt, dataclasses.replace(job.data_config, classes="0,2"))
    order = factory.Order(str(tmp_path), pool.cfg, pool.data_config, SMALL, job.rt.cfg, pool.digest)
    refusal(lambda: factory._in_process(order), "changed")
    memory = Pool(tmp_path, quick(engine="processes"), job.data, SMALL, job.rt)
    refusal(lambda: fill(memory), "--engine processes", "serial")


def test_engine_is_chosen_by_device_and_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(tmp_path)
    pool = Pool(tmp_path, quick(models=8, engine="auto"), job.data, SMALL, job.rt, job.data_config)
    monkeypatch.setattr(factory.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    texts = []
    for pace in (1e-7, 1.0):
        monkeypatch.setattr(engines, "pace", lambda *args, p=pace: p)
        texts.append(factory._way(pool, list(range(8))).text)
    assert texts == ["one after another", "on 3 processes"]
    assert factory._way(pool, [5]).text == "one after another"
    seconds = [factory._way(other_settings(pool, engine=name), list(range(8))).seconds for name in ("serial", "processes")]
    expected = 8 * (len(pool.subset(0)) + (pool.sizes["train"] + pool.sizes["test"]) / 3)
    assert seconds == pytest.approx([expected, expected / 3])


def other_settings(pool: Pool, **values: Any) -> Pool:
    cfg = dataclasses.replace(pool.cfg, **values)
    return Pool(pool.save_dir, cfg, pool.data, pool.setup.model, pool.rt, pool.data_config)


def test_estimate_says_models_time_and_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """400 models at 0.7: 1.96 sqrt(1/4/280 + 1/4/120) = 0.107; the time is of real steps, so only its form is checked."""
    assert make_pool(tmp_path, models=400).interval() == pytest.approx(0.106927, abs=1e-6)
    assert make_pool(tmp_path, models=2).interval() == 1
    filled(tmp_path, models=2, subset="half")
    said = capsys.readouterr().out
    assert re.search(r"^2 models: about [1-9]\d* s one after another; scores to ±1\.00 \(95 %, at worst\)$", said, re.M)
    assert [factory._spoken(s) for s in (50, 720, 7200, 54000)] == ["50 s", "12 min", "2.0 h", "15 h"]


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "pool").write_text("in the way")
    with pytest.raises(CannotWrite, match="--save_dir"):
        fill(make_pool(tmp_path))


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    pool = filled(tmp_path, models=2)
    old, fresh = pool.folder / ".model-00000.npz.1.part", pool.folder / ".model-00001.npz.2.part"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    fill(make_pool(tmp_path, models=3))
    assert not old.exists() and fresh.exists()
