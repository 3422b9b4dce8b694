"""The memorization and influence estimates: against counts by hand, and on a pool whose wrong labels are known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TOY, quiet_runtime, toy_arrays

from dataset import Data, DataConfig, Images, Splits
from memorization.factory import Pool, PoolConfig
from memorization.feldman import influence, memorization, prepare_scored, score_memorization
from memorization.registry import SCORES, Job
from models import ModelConfig
from utils import BadInput, Run, RunConfig, Runtime


def draw(seed: int, models: int = 40, images: int = 23, tests: int = 11) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks, and correctness on training and test images, of a pool that never was."""
    random = np.random.default_rng(seed)
    masks = random.random((models, images)) < 0.6
    easy = random.random(images)
    correct = random.random((models, images)) < easy + (1 - easy) * masks * 0.8
    return masks, correct, random.random((models, tests)) < 0.5


def by_hand(masks: np.ndarray, correct: np.ndarray) -> Iterator[tuple[float, float, int, int]]:
    for i in range(masks.shape[1]):
        counts = {True: [0, 0], False: [0, 0]}
        for t in range(len(masks)):
            counts[bool(masks[t, i])][0] += 1
            counts[bool(masks[t, i])][1] += int(correct[t, i])
        (n_in, right_in), (n_out, right_out) = counts[True], counts[False]
        variance = 0.0
        for n, right in counts.values():
            p = (right + 1) / (n + 2)
            variance += p * (1 - p) / (n + 2)
        yield right_in / n_in - right_out / n_out, variance**0.5, n_in, n_out


@pytest.mark.parametrize("seed", range(3))
def test_memorization_is_the_difference_of_two_shares(seed: int) -> None:
    masks, correct, _ = draw(seed)
    found = memorization(masks, correct)
    for i, expected in enumerate(by_hand(masks, correct)):
        values = [float(found[name][i]) for name in ("memorization", "std_error", "n_in", "n_out")]
        assert values == pytest.approx(expected, abs=1e-6)
    assert found["memorization"].dtype == found["std_error"].dtype == np.float32


def test_standard_error_is_that_of_repeated_pools() -> None:
    """Over 400 pools of the same probabilities the spread of the estimates is the mean standard error, within 10 %."""
    random = np.random.default_rng(11)
    p_in, p_out, estimates, errors = np.array([0.9, 0.6]), np.array([0.5, 0.3]), [], []
    for _ in range(400):
        masks = random.random((120, 2)) < 0.7
        found = memorization(masks, random.random((120, 2)) < np.where(masks, p_in, p_out))
        estimates.append(found["memorization"])
        errors.append(found["std_error"])
    assert np.mean(estimates, 0) == pytest.approx(p_in - p_out, abs=0.02)
    assert np.mean(errors, 0) == pytest.approx(np.std(estimates, 0), rel=0.1)


def test_standard_error_is_not_0_where_all_models_agree() -> None:
    masks = np.array([[True], [False], [True], [False]])
    found = memorization(masks, masks)
    assert found["memorization"] == 1 and found["std_error"] == pytest.approx((2 * (3 / 4) * (1 / 4) / 4) ** 0.5)


@pytest.mark.parametrize("value", [True, False])
def test_image_that_no_or_every_model_saw_has_no_score(value: bool) -> None:
    masks, correct, tests = draw(4)
    masks[:, [3, 5]] = value
    for estimate in (lambda: memorization(masks, correct), lambda: next(influence(masks, tests))):
        with pytest.raises(BadInput, match="2 of 23 training images were seen by all or by none of the 40 models.*--models"):
            estimate()


@pytest.mark.parametrize("block", [1, 4, 11, 100])
def test_influence_is_a_difference_of_two_shares_for_every_pair(block: int) -> None:
    masks, _, tests = draw(block)
    blocks = list(influence(masks, tests, block))
    assert [first for first, _ in blocks] == list(range(0, 11, block)) and all(len(v) <= block for _, v in blocks)
    found = np.concatenate([values for _, values in blocks])
    assert found.shape == (11, 23) and found.dtype == np.float32
    for j in range(11):
        expected = [row[0] for row in by_hand(masks, np.repeat(tests[:, j : j + 1], 23, 1))]
        assert found[j] == pytest.approx(expected, abs=1e-6)


# ------------------------------------------------------------------------------------------------ a real pool, end to end

COPIES, WRONG = 20, 12


@pytest.fixture(scope="module")
def labelled() -> SimpleNamespace:
    """Images of three classes: a dozen with wrong labels, which are test images too, and one image twenty times."""
    rt = quiet_runtime()
    x, y = toy_arrays(180, 3, wrong=0.0)
    random = np.random.default_rng(3)
    wrong = np.sort(random.choice(np.arange(COPIES, 180), WRONG, replace=False))
    y[wrong] = (y[wrong] + random.integers(1, 3, WRONG)) % 3
    x[:COPIES], y[:COPIES] = x[0], y[0]
    x_test, y_test = toy_arrays(60, 4, wrong=0.0)
    x_test[:WRONG], y_test[:WRONG] = x[wrong], y[wrong]
    none = np.arange(0)
    splits = Splits(np.arange(180), none, np.arange(180), none, (), "feldman", "feldman", "feldman-images")
    data = Data(TOY, Images(x, y, TOY, rt), Images(x_test, y_test, TOY, rt), 3, splits, 32, False)
    return SimpleNamespace(rt=rt, data=data, wrong=wrong)


