"""From records to tables, CSV and figures: numbers by hand from the stored logits, plotted values from the CSV."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
from scipy import stats

from evaluation import accuracy, plots, report
from evaluation.accuracy import EvaluationConfig
from evaluation.report import FLOOR, AnalysisConfig, Row
from utils import BadInput, find_runs, read_record

SEEDS = (3, 5, 8)
SIZES = {"retain": 90, "forget": 24, "val": 30, "test": 60}
# method -> how far its logits lean to the true class on retain, forget, val and test
LEANS = {"retrain": (3.0, 1.0, 1.2, 1.2), "raw": (3.0, 3.0, 1.1, 1.2), "FT": (2.5, 2.0, 1.0, 1.1),
         "NG": (2.0, 0.5, 0.7, 0.8)}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shell.library(tmp_path_factory)


def pretend(library: Path, root: Path, method: str, seed: int, name: str = "", **changed: Any) -> Path:
    """A finished run of other outputs: those of a seed, whose original is another one for each seed.

    Args:
        changed: settings by flag; ``split_key``, ``parent`` (a hash) and ``seconds`` go to their place in the record.
    """
    run = shell.only(library, "forget", unlearn=method)
    folder = root / "forget" / f"{method}-{seed}{name}"
    shutil.copytree(run.folder, folder)
    draw = np.random.default_rng([seed, *method.encode(), *name.encode()])
    arrays = {}
    for (part, size), lean in zip(SIZES.items(), LEANS[method], strict=True):
        labels = np.random.default_rng([seed, size]).integers(0, 3, size)
        logits = draw.normal(size=(size, 3)) * 2 + lean * np.eye(3)[labels]
        arrays |= {f"{part}_labels": labels, f"{part}_logits": logits.astype(np.float32),
                   f"{part}_index": np.arange(size)}
    np.savez(folder / "outputs.npz", **arrays)
    record = json.loads(json.dumps(run.record))
    record["settings"]["rt"]["seed"] = seed
    record["parent"]["sha256"] = changed.pop("parent", f"original of seed {seed}")
    record["split_key"] = changed.pop("split_key", record["split_key"])
    record["forget_size"] = SIZES["forget"]
    record["seconds"] = changed.pop("seconds", {"mask": 0.25, "unlearn": 1.0 + seed, "evaluate": 99.0})
    record["metrics"] = accuracy.summarise(arrays, (), EvaluationConfig(), seed)
    record["collapsed"] = False  # some of the toy runs of one epoch are
    for flag, value in changed.items():
        next(group for group in record["settings"].values() if flag in group)[flag] = value
    (folder / "record.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="session")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four methods on three seeds; not to be changed."""
    root = tmp_path_factory.mktemp("bench")
    for method, seed in itertools.product(LEANS, SEEDS):
        pretend(library, root, method, seed)
    return root


def table_of(root: Path, **filters: Any) -> list[Row]:
    return report.rows(report.pairs(AnalysisConfig(save_dir=str(root), **filters)))


def row_of(table: Iterable[Row], method: str) -> Row:
    (row,) = [row for row in table if row.method == method]
    return row


def outputs_of(root: Path, method: str, seed: int) -> dict[str, np.ndarray]:
    with np.load(root / "forget" / f"{method}-{seed}" / "outputs.npz") as file:
        return dict(file)


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


# ---------------------------------------------------------------------------------------------------------------- rows


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
        mean, half, count = row.numbers[name]
        assert count == len(SEEDS) and mean == pytest.approx(sum(values) / len(values)), name
        if len(set(values)) > 1:
            low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
            assert (mean - half, mean + half) == pytest.approx((low, high)), name
        else:
            assert half == pytest.approx(0, abs=1e-9), name


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
    assert numbers["ToW"] == numbers["ToW-MIA"] == (1.0, 0.0, 3)
    assert numbers["Avg. gap"][0] == numbers["disagreement_forget"][0] == numbers["disagreement_test"][0] == 0.0


def test_noise_floor_is_the_mean_over_pairs_of_retrained_models(bench: Path) -> None:
    """Three models make three pairs; no interval, since pairs share models."""
    row = row_of(table_of(bench), FLOOR)
    for name, mia in (("ToW", False), ("ToW-MIA", True)):
        values = [tow(bench, "retrain", a, other_seed=b, mia=mia) for a, b in itertools.combinations(SEEDS, 2)]
        mean, half, count = row.numbers[name]
        assert mean == pytest.approx(sum(values) / 3) and half is None and count == 3
        assert max(values) < 1


def test_rows_stand_in_order_with_the_floor_last(bench: Path) -> None:
    assert [row.method for row in table_of(bench)] == ["retrain", "raw", "FT", "NG", FLOOR]


