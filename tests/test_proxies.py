"""Proxies against float64 references and plain loops: recorded events, held-out retraining, loss curvature, Spearman."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import equal, make_data, quiet_runtime, snapshot
from scipy.special import log_softmax, rel_entr
from scipy.special import softmax as scipy_softmax
from scipy.stats import spearmanr
from test_events import slow_curvature

import models
from dataset import Data, DataConfig
from memorization import proxies
from memorization.events import Events
from memorization.proxies import CurvatureConfig, HeldOutConfig, fine_tune, spearman, symmetric_kl
from memorization.registry import SCORES, Job
from models import ModelConfig, Original
from sources import scores as score_files
from trainer import Descent, TrainConfig, train
from utils import BadInput, Run, RunConfig


def make_job(folder: Path, data: Data, events: bool = True, run: Run | None = None) -> Job:
    """A ResNet-20 with one epoch of training on the toy data, in a run folder, and what a score is taken from."""
    rt, config = quiet_runtime(), ModelConfig(arch="resnet20s")
    with Run(RunConfig(save_dir=str(folder)), "train", "toy", {"model": config}) as made:
        if not made.done:
            model, watch = models.new(config, data, rt, "train"), Events(len(data.images.y), rt, curvature=events)
            train(model, data.loader("train", rt, "train"), TrainConfig(epochs=1, lr=0.05), rt, made, watch=watch)
            models.save(made, model)
            if events:
                made.save_arrays("events.npz", **watch.arrays(data.images.y.numpy(), data.splits.images_key))
    return Job(data=data, rt=rt, data_config=DataConfig(dataset="digits"), config=config, where=RunConfig(),
               original=Original(made.folder, {}), run=run)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path, make_data(quiet_runtime()))


def plain(job: Job, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float [N, C, H, W] and labels of a part, without the loader; "all": every training image."""
    images = job.data.test if part == "test" else job.data.images
    index = torch.arange(len(images.y)) if part in ("test", "all") else torch.from_numpy(job.data.index(part))
    return images.x[index].permute(0, 3, 1, 2).contiguous() / 255, images.y[index]


# ---------------------------------------------------------------------------------------------------------- recorded


def test_every_proxy_is_a_score_with_polarity_and_source() -> None:
    assert tuple(proxies.RECORDED) == score_files.RECORDED
    for name in (*score_files.RECORDED, "ho_ret", "loss_curvature"):
        entry = SCORES[name]
        assert entry.polarity in (-1, 1) and "arXiv" in entry.source and entry.summary.endswith(".") and entry.original


@pytest.mark.parametrize("name", score_files.RECORDED)
def test_recorded_proxy_is_what_the_training_wrote(name: str, job: Job) -> None:
    values = SCORES[name].apply(job, SCORES[name].config())[name]
    with np.load(job.original.folder / "events.npz") as file:
        assert np.array_equal(values, file[name], equal_nan=True)
    assert values.dtype == np.float32 and np.isnan(values).nonzero()[0].tolist() == job.data.splits.val.tolist()


def test_proxy_that_was_not_recorded_gives_the_command(tmp_path: Path, job: Job) -> None:
    other = make_job(tmp_path / "bare", job.data, events=False)
    with pytest.raises(BadInput, match=r"no .*events\.npz; 'entropy' is recorded .* python main_train\.py --force"):
        SCORES["entropy"].apply(other, SCORES["entropy"].config())
    with np.load(job.original.folder / "events.npz") as file:
        kept = {key: file[key] for key in file.files if key != "loss_curvature"}
    np.savez(job.original.folder / "events.npz", **kept)
    with pytest.raises(BadInput, match=r"main_train\.py --record_curvature --force"):
        SCORES["loss_curvature"].apply(job, CurvatureConfig(curvature="recorded"))
    job.original = Original(job.original.file, {})  # a published checkpoint
    with pytest.raises(BadInput, match="main_train.py --force"):
        SCORES["confidence"].apply(job, SCORES["confidence"].config())
    job.original = None
    with pytest.raises(BadInput, match="--checkpoint"):
        SCORES["confidence"].apply(job, SCORES["confidence"].config())


def test_events_of_other_data_are_refused(job: Job) -> None:
    job.data.images.y[0] = (job.data.images.y[0] + 1) % 3
    with pytest.raises(BadInput, match="labels differ"):
        SCORES["confidence"].apply(job, SCORES["confidence"].config())


