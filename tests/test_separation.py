"""Forget against test without a threshold, the margins' distance to retrain, and both in records and tables."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_attack import random_outputs
from pretended import LEANS, SEEDS, copied, four_methods, outputs_of, pretend, row_of, table_of, text_of
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from evaluation import accuracy, rules, separation
from evaluation.accuracy import EvaluationConfig
from evaluation.mia import FEATURES, Outputs, features, margin
from report import contrasts
from report.rows import FLOOR
from utils import read_record

ONE_DIMENSIONAL = FEATURES[:4]


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_methods(library, tmp_path_factory.mktemp("separation"))


def skewed(count: int, seed: int, boost: float, shares: list[float]) -> Outputs:
    """Outputs whose classes have these shares, and of which each class is harder than the one before."""
    labels = np.random.default_rng(seed).choice(len(shares), count, p=shares)
    found = random_outputs(count, len(shares), seed, boost, labels)
    found.logits[torch.arange(count), found.labels] -= found.labels
    return found


def weighted(forget: Outputs, test: Outputs) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """By hand: rows of forget and of test that count, truth, and weights that give test the class shares of forget."""
    a, b = forget.labels.numpy(), test.labels.numpy()
    rows_a, rows_b = np.isin(a, b), np.isin(b, a)
    weights = np.array([(a == label).sum() / (b == label).sum() for label in b[rows_b]])
    return rows_a, rows_b, np.repeat([1, 0], [rows_a.sum(), rows_b.sum()]), np.concatenate([np.ones(rows_a.sum()), weights])


# --------------------------------------------------------------------------------------------------------------- AUC


def test_auc_of_forget_against_test_equals_scikit_learns() -> None:
    forget = skewed(200, 1, 6.0, [0.1, 0.2, 0.3, 0.4, 0.0])
    test = skewed(500, 2, 4.0, [0.3, 0.3, 0.2, 0.0, 0.2])  # class 3 has no test image, class 4 is not forgotten
    rows_a, rows_b, truth, weights = weighted(forget, test)
    assert 0 < rows_a.sum() < 200 and 0 < rows_b.sum() < 500
    found = separation.forget_against_test(forget, test)["auc"]
    assert tuple(found) == ONE_DIMENSIONAL
    for name in ONE_DIMENSIONAL:
        values = np.concatenate([features(forget)[name].numpy()[rows_a], features(test)[name].numpy()[rows_b]])
        wanted = roc_auc_score(truth, values if name in ("correctness", "confidence") else -values, sample_weight=weights)
        assert found[name] == pytest.approx(wanted, abs=1e-12), name


def test_auc_is_that_of_all_test_images_where_classes_are_balanced() -> None:
    labels = np.arange(300) % 5
    forget, test = (random_outputs(300, 5, seed, boost, labels) for seed, boost in ((3, 6.0), (4, 4.0)))
    values = np.concatenate([features(part)["confidence"].numpy() for part in (forget, test)])
    found = separation.forget_against_test(forget, test)["auc"]["confidence"]
    assert found == pytest.approx(roc_auc_score(np.repeat([1, 0], 300), values), abs=1e-12) and found > 0.55


def test_a_hard_class_is_no_forgetting() -> None:
    """Forget and test are alike class by class, and only the forget set is full of the hard one: 50 %, not below."""
    forget = skewed(4000, 5, 6.0, [0.05, 0.05, 0.1, 0.8])
    test = skewed(8000, 6, 6.0, [0.25] * 4)
    found = separation.forget_against_test(forget, test)["auc"]
    values = np.concatenate([features(part)["confidence"].numpy() for part in (forget, test)])
    assert roc_auc_score(np.repeat([1, 0], [4000, 8000]), values) < 0.45
    assert all(abs(found[name] - 0.5) < 0.02 for name in ONE_DIMENSIONAL)


def test_direction_is_that_of_members() -> None:
    test = random_outputs(600, 5, 8, boost=4.0)
    for boost, low, high in ((9.0, 0.55, 1.0), (1.0, 0.0, 0.4)):
        found = separation.forget_against_test(random_outputs(400, 5, 7, boost=boost), test)["auc"]
        assert all(low < found[name] < high for name in ONE_DIMENSIONAL), found


def whole_class(lean: float, seed: int = 0) -> dict[str, np.ndarray]:
    """outputs.npz of a model that forgot class 3 of 4: test holds the class too, and leans to it as much as forget."""
    random = np.random.default_rng(seed)
    arrays = {}
    for part, size, labels in (("retain", 300, 3), ("forget", 100, None), ("val", 60, 4), ("test", 400, 4)):
        y = np.full(size, 3) if labels is None else np.arange(size) % labels
        z = random.normal(size=(size, 4)) + np.where(y == 3, lean, 4.0)[:, None] * np.eye(4)[y]
        arrays |= {f"{part}_labels": y, f"{part}_logits": z.astype(np.float32), f"{part}_index": np.arange(size)}
    return arrays


def test_a_class_forgotten_whole_is_compared_with_its_own_test_images() -> None:
    """A perfect retrain has 50, though no remaining test image is as unsure as the class that it never saw."""
    arrays = whole_class(lean=-3.0)
    found = accuracy.summarise(arrays, (3,), EvaluationConfig(), 1)
    assert found["MIA"] > 95 and found["AUC_forget"] == pytest.approx(50, abs=6)
    confidence = {part: features(accuracy.outputs_of(arrays, part))["confidence"].numpy() for part in ("forget", "test")}
    own = confidence["test"][arrays["test_labels"] == 3]
    wanted = roc_auc_score(np.repeat([1, 0], [100, 100]), np.concatenate([confidence["forget"], own]))
    assert found["AUC_forget"] == pytest.approx(100 * wanted, abs=1e-9)


# ---------------------------------------------------------------------------------------------- low false positive rates


def test_rate_at_a_low_level_equals_the_table_of_conventions() -> None:
    """20 members above all non-members, 30 between the first two, 10 between the next two, 40 below."""
    for count, level, wanted in ((100, 0.01, 0.5), (100, 0.001, 0.2), (66, 0.01, 0.2)):
        others = -np.arange(count, dtype=float)
        members = np.repeat([1.0, -0.5, -1.5, -1000.0], [20, 30, 10, 40])
        assert rules.rate_at(members, others, level) == wanted


def test_rate_at_a_low_level_equals_the_last_point_of_scikit_learns_curve() -> None:
    for seed in range(60):
        random = np.random.default_rng(seed)
        members, others = random.integers(0, 40, 50) / 4, random.integers(0, 36, 70) / 4
        weights = np.ones(70) if seed % 2 else random.random(70) + 0.1
        truth, values = np.repeat([1, 0], [50, 70]), np.concatenate([members, others])
        false, true, _ = roc_curve(truth, values, sample_weight=np.concatenate([np.ones(50), weights]), drop_intermediate=False)
        for level in (0.02, 0.1, 0.3):
            assert rules.rate_at(members, others, level, weights) == pytest.approx(true[false <= level + 1e-12][-1]), seed


@pytest.mark.parametrize(("count", "level", "told"), [
    (999, "TPR@1%", "needs 1,000 test images of the forget set's classes, has 999"), (1000, "TPR@1%", None),
    (9999, "TPR@0.1%", "needs 10,000 test images of the forget set's classes, has 9,999"), (10000, "TPR@0.1%", None)])
def test_low_rates_need_ten_false_alarms(count: int, level: str, told: str | None) -> None:
    labels = np.arange(count) % 5
    test, forget = random_outputs(count, 5, 1, 4.0, labels), random_outputs(500, 5, 2, 6.0, labels[:500])
    found = separation.forget_against_test(forget, test)[level]
    if told:
        assert found == told
    else:
        values = np.concatenate([margin(part).numpy() for part in (forget, test)])
        false, true, _ = roc_curve(np.repeat([1, 0], [500, count]), values, drop_intermediate=False)
        assert found == pytest.approx(true[false <= separation.LEVELS[level] + 1e-12][-1]) and 0 < found < 1


def test_only_test_images_of_the_forgotten_classes_count_as_negatives() -> None:
    """1,000 test images of which 900 are of the forget set's classes are too few; none of them has a reason too."""
    labels = np.arange(1000) % 10
    test = random_outputs(1000, 10, 1, 4.0, labels)
    found = separation.forget_against_test(random_outputs(90, 10, 2, 6.0, np.arange(90) % 9), test)
    assert found["TPR@1%"] == "needs 1,000 test images of the forget set's classes, has 900"
    found = separation.forget_against_test(random_outputs(90, 12, 2, 6.0, np.full(90, 11)), test)
    assert found["auc"] == {} and found["TPR@1%"].endswith("has none")


