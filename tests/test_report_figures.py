"""CSV and figures of analysis.py: every number in full, and plotted values that are those of the CSV."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretended import LEANS, SEEDS, change, copied, four_methods, of_csv, outputs_of, table_of

from report import contrasts, output, plots
from report.pairs import AnalysisConfig
from report.rows import FLOOR, Row


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_methods(library, tmp_path_factory.mktemp("bench"))


def read_csv(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="") as file:
        return {line["method"]: line for line in csv.DictReader(file)}


@pytest.fixture(scope="module")
def written(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], dict[str, dict[str, str]]]:
    """The rows of the bench, and their CSV as it lies on the disk."""
    out = tmp_path_factory.mktemp("out")
    output.write(AnalysisConfig(save_dir=str(bench), out=str(out)), contrasts.TOW, plots.tow_figures)
    return table_of(bench), read_csv(out / "tow.csv")


def test_csv_holds_every_number_in_full(written: tuple[list[Row], dict[str, dict[str, str]]]) -> None:
    table, lines = written
    assert list(lines) == [row.method for row in table]
    for row in table:
        line = lines[row.method]
        assert line["setting"] == row.setting and line["n"] == "3" and line["seeds"] == "3 5 8"
        assert line["runs"].split() == [str(pair.run.folder) for pair in row.pairs]
        for name, (mean, ends, _) in row.numbers.items():
            assert float(line[name]) == mean
            assert [line[f"{name}_low"], line[f"{name}_high"]] == (["", ""] if ends is None else [repr(end) for end in ends])
        assert {name: float(line[f"{name}_images"]) for name in row.images} == row.images
    assert lines[FLOOR]["forget"] == lines[FLOOR]["forget_images"] == ""


def assert_segments(container: Any, axis: int, ends: list[tuple[float, float] | None]) -> None:
    """The error bars of a container go from end to end of the intervals."""
    for segment, wanted in zip(container.lines[2][0].get_segments(), ends, strict=True):
        drawn = sorted(point[axis] for point in segment if np.isfinite(point).all())
        assert drawn == ([] if wanted is None else pytest.approx(list(wanted)))


@pytest.mark.parametrize("name", ["ToW", "ToW-MIA"])
def test_bars_are_those_of_the_csv(name: str, written: tuple[list[Row], dict[str, dict[str, str]]]) -> None:
    table, lines = written
    axes = plots.bars(table, name, "title").axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    shown = [label.split("  (n=")[0] for label in labels]
    assert sorted(shown) == ["FT", "NG", "raw"] and all("(n=3)" in label for label in labels)
    means, ends = zip(*(of_csv(lines[method], name) for method in shown), strict=True)
    bars = axes.containers[-1].patches
    (band,) = [patch for patch in axes.patches if patch not in bars]
    assert [bar.get_width() for bar in bars] == list(means) == sorted(means)
    assert_segments(axes.containers[-1].errorbar, 0, list(ends))
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx(of_csv(lines[FLOOR], name)[1])
    floor = next(line for line in axes.lines if "retrain against retrain" in str(line.get_label()))
    assert set(floor.get_xdata()) == {float(lines[FLOOR][name])}
    low, high = axes.get_xlim()
    assert high == 1 and 0 <= low <= max(0, min(*(least for least, _ in ends), float(lines[FLOOR][f"{name}_low"])))
    assert [note.get_text() for note in axes.texts] == [f"{mean:.3f}" for mean in means]


def test_accuracy_bars_are_those_of_the_csv(written: tuple[list[Row], dict[str, dict[str, str]]]) -> None:
    table, lines = written
    axes = plots.accuracies(table).axes[0]
    shown = [text.get_text() for text in axes.get_xticklabels()]
    assert shown == ["retrain", "raw", "FT", "NG"]
    bars = {box.get_label(): box for box in axes.containers if hasattr(box, "patches")}
    assert set(bars) == {"forget", "retain", "test"}
    for part, box in bars.items():
        means, ends = zip(*(of_csv(lines[method], part) for method in shown), strict=True)
        assert [bar.get_height() for bar in box] == list(means)
        assert [round(bar.get_x() + bar.get_width() / 2) for bar in box] == [0, 1, 2, 3]
        assert_segments(box.errorbar, 1, list(ends))
    dashed = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == [float(lines["retrain"][part]) for part in bars]


def test_efficacy_bars_are_those_of_the_csv(written: tuple[list[Row], dict[str, dict[str, str]]]) -> None:
    table, lines = written
    axes = plots.efficacy(table).axes[0]
    shown = [text.get_text().split("  (n=")[0] for text in axes.get_yticklabels()]
    means, ends = zip(*(of_csv(lines[method], "MIA") for method in shown), strict=True)
    assert [bar.get_width() for bar in axes.patches] == list(means)
    assert_segments(axes.containers[-1].errorbar, 0, list(ends))
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
        for bars, axis, (_, wanted) in zip(point.lines[2], (0, 1), (seconds, tows), strict=True):
            (ends,) = bars.get_segments()
            assert sorted(ends[:, axis]) == pytest.approx(list(wanted))


def test_single_seeds_have_no_error_bars(bench: Path) -> None:
    table = table_of(bench, seed=(3,))
    axes = plots.bars(table, "ToW", "title").axes[0]
    assert all("(n=1)" in text.get_text() for text in axes.get_yticklabels())
    assert_segments(axes.containers[-1].errorbar, 0, [None] * 3)
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


def test_confidence_histograms_leave_forgotten_classes_out_of_the_test_images(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    for method, seed in itertools.product(LEANS, SEEDS):
        change(root / "forget" / f"{method}-{seed}", whole_classes=[1])
    (panel,) = [panel for panel in plots.histograms(table_of(root)).axes if panel.get_title() == "NG, seed 3"]
    drawn = {shape.get_label(): shape.get_xy()[1:41:2, 1] for shape in panel.patches}
    found = outputs_of(bench, "NG", 3)
    for label, part in (("test", "test"), ("forget", "forget")):
        kept = (found[f"{part}_labels"] != 1) | (part == "forget")
        logits, labels = found[f"{part}_logits"][kept].astype(float), found[f"{part}_labels"][kept]
        values = np.exp(logits[np.arange(len(labels)), labels]) / np.exp(logits).sum(1)
        shares = np.histogram(values, 20, (0, 1))[0] / len(values)
        assert drawn[label].tolist() == pytest.approx(shares.tolist())
