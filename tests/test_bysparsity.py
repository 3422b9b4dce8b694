"""Methods beside themselves on originals of several sparsities: table, cells and figure; collapsed ones in brackets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
from test_bygroup import csv_lines, equals, share_tow
from test_report import change, of_csv, pretend, table_of

from evaluation import bygroup, bysparsity, plots, report
from evaluation.report import FLOOR, AnalysisConfig, Row
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


def test_columns_are_the_sparsities_in_order(table: list[Row], bench: Path) -> None:
    (sweep,) = bysparsity.sweeps(table)
    assert list(sweep.shares) == list(AMOUNTS) and list(sweep.cells) == ["retrain", "FT", "NG", FLOOR]
    assert sweep.shares == pytest.approx({"0 %": 0, "75 %": 0.75, "97.5 %": 0.975})
    assert sweep.heading.startswith("digits resnet20s, pruned by OMP rewind_lt 1 rest global_conv, forget ")


@pytest.mark.parametrize("name", bysparsity.MEASURES)
def test_cells_are_means_over_seeds_at_their_sparsity(name: str, table: list[Row], bench: Path) -> None:
    pivot = bysparsity.sweeps(table)[0].pivot(name)
    assert ("retrain" in pivot.cells) == (name != "ToW") and (FLOOR in pivot.cells) == (name == "ToW")
    for method in METHODS[name == "ToW":]:
        for column in AMOUNTS:
            end = column.split()[0]
            folders = [(bench / "forget" / f"{method}-{s}-{end}", bench / "forget" / f"retrain-{s}-{end}") for s in SEEDS]
            values = [share_tow(*pair) for pair in folders] if name == "ToW" else metric(bench, method, column, name)
            assert equals(pivot.cells[method][column], values)


def test_files_hold_the_table_the_numbers_and_a_figure(bench: Path, tmp_path: Path) -> None:
    text = report.write(AnalysisConfig(save_dir=str(bench), out=str(tmp_path)), "tow", report.TOW_COLUMNS, lambda rows: {},
                        [bysparsity.tables])
    assert {path.name for path in tmp_path.iterdir()} == {f"{stem}.{end}" for stem in ("tow", "sparsity") for end in
                                                          ("csv", "md", "png") if (stem, end) != ("tow", "png")}
    shown = (tmp_path / "sparsity.md").read_text()
    assert shown in text and all(f"{name} by sparsity: digits" in shown for name in bysparsity.MEASURES)
    lines = csv_lines(tmp_path / "sparsity.csv")
    assert len(lines) == 4 * 3
    for line in lines:
        if line["method"] != FLOOR:
            assert line["n"] == "2" and line["collapsed"] == str(int(line["method"] == "NG" and line["sparsity"] == "0.975"))
            column = f"{100 * float(line['sparsity']):.4g} %"
            for name in ("UA", "RA", "TA", "MIA", "seconds"):
                assert equals((*of_csv(line, name), 2), metric(bench, line["method"], column, name))


def test_collapsed_cells_stand_in_brackets(table: list[Row], bench: Path) -> None:
    """That cell alone, in every measure, with the note below; and in the tables by group, as in the main one."""
    (sweep,) = bysparsity.sweeps(table)
    for name in bysparsity.MEASURES:
        lines = bygroup.markdown(sweep.pivot(name), name, "title")
        marked = [(line.split("|")[1].strip(), place) for line in lines for place, word in enumerate(line.split("|"))
                  if word.strip().startswith("(")]
        assert marked == [("NG", 4)] and "collapsed model is broken" in "\n".join(lines)
    plain = bygroup.markdown(bysparsity.sweeps([r for r in table if r.method != "NG"])[0].pivot("ToW"), "ToW", "title")
    assert "collapsed" not in "\n".join(plain)
    cells: bygroup.Cells = {}
    for column, rows in (("low", table[:4]), ("high", table[-4:])):
        bygroup.fill(cells, column, rows, "ToW")
    pivot = bygroup.pivot_of("heading", ("low", "high"), cells, "ToW")
    wanted = {("NG", column) for column in ("low", "high") if cells["NG"][column].collapsed}
    assert pivot.collapsed == wanted
    (line,) = [line for line in bygroup.csv_of([pivot]) if line[1] == "NG"]
    assert line[-1] == ", ".join(column for _, column in sorted(wanted))


@pytest.mark.parametrize("more", [{"epochs": 999}, {"pruning": OMP | {"shares": [1, 0.5], "prune_type": "lt"}},
                                  {"pruning": OMP | {"shares": [1, 0.9, 0.5]}},
                                  {"pruning": {"synflow": 0.5, "rounds": 100, "keep_shortcuts": False}}])
def test_other_trainings_and_prunings_are_no_columns(more: dict[str, Any], library: Path, tmp_path: Path) -> None:
    """OMP at 75 % beside another training's or another pruning's original; the dense one joins each way of pruning."""
    for method in ("retrain", "FT"):
        of_pruned(library, tmp_path, method, 3, "75 %")
        of_pruned(library, tmp_path, method, 3, "97.5 %", **more)
    assert bysparsity.sweeps(table_of(tmp_path)) == []
    assert bysparsity.tables(AnalysisConfig(), table_of(tmp_path)) == []
    for method in ("retrain", "FT"):
        of_pruned(library, tmp_path, method, 3, "0 %")
    found = [list(sweep.shares) for sweep in bysparsity.sweeps(table_of(tmp_path))]
    assert sorted(found) == ([["0 %", "75 %"]] if "epochs" in more else [["0 %", "50 %"], ["0 %", "75 %"]])


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


def test_figure_draws_the_cells(table: list[Row]) -> None:
    (sweep,) = bysparsity.sweeps(table)
    pivots = {name: sweep.pivot(name) for name in bysparsity.DRAWN}
    for pivot, axes in zip(pivots.values(), plots.sparsities(pivots).axes, strict=True):
        assert [text.get_text() for text in axes.get_xticklabels()] == list(AMOUNTS)
        points = {box.get_label(): box.lines[0].get_xydata() for box in axes.containers}
        assert list(points) == list(pivot.cells)
        for method, there in points.items():
            assert [pivot.columns[round(x)] for x, _ in there] == list(pivot.cells[method])
            assert [y for _, y in there] == [number[0] for number in pivot.cells[method].values()]
            low, high = axes.get_ylim()
            assert all(low < y < high for _, y in there)
        hollow = [xy for line in axes.lines if line.get_markerfacecolor() == "white" for xy in line.get_xydata()]
        assert np.array_equal(hollow, [points["NG"][2]])


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
    assert (tmp_path / "analysis" / "sparsity.png").stat().st_size > 10_000
