"""The membership attack: its draws, its exact rules over many draws at once, and its numbers, against slow twins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import plain_attack
import pytest
import torch
from plain_attack import balanced_accuracy, random_outputs
from sklearn.metrics import roc_auc_score

from evaluation import mia, rules, tow
from evaluation.draws import balanced_draws, draws, halves, published_draw
from evaluation.mia import Outputs
from utils import BadInput

ONE_DIMENSIONAL = ("correctness", "confidence", "entropy", "m_entropy")

# --------------------------------------------------------------------------------------------------------- draws


def test_balanced_draws_take_equally_many_of_every_class_from_both_sides() -> None:
    random = np.random.default_rng(0)
    member_labels = np.sort(random.choice(6, 500, p=[0.4, 0.2, 0.2, 0.15, 0.05, 0.0]))  # class 5 lacks members
    nonmember_labels = random.choice(6, 200, p=[0.1, 0.3, 0.0, 0.2, 0.2, 0.2])  # class 2 lacks non-members
    members, others = balanced_draws(member_labels, nonmember_labels, 5, np.random.default_rng(1))
    smaller = np.minimum(np.bincount(member_labels, minlength=6), np.bincount(nonmember_labels, minlength=6))
    assert smaller[2] == smaller[5] == 0 and smaller.sum() > 100
    assert (member_labels[members] == nonmember_labels[others]).all()
    for labels, index in ((member_labels, members), (nonmember_labels, others)):
        fit, held_out = halves(index)
        for draw in range(5):
            assert len(set(index[draw])) == smaller.sum()
            assert np.array_equal(np.bincount(labels[index[draw]], minlength=6), smaller)
            mine, theirs = (np.bincount(labels[half[draw]], minlength=6) for half in (fit, held_out))
            assert np.abs(mine - theirs).max() <= 1 and (mine + theirs == smaller).all()


def test_balanced_draws_are_not_the_first_members_and_follow_their_generator() -> None:
    labels = np.sort(np.arange(4000) % 10)  # in order, as TinyImageNet's folders
    first, again, other = (balanced_draws(labels, labels[::4], 3, np.random.default_rng(seed))[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])
    assert abs(np.mean(first) - 1999.5) < 60  # the first 1000 would have 499.5
    assert all(abs(np.mean(half) - 1999.5) < 100 for half in halves(first))


def test_draws_are_the_same_whatever_their_number_and_take_every_member_equally_often() -> None:
    labels, few = np.arange(400) % 4, np.arange(100) % 4
    many = draws(labels, few, "balanced", 400, np.random.default_rng(3))
    some = draws(labels, few, "balanced", 7, np.random.default_rng(3))
    for all_sides, sides in zip(many, some, strict=True):
        assert all(np.array_equal(a[:7], b) for a, b in zip(all_sides, sides, strict=True))
    times = np.bincount(many.fit[0].ravel(), minlength=400)  # binomial of 400 at 1/4: 100 ± 8.7
    assert abs(times.mean() - 100) < 1e-9 and 7.5 < times.std() < 10
    assert np.array_equal(np.sort(many.fit[1], axis=1), np.tile(np.arange(100), (400, 1)))  # all non-members, every time


def test_the_attack_on_the_forget_set_is_fitted_on_all_of_a_draw_and_that_for_privacy_on_half() -> None:
    drawn = draws(np.arange(400) % 4, np.arange(100) % 4, "balanced", 3, np.random.default_rng(0))
    for fit, half, rest in zip(*drawn, strict=True):
        assert fit.shape == (3, 100) and half.shape == rest.shape == (3, 50)
        for whole, first, second in zip(fit, half, rest, strict=True):
            assert not set(first) & set(second) and set(first) | set(second) == set(whole)
            assert np.array_equal(first, whole[0::2])


def test_published_draw_is_the_first_of_retain_against_the_whole_test_set() -> None:
    member, nonmember = published_draw(70, 40)
    assert np.array_equal(member, np.arange(40)) and np.array_equal(nonmember, np.arange(40))
    assert [len(index) for index in published_draw(30, 40)] == [30, 30]
    with pytest.raises(BadInput, match="retain and test"):
        published_draw(0, 40)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(BadInput, match="no class occurs in both"):
        balanced_draws(np.array([0, 0, 1]), np.array([2, 3]), 1, np.random.default_rng(0))


# --------------------------------------------------------------------------------------------------------- rules


def small_sample(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A few values with many ties, the two sides of different size."""
    random = np.random.default_rng(seed)
    return random.integers(0, 7, random.integers(1, 12)) / 4, random.integers(0, 7, random.integers(1, 12)) / 4


Best = Callable[[np.ndarray, np.ndarray, np.ndarray], rules.Intervals]


