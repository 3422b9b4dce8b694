"""CSV and figures of analysis.py: every number in full, and plotted values that are those of the CSV."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layout import faults
from pretended import LEANS, SEEDS, change, copied, four_methods, of_csv, outputs_of, table_of

from evaluation import style
from evaluation.statistics import Number
from evaluation.style import VENUES
from report import contrasts, figures, looks, margins, output
from report.dots import Panel
from report.draw import draw, files_of
from report.names import Heading
from report.pairs import AnalysisConfig
from report.rows import FLOOR, Row
from report.scatter import Scatter
from report.sheet import Dot
from unlearn import METHODS

HEADING = Heading("digits", "")


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
    output.write(AnalysisConfig(save_dir=str(bench), out=str(out)), contrasts.TOW, figures.tow_charts)
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


def same(dot: Dot, line: dict[str, str], name: str, flip: bool = False) -> bool:
    """Whether a dot is a number of the CSV with its ends; flip: 1 - it."""
    mean, ends = of_csv(line, name)
    wanted = [mean, *(ends or (None, None))]
    if flip:
        wanted = [None if x is None else 1 - x for x in (wanted[0], wanted[2], wanted[1])]
    return [dot.mean, dot.low, dot.high] == wanted


def marks_of(panel: Panel) -> dict[str, tuple[float | None, ...]]:
    return {mark.label: (mark.at, mark.low, mark.high) for mark in panel.marks}


@pytest.mark.parametrize("name", ["ToW", "ToW-MIA"])
def test_dots_are_those_of_the_csv(name: str, written: tuple[list[Row], dict[str, dict[str, str]]]) -> None:
    """raw first, then the best at the top; the floor with its range, retrain and raw as lines."""
    table, lines = written
    chart = figures.headline(table, HEADING, name)
    (panel,) = chart.panels
    best = sorted(("FT", "NG"), key=lambda method: -float(lines[method][name]))
    assert chart.rows == ("raw", *best) and panel.axis.domain == (0, 1) and name in panel.axis.label
    assert all(same(panel.dots[""][row], lines[row], name) for row in chart.rows)
    floor, ends = of_csv(lines[FLOOR], name)
    assert marks_of(panel) == {FLOOR: (floor, *ends), "retrain": (1.0, None, None),
                               "raw": (float(lines["raw"][name]), None, None)}
    assert chart.title == f"{name} · digits" and not faults(draw(chart))


def test_accuracies_and_efficacy_are_those_of_the_csv(written: tuple[list[Row], dict[str, dict[str, str]]]) -> None:
    """A panel a measure on 0 to 100, beside the band of retrain's own interval."""
    table, lines = written
    for chart, parts in ((figures.accuracies(table, HEADING), ("forget", "retain", "test")),
                         (figures.efficacy(table, HEADING), ("MIA", "AUC_forget"))):
        assert [panel.title for panel in chart.panels] == list(parts) and set(chart.rows) == {"raw", "FT", "NG"}
        for panel, part in zip(chart.panels, parts, strict=True):
            assert panel.axis.domain == (0, 100) and panel.axis.whole
            assert all(same(panel.dots[""][row], lines[row], part) for row in chart.rows)
            mean, ends = of_csv(lines["retrain"], part)
            assert marks_of(panel) == {"retrain": (mean, *ends)}
        assert not faults(draw(chart))


@pytest.mark.parametrize("name", ["ToW", "ToW-MIA"])
def test_costs_are_those_of_the_csv(name: str, written: tuple[list[Row], dict[str, dict[str, str]]]) -> None:
    """Seconds and 1 - ToW; retrain at its own seconds and distance 0; the floor and raw as they are from retrain."""
    table, lines = written
    chart = figures.cost(table, HEADING, name)
    assert {point.name for point in chart.points} == {"retrain", "FT", "NG"} and chart.front
    for point in chart.points:
        assert same(point.x, lines[point.name], "seconds")
        assert point.y == Dot(0.0) if point.name == "retrain" else same(point.y, lines[point.name], name, flip=True)
    floor, (low, high) = of_csv(lines[FLOOR], name)
    assert marks_of(chart) == {FLOOR: (1 - floor, 1 - high, 1 - low), "raw": (1 - float(lines["raw"][name]), None, None)}
    assert chart.x.log and not faults(draw(chart))
    # every toy run takes as long as the others: with other seconds retrain's are its own
    slow = [dataclasses.replace(row, numbers=row.numbers | {"seconds": Number(77.0, None, 3)}) if row.is_reference else row
            for row in table]
    assert [point.name for point in figures.cost(slow, HEADING, name).points if point.x == Dot(77.0)] == ["retrain"]


def test_one_method_has_one_look_in_every_figure(written: tuple[list[Row], dict[str, dict[str, str]]]) -> None:
    table, _ = written
    found = figures.tow_charts(table, HEADING, AnalysisConfig()) | figures.mia_charts(table, HEADING, AnalysisConfig())
    assert set(found) == {"tow", "accuracy", "margins", "cost", "cost_images", "tow_mia", "mia", "cost_mia"}
    seen: dict[str, set[Any]] = {}
    for chart in found.values():
        known = chart.points if isinstance(chart, Scatter) else ()
        for name, look in [*((point.name, point.look) for point in known), *getattr(chart, "looks", {}).items()]:
            seen.setdefault(name, set()).add(look)
    assert set(seen) == {"retrain", "raw", "FT", "NG"} and all(len(own) == 1 for own in seen.values())
    every = [*(looks.LOOKS[name] for name in METHODS.names() if name in looks.LOOKS), *looks.ANCHORS.values(),
             *looks.KINDS.values()]
    assert len(set(every)) == len(every) == len(METHODS.names()) - 2 + 3 + 6
    assert looks.look_of("NG (alpha=0.9) [collapsed]") == looks.look_of("NG") != looks.look_of("RUM^F NG")
    assert looks.look_of("FT_l1 = FT_prune") == looks.LOOKS["FT_l1"] and looks.look_of(FLOOR) == looks.ANCHORS[FLOOR]


