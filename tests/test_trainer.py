"""The training and prediction loops against torch's own, and runs that were killed against runs that were not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TRAINED, TinyNet, equal, make_data, quiet_runtime, short_config, snapshot, tiny_net
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import trainer
from dataset import Data, Loader, forever
from trainer import Descent, ScheduleConfig, TrainConfig, cross_entropy, predict
from unlearn import METHODS
from utils import BadInput, Run, RunConfig, Runtime

Rates = list[float]


def sgd(model: nn.Module, rt: Runtime, lr: float = 0.1, epochs: int = 5, **cfg: Any) -> Descent:
    return Descent(model, ScheduleConfig(**cfg), lr=lr, epochs=epochs, rt=rt, purpose="train")


# ----------------------------------------------------------------------------------------------------------------- SGD


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_sgd_is_that_of_torch(momentum: float, weight_decay: float, rt: Runtime) -> None:
    """Parameters, buffers and mean losses after 5 epochs of 3 batches with the rate falling each time, within 1e-7."""
    ours, theirs = tiny_net(rt), tiny_net(rt)
    batches = [list(make_data(rt, seed=seed).loader("retain", rt, "test")) for seed in range(5)]
    opt = sgd(ours, rt, momentum=momentum, weight_decay=weight_decay, schedule="cosine")
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=5)
    theirs.train()
    for opt.at in range(5):
        found, expected = opt.epoch(batches[opt.at], cross_entropy), []
        for batch in batches[opt.at]:
            reference.zero_grad()
            loss = F.cross_entropy(theirs(batch.x), batch.y)
            loss.backward()
            reference.step()
            expected.append(float(loss.detach()))
        schedule.step()
        assert len(expected) == 3 and found == pytest.approx(sum(expected) / 3, abs=1e-6)
        for (name, a), b in zip(snapshot(ours).items(), snapshot(theirs).values(), strict=True):
            assert (a - b).abs().max() <= 1e-7, name
    assert (ours.fc.weight - tiny_net(rt).fc.weight).abs().max() > 0.01


def test_original_training_is_the_plain_loop(rt: Runtime, tmp_path: Path) -> None:
    """``train`` with the l1 penalty of sparse pre-training against torch.optim and a written-out penalty (1e-6)."""
    cfg = TrainConfig(lr=0.1, epochs=4, alpha=1e-3, schedule="step", decreasing_lr=(2, 3))
    ours, theirs, data = tiny_net(rt), tiny_net(rt), make_data(rt)
    with Run(RunConfig(save_dir=str(tmp_path)), "train", "toy", {"cfg": cfg}) as run:
        trainer.train(ours, data.loader("train", rt, "train"), cfg, rt, run)
    opt = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(opt, [2, 3], 0.1)
    loader, rates = make_data(rt).loader("train", quiet_runtime(), "train"), []
    for _ in range(4):
        rates.append(opt.param_groups[0]["lr"])
        for batch in loader:
            opt.zero_grad()
            penalty = sum(p.abs().sum() for p in theirs.parameters())
            (F.cross_entropy(theirs(batch.x), batch.y) + 1e-3 * penalty).backward()
            opt.step()
        schedule.step()
    assert all((p - q).abs().max() < 1e-6 for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == pytest.approx(rates) and [row["epoch"] for row in rows] == [0, 1, 2, 3]


def test_mask_without_an_entry_leaves_the_parameter_free(model: TinyNet, data: Data, rt: Runtime) -> None:
    """A pruned model's mask names its convolutions alone."""
    before = snapshot(model)
    mask = {"conv.weight": torch.zeros(4, 3, 3, 3).bool()}
    opt = Descent(model, ScheduleConfig(), lr=0.1, epochs=1, rt=rt, purpose="train", mask=mask)
    opt.epoch(data.loader("retain", rt, "test"), cross_entropy)
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == ["conv.weight"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_is_refused(value: float, model: TinyNet, data: Data, rt: Runtime) -> None:
    opt = sgd(model, rt)
    opt.at = 3
    with pytest.raises(BadInput, match=rf"became {value} in epoch 3: lower the learning rate \(0\.1\)"):
        opt.epoch(data.loader("retain"), lambda model, batch: cross_entropy(model, batch) * value)


# ------------------------------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize("epochs", [1, 7, 30])
def test_schedules_are_those_of_torch(schedule: str, epochs: int, model: TinyNet, rt: Runtime) -> None:
    """Each epoch's rate within 1e-12, at every point of the epoch; milestones may be unordered and doubled."""
    milestones = (12, 3, 20, 20)
    opt = sgd(model, rt, lr=0.3, epochs=epochs, schedule=schedule, decreasing_lr=milestones, lr_gamma=0.2)
    reference = torch.optim.SGD(model.parameters(), lr=0.3)
    theirs = {"cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=epochs),
              "step": lambda: torch.optim.lr_scheduler.MultiStepLR(reference, list(milestones), 0.2),
              "constant": lambda: torch.optim.lr_scheduler.ConstantLR(reference, 1.0)}[schedule]()
    for opt.at in range(epochs):
        for progress in (0.0, 0.4, 1.0):
            assert opt.rate(progress) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        reference.step()
        theirs.step()


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize(("warmup", "epochs"), [(1, 4), (3, 8), (4, 4), (9, 4)])
def test_warm_up_is_linear_and_never_above_the_rate(schedule: str, warmup: int, epochs: int, model: TinyNet,
                                                    rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch by batch from near 0 to the set rate in equal steps over the epochs there are; then the schedule."""
    rates: Rates = []
    monkeypatch.setattr(Descent, "_step", lambda self, rate: rates.append(rate))
    opt = sgd(model, rt, lr=0.2, epochs=epochs, warmup=warmup, schedule=schedule, decreasing_lr=(6,))
    for opt.at in range(epochs):
        pairs = zip(range(5), range(9), strict=False)  # no length of its own
        opt.epoch(pairs, lambda model, pair: torch.ones(()).requires_grad_(), 5)
    warm = min(warmup, epochs) * 5
    assert len(rates) == epochs * 5 and max(rates) <= 0.2 + 1e-12
    assert rates[:warm] == pytest.approx([0.2 * (i + 1) / warm for i in range(warm)])
    assert len(rates) == warm or rates[warm] == pytest.approx(0.2)
    if schedule == "cosine" and warm < len(rates):
        left = epochs - warmup
        expected = [0.1 * (1 + math.cos(math.pi * i / left)) for i in range(left)]
        assert rates[warm::5] == pytest.approx(expected)


@pytest.mark.parametrize(("warmup", "epochs", "steps"), [(0, 1, 3), (0, 5, 2), (2, 8, 5), (3, 4, 1), (4, 4, 2)])
def test_linear_falls_in_equal_steps_to_zero_at_the_last(warmup: int, epochs: int, steps: int, model: TinyNet,
                                                         rt: Runtime) -> None:
    """Warm-up and linear together are a triangle: numpy's interpolation between its three corners, step by step."""
    opt, rates = sgd(model, rt, lr=0.3, epochs=epochs, warmup=warmup, schedule="linear"), []
    for opt.at in range(epochs):
        rates += [opt.rate((step + 1) / steps) for step in range(steps)]
    top, last = warmup * steps, epochs * steps
    places = np.arange(1, last + 1)
    corners = ([0, top, last], [0, 0.3, 0]) if 0 < warmup < epochs else ([0, last], [0, 0.3] if warmup else [0.3, 0])
    assert rates == pytest.approx(np.interp(places, *corners), abs=1e-12)


# ----------------------------------------------------------------------------------------------------------- prediction


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("part", ["retain", "test"])
def test_predict_is_the_plain_forward_in_eval_mode(training: bool, part: str, model: TinyNet, data: Data,
                                                   rt: Runtime) -> None:
    """Within 1e-5, in the loader's order, whatever the batch size; mode, weights, buffers and gradients stay."""
    sgd(model, rt).epoch(data.loader("retain", rt, "test"), cross_entropy)  # running statistics of its own
    model.train(training)
    before = snapshot(model)
    images, index = (data.test if part == "test" else data.images), torch.from_numpy(data.index(part))
    with torch.no_grad():
        twin = TinyNet().eval()
        twin.load_state_dict(before)
        expected = twin(images.x[index].permute(0, 3, 1, 2).float() / 255)
    for batch_size in (256, 7, 1):
        logits, labels = predict(model, Loader(images, index, images.y[index], batch_size), rt)
        assert (logits - expected).abs().max() < 1e-5 and torch.equal(labels, images.y[index])
        assert logits.dtype == torch.float32 and labels.dtype == torch.int64 and not logits.requires_grad
    assert model.training is training and model.bn.training is training
    assert equal(snapshot(model), before) and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert expected.std() > 0.05


def test_predict_pairs_or_refuses_a_shuffled_loader(model: TinyNet, data: Data, rt: Runtime) -> None:
    ordered = predict(model, data.loader("retain"), rt)
    try:
        shuffled = predict(model, data.loader("retain", rt, "test"), rt)
    except (AssertionError, BadInput):
        return
    rows = [sorted(torch.cat([logits, labels[:, None]], 1).tolist()) for logits, labels in (ordered, shuffled)]
    torch.testing.assert_close(torch.tensor(rows[0]), torch.tensor(rows[1]))


# ------------------------------------------------------------------------------------------------------ synchronisation


class Synchronisations(TorchDispatchMode):
    """Counts the moments at which the host asks for a number: item, float, bool, int, and masks of unknown size."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


def test_synchronisations_are_counted() -> None:
    with Synchronisations() as found:
        x = torch.ones(2)
        numbers = float(x[0]), x[1].item(), bool(x[0] > 0), int(x[0]), x.nonzero()
    assert len(numbers) == found.count == 5


@pytest.mark.parametrize("name", TRAINED)
def test_one_synchronisation_per_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more epochs ask the device for one number a pass, however many batches a pass has.

    FT_prune_bi ranks its weights before every other epoch: one more epoch, so that it prunes as often.
    """
    passes, real, more = [], Descent.epoch, 1 if name == "FT_prune_bi" else 2
    monkeypatch.setattr(Descent, "epoch", lambda *args, **more: passes.append(args) or real(*args, **more))
    counts = {}
    for epochs in (1, 1 + more):
        passes.clear()
        rt = quiet_runtime()
        data, model = make_data(rt, batch_size=4, method=name), tiny_net(rt)
        cfg = short_config(name, unlearn_epochs=epochs)
        with Synchronisations() as found:
            METHODS[name].apply(model, data, cfg, rt)
        counts[epochs] = found.count, len(passes)
    assert counts[1 + more][1] - counts[1][1] in (more, 2 * more)
    assert counts[1 + more][0] - counts[1][0] == counts[1 + more][1] - counts[1][1]


# ------------------------------------------------------------------------------------------------------------- resuming


class Killed(BaseException):
    """As sudden as a signal: nothing in the code under test catches it."""


def one_try(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch,
            kill_at: int | None = None) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], int]:
    """State and log rows of a run from its own fresh objects, and its steps; killed before step ``kill_at``."""
    steps, real = [], Descent._step

    def step(self: Descent, rate: float) -> None:
        if len(steps) == kill_at:
            raise Killed
        steps.append(rate)
        real(self, rate)

    rt = quiet_runtime()
    data, model = make_data(rt, batch_size=16, aug=True, method="" if name == "train" else name), tiny_net(rt)
    run_cfg = RunConfig(save_dir=str(folder), resume_every=0)
    with monkeypatch.context() as patch:
        patch.setattr(Descent, "_step", step)
        if name == "train":
            cfg = TrainConfig(epochs=4, lr=0.05)
            with Run(run_cfg, "train", "toy", {"cfg": cfg}) as run:
                trainer.train(model, data.loader("train", rt, "train"), cfg, rt, run)
        else:
            cfg = short_config(name, unlearn_epochs=4, rewind=True, msteps=3)
            with Run(run_cfg, "forget", name, {"cfg": cfg}) as run:
                METHODS[name].apply(model, data, cfg, rt, run)
    rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert not (run.folder / "state.pt").exists()
    return snapshot(model), rows, len(steps)


