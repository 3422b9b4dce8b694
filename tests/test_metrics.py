"""Accuracies, distances to retrain, and the features of the membership attack, against formulas by hand and slow twins."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from plain_attack import random_outputs

from evaluation import mia, tow
from evaluation.mia import Outputs
from utils import BadInput

SHARES = {"forget": 0.91, "retain": 0.99, "test": 0.83, "mia": 0.2}


# ----------------------------------------------------------------------------------------------------- distances


def test_accuracy_and_disagreement_count_predictions() -> None:
    a = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [0.0, 5.0, 1.0], [1.0, 0.5, 0.0]])
    b = torch.tensor([[2.0, 1.0, 0.0], [4.0, 1.0, 3.0], [0.0, 5.0, 1.0], [0.0, 0.5, 0.9]])
    assert tow.accuracy(a, torch.tensor([0, 2, 0, 0])) == 0.75
    assert tow.disagreement(a, b) == 0.5
    assert tow.disagreement(a, a) == 0


def test_tow_is_the_product_over_forget_retain_and_test() -> None:
    other = {"forget": 0.81, "retain": 0.97, "test": 0.88, "mia": 0.5}
    assert tow.tow(other, SHARES) == pytest.approx(0.90 * 0.98 * 0.95, abs=1e-12)
    assert tow.tow_mia(other, SHARES) == pytest.approx(0.70 * 0.98 * 0.95, abs=1e-12)
    assert tow.tow(SHARES, other) == tow.tow(other, SHARES)


def test_retrain_against_itself_has_tow_one_and_gap_zero() -> None:
    percent = {"UA": 9.0, "RA": 99.0, "TA": 83.0, "MIA": 20.0}
    assert tow.tow(SHARES, SHARES) == 1 and tow.tow_mia(SHARES, SHARES) == 1
    assert tow.average_gap(percent, percent) == 0


def test_average_gap_is_the_mean_of_four_differences() -> None:
    one, other = ({"UA": 5.0, "RA": 99.0, "TA": 90.0, "MIA": 12.0}, {"UA": 7.0, "RA": 98.0, "TA": 94.0, "MIA": 9.0})
    assert tow.average_gap(one, other) == 2.5


@pytest.mark.parametrize("distance", [tow.tow, tow.tow_mia])
@pytest.mark.parametrize("bad", [83.0, 1.0001, -0.1, math.nan])
def test_percent_and_nan_are_refused_as_shares(distance, bad: float) -> None:
    for name in ("mia" if distance is tow.tow_mia else "forget", "retain", "test"):
        for pair in ((SHARES | {name: bad}, SHARES), (SHARES, SHARES | {name: bad})):
            with pytest.raises(BadInput, match=name):
                distance(*pair)


def test_missing_and_nan_metrics_are_refused() -> None:
    with pytest.raises(BadInput, match="retain"):
        tow.tow({"forget": 0.5, "test": 0.5}, SHARES)
    gap = {"UA": 1.0, "RA": 2.0, "TA": 3.0, "MIA": 4.0}
    with pytest.raises(BadInput, match="TA is NaN"):
        tow.average_gap(gap | {"TA": math.nan}, gap)
    for logits in (torch.tensor([[math.nan, 1.0]]), torch.empty(0, 2)):
        with pytest.raises(BadInput):
            tow.accuracy(logits, torch.zeros(len(logits), dtype=torch.int64))


def test_noise_floor_pairs_every_two_retrains_once() -> None:
    models = [SHARES, SHARES | {"test": 0.80}, SHARES | {"test": 0.90, "mia": 0.3}]
    assert tow.noise_floor(models) == pytest.approx([0.97, 0.93, 0.90], abs=1e-12)
    assert tow.noise_floor(models, tow.tow_mia) == pytest.approx([0.97, 0.93 * 0.9, 0.90 * 0.9], abs=1e-12)
    assert tow.noise_floor(models[:1]) == []


# ------------------------------------------------------------------------------------------------------ features


def by_hand(logits: list[float], label: int) -> dict[str, float]:
    """The features of one example in plain floats; only for logits that do not saturate."""
    exponentials = [math.exp(z) for z in logits]
    p = [e / sum(exponentials) for e in exponentials]
    return {
        "correctness": float(logits.index(max(logits)) == label),
        "confidence": p[label],
        "entropy": -sum(q * math.log(q) for q in p),
        "m_entropy": -(1 - p[label]) * math.log(p[label])
        - sum(q * math.log(1 - q) for k, q in enumerate(p) if k != label),
    }


def test_features_equal_their_formulas_by_hand() -> None:
    outputs = random_outputs(60, 7, seed=11)
    found = mia.features(outputs)
    assert list(found) == list(mia.FEATURES)
    for row, (logits, label) in enumerate(zip(outputs.logits.tolist(), outputs.labels.tolist(), strict=True)):
        for name, value in by_hand(logits, label).items():
            assert found[name][row].item() == pytest.approx(value, rel=1e-9, abs=1e-9), name
        exponentials = np.exp(logits)
        np.testing.assert_allclose(found["prob"][row], exponentials / exponentials.sum(), atol=1e-12)
        phi = logits[label] - math.log(sum(math.exp(z) for k, z in enumerate(logits) if k != label))
        assert mia.margin(outputs)[row].item() == pytest.approx(phi, rel=1e-9, abs=1e-9)


def test_features_do_not_depend_on_the_batch_and_published_m_entropy_does() -> None:
    outputs = random_outputs(50, 10, seed=2)
    whole, last = mia.features(outputs), np.array([49])
    alone = mia.features(outputs.take(last))
    for name in mia.FEATURES:
        torch.testing.assert_close(whole[name][49:], alone[name], rtol=0, atol=1e-12)
    probs = outputs.logits.softmax(1)
    published = mia.published_m_entropy(probs, outputs.labels)[49:]
    assert (published - mia.published_m_entropy(probs[49:], outputs.labels[49:])).abs().item() > 0.1


def test_features_stay_finite_and_right_where_the_softmax_saturates() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [200.0, 0.0, 0.0], [0.0, -200.0, 0.0], [-3e38, 3e38, 0.0]])
    outputs = Outputs(logits, torch.tensor([0, 1, 0, 1]))
    found = mia.features(outputs)
    assert all(torch.isfinite(value).all() for value in found.values())
    # row 1, sure of the wrong class: 200 from the label's term, 200 - log 2 from log(1 - p) of the sure class
    assert found["m_entropy"].tolist() == pytest.approx([0.0, 400 - math.log(2), math.log(2), 0.0], abs=1e-9)
    assert mia.margin(outputs)[:3].tolist() == pytest.approx([200 - math.log(2), -200, 0.0], abs=1e-9)


def test_outputs_that_are_not_finite_are_refused() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(BadInput, match="diverged"):
            mia.features(Outputs(torch.tensor([[0.0, value]]), torch.tensor([0])))


def naive_published_m_entropy(probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Two assignments through [:, labels], each N x N, with log p for log(1 - p)."""
    clipped = torch.where(probs > 0, probs.log(), torch.tensor(1e-30, dtype=probs.dtype).log())
    weights, logs = probs.clone(), clipped.clone()
    weights[:, labels] = (1 - probs)[:, labels]
    logs[:, labels] = clipped[:, labels]
    return -(weights * logs).sum(1)


