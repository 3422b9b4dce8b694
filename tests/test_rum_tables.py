"""ToW by group and of RUM beside its controls: the tables of analysis.py, and the figures of the same numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from grouped import KINDS, SEEDS, SIZE, csv_lines, equals, grouped, levels_and_plans, share_tow
from layout import faults
from pretended import change, copied, of_csv, pretend, row_of, table_of

from evaluation.statistics import Number
from groups import LEVELS
from report import bygroup, contrasts, figures, output, pivots, tables
from report.draw import draw
from report.names import Heading
from report.pairs import AnalysisConfig
from report.rows import FLOOR
from utils import read_record


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return levels_and_plans(library, tmp_path_factory.mktemp("groups"))


# --------------------------------------------------------------------------------------------------------------- tables


@pytest.fixture(scope="module")
def written(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of analysis.py's files, and what it says."""
    out = tmp_path_factory.mktemp("out")
    text = output.write(AnalysisConfig(save_dir=str(bench), out=str(out)), contrasts.TOW,
                        lambda rows, heading, cfg: {"tow": figures.headline(rows, heading, "ToW")}, [bygroup.tow_tables]).text
    return out, text


def test_tow_by_group_holds_the_settings_side_by_side(bench: Path, written: tuple[Path, str]) -> None:
    lines = csv_lines(written[0] / "tow_by_group.csv")
    assert [line["method"] for line in lines] == ["FT", "NG"]  # no floor: every seed forgets other images
    numbers = [f"{c}{end}" for c in (*LEVELS, "mix") for end in ("", "_low", "_high", "_n")]
    assert list(lines[0]) == ["setting", "method", *numbers, "collapsed"]
    assert len({line["setting"] for line in lines}) == 1 and "24 images by confidence" in lines[0]["setting"]
    forget = bench / "forget"
    for method, column in [(m, c) for m in ("FT", "NG") for c in LEVELS] + [("FT", "mix")]:
        (line,) = [line for line in lines if line["method"] == method]
        end = "mix-confidence" if column == "mix" else column
        values = [share_tow(forget / f"{method}-{s}-{end}", forget / f"retrain-{s}-{end}") for s in SEEDS]
        assert equals((*of_csv(line, column), int(line[f"{column}_n"])), values, top=1)
    assert lines[1]["mix"] == lines[1]["mix_n"] == ""


def test_the_score_of_a_column_is_no_setting(bench: Path, tmp_path: Path) -> None:
    """A plan by each score is a line without a note; by two alphas in one column, a line an alpha, over both columns."""
    (pivot,) = bygroup.rum(table_of(bench, mem="mix"), "ToW")
    assert "RUM^F NG" in pivot.cells and pivot.tuned == ()
    root = copied(bench, tmp_path)
    for folder in [*root.glob("rum/*-RUM^F-NG")]:
        shutil.copytree(folder, folder.with_name(f"{folder.name}-again"))
        plan = read_record(folder).record["plan"]
        change(folder, plan=plan | {"steps": [step | {"cfg": step["cfg"] | {"alpha": 0.5}} for step in plan["steps"]]})
    (pivot,) = bygroup.rum(table_of(root, mem="mix"), "ToW")
    told = {label: list(there) for label, there in pivot.cells.items() if label.startswith("RUM^F")}
    usual = plan["steps"][0]["cfg"]["alpha"]
    assert told == {f"RUM^F NG (alpha={alpha})": ["confidence", "entropy"] for alpha in (0.5, usual)} and pivot.tuned == ()