def test_one_seed_shows_no_interval_and_no_floor(bench: Path) -> None:
    table = table_of(bench, seed=(5,))
    assert [row.method for row in table] == ["retrain", "raw", "FT", "NG"]
    for row in table:
        assert row.seeds == [5] and all(half is None and count == 1 for _, half, count in row.numbers.values())
    assert row_of(table, "NG").numbers["ToW"][0] == pytest.approx(tow(bench, "NG", 5))
    text = report.markdown(table, report.TOW_COLUMNS)
    assert "±" not in text and "| NG      | 1 |" in text
    assert "±" in report.markdown(table_of(bench, seed=(3, 5)), report.TOW_COLUMNS)


def test_cells_round_and_show_what_there_is() -> None:
    assert report.cell((12.3456, 0.789, 3)) == "12.35 ±0.79"
    assert report.cell((0.98765, 0.01234, 3), 3) == "0.988 ±0.012"
    assert report.cell((12.3456, None, 1)) == "12.35" and report.cell(None) == "-"


def test_filters_choose_methods_seeds_and_sizes(bench: Path) -> None:
    def methods(**filters: Any) -> list[str]:
        return [row.method for row in table_of(bench, **filters)]

    assert methods(unlearn=("NG",)) == ["retrain", "NG", FLOOR]
    assert methods(unlearn=("NG", "raw"), seed=(3,)) == ["retrain", "raw", "NG"]
    assert methods(dataset="digits", arch="resnet20s", aug=False, num_indexes_to_replace=20)[-1] == FLOOR
    for nothing in ({"dataset": "cifar10"}, {"arch": "resnet18"}, {"aug": True}, {"num_indexes_to_replace": 21},
                    {"seed": (4,)}, {"unlearn": ("GA",)}, {"class_to_replace": (1,)}, {"forget_fraction": 0.1}):
        with pytest.raises(BadInput, match="passes the filters"):
            methods(**nothing)


def test_other_attack_changes_only_membership(bench: Path) -> None:
    ours, svc = (row_of(table_of(bench, mia=rule), "NG").numbers for rule in ("threshold", "svc"))
    assert ours["MIA"] != svc["MIA"] and ours["ToW-MIA"] != svc["ToW-MIA"]
    assert all(ours[name] == svc[name] for name in ("ToW", "forget", "retain", "test", "disagreement_test", "seconds"))


# --------------------------------------------------------------------------------------------------- what does not pair


def copied(bench: Path, tmp_path: Path) -> Path:
    shutil.copytree(bench, tmp_path / "runs")
    return tmp_path / "runs"


def change(run: Path, **fields: Any) -> None:
    record = read_record(run).record
    (run / "record.json").write_text(json.dumps(record | fields))


def refused(root: Path, *words: str) -> None:
    with pytest.raises(BadInput) as caught:
        table_of(root)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