def settings(**values: object) -> PoolConfig:
    return PoolConfig.named("fast", **{"models": 24, "subset": "half", "engine": "serial", "pool_batch": 32, "pool_lr": 0.1,
                                       "pool_epochs": 10} | values)


@pytest.fixture(scope="module")
def job(labelled: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Job:
    where = RunConfig(save_dir=str(tmp_path_factory.mktemp("feldman")))
    return Job(data=labelled.data, rt=labelled.rt, data_config=DataConfig(dataset="digits"),
               config=ModelConfig(arch="resnet8s"), where=where)


@pytest.fixture(scope="module")
def pool(job: Job) -> Pool:
    job.prepared = prepare_scored(job, settings())
    return job.prepared


def test_wrong_labels_are_memorized_and_copies_are_not(labelled: SimpleNamespace, job: Job, pool: Pool) -> None:
    """Nothing but seeing a wrong label can teach it, and a copy is known from the others; margins are wide."""
    found = score_memorization(job, settings())
    scores = found["memorization"]
    plain = np.setdiff1d(np.arange(COPIES, 180), labelled.wrong)
    assert scores[labelled.wrong].mean() > 0.5 and np.abs(scores[:COPIES]).mean() < 0.05
    assert scores[plain].mean() < 0.2 and scores[labelled.wrong].mean() > scores[plain].mean() + 0.4
    assert (found["n_in"] == 12).all() and (found["n_out"] == 12).all()
    expected = memorization(pool.masks(), pool.correct("train"))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_image_influences_its_twin_as_it_memorizes(labelled: SimpleNamespace, pool: Pool) -> None:
    """A wrong label's influence on the same test image is its memorization, and no other's is larger there."""
    first, block = next(influence(pool.masks(), pool.correct("test")))
    own = block[np.arange(WRONG), labelled.wrong]
    scores = memorization(pool.masks(), pool.correct("train"))["memorization"]
    assert first == 0 and own == pytest.approx(scores[labelled.wrong], abs=1e-6)
    assert np.mean(own >= np.abs(block[:WRONG]).max(1)) > 0.7


def test_run_of_the_score_keeps_pool_cost_and_influence(job: Job, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of seven test images, which do not divide the sixty."""
    monkeypatch.setattr("memorization.feldman.BLOCK", 7)
    cfg = settings(influence=True, influence_whole=True, influence_above=0.2)
    entry = SCORES["memorization"]
    assert (entry.polarity, entry.original, entry.config, entry.prepare) == (1, False, PoolConfig, prepare_scored)
    with Run(job.where, "memorization", "toy", {"cfg": cfg}) as job.run:
        entry.apply(job, cfg)
    assert job.run.seconds["pool"] == pytest.approx(pool.seconds()) and pool.seconds() > 0.1
    assert (job.run.values["models"], job.run.values["pool"]) == (24, str(pool.folder))
    whole = np.load(job.run.folder / "influence.npy", mmap_mode="r", allow_pickle=False)
    expected = np.concatenate([block for _, block in influence(pool.masks(), pool.correct("test"))])
    assert whole.dtype == np.float32 and np.array_equal(whole, expected)
    with np.load(job.run.folder / "influence.npz", allow_pickle=False) as file:
        kept = np.zeros_like(expected)
        kept[file["test_index"], file["train_index"]] = file["value"]
        assert 0 < len(file["value"]) == (np.abs(expected) > 0.2).sum()
    assert np.array_equal(kept, np.where(np.abs(expected) > 0.2, expected, 0))
    job.run = None


def test_run_without_influence_writes_none(job: Job, pool: Pool) -> None:
    cfg = settings()
    with Run(job.where, "memorization", "toy", {"cfg": cfg}) as job.run:
        score_memorization(job, cfg)
    assert [path.name for path in job.run.folder.iterdir()] == ["record.json"]
    job.run = None


def test_score_of_a_pool_that_lost_a_model_is_refused(labelled: SimpleNamespace, job: Job, pool: Pool, rt: Runtime,
                                                      tmp_path: Path) -> None:
    lost = Pool(tmp_path, settings(), labelled.data, ModelConfig(arch="resnet8s"), labelled.rt)
    lost.folder.mkdir(parents=True)
    other = Job(data=labelled.data, rt=rt, data_config=job.data_config, config=job.config, where=job.where, prepared=lost)
    with pytest.raises(BadInput, match="model 0 is missing"):
        score_memorization(other, settings())


def test_influence_of_more_pairs_than_fit_is_refused(job: Job, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memorization.feldman.MOST_PAIRS", 5)
    cfg = settings(influence=True, influence_above=0.01)
    with pytest.raises(BadInput, match="--influence_above"), Run(job.where, "memorization", "toy", {"cfg": cfg}) as job.run:
        score_memorization(job, cfg)
    assert not job.run.folder.exists()
    job.run = None


def test_counts_are_exact_beyond_what_bytes_hold() -> None:
    masks = np.zeros((600, 1), bool)
    masks[:400] = True
    found = memorization(masks, np.arange(600)[:, None] % 4 > 0)
    assert (found["n_in"], found["n_out"], found["memorization"]) == (400, 200, 0)
    assert torch.tensor(found["n_in"]).dtype == torch.int32