@pytest.mark.parametrize("occurring", [10, 3, 1])
def test_published_m_entropy_equals_the_quadratic_form(occurring: int) -> None:
    random = np.random.default_rng(occurring)
    outputs = random_outputs(80, 10, seed=4, boost=150.0, labels=random.integers(0, occurring, 80))
    probs = outputs.logits.softmax(1)
    assert (probs == 0).any()
    found = mia.published_m_entropy(probs, outputs.labels)
    torch.testing.assert_close(found, naive_published_m_entropy(probs, outputs.labels), rtol=1e-6, atol=0)
    assert found.dtype == torch.float32


def test_m_entropy_is_not_the_published_one() -> None:
    outputs = random_outputs(200, 10, seed=6)
    right = mia.features(outputs)["m_entropy"]
    published = mia.published_m_entropy(outputs.logits.softmax(1), outputs.labels)
    assert (right - published).abs().min() > 1e-3
    turned = Outputs(outputs.logits, (outputs.labels + 1) % 10)
    assert (mia.features(turned)["m_entropy"] - right).abs().max() > 1
    # the published one does not even see the labels once all classes occur
    torch.testing.assert_close(mia.published_m_entropy(outputs.logits.softmax(1), turned.labels), published)


def test_importing_the_metrics_does_not_import_scikit_learn_or_scipy() -> None:
    code = "import sys, evaluation.mia, evaluation.svc, evaluation.tow; print({'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
