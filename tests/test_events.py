"""Learning events and loss curvature against float64 recomputation, and the training they look on at against itself."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyNet, equal, make_data, quiet_runtime, snapshot, tiny_net
from scipy.special import log_softmax
from test_trainer import Synchronisations
from torch import Tensor, nn

import trainer
from dataset import Batch, Data
from memorization.events import Events, curvature, learning_events
from trainer import TrainConfig
from utils import Run, RunConfig

NAMES = ("confidence", "max_conf", "entropy", "bi_acc", "el2n", "forgetting")


def by_hand(logits: np.ndarray, y: int) -> dict[str, float]:
    """One example's events from its logits [K], in float64."""
    logp = log_softmax(logits.astype(np.float64))
    p = np.exp(logp)
    return {"confidence": p[y], "max_conf": p.max(), "entropy": -sum(q * np.log(q) for q in p if q > 0),
            "bi_acc": float(np.argmax(logits) == y), "el2n": np.sqrt(sum((q - (k == y)) ** 2 for k, q in enumerate(p)))}


class Recorder(Events):
    """Events that also keeps all that it was shown."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.shown: list[tuple[int, Batch, Tensor]] = []
        self.curvatures: dict[int, list[float]] = defaultdict(list)

    def begin(self, epoch: int, epochs: int) -> None:
        super().begin(epoch, epochs)
        self.epoch = epoch

    def before(self, model: nn.Module, batch: Batch) -> None:
        if self.curvature:
            slow = copy.deepcopy(model).double().eval()
            for x, y, i in zip(batch.x, batch.y, batch.index.tolist(), strict=True):
                self.curvatures[i].append(slow_curvature(slow, x.double(), y, self.h))
        super().before(model, batch)

    def after(self, batch: Batch, logits: Tensor) -> None:
        self.shown.append((self.epoch, batch, logits.clone()))
        super().after(batch, logits)


def slow_curvature(model: nn.Module, x: Tensor, y: Tensor, h: float) -> float:
    """One image [C, H, W] at a time, with its own norm and loss."""
    def slope(at: Tensor) -> Tensor:
        at = at.clone().requires_grad_()
        (-torch.log_softmax(model(at[None])[0], 0)[y]).backward()
        return at.grad

    g = slope(x)
    s = g.sign()
    step = h * (s + 1e-7) / (float((s * s).sum()) ** 0.5 + 1e-7)
    return float(((slope(x + step) - g) ** 2).sum() ** 0.5)


def watched(data: Data, epochs: int, watch: Events | None = None, run: Run | None = None, **cfg: Any) -> TinyNet:
    """A TinyNet after some epochs of the original's training."""
    rt = quiet_runtime()
    model = tiny_net(rt)
    cfg = TrainConfig(epochs=epochs, **{"lr": 0.2, **cfg})
    trainer.train(model, data.loader("train", rt, "train"), cfg, rt, run, watch=watch)
    return model


# ------------------------------------------------------------------------------------------------------------ events


def test_events_of_a_step_are_those_of_float64() -> None:
    """Within 1e-6, saturated and underflowing predictions included; a small distance to certainty is kept (1e-5 of it)."""
    random = np.random.default_rng(3)
    logits = random.normal(0, 4, (200, 7)).astype(np.float32)
    logits[:3] = [[0, 300, -300, 0, 0, 0, 0], [90, 0, 0, 0, 0, 0, 0], [12, 0, 0, 0, 0, 0, 0]]
    y = random.integers(0, 7, 200)
    y[:3] = [1, 3, 0]
    found = learning_events(torch.from_numpy(logits), torch.from_numpy(y))
    for name, values in found.items():
        expected = np.array([by_hand(row, int(k))[name] for row, k in zip(logits, y, strict=True)])
        assert np.abs(values.numpy() - expected).max() < 1e-6, name
    sure = by_hand(logits[2], 0)
    assert float(found["el2n"][2]) == pytest.approx(sure["el2n"], rel=1e-5) and 0 < sure["el2n"] < 1e-4
    assert float(found["entropy"][2]) == pytest.approx(sure["entropy"], rel=1e-3)