def fitted(best: Best, members: np.ndarray, others: np.ndarray, index: list[list[np.ndarray]] | None = None) -> rules.Intervals:
    """A rule fitted on draws of the values, all at once; without an index on all of them, as a single draw."""
    index = [[np.arange(len(members))], [np.arange(len(others))]] if index is None else index
    values, place = np.unique(np.concatenate([members, others]), return_inverse=True)
    places = place[: len(members)], place[len(members) :]
    return best(values, *(rules.counts(at, np.array(side), len(values)) for at, side in zip(places, index, strict=True)))


def some(random: np.random.Generator, sizes: tuple[int, int], taken: tuple[int, int], count: int) -> list[list[np.ndarray]]:
    """Draws from two sides, without regard to class."""
    return [[random.choice(size, few, replace=False) for _ in range(count)] for size, few in zip(sizes, taken, strict=True)]


def test_best_threshold_equals_brute_force() -> None:
    for seed in range(200):
        sides = small_sample(seed)
        called = {cut: [side >= cut for side in sides] for cut in plain_attack.cuts(*sides)}
        best = max(balanced_accuracy(*c) for c in called.values())
        found = fitted(rules.best_thresholds, *sides)
        assert found.low == min(cut for cut, c in called.items() if balanced_accuracy(*c) > best - 1e-9), seed
        assert found.high == math.inf and found.inside


def test_thresholds_of_all_draws_at_once_equal_one_draw_after_another() -> None:
    """Values that a draw does not hold move its threshold neither in rank nor in place."""
    for seed in range(60):
        random = np.random.default_rng(seed)
        members, others = random.integers(0, 30, 40) / 8, random.integers(0, 25, 50) / 8
        index = some(random, (40, 50), (12, 15), 9)
        found = fitted(rules.best_thresholds, members, others, index)
        wanted = [plain_attack.threshold(members[a], others[b]) for a, b in zip(*index, strict=True)]
        assert found.low.tolist() == wanted, seed


def test_a_threshold_that_gains_nothing_calls_all_members() -> None:
    values = np.array([0.2, 0.5, 0.5])
    assert fitted(rules.best_thresholds, values, values).low == -math.inf
    assert fitted(rules.best_intervals, values, values).decide(np.array([-9.0, 0.5, 9.0])).all()


def interval_score(found: rules.Intervals, row: int, sides: list[np.ndarray]) -> float:
    return balanced_accuracy(*(found.decide(side)[row] for side in sides))


def test_best_interval_equals_brute_force_in_every_draw() -> None:
    inside_won = outside_won = 0
    for seed in range(70):
        random = np.random.default_rng(seed)
        members, others = random.integers(0, 9, 14) / 4, random.integers(0, 9, 17) / 4
        index = some(random, (14, 17), (6, 7), 3)
        found = fitted(rules.best_intervals, members, others, index)
        for row, (a, b) in enumerate(zip(*index, strict=True)):
            sides = [members[a], others[b]]
            best = max(balanced_accuracy(*(((side >= low) & (side < high)) == inside for side in sides))
                       for low, high in itertools.combinations(plain_attack.cuts(*sides), 2) for inside in (True, False))
            assert interval_score(found, row, sides) == pytest.approx(best, abs=1e-12), seed
            assert {found.low[row], found.high[row]} <= set(plain_attack.cuts(*sides))
        inside_won, outside_won = inside_won + found.inside.sum(), outside_won + (~found.inside).sum()
    assert min(inside_won, outside_won) > 10


def test_rules_separate_adjacent_floats() -> None:
    low = np.array([0.7])
    high = np.nextafter(low, 1)
    both = np.concatenate([low, high])
    for best in (rules.best_thresholds, rules.best_intervals):
        assert fitted(best, high, low).decide(both).tolist() == [[False, True]]
    assert fitted(rules.best_intervals, low, high).decide(both).tolist() == [[True, False]]


def test_area_under_curve_equals_scikit_learns_with_ties_and_weights() -> None:
    for seed in range(50):
        members, others = small_sample(seed)
        truth, values = np.repeat([1, 0], [len(members), len(others)]), np.concatenate([members, others])
        assert rules.area_under_curve(members, others) == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
        weights = np.random.default_rng(seed).random(len(others)) + 0.1
        wanted = roc_auc_score(truth, values, sample_weight=np.concatenate([np.ones(len(members)), weights]))
        assert rules.area_under_curve(members, others, weights) == pytest.approx(wanted, abs=1e-12)


# -------------------------------------------------------------------------------------------------------- attack


def attack(
    retain: Outputs, test: Outputs, forget: Outputs, rule: str = "threshold", mode: str = "balanced", seed: int = 0,
    count: int = 9, fits: int = 2,
) -> dict:
    generator = np.random.default_rng(seed)
    return mia.membership(retain, test, forget, rule=rule, mode=mode, generator=generator, count=count, fits=fits)


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


