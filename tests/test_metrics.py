"""Accuracies, distances to retrain, features, draws, exact rules and the membership attack, against slow twins."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from evaluation import mia, tow
from evaluation.mia import Outputs
from utils import BadInput

SHARES = {"forget": 0.91, "retain": 0.99, "test": 0.83, "mia": 0.2}
ONE_DIMENSIONAL = ("correctness", "confidence", "entropy", "m_entropy")


def random_outputs(
    count: int, classes: int, seed: int, boost: float = 2.0, labels: np.ndarray | None = None
) -> Outputs:
    """Outputs of a model that adds ``boost`` on average to the right logit."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count) if labels is None else labels
    logits = random.normal(0, 2, (len(labels), classes))
    logits[np.arange(len(labels)), labels] += random.gamma(2.0, boost / 2, len(labels))
    return Outputs(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels))


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
    with pytest.raises(BadInput, match="finite"):
        tow.t_interval([0.5, math.nan])
    for logits in (torch.tensor([[math.nan, 1.0]]), torch.empty(0, 2)):
        with pytest.raises(BadInput):
            tow.accuracy(logits, torch.zeros(len(logits), dtype=torch.int64))


def test_t_interval_equals_scipys() -> None:
    values = np.random.default_rng(3).normal(0.9, 0.02, 5)
    mean, half, count = tow.t_interval(list(values), level=0.9)
    low, high = stats.t.interval(0.9, 4, values.mean(), stats.sem(values))
    assert count == 5 and mean == pytest.approx(values.mean())
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-12)


def test_one_seed_has_no_interval() -> None:
    assert tow.t_interval([0.7]) == (0.7, None, 1)
    with pytest.raises(BadInput, match="no values"):
        tow.t_interval([])


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


# --------------------------------------------------------------------------------------------------------- draws


def test_balanced_draw_takes_equally_many_of_every_class_from_both_sides() -> None:
    random = np.random.default_rng(0)
    member_labels = np.sort(random.choice(6, 500, p=[0.4, 0.2, 0.2, 0.15, 0.05, 0.0]))  # class 5 lacks members
    nonmember_labels = random.choice(6, 200, p=[0.1, 0.3, 0.0, 0.2, 0.2, 0.2])  # class 2 lacks non-members
    member, nonmember = mia.balanced_draw(member_labels, nonmember_labels, np.random.default_rng(1))
    assert len(set(member)) == len(member) and len(set(nonmember)) == len(nonmember)
    smaller = np.minimum(np.bincount(member_labels, minlength=6), np.bincount(nonmember_labels, minlength=6))
    for labels, index in ((member_labels, member), (nonmember_labels, nonmember)):
        assert np.array_equal(np.bincount(labels[index], minlength=6), smaller)
        fit, held_out = (np.bincount(labels[half], minlength=6) for half in mia.halves(index))
        assert np.abs(fit - held_out).max() <= 1 and (fit + held_out == smaller).all()
    assert smaller[2] == smaller[5] == 0 and smaller.sum() > 100