# --------------------------------------------------------------------------------------------- held-out retraining


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_divergence_is_that_of_scipy(scale: float) -> None:
    """Within 1e-10 relative in float64, symmetric, and 0 of the same prediction."""
    random = np.random.default_rng(5)
    a, b = random.normal(0, scale, (2, 50, 6)).astype(np.float32)
    p, q = (scipy_softmax(z.astype(np.float64), 1) for z in (a, b))
    expected = (rel_entr(p, q).sum(1) + rel_entr(q, p).sum(1)) / 2
    found = symmetric_kl(torch.from_numpy(a), torch.from_numpy(b))
    assert found.dtype == torch.float64 and np.allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(found, symmetric_kl(torch.from_numpy(b), torch.from_numpy(a)))
    assert not symmetric_kl(torch.from_numpy(a), torch.from_numpy(a)).any()


def test_divergence_is_finite_where_probabilities_underflow() -> None:
    """Logits 2000 apart: half of the sum of both, by hand 2000."""
    a, b = torch.tensor([[2000.0, 0.0]]), torch.tensor([[0.0, 2000.0]])
    assert float(symmetric_kl(a, b)) == pytest.approx(2000)


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_held_out_retraining_is_the_plain_loop(held_out: str, tmp_path: Path) -> None:
    """torch.optim.SGD on the held-out images in order, three epochs; KL from softmax in float64 (1e-3 relative)."""
    job = make_job(tmp_path, make_data(quiet_runtime(), count=80, aug=True))
    cfg = HeldOutConfig(held_out=held_out, held_out_mode="published", ft_epochs=3, ft_lr=0.05, weight_decay=0.01)
    before = snapshot(job.model())
    found = SCORES["ho_ret"].apply(job, cfg)["ho_ret"]
    model = job.model()
    x, y = plain(job, held_out)
    opt = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    model.train()
    for _ in range(3):
        for a, b in zip(x.split(16), y.split(16), strict=True):
            opt.zero_grad()
            F.cross_entropy(model(a), b).backward()
            opt.step()
    everything = plain(job, "all")[0]
    with torch.no_grad():
        logp, logq = (log_softmax(net.double().eval()(everything.double()).numpy(), 1) for net in (job.model(), model))
    expected = 0.5 * (np.exp(logp) * (logp - logq)).sum(1) + 0.5 * (np.exp(logq) * (logq - logp)).sum(1)
    gone = np.isnan(found).nonzero()[0].tolist()
    assert gone == (job.data.splits.val.tolist() if held_out == "val" else []) and found.dtype == np.float32
    there = np.isfinite(found)
    assert np.allclose(found[there], expected[there], rtol=1e-3, atol=1e-5) and expected.std() > 1e-3
    assert equal(snapshot(job.model()), before)


def losses(patch: pytest.MonkeyPatch, values: Callable[[int], float]) -> list[list[int]]:
    """Descent.epoch that trains nothing: it notes the order of its images and answers the next loss."""
    seen: list[list[int]] = []

    def epoch(self: Descent, batches: Any, loss: Any) -> float:
        seen.append([i for batch in batches for i in batch.index.tolist()])
        return values(len(seen) - 1)

    patch.setattr(Descent, "epoch", epoch)
    return seen


