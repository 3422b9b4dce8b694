"""Methods beside themselves on originals of several sparsities: table, cells and figure; collapsed ones in brackets."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
from grouped import csv_lines, equals, share_tow
from layout import faults
from pretended import change, of_csv, pretend, table_of

from report import bygroup, bysparsity, contrasts, output, pivots, settings, tables
from report.draw import draw
from report.pairs import AnalysisConfig
from report.rows import FLOOR, Row
from report.table import markdown
from utils import read_record

SEEDS = (3, 5)
OMP = {"prune_type": "rewind_lt", "rewind_epoch": 1, "rewind_schedule": "rest", "random_prune": False,
       "prune_scope": "global_conv", "file": None}
AMOUNTS: dict[str, dict[str, Any]] = {"0 %": {}, "75 %": {"pruning": OMP | {"shares": [1, 0.25]}},
                                      "97.5 %": {"pruning": OMP | {"shares": [1.0, 0.025]}}}
METHODS = ("retrain", "FT", "NG")


def of_pruned(library: Path, root: Path, method: str, seed: int, column: str, **more: Any) -> Path:
    """Make a pretended run one whose original was pruned; more: of its training's record."""
    folder = pretend(library, root, method, seed, name=f"-{column.split()[0]}", parent=f"original {column} {seed}")
    parent = read_record(folder).record["parent"]
    change(folder, parent=parent | {"training": parent["training"] | AMOUNTS[column] | more})
    return folder


def change_settings(folder: Path, **flags: Any) -> None:
    record = read_record(folder).record
    record["settings"]["cfg"] |= flags
    (folder / "record.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sparsities, three methods, two seeds; NG at 97.5 % collapsed in one seed. Not to be changed."""
    root = tmp_path_factory.mktemp("sparse")
    for column in reversed(AMOUNTS):
        for method in METHODS:
            for seed in SEEDS:
                of_pruned(library, root, method, seed, column)
    change(root / "forget" / "NG-5-97.5", collapsed=True)
    return root


@pytest.fixture(scope="module")
def table(bench: Path) -> list[Row]:
    return table_of(bench)


def metric(root: Path, method: str, column: str, name: str) -> list[float]:
    records = [read_record(root / "forget" / f"{method}-{seed}-{column.split()[0]}").record for seed in SEEDS]
    return [record["seconds"]["mask"] + record["seconds"]["unlearn"] if name == "seconds" else record["metrics"][name]
            for record in records]


def top_of(name: str) -> float:
    return math.inf if name == "seconds" else 100.0


def test_columns_are_the_sparsities_in_order(table: list[Row], bench: Path) -> None:
    (sweep,) = bysparsity.sweeps(table)
    assert list(sweep.shares) == list(AMOUNTS) and list(sweep.cells) == ["retrain", "FT", "NG", FLOOR]
    assert sweep.shares == pytest.approx({"0 %": 0, "75 %": 0.75, "97.5 %": 0.975})
    assert sweep.heading.startswith("digits resnet8s, pruned by OMP rewind_lt 1 rest global_conv, forget ")


@pytest.mark.parametrize("name", ["ToW", "UA", "RA", "TA", "MIA", "Avg. gap", "seconds", "ToW-MIA", "privacy"])
def test_cells_are_means_over_seeds_at_their_sparsity(name: str, table: list[Row], bench: Path) -> None:
    pivot = bysparsity.sweeps(table)[0].pivot(name)
    relative = name in ("ToW", "ToW-MIA", "Avg. gap")
    assert ("retrain" in pivot.cells) != relative and (FLOOR in pivot.cells) == relative
    for method in METHODS[relative:]:
        for column in AMOUNTS:
            end = column.split()[0]
            folders = [(bench / "forget" / f"{method}-{s}-{end}", bench / "forget" / f"retrain-{s}-{end}") for s in SEEDS]
            if name == "ToW":
                assert equals(pivot.cells[method][column], [share_tow(*pair) for pair in folders], top=1)
            elif not relative:
                assert equals(pivot.cells[method][column], metric(bench, method, column, name), top_of(name))


@pytest.mark.parametrize("study", [bysparsity.TOW, bysparsity.MIA])
def test_files_hold_the_table_the_numbers_and_a_figure(study: bysparsity.Study, bench: Path, tmp_path: Path) -> None:
    """A row a method and sparsity with all measures; the first once more with the sparsities side by side."""
    make = bysparsity.tow_tables if study is bysparsity.TOW else bysparsity.mia_tables
    text = output.write(AnalysisConfig(save_dir=str(bench), out=str(tmp_path)), contrasts.TOW, lambda *_: {}, [make]).text
    drawn = {f"{study.stem}_{name.lower().replace('-', '_')}.{end}" for name in study.drawn for end in ("png", "pdf")}
    beside = {"pairs.csv", "runs.csv", "tow.files.json", "tow_captions.md"}
    assert {path.name for path in tmp_path.iterdir()} == drawn | beside | {
        f"{stem}.{end}" for stem in ("tow", study.stem) for end in ("csv", "md", "tex")}
    shown = (tmp_path / f"{study.stem}.md").read_text()
    assert shown in text and shown.startswith("## Forgetting and speed by sparsity · digits · ResNet-8 · pruned by OMP")
    assert f"{study.measures[0]} by sparsity: mean" in shown
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("|")]
    assert rows[0] == ["method", "sparsity", "n", *map(tables.head_of, study.measures)]
    assert len({tuple(row[:2]) for row in rows[2:14]}) == 4 * 3
    for row in rows[2:14]:
        if row[0] != FLOOR:
            told = metric(bench, row[0], row[1], "seconds")
            assert row[-1].strip("()").split(" ")[0] == f"{np.mean(told):.2f}" and row[-1].startswith("(") == (
                row[:2] == ["NG", "97.5 %"])
    lines = csv_lines(tmp_path / f"{study.stem}.csv")
    assert len(lines) == 4 * 3
    for line in lines:
        if line["method"] != FLOOR:
            assert line["n"] == "2" and line["collapsed"] == str(int(line["method"] == "NG" and line["sparsity"] == "0.975"))
            column = f"{100 * float(line['sparsity']):.4g} %"
            for name in {"UA", "RA", "TA", "MIA", "privacy", "seconds"} & set(study.measures):
                assert equals((*of_csv(line, name), 2), metric(bench, line["method"], column, name), top_of(name))