def test_balanced_draw_is_not_the_first_members_and_follows_its_generator() -> None:
    labels = np.sort(np.arange(4000) % 10)  # in order, as TinyImageNet's folders
    draws = [mia.balanced_draw(labels, labels[::4], np.random.default_rng(seed))[0] for seed in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    assert abs(np.mean(draws[0]) - 1999.5) < 100  # the first 1000 would have 499.5
    assert abs(np.mean(mia.halves(draws[0])[0]) - 1999.5) < 150


def test_published_draw_is_the_first_of_retain_against_the_whole_test_set() -> None:
    member, nonmember = mia.published_draw(70, 40)
    assert np.array_equal(member, np.arange(40)) and np.array_equal(nonmember, np.arange(40))
    assert [len(index) for index in mia.published_draw(30, 40)] == [30, 30]
    with pytest.raises(BadInput, match="retain and test"):
        mia.published_draw(0, 40)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(BadInput, match="no class occurs in both"):
        mia.balanced_draw(np.array([0, 0, 1]), np.array([2, 3]), np.random.default_rng(0))


# --------------------------------------------------------------------------------------------------------- rules


def balanced_accuracy(member_called: np.ndarray, nonmember_called: np.ndarray) -> float:
    return (member_called.mean() + 1 - nonmember_called.mean()) / 2


def small_sample(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A few values with many ties, the two sides of different size."""
    random = np.random.default_rng(seed)
    return random.integers(0, 7, random.integers(1, 12)) / 4, random.integers(0, 7, random.integers(1, 12)) / 4


def brute_cuts(*sides: np.ndarray) -> list[float]:
    values = sorted(set(np.concatenate(sides)))
    return [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(values)), math.inf]


@pytest.mark.parametrize("larger", [True, False])
def test_best_threshold_equals_brute_force(larger: bool) -> None:
    for seed in range(200):
        sides = small_sample(seed)
        called = {cut: [side >= cut if larger else side <= cut for side in sides] for cut in brute_cuts(*sides)}
        best = max(balanced_accuracy(*c) for c in called.values())
        tied = [cut for cut, c in called.items() if balanced_accuracy(*c) > best - 1e-9]
        assert mia.best_threshold(*sides, larger) == (min(tied) if larger else max(tied)), seed


def test_a_threshold_that_gains_nothing_calls_all_members() -> None:
    values = np.array([0.2, 0.5, 0.5])
    assert mia.best_threshold(values, values, True) == -math.inf
    assert mia.best_threshold(values, values, False) == math.inf
    assert mia.best_interval(values, values).decide(np.array([-9.0, 0.5, 9.0])).all()


def test_best_interval_equals_brute_force() -> None:
    inside_won = outside_won = 0
    for seed in range(200):
        sides = small_sample(seed)
        best = max(
            balanced_accuracy(*(((side >= low) & (side < high)) == inside for side in sides))
            for low, high in itertools.combinations(brute_cuts(*sides), 2)
            for inside in (True, False)
        )
        found = mia.best_interval(*sides)
        assert balanced_accuracy(*(found.decide(side) for side in sides)) == pytest.approx(best, abs=1e-12), seed
        inside_won, outside_won = inside_won + found.members_inside, outside_won + (not found.members_inside)
    assert min(inside_won, outside_won) > 10


def test_rules_separate_adjacent_floats() -> None:
    low = np.array([0.7])
    high = np.nextafter(low, 1)
    upper, lower = mia.best_threshold(high, low, True), mia.best_threshold(low, high, False)
    assert high[0] >= upper > low[0]
    assert low[0] <= lower < high[0]
    both = np.concatenate([low, high])
    for rule in ("threshold", "interval"):
        assert mia._fit(rule, "confidence", high, low)[0](both).tolist() == [False, True]
        assert mia._fit(rule, "entropy", low, high)[0](both).tolist() == [True, False]


def test_area_under_curve_equals_scikit_learns_with_ties() -> None:
    for seed in range(50):
        members, others = small_sample(seed)
        truth = np.repeat([1, 0], [len(members), len(others)])
        wanted = roc_auc_score(truth, np.concatenate([members, others]))
        assert mia.area_under_curve(members, others) == pytest.approx(wanted, abs=1e-12)


# -------------------------------------------------------------------------------------------------------- attack


def attack(
    retain: Outputs, test: Outputs, forget: Outputs, rule: str = "threshold", mode: str = "balanced", seed: int = 0
) -> dict:
    return mia.membership(retain, test, forget, rule=rule, mode=mode, generator=np.random.default_rng(seed))


MEMBERS, STRANGERS = random_outputs(1500, 5, seed=21, boost=9.0), random_outputs(600, 5, seed=22, boost=2.0)


@pytest.mark.parametrize("mode", mia.MODES)
@pytest.mark.parametrize("rule", mia.RULES)
def test_high_means_forgotten_and_privacy_above_half_means_leaked(rule: str, mode: str) -> None:
    forgotten = attack(MEMBERS, STRANGERS, random_outputs(400, 5, seed=23, boost=2.0), rule, mode)
    remembered = attack(MEMBERS, STRANGERS, random_outputs(400, 5, seed=24, boost=9.0), rule, mode)
    names = (*mia.FEATURES, "m_entropy_published") if mode == "published" else mia.FEATURES
    assert tuple(forgotten["forget"]) == tuple(forgotten["privacy"]) == names
    # a regression linear in the class probabilities hardly sees confidence; that rule's prob has no direction to test
    for name in names if rule == "svc" else set(names) - {"prob"}:
        assert 0 <= remembered["forget"][name] < forgotten["forget"][name] - 0.1 <= 1, name
        assert 0.55 < forgotten["privacy"][name] <= 1, name
    assert all(0 <= value["prob"] <= 1 for value in (forgotten["forget"], forgotten["privacy"], remembered["forget"]))
    for name in set(names) - {"prob"}:
        assert 0.55 < forgotten["auc"][name] <= 1, name
    assert "prob" not in forgotten["auc"]
    assert ("solver" in forgotten) == (rule == "svc")


def test_a_model_that_treats_both_alike_has_no_leak() -> None:
    retain, test = random_outputs(4000, 5, seed=31), random_outputs(3000, 5, seed=32)
    found = attack(retain, test, random_outputs(500, 5, seed=33))
    for name in mia.FEATURES:
        assert found["privacy"][name] == pytest.approx(0.5, abs=0.04), name
    for name in ONE_DIMENSIONAL:
        assert found["auc"][name] == pytest.approx(0.5, abs=0.05), name


def test_privacy_is_scored_on_examples_that_were_not_fitted() -> None:
    # random values: an interval scored on its own ten examples would look like a leak
    retain, test = random_outputs(20, 2, seed=41, boost=0.0), random_outputs(20, 2, seed=42, boost=0.0)
    held_out = [attack(retain, test, test, "interval", seed=seed)["privacy"]["confidence"] for seed in range(60)]
    assert np.mean(held_out) < 0.6


def test_published_mode_fits_the_first_members_in_order() -> None:
    # the first 600 of retain look like members, all others like strangers
    late = random_outputs(900, 5, seed=51, boost=2.0)
    first = MEMBERS.take(np.arange(600))
    retain = Outputs(torch.cat([first.logits, late.logits]), torch.cat([first.labels, late.labels]))
    forget = random_outputs(400, 5, seed=52, boost=9.0)
    found = attack(retain, STRANGERS, forget, mode="published")
    assert found["members"] == 600
    fitted, strangers, asked = (mia.features(part)["confidence"].numpy() for part in (first, STRANGERS, forget))
    threshold = mia.best_threshold(fitted, strangers, True)
    assert found["forget"]["confidence"] == pytest.approx(np.mean(asked < threshold), abs=1e-12)
    threshold = mia.best_threshold(fitted[:300], strangers[:300], True)
    rest = np.concatenate([fitted[300:], mia.features(late)["confidence"].numpy()])
    privacy = balanced_accuracy(rest >= threshold, strangers[300:] >= threshold)
    assert found["privacy"]["confidence"] == pytest.approx(privacy, abs=1e-12)


def test_correctness_attack_is_one_minus_accuracy() -> None:
    forget = random_outputs(300, 5, seed=61, boost=4.0)
    found = attack(MEMBERS, STRANGERS, forget)["forget"]["correctness"]
    assert found == pytest.approx(1 - tow.accuracy(forget.logits, forget.labels), abs=1e-12)


def test_bad_calls_of_the_attack_are_refused() -> None:
    none = MEMBERS.take(np.array([], dtype=np.int64))
    one = Outputs(torch.zeros(1, 5), torch.tensor([0]))
    with pytest.raises(BadInput, match="forget set is empty"):
        attack(MEMBERS, STRANGERS, none)
    with pytest.raises(BadInput, match="two retain and two test"):
        attack(one, one, MEMBERS)
    with pytest.raises(BadInput, match="known: threshold, interval, svc"):
        attack(MEMBERS, STRANGERS, MEMBERS, rule="svm")
    with pytest.raises(BadInput, match="known: balanced, published"):
        attack(MEMBERS, STRANGERS, MEMBERS, mode="first")


def test_importing_the_metrics_does_not_import_scikit_learn_or_scipy() -> None:
    code = "import sys, evaluation.mia, evaluation.svc, evaluation.tow; print({'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