def test_retrain_of_another_seed_is_refused(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    shutil.rmtree(root / "forget" / "retrain-5")
    refused(root, "5 has no retrain", "--unlearn retrain", "--seed 5", "splits.npz")


def test_retrain_of_another_forget_set_is_refused(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    change(root / "forget" / "retrain-8", split_key="another")
    refused(root, "8 has no retrain", "--seed 8")


def test_retrain_of_another_original_is_refused(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    parent = read_record(root / "forget" / "retrain-3").record["parent"]
    change(root / "forget" / "retrain-3", parent=parent | {"sha256": "another"})
    refused(root, "3 has no retrain", "--seed 3")


def test_seeds_of_one_original_have_each_their_own_retrain(bench: Path, library: Path, tmp_path: Path) -> None:
    for method, seed in itertools.product(("retrain", "NG"), SEEDS):
        pretend(library, tmp_path, method, seed, parent="one for all")
    row = row_of(table_of(tmp_path), "NG")
    for pair in row.pairs:
        assert pair.retrain.folder.name == f"retrain-{pair.seed}"
    assert row.numbers == row_of(table_of(bench), "NG").numbers


def test_unfinished_retrain_is_none(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    change(root / "forget" / "retrain-3", status="running")
    refused(root, "3 has no retrain")
    change(root / "forget" / "retrain-3", status="failed: MemoryError: ")
    refused(root, "3 has no retrain")


def test_two_retrains_of_one_run_are_refused(bench: Path, library: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    again = pretend(library, root, "retrain", 3, name="b")
    refused(root, "several retrains", str(again), str(root / "forget" / "retrain-3"))


def test_of_two_retrains_the_one_trained_as_the_original_is_taken(bench: Path, library: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    pretend(library, root, "retrain", 3, name="b", unlearn_lr=0.5)
    used = {pair.retrain.folder for pair in report.pairs(AnalysisConfig(save_dir=str(root)))}
    assert root / "forget" / "retrain-3" in used and not any("b" in folder.name for folder in used)


def test_two_runs_of_one_seed_are_refused(bench: Path, library: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    pretend(library, root, "FT", 3, name="b", parent="another")
    pretend(library, root, "retrain", 3, name="b", parent="another")
    refused(root, "several runs of one seed", "keep one, or filter")


def test_hyper_parameters_and_forget_sets_make_rows_of_their_own(bench: Path, library: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    for seed in SEEDS:
        pretend(library, root, "NG", seed, name="b", alpha=0.8)
        pretend(library, root, "NG", seed, name="c", split_key="another")
        pretend(library, root, "retrain", seed, name="c", split_key="another")
    table = table_of(root)
    settings = [[row.method for row in table if row.setting == setting] for setting in {row.setting for row in table}]
    few, many = sorted(settings, key=len)
    assert few == ["retrain", "NG", FLOOR] and many[:3] == ["retrain", "raw", "FT"] and many[-1] == FLOOR
    assert sorted(many[3:-1]) == ["NG (alpha=0.8)", "NG (alpha=0.95)"]
    assert all(row.seeds == list(SEEDS) for row in table)
    text = report.write(AnalysisConfig(save_dir=str(root)), "tow", report.TOW_COLUMNS, plots.tow_figures)
    assert {path.name for path in (root / "analysis").glob("tow*")} >= {"tow.csv", "tow.md"}
    keys = {row.setting.rpartition(", ")[2] for row in table}
    assert {path.name for path in (root / "analysis").glob("tow-*.png")} == {f"tow-{key}.png" for key in keys}
    assert text.count("| retrain vs retrain") == 2


# ------------------------------------------------------------------------------------------------------ CSV and figures


def read_csv(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="") as file:
        return {line["method"]: line for line in csv.DictReader(file)}


@pytest.fixture(scope="module")
def written(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], dict[str, dict[str, str]]]:
    """The rows of the bench, and their CSV as it lies on the disk."""
    out = tmp_path_factory.mktemp("out")
    report.write(AnalysisConfig(save_dir=str(bench), out=str(out)), "tow", report.TOW_COLUMNS, plots.tow_figures)
    return table_of(bench), read_csv(out / "tow.csv")


def of_csv(line: dict[str, str], name: str) -> tuple[float, float]:
    """Mean and half width; NaN where the cell is empty."""
    return float(line[name]), float(line[f"{name}_ci"] or "nan")


def test_csv_holds_every_number_in_full(written: tuple[list[Row], dict[str, dict[str, str]]]) -> None:
    table, lines = written
    assert list(lines) == [row.method for row in table]
    for row in table:
        line = lines[row.method]
        assert line["setting"] == row.setting and line["n"] == "3" and line["seeds"] == "3 5 8"
        assert line["runs"].split() == [str(pair.run.folder) for pair in row.pairs]
        for name, (mean, half, _) in row.numbers.items():
            assert float(line[name]) == mean
            assert line[f"{name}_ci"] == ("" if half is None else repr(half))
    assert lines[FLOOR]["forget"] == "" and lines[FLOOR]["ToW_ci"] == ""


def assert_segments(container: Any, axis: int, means: list[float], halves: list[float]) -> None:
    """The error bars of a container lie half a width to both sides of the means."""
    for segment, mean, half in zip(container.lines[2][0].get_segments(), means, halves, strict=True):
        drawn = sorted(point[axis] for point in segment if np.isfinite(point).all())
        assert drawn == ([] if math.isnan(half) else pytest.approx([mean - half, mean + half]))


@pytest.mark.parametrize("name", ["ToW", "ToW-MIA"])
def test_bars_are_those_of_the_csv(name: str, written: tuple[list[Row], dict[str, dict[str, str]]]) -> None:
    table, lines = written
    axes = plots.bars(table, name, "title").axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    shown = [label.split("  (n=")[0] for label in labels]
    assert sorted(shown) == ["FT", "NG", "raw"] and all("(n=3)" in label for label in labels)
    means, halves = zip(*(of_csv(lines[method], name) for method in shown), strict=True)
    assert [bar.get_width() for bar in axes.patches] == list(means) == sorted(means)
    assert_segments(axes.containers[-1].errorbar, 0, list(means), list(halves))
    floor = next(line for line in axes.lines if "retrain against retrain" in str(line.get_label()))
    assert set(floor.get_xdata()) == {float(lines[FLOOR][name])}
    low, high = axes.get_xlim()
    assert high == 1 and 0 <= low < min(*(m - h for m, h in zip(means, halves, strict=True)), float(lines[FLOOR][name]))
    assert [note.get_text() for note in axes.texts] == [f"{mean:.3f}" for mean in means]


def test_accuracy_bars_are_those_of_the_csv(written: tuple[list[Row], dict[str, dict[str, str]]]) -> None:
    table, lines = written
    axes = plots.accuracies(table).axes[0]
    shown = [text.get_text() for text in axes.get_xticklabels()]
    assert shown == ["retrain", "raw", "FT", "NG"]
    bars = {box.get_label(): box for box in axes.containers if hasattr(box, "patches")}
    assert set(bars) == {"forget", "retain", "test"}
    for part, box in bars.items():
        means, halves = zip(*(of_csv(lines[method], part) for method in shown), strict=True)
        assert [bar.get_height() for bar in box] == list(means)
        assert [round(bar.get_x() + bar.get_width() / 2) for bar in box] == [0, 1, 2, 3]
        assert_segments(box.errorbar, 1, list(means), list(halves))
    dashed = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == [float(lines["retrain"][part]) for part in bars]


def test_efficacy_bars_are_those_of_the_csv(written: tuple[list[Row], dict[str, dict[str, str]]]) -> None:
    table, lines = written
    axes = plots.efficacy(table).axes[0]
    shown = [text.get_text().split("  (n=")[0] for text in axes.get_yticklabels()]
    means, halves = zip(*(of_csv(lines[method], "MIA") for method in shown), strict=True)
    assert [bar.get_width() for bar in axes.patches] == list(means)
    assert_segments(axes.containers[-1].errorbar, 0, list(means), list(halves))
    target = next(line for line in axes.lines if line.get_label() == "retrain: the target")
    assert set(target.get_xdata()) == {float(lines["retrain"]["MIA"])}


@pytest.mark.parametrize("name", ["ToW", "ToW-MIA"])
def test_cost_points_are_those_of_the_csv(name: str, written: tuple[list[Row], dict[str, dict[str, str]]]) -> None:
    table, lines = written
    axes = plots.cost(table, name).axes[0]
    shown = [note.get_text() for note in axes.texts]
    assert sorted(shown) == ["FT", "NG", "retrain"]
    for method, note, point in zip(shown, axes.texts, axes.containers, strict=True):
        seconds, tows = (of_csv(lines[method], column) for column in ("seconds", name))
        assert point.lines[0].get_xydata().tolist() == [[seconds[0], tows[0]]]
        assert tuple(note.xy) == (seconds[0], tows[0])
        for bars, axis, (mean, half) in zip(point.lines[2], (0, 1), (seconds, tows), strict=True):
            (ends,) = bars.get_segments()
            assert sorted(ends[:, axis]) == pytest.approx([mean - half, mean + half])


def test_single_seeds_have_no_error_bars(bench: Path) -> None:
    table = table_of(bench, seed=(3,))
    axes = plots.bars(table, "ToW", "title").axes[0]
    assert all("(n=1)" in text.get_text() for text in axes.get_yticklabels())
    assert_segments(axes.containers[-1].errorbar, 0, [0.0] * 3, [math.nan] * 3)
    assert not [line for line in axes.lines if "retrain against" in str(line.get_label())]


def test_confidence_histograms_are_of_the_stored_logits(bench: Path) -> None:
    """A panel a method, on its first seed: shares of 20 bins of the true class's softmax."""
    table = table_of(bench)
    panels = [panel for panel in plots.histograms(table).axes if panel.get_title()]
    assert [panel.get_title() for panel in panels] == [f"{m}, seed 3" for m in ("retrain", "raw", "FT", "NG")]
    for panel, method in zip(panels, ("retrain", "raw", "FT", "NG"), strict=True):
        drawn = {shape.get_label(): shape.get_xy() for shape in panel.patches}
        assert set(drawn) == {"test", "forget", "forget, retrain"}
        for label, (name, part) in {"test": (method, "test"), "forget": (method, "forget"),
                                    "forget, retrain": ("retrain", "forget")}.items():
            found = outputs_of(bench, name, 3)
            logits, labels = found[f"{part}_logits"].astype(float), found[f"{part}_labels"]
            confidence = [math.exp(z[y]) / sum(math.exp(v) for v in z) for z, y in zip(logits, labels, strict=True)]
            shares = [sum(b / 20 <= c < (b + 1) / 20 for c in confidence) / len(confidence) for b in range(20)]
            # the outline goes from edge to edge of every bin at its height
            heights = drawn[label][1:41:2, 1]
            assert heights.tolist() == pytest.approx(shares)


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
        name = "RL (mask 0.5)" if run.setting("unlearn") == "RL" else run.setting("unlearn")
        assert row_of(table, name).numbers["ToW"] == (pytest.approx(wanted), None, 1)
        assert row_of(table, name).numbers["seconds"][0] == pytest.approx(sum(
            run.record["seconds"].get(part, 0) for part in ("unlearn", "mask")))
