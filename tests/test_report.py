"""From records to rows of a table: numbers by hand from the stored logits; runs that do not pair are refused."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
from pretended import (
    LEANS,
    SEEDS,
    SIZES,
    change,
    copied,
    four_methods,
    notes_of,
    outputs_of,
    pretend,
    refused,
    row_of,
    table_of,
    text_of,
)
from recomputed import interval

from evaluation import accuracy
from evaluation.statistics import Number
from report import contrasts, figures, output, tables
from report.measures import measures
from report.pairs import AnalysisConfig
from report.rows import FLOOR, in_order
from utils import BadInput, find_runs, read_record


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_methods(library, tmp_path_factory.mktemp("bench"))


def hits(root: Path, method: str, seed: int, part: str) -> float:
    """Accuracy as a share, by a loop."""
    found = outputs_of(root, method, seed)
    right = [int(np.argmax(z)) == y for z, y in zip(found[f"{part}_logits"], found[f"{part}_labels"], strict=True)]
    return sum(right) / len(right)


def efficacy(root: Path, method: str, seed: int) -> float:
    return read_record(root / "forget" / f"{method}-{seed}").record["metrics"]["MIA"] / 100


def tow(root: Path, method: str, seed: int, other_seed: int | None = None, mia: bool = False) -> float:
    """The product of 1 - |difference to retrain| over forget (or MIA), retain and test."""
    product = 1.0
    for part in ("forget", "retain", "test"):
        if part == "forget" and mia:
            gap = efficacy(root, method, seed) - efficacy(root, "retrain", other_seed or seed)
        else:
            gap = hits(root, method, seed, part) - hits(root, "retrain", other_seed or seed, part)
        product *= 1 - abs(gap)
    return product


# ----------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("method", LEANS)
def test_rows_hold_means_and_t_intervals_over_seeds(method: str, bench: Path) -> None:
    row = row_of(table_of(bench), method)
    assert row.seeds == list(SEEDS)
    by_hand = {
        "ToW": [tow(bench, method, seed) for seed in SEEDS],
        "ToW-MIA": [tow(bench, method, seed, mia=True) for seed in SEEDS],
        "seconds": [1.25 + seed for seed in SEEDS],  # method and mask, not evaluation
        "UA": [100 - 100 * hits(bench, method, seed, "forget") for seed in SEEDS],
        "MIA": [100 * efficacy(bench, method, seed) for seed in SEEDS],
        **{part: [100 * hits(bench, method, seed, part) for seed in SEEDS] for part in SIZES},
    }
    for name, values in by_hand.items():
        mean, ends, count = row.numbers[name]
        assert count == len(SEEDS) and mean == pytest.approx(sum(values) / len(values)), name
        top = 1 if name.startswith("ToW") else math.inf if name == "seconds" else 100
        assert ends == pytest.approx(interval(values, 0, top)), name


@pytest.mark.parametrize("part", ["forget", "test"])
def test_disagreement_is_the_share_of_other_predictions(part: str, bench: Path) -> None:
    for method in ("raw", "NG"):
        shares = []
        for seed in SEEDS:
            ours, theirs = (outputs_of(bench, name, seed)[f"{part}_logits"] for name in (method, "retrain"))
            other = sum(int(a.argmax()) != int(b.argmax()) for a, b in zip(ours, theirs, strict=True))
            shares.append(100 * other / SIZES[part])
        assert row_of(table_of(bench), method).numbers[f"disagreement_{part}"][0] == pytest.approx(sum(shares) / 3)
        assert min(shares) > 0


def test_average_gap_is_the_mean_distance_in_points(bench: Path) -> None:
    gaps = []
    for seed in SEEDS:
        own, ref = ([*(hits(bench, m, seed, p) for p in ("forget", "retain", "test")), efficacy(bench, m, seed)]
                    for m in ("NG", "retrain"))
        gaps.append(100 * sum(abs(a - b) for a, b in zip(own, ref, strict=True)) / 4)
    assert row_of(table_of(bench), "NG").numbers["Avg. gap"][0] == pytest.approx(sum(gaps) / 3)


def test_retrain_against_itself_is_exactly_one(bench: Path) -> None:
    numbers = row_of(table_of(bench), "retrain").numbers
    assert numbers["ToW"] == numbers["ToW-MIA"] == (1.0, (1.0, 1.0), 3)
    assert numbers["Avg. gap"][0] == numbers["disagreement_forget"][0] == numbers["disagreement_test"][0] == 0.0


def test_noise_floor_is_the_mean_over_pairs_of_retrained_models(bench: Path) -> None:
    """Three models make three pairs; their range is no interval, since pairs share models."""
    row = row_of(table_of(bench), FLOOR)
    for name, mia in (("ToW", False), ("ToW-MIA", True)):
        values = [tow(bench, "retrain", a, other_seed=b, mia=mia) for a, b in itertools.combinations(SEEDS, 2)]
        mean, ends, count = row.numbers[name]
        assert mean == pytest.approx(sum(values) / 3) and ends == pytest.approx((min(values), max(values))) and count == 3
        assert max(values) < 1


def test_rows_begin_with_those_that_others_are_compared_with_and_go_on_by_distance_to_retrain(bench: Path) -> None:
    table = table_of(bench)
    assert [row.method for row in table[:3]] == ["retrain", "raw", FLOOR]
    values = [row.numbers["ToW"].mean for row in table[3:]]
    assert {row.method for row in table[3:]} == {"FT", "NG"} and values == sorted(values, reverse=True)
    by_mia = [row.numbers["ToW-MIA"].mean for row in in_order(table, "ToW-MIA")[3:]]
    assert by_mia == sorted(by_mia, reverse=True)


def test_a_collapsed_model_stands_below_all_however_near_it_looks(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    best = table_of(root)[3].method
    change(root / "forget" / f"{best}-5", collapsed=True)
    assert table_of(root)[-1].method == best


def test_one_seed_shows_no_interval_and_no_floor(bench: Path) -> None:
    table = table_of(bench, seed=(5,))
    assert [row.method for row in table] == ["retrain", "raw", "FT", "NG"]
    for row in table:
        assert row.seeds == [5] and all(ends is None and count == 1 for _, ends, count in row.numbers.values())
    assert row_of(table, "NG").numbers["ToW"][0] == pytest.approx(tow(bench, "NG", 5))
    text = text_of(table)
    assert "±" not in text and "[" not in text and "| NG      | 1 |" in text
    assert "[" in text_of(table_of(bench, seed=(3, 5)))


def test_cells_round_and_show_what_there_is() -> None:
    """The ends of an interval to two digits of its width, at most as many as the mean has."""
    assert tables.cell(Number(12.3456, (11.55, 13.162), 3)) == "12.35 [11.6, 13.2]"
    assert tables.cell(Number(12.3456, (2.1, 22.6), 3)) == "12.35 [2, 23]"
    assert tables.cell(Number(0.98765, (0.97321, 0.99412), 3), 3) == "0.988 [0.973, 0.994]"
    assert tables.cell(Number(100.0, (100.0, 100.0), 3)) == "100.00 ±0"
    assert tables.cell(Number(0.98765, (0.97321, 0.99412), 3), 3, floor=True) == "0.988 (0.973..0.994)"
    assert tables.cell(Number(12.3456, None, 1)) == "12.35" and tables.cell(None) == "-"


def test_filters_choose_methods_seeds_and_sizes(bench: Path) -> None:
    def methods(**filters: Any) -> list[str]:
        return [row.method for row in table_of(bench, **filters)]

    assert methods(unlearn=("NG",)) == ["retrain", FLOOR, "NG"]
    assert methods(unlearn=("NG", "raw"), seed=(3,)) == ["retrain", "raw", "NG"]
    assert methods(dataset="digits", arch="resnet8s", aug=False, num_indexes_to_replace=20)[2] == FLOOR
    for nothing in ({"dataset": "cifar10"}, {"arch": "resnet18"}, {"aug": True}, {"num_indexes_to_replace": 21},
                    {"seed": (4,)}, {"unlearn": ("GA",)}, {"class_to_replace": (1,)}, {"forget_fraction": 0.1}):
        with pytest.raises(BadInput, match="passes the filters"):
            methods(**nothing)


def test_other_attack_changes_only_membership(bench: Path) -> None:
    ours, svc = (row_of(table_of(bench, mia=rule), "NG").numbers for rule in ("threshold", "svc"))
    assert ours["MIA"] != svc["MIA"] and ours["ToW-MIA"] != svc["ToW-MIA"]
    assert all(ours[name] == svc[name] for name in ("ToW", "forget", "retain", "test", "disagreement_test", "seconds"))


def test_the_retrains_metrics_are_of_the_attack_that_is_asked_for(bench: Path) -> None:
    """Not of the one in its record: under --mia_mode published both sides are attacked anew."""
    changed = 0
    for pair in row_of(table_of(bench, mia_mode="published"), "NG").pairs:
        attack = accuracy.EvaluationConfig(mia_mode="published")
        own, ref = (accuracy.summarise(outputs_of(bench, method, pair.seed), (), attack, pair.seed)["MIA"]
                    for method in ("NG", "retrain"))
        assert (pair.metrics["MIA"], pair.reference["MIA"]) == (own, ref)
        changed += ref != pair.retrain.record["metrics"]["MIA"]
        shares = [(hits(bench, "NG", pair.seed, part), hits(bench, "retrain", pair.seed, part)) for part in ("retain", "test")]
        wanted = math.prod(1 - abs(a - b) for a, b in [(own / 100, ref / 100), *shares])
        assert measures(pair)["ToW-MIA"] == pytest.approx(wanted)
    assert changed


def test_a_metric_that_not_every_seed_has_is_no_mean(bench: Path, tmp_path: Path) -> None:
    """MIA in the last seed alone, privacy in the first alone: neither stands as if all seeds had it."""
    root = copied(bench, tmp_path)
    for seed in SEEDS:
        folder = root / "forget" / f"FT-{seed}"
        metrics = read_record(folder).record["metrics"]
        gone = {"MIA": None} if seed != SEEDS[-1] else {}
        change(folder, metrics=metrics | gone | ({"privacy": None} if seed != SEEDS[0] else {}))
    numbers = row_of(table_of(root), "FT").numbers
    assert not {"MIA", "privacy", "ToW-MIA", "Avg. gap"} & set(numbers) and numbers["ToW"].n == len(SEEDS)
    assert {"MIA", "privacy"} < set(row_of(table_of(root), "NG").numbers)


def test_disagreement_on_test_leaves_forgotten_classes_out(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    for method, seed in itertools.product(LEANS, SEEDS):
        change(root / "forget" / f"{method}-{seed}", whole_classes=[2])
    shares, all_shares = [], []
    for seed in SEEDS:
        ours, theirs = (outputs_of(bench, name, seed) for name in ("NG", "retrain"))
        differ = ours["test_logits"].argmax(1) != theirs["test_logits"].argmax(1)
        shares.append(100 * differ[ours["test_labels"] != 2].mean())
        all_shares.append(100 * differ.mean())
    found = row_of(table_of(root), "NG").numbers["disagreement_test"].mean
    assert found == pytest.approx(np.mean(shares)) and np.mean(shares) != pytest.approx(np.mean(all_shares))


def test_class_filter_takes_the_forget_sets_of_just_these_classes(bench: Path, tmp_path: Path) -> None:
    """Those of 1 and 2 are not those of 1; the order in which they were named is no matter of theirs."""
    root = copied(bench, tmp_path)
    for method, seed in itertools.product(LEANS, SEEDS):
        folder = root / "forget" / f"{method}-{seed}"
        settings = read_record(folder).record["settings"]
        change(folder, settings=settings | {"forget": settings["forget"] | {"class_to_replace": [1, 2]}})
    assert {row.method for row in table_of(root, class_to_replace=(1, 2))} == {*LEANS, FLOOR}
    for other in ((1,), (2,), (1, 2, 3), (-1,)):
        with pytest.raises(BadInput, match="passes the filters"):
            table_of(root, class_to_replace=other)


# --------------------------------------------------------------------------------------------------- what does not pair


def left_out(root: Path, seed: int) -> str:
    """The note on a seed whose retrain is missing; the other two seeds stand in the table, that one in none."""
    assert {tuple(row.seeds) for row in table_of(root)} == {tuple(s for s in SEEDS if s != seed)}
    (line,) = notes_of(root).splitlines()
    assert f"-{seed}" in line and "left out" in line and f"--seed {seed}" in line
    return line


def test_runs_without_a_retrain_of_their_seed_are_left_out_with_its_command(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    shutil.rmtree(root / "forget" / "retrain-5")
    line = left_out(root, 5)
    assert all(word in line for word in ("raw-5", "FT-5", "NG-5", "--unlearn retrain", "splits.npz"))
    for seed in (3, 8):
        shutil.rmtree(root / "forget" / f"retrain-{seed}")
    assert table_of(root) == [] and notes_of(root).count("--unlearn retrain") == len(SEEDS)


def test_retrain_of_another_forget_set_is_none(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    change(root / "forget" / "retrain-8", split_key="another")
    left_out(root, 8)


def test_retrain_of_another_original_is_none(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    parent = read_record(root / "forget" / "retrain-3").record["parent"]
    change(root / "forget" / "retrain-3", parent=parent | {"sha256": "another"})
    left_out(root, 3)


def test_command_for_a_missing_retrain_names_its_original_where_that_was_moved_to(tmp_path: Path) -> None:
    shell.forget(shell.train(tmp_path / "old"), tmp_path / "old", "raw", *shell.FORGET)
    (tmp_path / "old").rename(tmp_path / "new")
    original = shell.only(tmp_path / "new", "train")
    assert f"--checkpoint {original.folder / 'model.pt'}" in notes_of(tmp_path / "new")


def test_seeds_of_one_original_have_each_their_own_retrain(bench: Path, library: Path, tmp_path: Path) -> None:
    for method, seed in itertools.product(("retrain", "NG"), SEEDS):
        pretend(library, tmp_path, method, seed, parent="one for all")
    row = row_of(table_of(tmp_path), "NG")
    for pair in row.pairs:
        assert pair.retrain.folder.name == f"retrain-{pair.seed}"
    assert row.numbers == row_of(table_of(bench), "NG").numbers


@pytest.mark.parametrize("status", ["running", "failed: MemoryError: "])
def test_runs_that_did_not_finish_are_counted_below_the_table(status: str, bench: Path, tmp_path: Path) -> None:
    """Those that the filters would have taken; a retrain too, since it is always there."""
    root = copied(bench, tmp_path)
    for name in ("retrain-3", "FT-5", "NG-8"):
        change(root / "forget" / name, status=status)
    assert f"3 runs that the filters take did not finish and are in no table: {root}" in notes_of(root)
    told = notes_of(root, unlearn=("NG", "raw"), seed=(8,))
    assert "1 run that the filters take did not finish and is in no table" in told and f"NG-8 ({status})" in told
    assert "did not finish" not in notes_of(root, unlearn=("raw",), seed=(5,))
    text = output.write(AnalysisConfig(save_dir=str(root)), contrasts.TOW, figures.tow_charts).text
    assert all(line in text for line in notes_of(root).splitlines())


def test_records_of_an_older_form_are_left_out_by_name(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    record = read_record(root / "forget" / "FT-5").record
    (root / "forget" / "FT-5" / "record.json").write_text(json.dumps(
        {name: value for name, value in record.items() if name != "split_key"}))
    assert row_of(table_of(root), "FT").seeds == [3, 8]
    told = notes_of(root)
    assert "earlier version" in told and str(root / "forget" / "FT-5") in told and "--force" in told


def test_records_that_do_not_tell_how_their_original_was_made_are_named(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    for method in LEANS:
        folder = root / "forget" / f"{method}-5"
        parent = read_record(folder).record["parent"]
        change(folder, parent={name: value for name, value in parent.items() if name != "setup"})
    assert "batch size" in notes_of(root) and "FT-5" in notes_of(root) and "FT-3" not in notes_of(root)
    assert {tuple(row.seeds) for row in table_of(root) if row.method != FLOOR} == {(3, 8), (5,)}


def test_runs_of_two_originals_of_one_seed_are_refused(bench: Path, library: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    pretend(library, root, "FT", 3, name="b", parent="another")
    pretend(library, root, "retrain", 3, name="b", parent="another")
    refused(root, "several runs of one seed", "originals that cannot be told apart", "keep those of one, or filter")


def test_hyper_parameters_and_forget_sets_make_rows_of_their_own(bench: Path, library: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    for seed in SEEDS:
        pretend(library, root, "NG", seed, name="b", alpha=0.8)
        pretend(library, root, "NG", seed, name="c", split_key="another")
        pretend(library, root, "retrain", seed, name="c", split_key="another")
    table = table_of(root)
    settings = [[row.method for row in table if row.setting == setting] for setting in {row.setting for row in table}]
    few, many = sorted(settings, key=len)
    assert few == ["retrain", FLOOR, "NG"] and many[:3] == ["retrain", "raw", FLOOR]
    assert sorted(many[3:]) == ["FT", "NG (alpha=0.8)", "NG (alpha=0.95)"]
    assert all(row.seeds == list(SEEDS) for row in table)
    text = output.write(AnalysisConfig(save_dir=str(root)), contrasts.TOW, figures.tow_charts).text
    assert {path.name for path in (root / "analysis").glob("tow*")} >= {"tow.csv", "tow.md"}
    keys = {row.setting.rpartition(", ")[2] for row in table}
    assert {path.name for path in (root / "analysis").glob("tow-*.png")} == {f"tow-{key}.png" for key in keys}
    assert text.count("| retrain vs retrain") == 2 + 1  # and one over both forget sets, which were drawn in one way


# ----------------------------------------------------------------------------------------------- data with memorization


def test_original_is_visibly_not_retrained_where_labels_are_noise(tmp_path: Path) -> None:
    """Three digits with 30 % wrong labels, learnt by heart: only a model that saw the forget set knows its labels."""
    def noisy(y: np.ndarray) -> np.ndarray:
        draw = np.random.default_rng(0)
        return np.where(draw.random(len(y)) < 0.3, (y + draw.integers(1, 3, len(y))) % 3, y)

    data = shell.write_digits(tmp_path / "data", noisy, test=237)
    original = shell.train(tmp_path, 1, "--data", data, "--epochs", 30)
    for method in ("raw", "retrain"):
        shell.forget(original, tmp_path, method, "--num_indexes_to_replace", 60, *(
            [] if method == "raw" else ["--unlearn_epochs", 30]))
    table = table_of(tmp_path)
    raw, retrained = (row_of(table, method).numbers for method in ("raw", "retrain"))
    assert retrained["ToW"][0] == 1.0 and raw["ToW"][0] < 0.8
    # not because one of them learnt nothing: both know what they were trained on, and only the original the rest
    assert min(raw["retain"][0], retrained["retain"][0], raw["forget"][0]) > 75
    assert retrained["forget"][0] < raw["forget"][0] - 20
    assert raw["ToW-MIA"][0] < 0.95 and raw["disagreement_forget"][0] > 20


def test_analysis_of_real_runs_agrees_with_their_records(library: Path) -> None:
    """No pretence: the library's own runs, whose ToW is taken from the accuracies in their records."""
    table = table_of(library)
    reference = shell.only(library, "forget", unlearn="retrain").record["metrics"]
    for run in find_runs(library, ("forget",)):
        own, wanted = run.record["metrics"], 1.0
        for part in ("forget", "retain", "test"):
            wanted *= 1 - abs(own[part] - reference[part]) / 100
        name = {"RL": "RL (mask 0.5)", "FT_l1": "FT_l1 = FT_prune", "FT_prune": "FT_l1 = FT_prune"}.get(
            run.setting("unlearn"), run.setting("unlearn"))
        assert row_of(table, name).numbers["ToW"] == (pytest.approx(wanted), None, 1)
        if row_of(table, name).pairs[0].run.folder == run.folder:  # of two names of one computation the first
            assert row_of(table, name).numbers["seconds"][0] == pytest.approx(sum(
                run.record["seconds"].get(part, 0) for part in ("unlearn", "mask")))
