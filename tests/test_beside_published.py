"""A sweep beside the published table: what is compared, what is named, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
from layout import faults
from pretended import four_methods, table_of

from evaluation.accuracy import EvaluationConfig
from evaluation.statistics import Number
from report.draw import draw
from report.looks import look_of
from report.pairs import AnalysisConfig, Pair
from report.published import MEASURES, beside, gaps, published, rows_of, tables
from report.rows import Row
from scripts import beside_published
from scripts.beside_published import report

CLASS = "cifar10 resnet18, pruned by OMP rewind_lt 8 rest global_conv, forget class 0 (4500 images), 0a1b2c-3d4e"
RANDOM = "cifar10 resnet18, pruned by OMP rewind_lt 8 rest global_conv, forget 4500 images, 0a1b2c-3d4e"
HEAD = ("setting", "method", "sparsity", "n", "collapsed", *MEASURES)


def write(file: Path, *rows: tuple[object, ...]) -> Path:
    with open(file, "w", newline="") as out:
        csv.writer(out).writerows([HEAD, *rows])
    return file


def test_published_gaps_follow_from_the_cells() -> None:
    """The table prints each method's mean gap to retrain beside its cells, so a wrong cell would show."""
    gaps = {("class", 0): [25.78, 7.12, 5.32, 5.41], ("class", 0.95): [11.50, 6.41, 1.98, 1.10],
            ("random", 0): [2.74, 4.26, 5.08, 4.07], ("random", 0.95): [1.92, 3.05, 4.50, 3.04]}
    table = published()
    assert len(table) == 20
    for (kind, sparsity), wanted in gaps.items():
        base = table[kind, "retrain", sparsity]
        for method, gap in zip(("FT", "GA", "fisher_new", "wfisher"), wanted, strict=True):
            row = table[kind, method, sparsity]
            assert sum(abs(float(row[m]) - float(base[m])) for m in MEASURES) / 4 == pytest.approx(gap, abs=0.0101)


def test_differences_above_two_deviations_are_named_and_no_others(tmp_path: Path) -> None:
    file = write(tmp_path / "sparsity.csv",
                 (CLASS, "FT", 0.0, 3, 0, 22.53 + 2.01 * 8.16, 99.87 - 2 * 0.039, 94.31 + 1.9 * 0.19, 75.0 - 2.2 * 14.68),
                 (RANDOM, "wfisher (alpha=2)", 0.95, 2, 1, 6.51, 94.94, 88.74, 11.93),
                 (RANDOM, "retrain", 0.0, 3, 0, 5.41, 99.97, 94.42, 13.12))
    found = beside(rows_of(file))
    assert list(found["class"]) == ["FT, 0 %, n=3"]
    assert list(found["random"]) == ["wfisher (alpha=2), 95 %, n=2, 1 collapsed", "retrain, 0 %, n=3"]
    text = report(found)
    assert "3 of 12 cells differ by more than 2 published standard deviations:" in text
    named = [line.split(": ")[1].split()[0] + line.split("(")[-1][:4] for line in text.splitlines() if line.startswith("- ")]
    assert named == ["UA+2.0", "MIA-2.2", "RA-3.0"]  # retrain's 100.00 is printed without a spread


def test_what_the_table_does_not_have_is_left_out(tmp_path: Path) -> None:
    numbers = (1.0, 2.0, 3.0, 4.0)
    file = write(tmp_path / "sparsity.csv", (CLASS, "FT", 0.5, 3, 0, *numbers), (CLASS, "SCRUB", 0.95, 3, 0, *numbers),
                 (CLASS.replace("resnet18", "vgg16_bn"), "FT", 0.95, 3, 0, *numbers),
                 (RANDOM.replace("4500", "450"), "FT", 0.95, 3, 0, *numbers),
                 (RANDOM.replace("images", "images (high by confidence)"), "FT", 0.95, 3, 0, *numbers),
                 (RANDOM.replace("images", "images, request 2"), "FT", 0.95, 3, 0, *numbers),
                 (RANDOM.replace("OMP", "IMP"), "FT", 0.95, 3, 0, *numbers), ("cifar10 resnet18", "FT", 0.95, 3, 0, *numbers),
                 (CLASS.replace("class 0", "class 3"), "FT", 0.95, 3, 0, *numbers))
    assert beside(rows_of(file)) == {}


def test_two_sweeps_of_one_recipe_stand_beside_each_other(tmp_path: Path) -> None:
    """Such as by another rewind epoch; neither takes the other's place."""
    file = write(tmp_path / "sparsity.csv", (CLASS, "FT", 0.95, 3, 0, 1.0, 2.0, 3.0, 4.0),
                 (CLASS.replace("lt 8", "lt 4"), "FT", 0.95, 3, 0, 5.0, 6.0, 7.0, 8.0))
    first, second = beside(rows_of(file))["class"].items()
    assert [cell.ours for cell in (*first[1], *second[1])] == list(range(1, 9))
    assert second[0].startswith("FT, 95 %, n=3, pruned by OMP rewind_lt 4 ")


