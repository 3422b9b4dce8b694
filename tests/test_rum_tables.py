"""ToW by group and of RUM beside its controls: the tables of analysis.py, and the figures of the same numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from grouped import KINDS, SEEDS, SIZE, csv_lines, equals, grouped, levels_and_plans, share_tow
from pretended import change, copied, of_csv, pretend, row_of, table_of

from evaluation.statistics import Number
from groups import LEVELS
from report import bygroup, contrasts, output, plots, tables
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
                        lambda rows, note: {"tow": plots.bars(rows, "ToW", "title")}, [bygroup.tow_tables]).text
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
    places = [text.index(words) for words in ("| method ", "ToW by group: ", "ToW of RUM and its controls: ", f"{out}: ")]
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
    names = [path.name for path in written[0].glob("*.png")]
    assert {"tow_by_group.png", "rum.png"} < set(names) and len(names) == 5 + 2
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.") for name in names)


def drawn(axes: Any) -> dict[str, dict[tuple[float, float], Any]]:
    """Label -> (x, y) of each point -> the ends of its interval."""
    found: dict[str, dict[tuple[float, float], Any]] = {}
    for box in axes.containers:
        segments = box.lines[2][0].get_segments()
        ends = [(seg[0][0], seg[1][0]) if len(seg) else None for seg in segments]
        found[box.get_label()] = dict(zip(map(tuple, box.lines[0].get_xydata()), ends, strict=True))
    return found


def test_points_by_group_are_those_of_the_table(bench: Path) -> None:
    (pivot,) = bygroup.by_group(table_of(bench), "ToW")
    axes = plots.dots(pivot, "ToW", "title").axes[0]
    methods = [text.get_text() for text in axes.get_yticklabels()]
    assert methods == list(pivot.cells)
    points = drawn(axes)
    assert list(points) == list(pivot.columns)
    for column, there in points.items():
        known = {method: cells[column] for method, cells in pivot.cells.items() if column in cells}
        assert {methods[round(y)]: x for x, y in there} == {method: number[0] for method, number in known.items()}
        for (_, y), ends in there.items():
            wanted = known[methods[round(y)]][1]
            assert ends == (None if wanted is None else pytest.approx(wanted))


def test_panels_of_plans_are_the_columns_of_the_table(bench: Path) -> None:
    (pivot,) = bygroup.rum(table_of(bench), "ToW")
    panels = plots.plans(pivot, "ToW", "title").axes
    assert [panel.get_title() for panel in panels] == ["by confidence", "by entropy"]
    lines = [text.get_text() for text in panels[0].get_yticklabels()]
    assert lines == ["NG"]
    for panel, column in zip(panels, pivot.columns, strict=True):
        for kind, points in drawn(panel).items():
            for x, y in points:
                assert pivot.cells[f"{kind} {lines[round(y)]}"][column][0] == x


def test_bars_by_group_are_those_of_the_rows(bench: Path) -> None:
    table = table_of(bench, mem="mix", mem_proxy="entropy")
    panels = plots.groups(table).axes
    shown = [text.get_text() for text in panels[1].get_xticklabels()]
    assert shown == [row.method for row in table if row.method != FLOOR]
    for panel, kind in zip(panels, ("acc", "MIA"), strict=True):
        bars = {box.get_label(): [bar.get_height() for bar in box] for box in panel.containers if hasattr(box, "patches")}
        assert bars == {level: [row_of(table, m).numbers[f"{kind}_{level}"][0] for m in shown] for level in LEVELS}
        dashed = [line.get_ydata()[0] for line in panel.lines if line.get_linestyle() == "--"]
        assert dashed == [row_of(table, "retrain").numbers[f"{kind}_{level}"][0] for level in LEVELS]


def test_cost_with_scores_is_drawn_where_it_differs(bench: Path) -> None:
    table = table_of(bench, mem="mix", mem_proxy="entropy")
    drawn_of = plots.mia_figures(table)
    assert set(drawn_of) == {"tow_mia", "mia", "cost_mia", "cost_total_mia"}
    points = {note.get_text(): note.xy for note in drawn_of["cost_total_mia"].axes[0].texts}
    rows = [row for row in table if row.method != FLOOR]
    assert points == {row.method: (row.numbers["seconds_total"][0], row.numbers["ToW-MIA"][0]) for row in rows}
    assert {"group_accuracy", "cost_total"} <= set(plots.tow_figures(table))
    assert not {"group_accuracy", "cost_total"} & set(plots.tow_figures(table_of(bench, mem="low")))