def few(count: int, seed: int, boost: float) -> Outputs:
    return random_outputs(count, 3, seed=seed, boost=boost)


@pytest.mark.parametrize(("rule", "names"), [("threshold", mia.FEATURES), ("svc", ("confidence", "prob"))])
def test_every_number_is_the_mean_of_a_plain_loop_over_draws(rule: str, names: tuple[str, ...]) -> None:
    """Fitted on all of a draw for the forget set; privacy and AUC on the second half, of a fit on the first."""
    parts = few(90, 1, 5.0), few(60, 2, 3.0), few(40, 3, 4.0)
    count, fits = 8, 3
    found = attack(*parts, rule, seed=5, count=count, fits=fits)
    wanted = plain_attack.membership(*parts, count, 5, rule, names)
    for name in names:
        used = fits if rule == "svc" or name == "prob" else count
        assert found["draws"][name] == used
        for kind in ("forget", "privacy", "auc")[: 2 if name == "prob" else 3]:
            each = wanted[kind][name][:used]
            assert found[kind][name] == pytest.approx(each.mean(), abs=1e-12), (kind, name)
            error = each.std(ddof=1) / used**0.5
            assert found["error"][kind][name] == pytest.approx(error, abs=1e-12), (kind, name)
    assert wanted["forget"]["confidence"].std() > 0.01  # the draws differ


def test_draws_that_do_not_fit_into_memory_together_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = few(90, 1, 5.0), few(60, 2, 3.0), few(40, 3, 4.0)
    for rule in ("threshold", "interval"):
        together = attack(*parts, rule)
        monkeypatch.setattr(mia, "AT_ONCE", 400)  # two draws at once of one number, one of three
        assert attack(*parts, rule) == together
        monkeypatch.undo()


@pytest.mark.parametrize("rule", mia.RULES)
def test_the_share_of_draws_that_call_an_example_non_member_averages_to_the_attack(rule: str) -> None:
    """Over all, and over each part alone: one fit serves every group."""
    parts = few(90, 1, 5.0), few(60, 2, 3.0)
    forget, count = few(40, 3, 4.0), 9
    words = {"rule": rule, "mode": "balanced", "count": count, "fits": 3}
    share = mia.nonmembers(*parts, forget, generator=np.random.default_rng(4), **words)
    assert share.shape == (40,)
    if rule == "threshold":
        called = plain_attack.membership(*parts, forget, count, 4)["called"]["confidence"]
        assert share == pytest.approx(called.mean(0), abs=1e-12) and len(set(share)) > 2
    for rows in (np.arange(40), np.arange(7), np.arange(7, 40)):
        alone = mia.membership(*parts, forget.take(rows), generator=np.random.default_rng(4), **words)
        assert share[rows].mean() == pytest.approx(alone["forget"]["confidence"], abs=1e-12)


def test_redrawing_moves_the_attack_by_less_than_three_points() -> None:
    """A little over-fitted model and 360 test images; beside it a single draw, fitted on its half."""
    parts = [random_outputs(size, 10, 70, boost) for size, boost in ((1200, 9.0), (360, 7.0), (120, 8.0))]
    members, others, asked = (mia.features(part)["confidence"].numpy() for part in parts)
    labels = [part.labels.numpy() for part in parts[:2]]
    single, many = [], []
    for seed in range(40):
        half = draws(*labels, "balanced", 1, np.random.default_rng(seed)).privacy
        single.append(100 * np.mean(asked < plain_attack.threshold(members[half[0][0]], others[half[1][0]])))
        called = mia.nonmembers(*parts, rule="threshold", mode="balanced", generator=np.random.default_rng(seed))
        many.append(100 * called.mean())
    assert np.std(single) > 6 and np.std(many) < 3
    assert np.mean(many) == pytest.approx(np.mean(single), abs=15)


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
    assert found == attack(retain, STRANGERS, forget, mode="published", seed=1, count=50, fits=50)
    assert set(found["draws"].values()) == {1} and set(found["error"]["forget"].values()) == {None}
    fitted, strangers, asked = (mia.features(part)["confidence"].numpy() for part in (first, STRANGERS, forget))
    threshold = plain_attack.threshold(fitted, strangers)
    assert found["forget"]["confidence"] == pytest.approx(np.mean(asked < threshold), abs=1e-12)
    threshold = plain_attack.threshold(fitted[:300], strangers[:300])
    rest = np.concatenate([fitted[300:], mia.features(late)["confidence"].numpy()])
    privacy = balanced_accuracy(rest >= threshold, strangers[300:] >= threshold)
    assert found["privacy"]["confidence"] == pytest.approx(privacy, abs=1e-12)
    truth = np.repeat([1, 0], [len(rest), 300])
    wanted = roc_auc_score(truth, np.concatenate([rest, strangers[300:]]))
    assert found["auc"]["confidence"] == pytest.approx(wanted, abs=1e-12)


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