def test_wrong_files_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "digits.csv", ("digits resnet20s, forget 130 images", "FT", 0.0, 1, 0, 1.0, 2.0, 3.0, 4.0))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for name, words in (("digits.csv", "no run that the published table has"), ("other.csv", "cannot read"),
                        ("none.csv", "cannot read")):
        with pytest.raises(SystemExit) as end:
            beside_published.main([str(tmp_path / name)])
        assert end.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]


def test_text_goes_to_the_file_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "sparsity.csv", (CLASS, "GA", 0.95, 3, 0, 98.09, 87.74, 82.58, 97.74))
    beside_published.main([str(file), "--out", str(tmp_path / "beside.md")])
    out = capsys.readouterr().out
    assert (tmp_path / "beside.md").read_text() == out and "0 of 4 cells differ" in out


# ------------------------------------------------------------------------------------------------------------ the figure


@pytest.fixture(scope="module")
def table(library: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The rows of a toy setting under the published one's name, with FT's and retrain's numbers known."""
    found = table_of(four_methods(library, tmp_path_factory.mktemp("published")))
    for row in found:
        row.pairs = [named(pair, "cifar10", "resnet18", "class 0 (4500 images)") for pair in row.pairs]
        if row.method in OURS:
            row.numbers |= {name: Number(value, None, 3) for name, value in zip(MEASURES, OURS[row.method], strict=True)}
    return found


OURS = {"retrain": (100.0, 99.0, 93.0, 98.0), "FT": (40.0, 98.0, 94.5, 70.0)}


def named(pair: Pair, dataset: str, arch: str, what: str) -> Pair:
    record = json.loads(json.dumps(pair.run.record))
    for group in record["settings"].values():
        if isinstance(group, dict):
            group |= {name: value for name, value in (("dataset", dataset), ("arch", arch)) if name in group}
    record["parent"]["training"] = (record["parent"]["training"] or {}) | {"pruning": {}}
    return dataclasses.replace(pair, run=pair.run._replace(record=record),
                               setting=pair.setting._replace(network=f"{dataset} {arch}", what=what, drawn=""))


def test_gaps_are_those_of_both_tables(table: list[Row]) -> None:
    """Without the published attack MIA is in neither gap; retrain, raw and methods that the table lacks have no point."""
    (extra,) = tables(AnalysisConfig(), table)
    theirs = published()
    base, own = theirs["class", "retrain", 0.0], theirs["class", "FT", 0.0]
    wanted = sum(abs(float(own[m]) - float(base[m])) for m in ("UA", "RA", "TA")) / 3
    chart = extra.figures["published_gap"]
    (point,) = chart.points
    assert point.name == "FT, class 0, 0 %" and point.look == look_of("FT") and chart.diagonal
    assert (point.x.mean, point.y.mean) == (pytest.approx(wanted), pytest.approx((60 + 1 + 1.5) / 3))
    assert extra.csv[1][-3:] == ["UA RA TA", point.x.mean, point.y.mean]
    assert "mean |difference| of UA, RA, TA in points" in chart.caption and "n = 3 seeds (3, 5, 8)" in chart.caption
    assert not faults(draw(chart))


def test_the_published_attack_counts_in_both_gaps(table: list[Row]) -> None:
    attack = EvaluationConfig(mia="svc", mia_mode="published")
    same = [dataclasses.replace(row, pairs=[dataclasses.replace(pair, attack=attack) for pair in row.pairs]) for row in table]
    (gap,) = gaps(same)
    assert gap.measures == MEASURES and gap.ours == pytest.approx((60 + 1 + 1.5 + 28) / 4)
    assert gap.theirs == pytest.approx(25.78, abs=0.0101)  # as printed beside the cells


@pytest.mark.parametrize("other", [
    ("cifar10", "vgg16_bn", "class 0 (4500 images)"), ("cifar10", "resnet18", "class 3 (4500 images)"),
    ("svhn", "resnet18", "4500 images"), ("cifar10", "resnet18", "450 images")])
def test_other_settings_have_no_published_gap(table: list[Row], other: tuple[str, str, str]) -> None:
    moved = [dataclasses.replace(row, pairs=[named(pair, *other) for pair in row.pairs]) for row in table]
    assert gaps(moved) == [] and tables(AnalysisConfig(), moved) == []


def test_groups_and_parts_of_a_class_have_no_published_gap(table: list[Row]) -> None:
    for change in ({"group": "low", "what": "4500 images"}, {"request": 2, "what": "4500 images"}, {"reference": "epochs 3"},
                   {"what": "4500 images", "drawn": "4500 random images of class 0"}):
        moved = [dataclasses.replace(row, pairs=[dataclasses.replace(pair, setting=pair.setting._replace(**change))
                                                 for pair in row.pairs]) for row in table]
        assert gaps(moved) == []