# ---------------------------------------------------------------------------------------------------------- the margins


def test_distance_of_margins_equals_scipys_and_sees_what_accuracy_cannot() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        first, second = random.integers(0, 30, 40) / 4, random.integers(2, 30, 55) / 4
        assert rules.largest_distance(first, second) == pytest.approx(stats.ks_2samp(first, second).statistic, abs=1e-12)
    retrained = random_outputs(300, 5, 1, 3.0)
    sure = Outputs(retrained.logits * 6, retrained.labels)  # as right and as wrong, and far more surely so
    margins = margin(sure).numpy(), margin(retrained).numpy()
    assert separation.margin_distance(margins[1], margins[1]) == 0
    assert accuracy.of(sure.logits, sure.labels) == accuracy.of(retrained.logits, retrained.labels)
    found = separation.margin_distance(*margins)
    assert found == pytest.approx(stats.ks_2samp(*margins).statistic) and found > 0.2


# ------------------------------------------------------------------------------------------------- records and tables


def phi(bench: Path, method: str, seed: int) -> np.ndarray:
    return margin(accuracy.outputs_of(outputs_of(bench, method, seed), "forget")).numpy()


def test_tables_hold_the_difference_and_the_distance_to_retrain(bench: Path) -> None:
    table = table_of(bench)
    metrics = {(m, s): read_record(bench / "forget" / f"{m}-{s}").record["metrics"] for m in LEANS for s in SEEDS}
    for method in LEANS:
        numbers = row_of(table, method).numbers
        own, ref = (np.array([metrics[m, seed]["AUC_forget"] for seed in SEEDS]) for m in (method, "retrain"))
        assert numbers["AUC_forget"][0] == pytest.approx(own.mean())
        assert numbers["AUC_difference"][0] == pytest.approx((own - ref).mean(), abs=1e-12)
        wanted = [100 * stats.ks_2samp(phi(bench, method, s), phi(bench, "retrain", s)).statistic for s in SEEDS]
        assert numbers["KS_forget"][0] == pytest.approx(np.mean(wanted), abs=1e-9)
        errors = [metrics[method, seed]["mia"]["error"]["forget"]["confidence"] for seed in SEEDS]
        assert numbers["MIA_error"][0] == pytest.approx(np.mean(errors))
        for feature in ("correctness", "entropy", "m_entropy"):
            wanted = [metrics[method, seed]["mia"]["auc_forget"][feature] for seed in SEEDS]
            assert numbers[f"AUC_forget_{feature}"][0] == pytest.approx(np.mean(wanted))
    pairs = itertools.combinations([phi(bench, "retrain", seed) for seed in SEEDS], 2)
    floor = np.mean([100 * stats.ks_2samp(*both).statistic for both in pairs])
    assert row_of(table, FLOOR).numbers["KS_forget"][0] == pytest.approx(floor, abs=1e-9)
    assert row_of(table, "raw").numbers["KS_forget"][0] > floor > 0