def test_single_seeds_have_no_intervals(bench: Path) -> None:
    chart = figures.headline(table_of(bench, seed=(3,)), HEADING, "ToW")
    assert all(dot.low is dot.high is None for dot in chart.panels[0].dots[""].values())
    assert FLOOR not in marks_of(chart.panels[0]) and "t-interval" not in chart.caption
    assert "n = 1 seed (3). One seed each: there are no intervals." in chart.caption


def test_captions_say_what_the_records_say(bench: Path, tmp_path: Path) -> None:
    """n and seeds of most rows and of the others, kind of interval, pairs of the floor, machine and commit."""
    root = copied(bench, tmp_path)
    shutil.rmtree(root / "forget" / "NG-5")
    for method, seed in itertools.product(LEANS, SEEDS):
        if (folder := root / "forget" / f"{method}-{seed}").exists():
            change(folder, device="NVIDIA H100" if method == "NG" else "cpu, 3 threads", commit="0123456789abcdef",
                   processor="Some CPU", threads=3)
    chart = figures.headline(table_of(root), Heading("digits", "forget set abc"), "ToW")
    for words in ("ToW of every method on digits,", "n = 3 seeds (3, 5, 8); NG n = 2 (3, 8).", "95 % t-intervals over seeds",
                  "mean and range (least to most) of 3 pairs of retrains", "Reference: the retrain of the same original",
                  "NVIDIA H100", "Some CPU, 3 threads", "commit 0123456.", "Forget set abc."):
        assert words in chart.caption, words
    assert "NG, n = 2" in chart.rows and "FT" in chart.rows


def test_margins_are_of_the_stored_logits_of_all_seeds(bench: Path) -> None:
    """A cell a method: shares of log p - log(1 - p) by hand, the mean, least and most over the seeds."""
    chart = margins.chart(table_of(bench), HEADING)
    assert {cell.name for cell in chart.cells} == {"retrain", "raw", "FT", "NG"} and chart.y.whole
    for cell in chart.cells:
        drawn = {line.label: line for line in cell.lines}
        assert set(drawn) == {"test", "forget", "forget, retrain"} - ({"forget"} if cell.name == "retrain" else set())
        for label, line in drawn.items():
            method, part = ("retrain", "forget") if label == "forget, retrain" else (cell.name, label)
            shares = [by_hand(outputs_of(bench, method, seed), part, line.xs) for seed in SEEDS]
            for drawn_ys, wanted in ((line.ys, np.mean), (line.low, np.min), (line.high, np.max)):
                assert np.allclose(drawn_ys, wanted(shares, axis=0), atol=1e-12)
        assert len({tuple(line.xs) for other in chart.cells for line in other.lines}) == 1
    assert not faults(draw(chart))


def by_hand(found: dict[str, np.ndarray], part: str, xs: Sequence[float], kept: Any = slice(None)) -> list[float]:
    logits, labels = found[f"{part}_logits"][kept].astype(float), found[f"{part}_labels"][kept]
    p = [math.exp(z[y]) / sum(math.exp(v) for v in z) for z, y in zip(logits, labels, strict=True)]
    values = [math.log(q) - math.log1p(-q) for q in p]
    return [sum(value <= x for value in values) / len(values) for x in xs]


def test_margins_leave_forgotten_classes_out_of_the_test_images(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    for method, seed in itertools.product(LEANS, SEEDS):
        change(root / "forget" / f"{method}-{seed}", whole_classes=[1])
    (cell,) = [cell for cell in margins.chart(table_of(root), HEADING).cells if cell.name == "NG"]
    found = [outputs_of(bench, "NG", seed) for seed in SEEDS]
    for line in cell.lines[:2]:
        shares = [by_hand(own, line.label, line.xs, (own[f"{line.label}_labels"] != 1) | (line.label == "forget"))
                  for own in found]
        assert np.allclose(line.ys, np.mean(shares, axis=0))


def test_files_are_pictures_and_the_same_every_time(written: tuple[list[Row], dict[str, dict[str, str]]],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "PDF_FONTS", 42)
    chart = figures.headline(written[0], HEADING, "ToW")
    first, again = (files_of(chart, VENUES["icml"]) for _ in range(2))
    assert first == again and first["png"][:8] == b"\x89PNG\r\n\x1a\n" and first["pdf"][:5] == b"%PDF-"
    assert b"/Subtype /Type3" not in first["pdf"]


def test_without_a_venue_there_is_no_figure(bench: Path, tmp_path: Path) -> None:
    output.write(AnalysisConfig(save_dir=str(bench), out=str(tmp_path), venue="none"), contrasts.TOW, figures.tow_charts)
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".md", ".tex", ".json"}
    assert not [path for path in tmp_path.iterdir() if "captions" in path.name]