@pytest.mark.parametrize("name", ["train", *TRAINED])
def test_killed_run_goes_on_bit_for_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the first epoch, in a later one, between two and near the end: same weights, buffers and log rows."""
    state, rows, steps = one_try(name, tmp_path / "whole", monkeypatch)
    each = steps / 4
    for share in (0.5, 1.5, 2.0, 3.9):
        folder = tmp_path / f"{share}"
        kill_at = int(share * each)
        with pytest.raises(Killed):
            one_try(name, folder, monkeypatch, kill_at)
        resumed, its_rows, its_steps = one_try(name, folder, monkeypatch)
        assert its_steps < steps or share < 1  # it went on, and did not start over
        assert equal(resumed, state) and its_rows == rows


@pytest.mark.parametrize("name", ["train", "NG"])
def test_run_killed_twice_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, rows, steps = one_try(name, tmp_path / "whole", monkeypatch)
    for kill_at in (steps // 2, steps // 3):
        with pytest.raises(Killed):
            one_try(name, tmp_path / "killed", monkeypatch, kill_at)
    resumed, its_rows, _ = one_try(name, tmp_path / "killed", monkeypatch)
    assert equal(resumed, state) and its_rows == rows


@pytest.mark.parametrize("name", ["train", "SCRUB"])
def test_run_killed_while_it_saves_repeats_the_epoch_once(name: str, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch's row is in the log, its state is not on disk: resumed, the log has one row of each epoch."""
    state, rows, _ = one_try(name, tmp_path / "whole", monkeypatch)
    saved, real = [], Run.save_state

    def save_state(self: Run, **content: Any) -> None:
        if len(saved) == 1:
            raise Killed
        saved.append(content["epoch"])
        real(self, **content)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", save_state)
        with pytest.raises(Killed):
            one_try(name, tmp_path / "killed", monkeypatch)
    resumed, its_rows, _ = one_try(name, tmp_path / "killed", monkeypatch)
    assert equal(resumed, state) and its_rows == rows


def test_forever_shuffles_every_pass_anew(data: Data, rt: Runtime) -> None:
    """Four passes over the forget set hold each example once a pass, in four orders (itertools.cycle repeats one)."""
    data.images.x[:] = 0
    loader = Loader(data.images, torch.arange(12), torch.zeros(12), 5, torch.Generator().manual_seed(1))
    batches = forever(loader)
    orders = [torch.cat([next(batches).index for _ in range(len(loader))]).tolist() for _ in range(4)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_dropout_follows_the_seed_and_leaves_the_global_stream(data: Data) -> None:
    """Whatever the global stream stood at, two epochs of a model with dropout end in the same weights."""
    found = []
    for at in (1, 2):
        rt = quiet_runtime()
        with rt.seeded("model"):
            model = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        torch.manual_seed(at)
        before = torch.get_rng_state()
        opt = Descent(model, ScheduleConfig(), lr=0.1, epochs=2, rt=rt, purpose="train")
        losses = [opt.epoch(data.loader("retain"), cross_entropy) for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before) and losses[0] != losses[1]
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