def test_no_floor_of_margins_over_other_forget_sets(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    folder = root / "forget" / "retrain-5"
    arrays = outputs_of(root, "retrain", 5)
    arrays["forget_index"] = arrays["forget_index"] + 1
    np.savez(folder / "outputs.npz", **arrays)
    assert "KS_forget" not in row_of(table_of(root), FLOOR).numbers


def test_a_rate_that_cannot_be_known_is_a_dash_with_its_reason(bench: Path) -> None:
    table = table_of(bench)
    text = text_of(table, contrasts.MIA, columns=("all",))
    body = [line for line in text.splitlines() if line.startswith("| ")]
    head, first = ([cell.strip().removesuffix(", %") for cell in line.split("|")] for line in body[:2])
    for name, needed in (("TPR@1%", "1,000"), ("TPR@0.1%", "10,000")):
        assert first[head.index(name)] == "-"
        assert f"There is no {name}: it needs {needed} test images of the forget set's classes, has 60." in text
        assert not any(name in row.numbers for row in table)
    assert {"AUC_forget", "AUC_difference, points", "KS_forget"} <= set(head)
    assert "TPR" not in text_of(table)


def test_records_of_an_older_form_are_evaluated_anew(library: Path, tmp_path: Path) -> None:
    """One without these numbers, whose evaluation has fewer settings, gets them from its stored logits."""
    for method in ("retrain", "FT"):
        folder = pretend(library, tmp_path, method, 3)
        record = json.loads((folder / "record.json").read_text())
        wanted = record["metrics"]
        old = {name: wanted[name] for name in ("forget", "retain", "val", "test", "UA", "RA", "TA", "MIA", "privacy")}
        record |= {"evaluation": {"mia": "threshold", "mia_mode": "balanced"},
                   "metrics": old | {"MIA": 12.0, "mia": {kind: {"confidence": 12.0} for kind in ("forget", "privacy", "auc")}}}
        (folder / "record.json").write_text(json.dumps(record))
    numbers = row_of(table_of(tmp_path), "FT").numbers
    assert numbers["MIA"][0] == pytest.approx(wanted["MIA"]) != 12
    assert numbers["AUC_forget"][0] == pytest.approx(wanted["AUC_forget"])


def test_a_model_and_its_retrain_meet_the_same_draws(monkeypatch: pytest.MonkeyPatch, bench: Path) -> None:
    """They follow from seed and labels of retain and test, not from outputs or the forget set; another seed's differ."""
    seen = []
    real = accuracy.mia.draws

    def watched(*args: object) -> object:
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(accuracy.mia, "draws", watched)
    for method in ("raw", "retrain"):
        arrays = outputs_of(bench, method, 3)
        for rows in (slice(None), slice(10)):
            part = {name: value[rows] if name.startswith("forget") else value for name, value in arrays.items()}
            accuracy.summarise(part, (), EvaluationConfig(), 3)
    accuracy.summarise(arrays, (), EvaluationConfig(), 4)
    first, *others = [np.concatenate([side for sides in drawn for side in sides], axis=1) for drawn in seen]
    assert len(first) == 100
    assert [np.array_equal(first, other) for other in others] == [True, True, True, False]
    assert len({row.tobytes() for row in first}) == 100


def test_the_record_says_how_many_draws_and_what_they_left_open(bench: Path) -> None:
    arrays = outputs_of(bench, "FT", 3)
    found = accuracy.summarise(arrays, (), EvaluationConfig(mia_draws=12, mia_fits=4), 3)["mia"]
    assert found["draws"] == dict.fromkeys(ONE_DIMENSIONAL, 12) | {"prob": 4}
    assert found["error"]["forget"]["confidence"] > 0 and set(found["error"]) == {"forget", "privacy", "auc"}
    found = accuracy.summarise(arrays, (), EvaluationConfig(mia_draws=3, mia_fits=10), 3)["mia"]
    assert set(found["draws"].values()) == {3}
    found = accuracy.summarise(arrays, (), EvaluationConfig(mia_draws=1), 3)["mia"]
    assert set(found["error"]["forget"].values()) == {None}
    json.dumps(found, allow_nan=False)