@pytest.mark.parametrize(("course", "length"), [
    ([3, 2, 2, 2, 2, 2, 1, 0], 6),  # equal is not lower
    ([3, 2, 2.5, 2.2, 2.1, 1.9, 2, 2, 2, 2, 0], 10),
    ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1, -2], 12),
])
def test_fine_tuning_stops_after_four_epochs_without_a_lower_loss(course: list[float], length: int, job: Job,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    seen = losses(monkeypatch, course.__getitem__)
    fine_tune(job, HeldOutConfig(ft_epochs=12), job.model())
    assert len(seen) == length


def test_held_out_images_come_shuffled_or_in_order(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly those of the part, each once an epoch; anew in every epoch unless in the published order."""
    for held_out, part in (("val", job.data.splits.val), ("test", np.arange(30))):
        seen = losses(monkeypatch, lambda epoch: -epoch)
        fine_tune(job, HeldOutConfig(held_out=held_out, ft_epochs=6), job.model())
        assert all(sorted(order) == part.tolist() for order in seen) and len({tuple(order) for order in seen}) > 2
        seen = losses(monkeypatch, lambda epoch: -epoch)
        fine_tune(job, HeldOutConfig(held_out=held_out, ft_epochs=2, held_out_mode="published"), job.model())
        assert seen == [part.tolist()] * 2


def test_killed_fine_tuning_goes_on(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in its fourth epoch: the same scores, and the count of epochs without a lower loss goes on too."""
    cfg, real, stale = HeldOutConfig(ft_epochs=30, ft_lr=0.05), Descent.epoch, []
    where = RunConfig(save_dir=str(tmp_path / "scores"), resume_every=0)

    def epoch(self: Descent, batches: Any, loss: Any) -> float:
        stale.append(self.at)
        if len(stale) == kill:
            raise KeyboardInterrupt
        real(self, batches, loss)
        return 1.0 if self.at else 2.0

    monkeypatch.setattr(Descent, "epoch", epoch)
    kill = 0
    expected = SCORES["ho_ret"].apply(make_job(tmp_path, make_data(quiet_runtime())), cfg)["ho_ret"]
    assert stale == [0, 1, 2, 3, 4, 5]
    stale.clear()
    kill = 4
    for again in (False, True):
        fresh = make_job(tmp_path, make_data(quiet_runtime()))
        with pytest.raises(KeyboardInterrupt) if not again else Run(where, "other", "none", {}), \
                Run(where, "memorization", "ho_ret", {"cfg": cfg}) as fresh.run:
            found = SCORES["ho_ret"].apply(fresh, cfg)["ho_ret"]
    assert stale == [0, 1, 2, 3, 3, 4, 5] and np.array_equal(found, expected, equal_nan=True)


def test_held_out_retraining_without_a_validation_split_is_refused(job: Job) -> None:
    object.__setattr__(job.data.splits, "val", np.empty(0, np.int64))
    with pytest.raises(BadInput, match=r"--held_out val: there is no validation split.*--held_out test"):
        SCORES["ho_ret"].apply(job, HeldOutConfig())


def test_pruned_weights_stay_zero_in_fine_tuning(job: Job) -> None:
    model = job.model()
    name, weight = next((n, p) for n, p in model.named_parameters() if p.ndim == 4)
    mask = {name: torch.rand(weight.shape) > 0.5}
    with torch.no_grad():
        weight.mul_(mask[name])
    before = copy.deepcopy(model)
    fine_tune(job, HeldOutConfig(ft_epochs=1), model, mask)
    assert not weight[~mask[name]].any() and not torch.equal(weight, dict(before.named_parameters())[name])


# --------------------------------------------------------------------------------------------------------- curvature


def test_final_curvature_is_that_of_a_loop_over_all_images(job: Job) -> None:
    """float64, image by image, at the final weights; validation images have one too. Within 1e-3 of the largest."""
    found = SCORES["loss_curvature"].apply(job, CurvatureConfig(h=0.2))["loss_curvature"]
    model = job.model().double()
    x, y = plain(job, "all")
    expected = np.array([slow_curvature(model, a, b, 0.2) for a, b in zip(x.double(), y, strict=True)])
    assert found.shape == (60,) and found.dtype == np.float32 and expected.std() > 1e-6
    assert np.abs(found - expected).max() < 1e-3 * expected.max()


def test_recorded_curvature_is_that_of_the_training(job: Job) -> None:
    found = SCORES["loss_curvature"].apply(job, CurvatureConfig(curvature="recorded"))["loss_curvature"]
    with np.load(job.original.folder / "events.npz") as file:
        assert np.array_equal(found, file["loss_curvature"], equal_nan=True)


# ---------------------------------------------------------------------------------------------------------- Spearman


def test_spearman_is_over_images_finite_in_both() -> None:
    random = np.random.default_rng(9)
    a = random.normal(size=80).round(1)
    b = a + random.normal(size=80)
    a[:7], b[5:11], b[20] = np.nan, np.nan, np.inf
    both = np.isfinite(a) & np.isfinite(b)
    rho, count = spearman(a, b)
    assert count == 68 == both.sum() and rho == pytest.approx(spearmanr(a[both], b[both]).statistic, abs=1e-12)


@pytest.mark.parametrize("values", [np.ones(9), np.full(9, np.nan), np.array([1.0, 2.0] + [np.nan] * 7)])
def test_spearman_that_is_not_defined_is_nan(values: np.ndarray) -> None:
    rho, count = spearman(values, np.arange(9.0))
    assert np.isnan(rho) and count == np.isfinite(values).sum()