def test_collapsed_cells_stand_in_brackets(table: list[Row], bench: Path) -> None:
    """That cell alone, in every measure, with the note below; and in the tables by group, as in the main one."""
    (sweep,) = bysparsity.sweeps(table)
    for name in bysparsity.TOW.measures:
        lines = markdown([bygroup.part_of(sweep.pivot(name), name, "title")]).splitlines()
        marked = [(line.split("|")[1].strip(), place) for line in lines if line.startswith("|")
                  for place, word in enumerate(line.split("|")) if word.strip().startswith("(")]
        assert marked == [("NG", 4)] and "collapsed model is broken" in "\n".join(lines)
    plain = bygroup.part_of(bysparsity.sweeps([r for r in table if r.method != "NG"])[0].pivot("ToW"), "ToW", "title")
    assert "collapsed" not in markdown([plain])
    cells = bygroup.fill((("low", table[:4]), ("high", table[-4:])), "ToW")
    pivot = bygroup.pivot_of("heading", ("low", "high"), cells, "ToW")
    wanted = {("NG", column) for column in ("low", "high") if cells["NG"][column].collapsed}
    assert pivot.collapsed == wanted
    (line,) = [line for line in bygroup.csv_of([pivot]) if line[1] == "NG"]
    assert line[-1] == ", ".join(column for _, column in sorted(wanted))