@pytest.mark.parametrize("epochs", [4, 23])
def test_events_are_those_of_every_step_seen_again(epochs: int) -> None:
    """Means, EL2N of the first tenth, forgetting by a loop over each image's own history; NaN where never shown."""
    data, rt = make_data(quiet_runtime(), aug=True, seed=epochs), quiet_runtime()
    events = Recorder(len(data.images.y), rt)
    watched(data, epochs, events)
    history: dict[int, list[tuple[int, dict[str, float]]]] = defaultdict(list)
    for epoch, batch, logits in events.shown:
        for i, y, row in zip(batch.index.tolist(), batch.y.tolist(), logits.numpy(), strict=True):
            history[i].append((epoch, by_hand(row, y)))
    labels = data.images.y.numpy()
    found = events.arrays(labels, "key")
    assert set(found) == {*NAMES, "labels", "images_key", "epochs"} and found["epochs"] == epochs
    assert str(found["images_key"]) == "key" and np.array_equal(found["labels"], labels)
    assert sorted(history) == data.splits.train.tolist()
    counts = set()
    for i, rows in history.items():
        assert [epoch for epoch, _ in rows] == list(range(epochs))
        for name in NAMES[:4]:
            assert found[name][i] == pytest.approx(np.mean([row[name] for _, row in rows]), abs=1e-6), name
        early = [row["el2n"] for epoch, row in rows if epoch < max(1, epochs // 10)]
        assert found["el2n"][i] == pytest.approx(np.mean(early), abs=1e-6)
        right = [row["bi_acc"] for _, row in rows]
        lost = sum(a == 1 and b == 0 for a, b in zip(right, right[1:], strict=False))
        assert found["forgetting"][i] == (lost if any(right) else epochs)
        counts.add(int(found["forgetting"][i]))
    assert len(counts) > 2  # or no count could be wrong
    for name in NAMES:
        assert found[name].dtype == np.float32 and np.isnan(found[name][data.splits.val]).all()


def test_sums_hold_a_thousand_epochs() -> None:
    """float32 sums against float64: means within 1e-5."""
    rt = quiet_runtime()
    events, exact = Events(6, rt), np.zeros(6)
    stream = torch.Generator().manual_seed(11)
    for epoch in range(1000):
        events.begin(epoch, 1000)
        order = torch.randperm(6, generator=stream)
        logits, y = torch.randn(6, 4, generator=stream), torch.randint(4, (6,), generator=stream)
        events.after(Batch(torch.zeros(6, 3, 2, 2), y, order), logits)
        for row, k, i in zip(logits.numpy(), y.tolist(), order.tolist(), strict=True):
            exact[i] += by_hand(row, k)["confidence"] / 1000
    assert np.abs(events.arrays(np.zeros(6, np.int64), "")["confidence"] - exact).max() < 1e-5


def test_image_that_was_never_right_has_the_number_of_epochs() -> None:
    """And one that was right once, at the end, has none."""
    rt = quiet_runtime()
    events, batch = Events(3, rt), Batch(torch.zeros(2, 3, 2, 2), torch.tensor([0, 0]), torch.tensor([2, 0]))
    for epoch, right in enumerate((False, False, True)):
        events.begin(epoch, 3)
        events.after(batch, torch.tensor([[-1.0, 1.0], [1.0 if right else -1.0, 0.0]]))
    found = events.arrays(np.zeros(3, np.int64), "")["forgetting"]
    assert found[2] == 3 and found[0] == 0 and np.isnan(found[1])


# ------------------------------------------------------------------------------------------- the training looked on at


@pytest.mark.parametrize("with_curvature", [False, True])
def test_training_is_bit_identical_with_the_events(with_curvature: bool) -> None:
    """Weights, batch norm's statistics, random streams and the global generator; on augmented images."""
    plain, data = watched(make_data(quiet_runtime(), aug=True), 3), make_data(quiet_runtime(), aug=True)
    rt = quiet_runtime()
    events, model = Events(60, rt, curvature=with_curvature), tiny_net(quiet_runtime())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    loader = data.loader("train", rt, "train")
    trainer.train(model, loader, TrainConfig(epochs=3, lr=0.2), rt, None, watch=events)
    assert equal(snapshot(plain), snapshot(model)) and torch.equal(state, torch.get_rng_state())
    other = quiet_runtime()
    watch_free = make_data(other, aug=True).loader("train", other, "train")
    for _ in range(3):
        list(watch_free)
    assert equal(rt.streams(), other.streams())


def test_modes_gradients_and_statistics_stay(model: TinyNet, data: Data) -> None:
    """A batch norm that was frozen by hand stays frozen, and waiting gradients are those that were there."""
    model.train()
    model.bn.eval()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    grads, before = [p.grad.clone() for p in model.parameters()], snapshot(model)
    events = Events(60, quiet_runtime(), curvature=True)
    events.begin(0, 1)
    events.before(model, next(iter(data.loader("train"))))
    assert model.training and model.conv.training and not model.bn.training
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert equal(snapshot(model), before) and all(p.requires_grad for p in model.parameters())


def test_nothing_waits_for_the_device(model: TinyNet, data: Data) -> None:
    events, batch = Events(60, quiet_runtime(), curvature=True), next(iter(data.loader("train")))
    with Synchronisations() as found:
        events.begin(0, 10)
        events.before(model, batch)
        events.after(batch, torch.randn(len(batch.y), 3))
    assert found.count == 0


def test_killed_training_goes_on_with_its_events(tmp_path: Path) -> None:
    """Killed in epoch 3 of 5 and resumed by a new Events: the same arrays and weights; the seconds add up."""
    data, cfg = make_data(quiet_runtime()), TrainConfig(epochs=5)
    whole = Events(60, quiet_runtime(), curvature=True)
    expected = snapshot(watched(make_data(quiet_runtime()), 5, whole))

    class Killed(Events):
        def after(self, batch: Batch, logits: Tensor) -> None:
            super().after(batch, logits)
            if self.steps == 14:
                raise KeyboardInterrupt
            self.steps += 1

    killed, again = (kind(60, quiet_runtime(), curvature=True) for kind in (Killed, Events))
    killed.steps = 1
    where = RunConfig(save_dir=str(tmp_path), resume_every=0)
    with pytest.raises(KeyboardInterrupt), Run(where, "train", "toy", {"cfg": cfg}) as run:
        watched(data, 5, killed, run)
    with Run(where, "train", "toy", {"cfg": cfg}) as run:
        first = torch.load(run.folder / "state.pt", weights_only=True)
        model = watched(make_data(quiet_runtime()), 5, again, run)
    assert first["epoch"] == 3 and 0 < first["keep"]["seconds"] < again.seconds
    assert equal(snapshot(model), expected)
    labels = data.images.y.numpy()
    for name, values in whole.arrays(labels, "k").items():
        assert np.array_equal(again.arrays(labels, "k")[name], values, equal_nan=name in (*NAMES, "loss_curvature")), name


@pytest.mark.parametrize("recorded", [True, False])
def test_a_resumed_run_records_what_it_did_before(recorded: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """--record_curvature moves no folder, so that a killed run can be resumed under another word; that is said once."""
    before, again = (Events(60, quiet_runtime(), curvature=flag) for flag in (recorded, not recorded))
    again.keep.update(before.keep)
    for epoch in (2, 3):
        again.begin(epoch, 5)
    assert again.curvature == recorded
    did = "recorded" if recorded else "did not record"
    assert capsys.readouterr().out == (f"notice: the killed run {did} the loss curvature, so it goes on that way; --force "
                                       "starts anew\n")


def test_seconds_are_those_of_the_hook_alone() -> None:
    data, events = make_data(quiet_runtime()), Events(60, quiet_runtime())
    start = time.perf_counter()
    watched(data, 5, events)
    assert 0 < events.seconds < time.perf_counter() - start
    recorded = events.seconds
    time.sleep(0.01)
    assert events.seconds == recorded and events.curvature_seconds == 0


def test_seconds_of_the_curvature_are_its_own() -> None:
    """Its two passes a step cost more than the events do, and none of that is charged to these."""
    data, events = make_data(quiet_runtime()), Events(60, quiet_runtime(), curvature=True)
    start = time.perf_counter()
    watched(data, 5, events)
    assert 0 < events.seconds < events.curvature_seconds < time.perf_counter() - start - events.seconds


# --------------------------------------------------------------------------------------------------------- curvature


def curved(seed: int, sharpness: float = 3.0) -> tuple[TinyNet, Tensor, Tensor]:
    """A net with statistics of its own whose loss bends, 12 images and labels; float64, in eval mode."""
    torch.manual_seed(seed)
    model = TinyNet().double().eval()
    with torch.no_grad():
        model.bn.running_mean.normal_(0, 0.2)
        model.bn.running_var.uniform_(0.2, 2)
        model.fc.weight.mul_(sharpness * 4)
    return model, torch.rand(12, 3, 6, 6).double(), torch.randint(0, 3, (12,))


@pytest.mark.parametrize("h", [0.01, 0.5])
def test_curvature_is_that_of_a_loop_over_images(h: float) -> None:
    """Within 1e-9 of the largest in float64, whatever batch an image is in, and 1e-3 of the largest in float32."""
    model, x, y = curved(8)
    expected = torch.tensor([slow_curvature(model, a, b, h) for a, b in zip(x, y, strict=True)], dtype=torch.float64)
    assert expected.max() > 1e-4 and expected.std() > 1e-5
    for size in (12, 5, 1):
        parts = [curvature(model, a, b, h) for a, b in zip(x.split(size), y.split(size), strict=True)]
        assert (torch.cat(parts) - expected).abs().max() < 1e-9 * expected.max()
    single = curvature(model.float(), x.float(), y, h)
    assert single.dtype == torch.float32 and (single - expected).abs().max() < 1e-3 * expected.max()


def test_recorded_curvature_is_the_mean_over_the_epochs() -> None:
    """Ahead of every step's update, in eval mode, of the images as augmented; within 1e-3 of the largest."""
    data, rt = make_data(quiet_runtime(), count=30, forget=3, aug=True), quiet_runtime()
    events = Recorder(30, rt, curvature=True, h=0.3)
    watched(data, 3, events)
    found = events.arrays(data.images.y.numpy(), "")["loss_curvature"]
    expected = np.full(30, np.nan)
    for i, values in events.curvatures.items():
        assert len(values) == 3
        expected[i] = np.mean(values)
    assert np.array_equal(np.isnan(found), np.isnan(expected)) and np.isnan(found[data.splits.val]).all()
    assert np.nanmax(np.abs(found - expected)) < 1e-3 * np.nanmax(expected)