def test_mix_of_three_groups_stands_beside_them(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    for folder in [*root.glob("*/*-mix-confidence"), *root.glob("rum/*-confidence-*")]:
        change(folder, forget_size=3 * SIZE)
    (pivot,) = bygroup.by_group(table_of(root, mem_proxy="confidence"), "ToW-MIA")
    assert pivot.columns == ("low", "mid", "high", f"mix of {3 * SIZE}")
    values = [share_tow(root / "forget" / f"FT-{s}-mid", root / "forget" / f"retrain-{s}-mid", mia_instead=True) for s in SEEDS]
    assert equals(pivot.cells["FT"]["mid"], values, top=1)


def test_chunks_are_columns_in_their_order(library: Path, tmp_path: Path) -> None:
    for chunk in (12, 3):
        for method in ("retrain", "NG"):
            grouped(pretend(library, tmp_path, method, 3, name=f"-{chunk}"), "es", mem_proxy=None, group_index=chunk)
    table = table_of(tmp_path)
    assert {row.setting.split("(")[1].split(")")[0] for row in table} == {"chunk 3 by es chunks", "chunk 12 by es chunks"}
    (pivot,) = bygroup.by_group(table, "ToW")
    assert pivot.columns == ("chunk 3", "chunk 12") and list(pivot.cells) == ["NG"]
    assert {row.place.group for row in table_of(tmp_path, group_index=12)} == {"chunk 12"}


def test_rum_table_has_a_column_for_each_score(bench: Path, written: tuple[Path, str]) -> None:
    lines = {line["method"]: line for line in csv_lines(written[0] / "rum.csv")}
    assert list(lines) == ["RUM^F NG", "shuffle NG", "vanilla NG"]  # FT is in no plan
    for name in KINDS:
        for score in ("confidence", "entropy"):
            values = [share_tow(bench / "rum" / f"NG-{s}-{score}-{name.split()[0]}-{name.replace(' ', '-')}",
                                bench / "forget" / f"retrain-{s}-mix-{score}") for s in SEEDS]
            assert equals((*of_csv(lines[name], score), int(lines[name][f"{score}_n"])), values, top=1)


def test_tables_beside_the_main_one_are_shown_after_it(written: tuple[Path, str]) -> None:
    out, text = written
    places = [text.index(words) for words in ("| method ", "ToW by group · ", "ToW of RUM and its controls · ", f"{out}: ")]
    assert places == sorted(places)
    assert (out / "rum.md").read_text() in text and (out / "tow_by_group.md").read_text() in text
    (line,) = csv_lines(out / "rum.csv")[:1]
    number = Number(*of_csv(line, "entropy"), 2)
    assert number.ends and f"{tables.cell(number, 3)}, n=2" in text


def test_no_groups_and_no_plans_make_no_more_tables(library: Path, tmp_path: Path) -> None:
    for method in ("retrain", "NG"):
        grouped(pretend(library, tmp_path, method, 3), "confidence", mem="low")
    table = table_of(tmp_path)
    assert bygroup.tow_tables(AnalysisConfig(), table) == bygroup.mia_tables(AnalysisConfig(), table) == []


# -------------------------------------------------------------------------------------------------------------- figures


def test_figures_have_names_of_their_own(written: tuple[Path, str]) -> None:
    names = [path.name for ending in ("png", "pdf") for path in written[0].glob(f"*.{ending}")]
    assert {"tow_by_group.png", "rum.png", "rum.pdf"} < set(names) and len(names) == 2 * (5 + 2)
    captions = (written[0] / "tow_captions.md").read_text()
    assert [line[3:] for line in captions.splitlines() if line.startswith("## ")] == [
        name.removesuffix(".png") for name in sorted(names, key=lambda name: captions.index(f"## {name[:-4]}\n"))
        if name.endswith(".png")]
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.") for name in names)


def test_points_by_group_are_those_of_the_table(bench: Path) -> None:
    (pivot,) = bygroup.by_group(table_of(bench), "ToW")
    chart = pivots.side_by_side(pivot, "ToW", "title")
    assert [panel.title for panel in chart.panels] == list(pivot.columns) and chart.rows == ("FT", "NG")
    assert len({panel.axis for panel in chart.panels}) == 1  # and so the same limits
    for panel, column in zip(chart.panels, pivot.columns, strict=True):
        wanted = {method: cells[column] for method, cells in pivot.cells.items() if column in cells}
        assert {row: (dot.mean, (dot.low, dot.high)) for row, dot in panel.dots[""].items()} == {
            method: (number.mean, number.ends) for method, number in wanted.items()}
    assert not faults(draw(chart))


def test_panels_of_plans_are_the_columns_of_the_table(bench: Path) -> None:
    (pivot,) = bygroup.rum(table_of(bench), "ToW")
    chart = pivots.controls(pivot, "ToW", "title")
    assert [panel.title for panel in chart.panels] == ["by confidence", "by entropy"] and chart.rows == ("NG",)
    for panel, column in zip(chart.panels, pivot.columns, strict=True):
        found = {f"{kind} {row}": dot.mean for kind, dots in panel.dots.items() for row, dot in dots.items()}
        assert found == {label: cells[column].mean for label, cells in pivot.cells.items() if column in cells}
    assert set(chart.looks) == {"RUM^F", "shuffle", "vanilla"} and len(set(chart.looks.values())) == 3


def test_panels_by_group_are_those_of_the_rows(bench: Path) -> None:
    """Low, mid and high beside retrain's own band, accuracy above the attack."""
    table = table_of(bench, mem="mix", mem_proxy="entropy")
    chart = figures.by_level(table, Heading("entropy", ""))
    assert set(chart.rows) == {row.method for row in table if row.method != FLOOR and not row.is_reference}
    names = [f"{kind}_{level}" for kind in ("acc", "MIA") for level in LEVELS]
    assert [panel.title for panel in chart.panels] == [*LEVELS, *LEVELS] and chart.across == 3
    for panel, name in zip(chart.panels, names, strict=True):
        assert panel.axis.label == ("accuracy, %" if name.startswith("acc") else "called non-member, %")
        for row, dot in panel.dots[""].items():
            assert (dot.mean, (dot.low, dot.high)) == row_of(table, row).numbers[name][:2]
        (mark,) = panel.marks
        assert (mark.at, (mark.low, mark.high)) == row_of(table, "retrain").numbers[name][:2]
    assert not faults(draw(chart))


def test_cost_with_scores_is_drawn_where_it_differs(bench: Path) -> None:
    table = table_of(bench, mem="mix", mem_proxy="entropy")
    drawn_of = figures.mia_charts(table, Heading("", ""), AnalysisConfig())
    assert set(drawn_of) == {"tow_mia", "mia", "cost_mia", "cost_total_mia"}
    points = {point.name: (point.x.mean, point.y.mean) for point in drawn_of["cost_total_mia"].points}
    rows = [row for row in table if row.method != FLOOR]
    assert points == {row.method: (row.numbers["seconds_total"][0], 1 - row.numbers["ToW-MIA"][0]) for row in rows}
    assert {"group_accuracy", "cost_total"} <= set(figures.tow_charts(table, Heading("", ""), AnalysisConfig()))
    low = figures.tow_charts(table_of(bench, mem="low"), Heading("", ""), AnalysisConfig())
    assert not {"group_accuracy", "cost_total"} & set(low)