def test_ways_of_pruning_are_told_apart_by_all_but_the_amount() -> None:
    """Two amounts are one way; any other word of a plan, or of SynFlow, makes it another."""
    synflow = {"synflow": 0.5, "rounds": 100, "keep_shortcuts": False}
    omp = OMP | {"shares": [1, 0.25]}
    assert settings.way_of(omp) == settings.way_of(OMP | {"shares": [1, 0.1]}) != settings.way_of({}) == ""
    assert settings.way_of(synflow) == settings.way_of(synflow | {"synflow": 0.9})
    others = [omp | {name: value} for name, value in (
        ("shares", [1, 0.5, 0.25]), ("random_prune", True), ("prune_type", "lt"), ("rewind_epoch", 9),
        ("rewind_schedule", "published"), ("prune_scope", "layerwise_conv"), ("file", "ab" * 32), ("file", "cd" * 32))]
    others += [synflow | {"rounds": 99}, synflow | {"keep_shortcuts": True}]
    assert len({settings.way_of(way) for way in (omp, synflow, *others)}) == 2 + len(others)


@pytest.mark.parametrize("more", [{"epochs": 999}, {"pruning": OMP | {"shares": [1, 0.5], "prune_type": "lt"}},
                                  {"pruning": OMP | {"shares": [1, 0.9, 0.5]}},
                                  {"pruning": {"synflow": 0.5, "rounds": 100, "keep_shortcuts": False}}])
def test_other_trainings_and_prunings_are_no_columns(more: dict[str, Any], library: Path, tmp_path: Path) -> None:
    """OMP at 75 % beside another training's or another pruning's original; the dense one joins each way of pruning."""
    for method in ("retrain", "FT"):
        of_pruned(library, tmp_path, method, 3, "75 %")
        of_pruned(library, tmp_path, method, 3, "97.5 %", **more)
    assert bysparsity.sweeps(table_of(tmp_path)) == []
    assert bysparsity.tow_tables(AnalysisConfig(), table_of(tmp_path)) == []
    for method in ("retrain", "FT"):
        of_pruned(library, tmp_path, method, 3, "0 %")
    found = [list(sweep.shares) for sweep in bysparsity.sweeps(table_of(tmp_path))]
    assert sorted(found) == ([["0 %", "75 %"]] if "epochs" in more else [["0 %", "50 %"], ["0 %", "75 %"]])


def test_one_share_in_other_steps_has_a_column_of_its_own(library: Path, tmp_path: Path) -> None:
    for method in ("retrain", "FT"):
        of_pruned(library, tmp_path, method, 3, "0 %")
        for column, half in (("75 %", 0.5), ("97.5 %", 0.7)):
            of_pruned(library, tmp_path, method, 3, column, pruning=OMP | {"shares": [1, half, 0.25]})
    (sweep,) = bysparsity.sweeps(table_of(tmp_path))
    dense, one, other = sweep.shares
    assert (dense, one, other[:5]) == ("0 %", "75 %", "75 % ") and list(sweep.shares.values()) == [0, 0.75, 0.75]
    assert sweep.cells["FT"].keys() == sweep.shares.keys()


def test_forget_sets_and_published_files_stand_apart(library: Path, tmp_path: Path) -> None:
    """Another forget set has no dense original here; a file without a record says nothing of its sparsity."""
    for column in ("0 %", "75 %"):
        for method in ("retrain", "FT"):
            folder = of_pruned(library, tmp_path, method, 3, column)
            change(folder, split_key=f"set {column}")
    assert bysparsity.sweeps(table_of(tmp_path)) == []
    for folder in (tmp_path / "forget").iterdir():
        change(folder, split_key="one set")
    assert len(bysparsity.sweeps(table_of(tmp_path))) == 1
    for folder in (tmp_path / "forget").glob("*-75"):
        change(folder, parent=read_record(folder).record["parent"] | {"training": None})
    assert bysparsity.sweeps(table_of(tmp_path)) == []


@pytest.mark.parametrize("name", [*bysparsity.TOW.drawn, "ToW-MIA"])
def test_curves_are_the_cells(name: str, table: list[Row]) -> None:
    """A cell a method, its line beside those of retrain and of retrains among themselves; hollow where it collapsed."""
    pivot = bysparsity.sweeps(table)[0].pivot(name)
    chart = pivots.curves(pivot, name)
    assert chart.words == tuple(AMOUNTS) and chart.x.log is False and chart.y.log is (name == "seconds")
    beside = [method for method in ("retrain", FLOOR) if method in pivot.cells]
    assert [cell.name for cell in chart.cells] == ["FT", "NG"]
    for cell in chart.cells:
        for method, line in zip([*beside, cell.name], cell.lines, strict=True):
            numbers = pivot.cells[method]
            assert [pivot.columns[x] for x in line.xs] == list(numbers)
            assert list(line.ys) == [number.mean for number in numbers.values()]
            ends = [number.ends or (math.nan, math.nan) for number in numbers.values()]
            assert np.array_equal(np.array([line.low, line.high]).T, ends, equal_nan=True)
            assert list(line.hollow) == [(method, column) in pivot.collapsed for column in numbers]
    assert sum(map(sum, (line.hollow for cell in chart.cells for line in cell.lines))) == 1
    assert "95 % t-intervals over seeds" in chart.caption and "n = 2 seeds (3, 5)" in chart.caption
    assert not faults(draw(chart))


def test_real_originals_of_two_sparsities(tmp_path: Path) -> None:
    """No pretence: a dense original and one of half its weights, by main_imp.py, go through analysis.py."""
    three = [*shell.THREE, "--epochs", 2, "--rewind_epoch", 1]
    for sparsity in (0, 0.5):
        shell.call("main_imp.py", *three, "--sparsity", sparsity, save_dir=tmp_path)
        for method in ("retrain", "FT"):
            shell.call("main_forget.py", *shell.THREE, "--sparsity", sparsity, "--unlearn", method, "--unlearn_epochs", 1,
                       *shell.FORGET, save_dir=tmp_path)
    shell.call("analysis.py", save_dir=tmp_path)
    lines = csv_lines(tmp_path / "analysis" / "sparsity.csv")
    assert [(line["method"], line["sparsity"]) for line in lines] == [("retrain", "0.0"), ("retrain", "0.5"), ("FT", "0.0"),
                                                                     ("FT", "0.5")]
    assert (tmp_path / "analysis" / "sparsity_tow.png").stat().st_size > 10_000


def test_settings_tell_a_method_apart_in_all_columns_or_in_none(library: Path, bench: Path, tmp_path: Path) -> None:
    """NG by one alpha each: a line, with a note if they differ. By two at one sparsity: a line an alpha, everywhere."""
    shutil.copytree(bench, tmp_path / "runs")
    root = tmp_path / "runs"
    for seed in SEEDS:
        change_settings(root / "forget" / f"NG-{seed}-75", alpha=0.5)
    pivot = bysparsity.sweeps(table_of(root))[0].pivot("ToW")
    assert set(pivot.cells) == {"FT", "NG", FLOOR} and pivot.tuned == ("NG",)
    assert "The settings of NG differ" in markdown([bygroup.part_of(pivot, "ToW", "title")])
    for seed in SEEDS:
        folder = of_pruned(library, tmp_path / "more", "NG", seed, "75 %")
        shutil.copytree(folder, root / "forget" / f"again-{seed}")
    usual = read_record(root / "forget" / "again-3").setting("alpha")
    pivot = bysparsity.sweeps(table_of(root))[0].pivot("ToW")
    assert {label: list(there) for label, there in pivot.cells.items()} == {
        "FT": list(AMOUNTS), "NG (alpha=0.5)": ["75 %"], f"NG (alpha={usual})": list(AMOUNTS), FLOOR: list(AMOUNTS)}
    assert pivot.tuned == ()


@pytest.mark.parametrize("chart_of", [pivots.side_by_side, pivots.controls])
def test_collapsed_points_are_hollow(chart_of: Any, table: list[Row]) -> None:
    """In the figures by group and of plans, drawn here from the same cells; the small print says what it means."""
    pivot = bysparsity.sweeps(table)[0].pivot("ToW")
    chart = chart_of(pivot, "ToW", "title")
    hollow = [(panel.title, row) for panel in chart.panels for dots in panel.dots.values() for row, dot in dots.items()
              if dot.hollow]
    ((column, row),) = hollow
    assert (row, column.endswith("97.5 %")) == ("NG", True) and chart.note == "hollow: collapsed"
    whole = dataclasses.replace(pivot, collapsed=frozenset())
    assert chart_of(whole, "ToW", "title").note == ""
