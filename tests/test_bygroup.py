"""Runs by group of the forget set: settings over seeds, measures by group, RUM beside its controls, the table of scores."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from scipy import stats
from test_report import change, of_csv, pretend, refused, row_of, table_of

from evaluation import bygroup, mia, plots, report, scores
from evaluation.accuracy import load_outputs
from evaluation.report import FLOOR, AnalysisConfig
from groups import LEVELS
from utils import BadInput, read_record

SEEDS = (3, 5)
SIZE = 24  # of pretended forget sets


def grouped(folder: Path, score: str, **asked: Any) -> Path:
    """Make a pretended run one whose forget set was cut by scores, into random thirds by its seed and score.

    Args:
        asked: mem, group_index; the split_key of a proxy differs by seed.
    """
    run = read_record(folder)
    seed, name = run.setting("seed"), asked.get("mem")
    settings = run.record["settings"] | {"forget": run.record["settings"]["forget"] | {
        "num_indexes_to_replace": SIZE, "mem_proxy": None if score == "memorization" else score, **asked}}
    index = np.random.default_rng([seed, *score.encode()]).permutation(SIZE)
    parts = {level: np.sort(part) for level, part in zip(LEVELS, np.split(index, 3), strict=True)}
    if name in LEVELS or asked.get("group_index", -1) >= 0:
        parts = {str(name or asked["group_index"]): np.arange(SIZE)}
    np.savez(folder / "splits.npz", forget=np.arange(SIZE), **{f"group_{level}": part for level, part in parts.items()})
    kind = name or asked.get("group_index")
    split = run.record["split_key"] if kind is None else f"{kind} {score}" + ("" if score == "memorization" else f" {seed}")
    change(folder, settings=settings, groups={level: len(part) for level, part in parts.items()}, split_key=split,
           scores={"name": score, "path": "scores.npz", "sha256": f"file of {score} {seed}", "seconds": 7.5 + seed})
    return folder


def planned(folder: Path, name: str, groups: Iterable[str] = LEVELS, **changed: Any) -> Path:
    """Make a pretended run one of main_rum.py; its steps have the method and settings of the pretended one."""
    run, root = read_record(folder), folder.parent.parent
    step = {"method": run.setting("unlearn"), "cfg": run.record["settings"]["cfg"], "density": None}
    plan = {"name": name, "steps": [{"group": group, **step} for group in groups], "shuffle": name.startswith("shuffle")}
    request = {"number": changed.get("number", 0), "parts": {}, "earlier": ""}
    change(folder, plan=plan | changed.get("plan", {}), request=request)
    if "requests" in changed:
        record = read_record(folder).record
        change(folder, settings=record["settings"] | {"plan": {"requests": changed["requests"]}})
    target = root / "rum" / f"{folder.name}-{name.replace(' ', '-')}"
    target.parent.mkdir(exist_ok=True)
    return folder.rename(target)


KINDS = {"RUM^F NG": LEVELS, "shuffle NG": LEVELS, "vanilla NG": ("all",)}


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds: low, mid and high by confidence with two methods; the mix by two proxies with plans. Not to be changed."""
    root = tmp_path_factory.mktemp("groups")
    for seed in SEEDS:
        for level in LEVELS:
            for method in ("retrain", "FT", "NG"):
                grouped(pretend(library, root, method, seed, name=f"-{level}"), "confidence", mem=level)
        for score in ("confidence", "entropy"):
            for method in ("retrain", "FT"):
                grouped(pretend(library, root, method, seed, name=f"-mix-{score}"), "confidence" if score == "confidence"
                        else "entropy", mem="mix")
            for name, groups in KINDS.items():
                folder = grouped(pretend(library, root, "NG", seed, name=f"-{score}-{name.split()[0]}"), score, mem="mix")
                planned(folder, name, groups)
    return root


def share_tow(run: Path, retrain: Path, mia_instead: bool = False) -> float:
    """ToW from the metrics in two records, by hand."""
    a, b = (read_record(folder).record["metrics"] for folder in (run, retrain))
    product = 1.0
    for part in ("MIA" if mia_instead else "forget", "retain", "test"):
        product *= 1 - abs(a[part] - b[part]) / 100
    return product


def interval(values: list[float]) -> tuple[float, float, int]:
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return pytest.approx(np.mean(values)), pytest.approx(half, abs=1e-9), len(values)


def equals(number: tuple[float, float | None, int], values: list[float]) -> bool:
    mean, half, count = interval(values)
    return number[0] == mean and number[1] == half and number[2] == count


# ------------------------------------------------------------------------------------------------------------ settings


def test_groups_by_a_proxy_are_averaged_over_seeds(bench: Path) -> None:
    """Other images for each seed, the same request: one row, with the mean over both seeds."""
    table = table_of(bench, mem="high")
    assert [row.method for row in table] == ["retrain", "FT", "NG", FLOOR]
    assert len({row.setting for row in table}) == 1 and "forget 24 images (high by confidence), " in table[0].setting
    row = row_of(table, "FT")
    assert row.seeds == list(SEEDS)
    forget = bench / "forget"
    assert equals(row.numbers["ToW"], [share_tow(forget / f"FT-{s}-high", forget / f"retrain-{s}-high") for s in SEEDS])


def test_groups_levels_proxies_and_data_keep_settings_apart(bench: Path, tmp_path: Path) -> None:
    table = table_of(bench)
    wanted = {"low by confidence", "mid by confidence", "high by confidence", "mix by confidence", "mix by entropy"}
    assert {row.setting.split("(")[1].split(")")[0] for row in table} == wanted
    assert len({row.place.tag for row in table}) == 5
    root = copied(bench, tmp_path)
    for method in ("retrain", "NG", "FT"):
        change(root / "forget" / f"{method}-5-high", data_key="of another split")
    assert {tuple(row.seeds) for row in table_of(root, mem="high") if row.method == "FT"} == {(3,), (5,)}


def copied(bench: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bench, tmp_path / "runs"))


def test_groups_by_memorization_go_by_the_set_itself(library: Path, tmp_path: Path) -> None:
    """One file of scores gives every seed the same set; two sets under one name are two settings."""
    for seed in SEEDS:
        for method in ("retrain", "FT"):
            grouped(pretend(library, tmp_path, method, seed), "memorization", mem="low")
    (row,) = [row for row in table_of(tmp_path) if row.method == "FT"]
    assert row.seeds == list(SEEDS) and "(low by memorization)" in row.setting
    for method in ("retrain", "FT"):
        change(tmp_path / "forget" / f"{method}-5", split_key="cut by another file")
    assert {tuple(row.seeds) for row in table_of(tmp_path) if row.method == "FT"} == {(3,), (5,)}


def test_a_set_named_by_file_joins_those_that_asked_for_it(library: Path, tmp_path: Path) -> None:
    """Retrain and a method by --forget_index of a group's own set: their records do not say that it is one."""
    for seed in SEEDS:
        asked = grouped(pretend(library, tmp_path, "NG", seed), "confidence", mem="mix")
        for method in ("retrain", "FT"):
            change(pretend(library, tmp_path, method, seed), split_key=read_record(asked).record["split_key"])
    table = table_of(tmp_path)
    assert [row.method for row in table] == ["retrain", "FT", "NG", FLOOR] and len({row.setting for row in table}) == 1
    assert all(row.seeds == list(SEEDS) for row in table)
    # its groups are those of the run that asked
    groups = {seed: read_groups(tmp_path / "forget" / f"NG-{seed}") for seed in SEEDS}
    wanted = [by_loop(tmp_path / "forget" / f"retrain-{seed}", groups[seed]["high"]) for seed in SEEDS]
    assert equals(row_of(table, "retrain").numbers["acc_high"], wanted)


def test_a_set_named_by_file_in_other_seeds_too_is_not_torn_apart(library: Path, tmp_path: Path) -> None:
    """All seeds forget the set that seed 3 finds most memorized: FT stays one row, beside what seed 3 asked for."""
    for seed in SEEDS:
        for method in ("retrain", "FT"):
            change(pretend(library, tmp_path, method, seed), split_key="mix confidence 3")
    grouped(pretend(library, tmp_path, "NG", 3), "confidence", mem="mix")
    rows = {(row.method, "by confidence" in row.setting): row.seeds for row in table_of(tmp_path) if row.method != FLOOR}
    assert rows == {("retrain", False): [3, 5], ("FT", False): [3, 5], ("retrain", True): [3], ("NG", True): [3]}


def test_plans_stand_beside_plain_methods_on_the_same_set(library: Path, tmp_path: Path) -> None:
    """Thirds of a set chosen otherwise, by two proxies: a row for each, one for what needs no scores, one retrain."""
    for seed in SEEDS:
        for method in ("retrain", "NG"):
            pretend(library, tmp_path, method, seed)
        for score in ("confidence", "entropy"):
            planned(grouped(pretend(library, tmp_path, "NG", seed, name=score), score), "RUM^F NG")
        planned(grouped(pretend(library, tmp_path, "NG", seed, name="s"), "entropy"), "shuffle NG")
        planned(pretend(library, tmp_path, "NG", seed, name="v"), "vanilla NG", ("all",))
    table = table_of(tmp_path)
    assert [row.method for row in table] == ["retrain", "NG", "RUM^F NG (by confidence)", "RUM^F NG (by entropy)", "shuffle NG",
                                             "vanilla NG", FLOOR]
    assert len({row.setting for row in table}) == 1 and all(row.seeds == list(SEEDS) for row in table)
    # thirds by two scores: retrain has no one low, mid and high; the shuffled run's are those by its scores
    assert "acc_low" not in row_of(table, "retrain").numbers and "acc_low" in row_of(table, "shuffle NG").numbers
    (pivot,) = bygroup.rum(table, "ToW")
    assert pivot.columns == ("confidence", "entropy")
    assert list(pivot.cells) == ["RUM^F NG", "shuffle NG", "vanilla NG", "NG", FLOOR]
    for column in pivot.columns:
        assert pivot.cells["RUM^F NG"][column] == row_of(table, f"RUM^F NG (by {column})").numbers["ToW"]
        assert pivot.cells["NG"][column] == row_of(table, "NG").numbers["ToW"]
    assert bygroup.by_group(table, "ToW") == []


def test_steps_with_settings_of_their_own_tell_plans_apart(library: Path, tmp_path: Path) -> None:
    pretend(library, tmp_path, "retrain", 3)
    for name, rate in (("a", 0.1), ("b", 0.2)):
        steps = [{"group": "low", "method": "raw", "cfg": {}, "density": None},
                 {"group": "mid", "method": "FT", "cfg": {"unlearn_lr": rate}, "density": None},
                 {"group": "high", "method": "RL", "cfg": {"unlearn_lr": 0.1}, "density": 0.5}]
        planned(grouped(pretend(library, tmp_path, "NG", 3, name=name), "confidence"), "RUM", plan={"steps": steps})
    assert [row.method for row in table_of(tmp_path)] == ["retrain", "RUM (mid.unlearn_lr=0.1)", "RUM (mid.unlearn_lr=0.2)"]


def test_requests_are_numbered_in_the_setting(library: Path, tmp_path: Path) -> None:
    for number, key in enumerate(("first", "first and second")):
        change(pretend(library, tmp_path, "retrain", 3, name=f"-{number}"), split_key=key)
        folder = pretend(library, tmp_path, "NG", 3, name=f"-{number}")
        change(folder, split_key=key)
        planned(folder, "vanilla NG", ("all",), number=number, requests="stream.json")
    labels = [row.setting for row in table_of(tmp_path) if row.method == "vanilla NG"]
    assert [label.split(", ")[2] for label in sorted(labels)] == ["request 1", "request 2"]
    assert len({label.rpartition(", ")[2] for label in labels}) == 2


def test_filters_by_group_proxy_and_plan(bench: Path) -> None:
    def rows(**filters: Any) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for row in table_of(bench, **filters):
            if row.method != FLOOR:
                found.setdefault(row.setting.split("(")[1].split(")")[0], set()).add(row.method)
        return found

    assert rows(mem="low") == {"low by confidence": {"retrain", "FT", "NG"}}
    assert set(rows(mem_proxy="entropy")) == {"mix by entropy"}
    assert rows(mem="mix", mem_proxy="confidence", unlearn=("NG",)) == {"mix by confidence": {"retrain", *KINDS}}
    assert rows(mem="mix", mem_proxy="entropy", unlearn=("RUM^F", "FT")) == {"mix by entropy": {"retrain", "RUM^F NG", "FT"}}
    assert rows(mem_proxy="entropy", unlearn=("shuffle NG",)) == {"mix by entropy": {"retrain", "shuffle NG"}}
    for nothing in ({"group_index": 3}, {"mem": "low", "mem_proxy": "entropy"}, {"unlearn": ("RUM",)}, {"mem_proxy": "es"}):
        with pytest.raises(BadInput, match="passes the filters"):
            table_of(bench, **nothing)


def test_plan_without_retrain_is_told_how_to_make_it(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    shutil.rmtree(root / "forget" / "retrain-5-mix-entropy")
    for path in root.glob("forget/FT-5-mix-entropy"):
        shutil.rmtree(path)
    refused(root, f"{root / 'rum'}", "has no retrain", "--unlearn retrain", "--seed 5", "splits.npz")


# -------------------------------------------------------------------------------------------------- accuracy and attack


def read_groups(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "splits.npz") as file:
        return {level: file[f"group_{level}"] for level in LEVELS}


def by_loop(folder: Path, index: Iterable[int]) -> float:
    """Accuracy in percent on some examples, by a loop."""
    outputs = load_outputs(folder)
    row_of_example = {int(i): row for row, i in enumerate(outputs["forget_index"])}
    rows = [row_of_example[int(i)] for i in index]
    return 100 * sum(int(outputs["forget_logits"][r].argmax()) == int(outputs["forget_labels"][r]) for r in rows) / len(rows)


def part_of(outputs: dict[str, np.ndarray], part: str, rows: Any = slice(None)) -> mia.Outputs:
    return mia.Outputs(*(torch.from_numpy(outputs[f"{part}_{what}"][rows]) for what in ("logits", "labels")))


def test_accuracy_by_group_is_that_of_its_examples(bench: Path) -> None:
    table = table_of(bench, mem="mix", mem_proxy="entropy")
    for method, folder in (("retrain", "forget/retrain-{}-mix-entropy"),
                           ("shuffle NG", "rum/NG-{}-entropy-shuffle-shuffle-NG")):
        for level in LEVELS:
            folders = {seed: bench / folder.format(seed) for seed in SEEDS}
            wanted = [by_loop(folders[seed], read_groups(folders[seed])[level]) for seed in SEEDS]
            assert equals(row_of(table, method).numbers[f"acc_{level}"], wanted)


@pytest.mark.parametrize("rule,mode", [("threshold", "balanced"), ("interval", "balanced"), ("svc", "balanced"),
                                       ("threshold", "published")])
def test_attack_by_group_is_the_attack_on_the_group_alone(rule: str, mode: str, bench: Path) -> None:
    """Members and non-members do not depend on the forget set, so that one fit serves every group."""
    table = table_of(bench, mem="mix", mem_proxy="confidence", mia=rule, mia_mode=mode)
    for level in LEVELS:
        alone = []
        for seed in SEEDS:
            folder = bench / "rum" / f"NG-{seed}-confidence-vanilla-vanilla-NG"
            outputs = load_outputs(folder)
            rows = np.isin(outputs["forget_index"], read_groups(folder)[level])
            found = mia.membership(part_of(outputs, "retain"), part_of(outputs, "test"), part_of(outputs, "forget", rows),
                                   rule=rule, mode=mode, generator=np.random.default_rng([seed, 0x6D6961]))
            alone.append(100 * found["forget"]["confidence"])
        assert equals(row_of(table, "vanilla NG").numbers[f"MIA_{level}"], alone)


def test_groups_of_equal_size_average_to_the_whole(bench: Path) -> None:
    numbers = row_of(table_of(bench, mem="mix", mem_proxy="entropy", seed=(3,)), "RUM^F NG").numbers
    for kind, whole in (("acc", "forget"), ("MIA", "MIA")):
        assert sum(numbers[f"{kind}_{level}"][0] for level in LEVELS) / 3 == pytest.approx(numbers[whole][0])
    assert len({numbers[f"acc_{level}"][0] for level in LEVELS}) > 1


def test_one_group_alone_has_no_measures_of_its_own(bench: Path) -> None:
    assert not [name for row in table_of(bench, mem="low") for name in row.numbers if name.endswith("_low")]


def test_only_refining_plans_pay_for_scores(bench: Path) -> None:
    table = table_of(bench, mem="mix", mem_proxy="entropy")
    for method in ("retrain", "FT", "shuffle NG", "vanilla NG"):
        numbers = row_of(table, method).numbers
        assert numbers["seconds_scores"] == (0, 0, 2) and numbers["seconds_total"] == numbers["seconds"]
    numbers = row_of(table, "RUM^F NG").numbers
    assert equals(numbers["seconds_scores"], [7.5 + seed for seed in SEEDS])
    assert equals(numbers["seconds_total"], [1.25 + 7.5 + 2 * seed for seed in SEEDS])
    assert "seconds_total" in report.markdown(table, report.TOW_COLUMNS)
    assert "seconds_total" not in report.markdown(table_of(bench, mem="low"), report.TOW_COLUMNS)


def test_real_plan_agrees_with_its_own_record(tmp_path: Path) -> None:
    """No pretence: the accuracy by group is what the plan's last step measured, the scores' seconds what training spent."""
    original = shell.train(tmp_path)
    asked = ["--mem_proxy", "confidence", "--mem", "mix", "--num_indexes_to_replace", 30]
    shell.forget(original, tmp_path, "retrain", *asked)
    shell.call("main_rum.py", "--checkpoint", original.folder, "--unlearn", "FT", "--unlearn_epochs", 1, *asked,
               save_dir=tmp_path)
    run = shell.only(tmp_path, "rum").record
    numbers = row_of(table_of(tmp_path), "RUM^F FT").numbers
    last = run["rows"][-1]["after"]
    assert {level: numbers[f"acc_{level}"][0] for level in LEVELS} == pytest.approx(last)
    assert sum(last.values()) / 3 == pytest.approx(run["metrics"]["forget"])
    assert numbers["seconds_scores"][0] == pytest.approx(original.record["seconds"]["events"], abs=1e-3)


# -------------------------------------------------------------------------------------------------------------- pivots


def csv_lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of analysis.py's files, and what it says."""
    out = tmp_path_factory.mktemp("out")
    text = report.write(AnalysisConfig(save_dir=str(bench), out=str(out)), "tow", report.TOW_COLUMNS,
                        lambda rows: {"tow": plots.bars(rows, "ToW", "title")}, [bygroup.tow_tables])
    return out, text


def test_tow_by_group_holds_the_settings_side_by_side(bench: Path, written: tuple[Path, str]) -> None:
    lines = csv_lines(written[0] / "tow_by_group.csv")
    assert [line["method"] for line in lines] == ["FT", "NG", FLOOR]
    numbers = [f"{c}{end}" for c in (*LEVELS, "mix") for end in ("", "_ci", "_n")]
    assert list(lines[0]) == ["setting", "method", *numbers, "collapsed"]
    assert len({line["setting"] for line in lines}) == 1 and "24 images by confidence" in lines[0]["setting"]
    forget = bench / "forget"
    for method, column in [(m, c) for m in ("FT", "NG") for c in LEVELS] + [("FT", "mix")]:
        (line,) = [line for line in lines if line["method"] == method]
        end = "mix-confidence" if column == "mix" else column
        values = [share_tow(forget / f"{method}-{s}-{end}", forget / f"retrain-{s}-{end}") for s in SEEDS]
        assert equals((*of_csv(line, column), int(line[f"{column}_n"])), values)
    assert lines[1]["mix"] == lines[1]["mix_n"] == ""
    floor = share_tow(forget / "retrain-3-high", forget / "retrain-5-high")
    assert of_csv(lines[2], "high") == (pytest.approx(floor), pytest.approx(math.nan, nan_ok=True))


def test_mix_of_three_groups_stands_beside_them(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    for folder in [*root.glob("*/*-mix-confidence"), *root.glob("rum/*-confidence-*")]:
        change(folder, forget_size=3 * SIZE)
    (pivot,) = bygroup.by_group(table_of(root, mem_proxy="confidence"), "ToW-MIA")
    assert pivot.columns == ("low", "mid", "high", f"mix of {3 * SIZE}")
    values = [share_tow(root / "forget" / f"FT-{s}-mid", root / "forget" / f"retrain-{s}-mid", mia_instead=True) for s in SEEDS]
    assert equals(pivot.cells["FT"]["mid"], values)


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
    assert list(lines) == ["RUM^F NG", "shuffle NG", "vanilla NG", FLOOR]  # FT is in no plan
    for name in KINDS:
        for score in ("confidence", "entropy"):
            values = [share_tow(bench / "rum" / f"NG-{s}-{score}-{name.split()[0]}-{name.replace(' ', '-')}",
                                bench / "forget" / f"retrain-{s}-mix-{score}") for s in SEEDS]
            assert equals((*of_csv(lines[name], score), int(lines[name][f"{score}_n"])), values)


def test_tables_beside_the_main_one_are_shown_after_it(written: tuple[Path, str]) -> None:
    out, text = written
    places = [text.index(words) for words in ("| method ", "ToW by group: ", "ToW of RUM and its controls: ", f"{out}: ")]
    assert places == sorted(places)
    assert (out / "rum.md").read_text() in text and (out / "tow_by_group.md").read_text() in text
    (line,) = csv_lines(out / "rum.csv")[:1]
    mean, half = of_csv(line, "entropy")
    assert f"{mean:.3f} ±{half:.3f}, n=2 |" in text


def test_no_groups_and_no_plans_make_no_more_tables(library: Path, tmp_path: Path) -> None:
    for method in ("retrain", "NG"):
        grouped(pretend(library, tmp_path, method, 3), "confidence", mem="low")
    table = table_of(tmp_path)
    assert bygroup.tow_tables(AnalysisConfig(), table) == bygroup.mia_tables(AnalysisConfig(), table) == []


# ------------------------------------------------------------------------------------------------------------- figures


def test_figures_have_names_of_their_own(written: tuple[Path, str]) -> None:
    names = [path.name for path in written[0].glob("*.png")]
    assert {"tow_by_group.png", "rum.png"} < set(names) and len(names) == 5 + 2
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.") for name in names)


def drawn(axes: Any) -> dict[str, dict[tuple[float, float], float]]:
    """Label -> (x, y) of each point -> half the length of its interval."""
    found: dict[str, dict[tuple[float, float], float]] = {}
    for box in axes.containers:
        segments = box.lines[2][0].get_segments()
        halves = [(seg[1][0] - seg[0][0]) / 2 if len(seg) else math.nan for seg in segments]
        found[box.get_label()] = dict(zip(map(tuple, box.lines[0].get_xydata()), halves, strict=True))
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
        for (_, y), half in there.items():
            wanted = known[methods[round(y)]][1]
            assert math.isnan(half) if wanted is None else half == pytest.approx(wanted)


def test_panels_of_plans_are_the_columns_of_the_table(bench: Path) -> None:
    (pivot,) = bygroup.rum(table_of(bench), "ToW")
    panels = plots.plans(pivot, "ToW", "title").axes
    assert [panel.get_title() for panel in panels] == ["by confidence", "by entropy"]
    lines = [text.get_text() for text in panels[0].get_yticklabels()]
    assert lines == ["NG", FLOOR]
    for panel, column in zip(panels, pivot.columns, strict=True):
        for kind, points in drawn(panel).items():
            for x, y in points:
                label = FLOOR if lines[round(y)] == FLOOR else f"{kind} {lines[round(y)]}"
                assert pivot.cells[label][column][0] == x


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


# ------------------------------------------------------------------------------------------------------ table of scores


def scored(root: Path, name: str, seed: int, values: np.ndarray, original: str = "", **facts: Any) -> Path:
    """A finished run of main_memorization.py, pretended."""
    folder = root / "memorization" / f"{name}-{seed}-{len(facts)}"
    folder.mkdir(parents=True)
    np.savez(folder / "scores.npz", **{name: values.astype(np.float32)}, labels=np.arange(len(values)) % 3, images_key="images")
    settings = {"data": {"dataset": "digits"}, "model": {"arch": "resnet20s"}, "choice": {"score": name}, "rt": {"seed": seed},
                "cfg": {}}
    record = {"schema": 1, "status": "done", "finished": "now", "settings": settings, "images_key": "images",
              "parent": {"sha256": original, "path": f"{root}/train/none/model.pt"} if original else {}, **facts}
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def test_table_of_scores(library: Path, tmp_path: Path) -> None:
    """Seconds with the pool's, the direction in words, Spearman with the largest pool's memorization over seeds."""
    draw = np.random.default_rng()
    truth = draw.normal(size=40)
    for method in ("retrain", "FT"):
        pretend(library, tmp_path, method, 3)
    scored(tmp_path, "memorization", 2, truth, seconds={"score": 1.0, "pool": 30.0}, models=20)
    scored(tmp_path, "memorization", 4, -truth, seconds={"score": 1.0, "pool": 3.0}, models=5, few=True)
    values = {seed: truth + draw.normal(size=40) for seed in SEEDS}
    values[5][:4] = np.nan
    for seed in SEEDS:
        scored(tmp_path, "ho_ret", seed, values[seed], f"original {seed}", seconds={"score": 2.0 * seed})
        scored(tmp_path, "es", seed, draw.normal(size=40), f"original {seed}", seconds={"score": 0.5})
    cfg = AnalysisConfig(save_dir=str(tmp_path))
    (extra,) = scores.tables(cfg, table_of(tmp_path))
    head, *body = extra.csv
    lines = {line[2]: dict(zip(head, line, strict=True)) for line in body}
    rhos = [stats.spearmanr(values[3], truth).statistic, stats.spearmanr(values[5][4:], truth[4:]).statistic]
    found = lines["ho_ret"]
    assert equals((found["spearman"], found["spearman_ci"], found["n"]), rhos)
    assert equals((found["seconds"], found["seconds_ci"], found["n"]), [6.0, 10.0]) and found["polarity"] == 1
    assert lines["es"]["spearman"] is None and "about groups" in extra.text and "| more memorized " in extra.text
    assert lines["memorization"]["spearman"] is None and lines["memorization"]["seconds"] == 31.0
    assert "compared with" in extra.text and "memorization-2" in extra.text and "memorization-4" not in extra.text
    (seeded,) = scores.tables(AnalysisConfig(save_dir=str(tmp_path), seed=(3,)), table_of(tmp_path))
    (line,) = [line for line in seeded.csv if line[2] == "ho_ret"]
    assert line[head.index("n")] == 1 and line[head.index("spearman_ci")] is None


def test_recorded_scores_of_the_originals_count_their_recording(library: Path, tmp_path: Path) -> None:
    """What training recorded is in events.npz of the originals that the table uses; its seconds are in their record."""
    run = shell.only(library, "train")
    with np.load(run.folder / "events.npz") as file:
        events = {name: file[name] for name in file.files}
    truth = np.random.default_rng().normal(size=len(events["labels"]))
    np.savez(tmp_path / "known.npz", memorization=truth)
    for method in ("retrain", "FT"):
        grouped(pretend(library, tmp_path, method, 3), "confidence", mem="low")
    cfg = AnalysisConfig(save_dir=str(tmp_path), scores=str(tmp_path / "known.npz"))
    (extra,) = scores.tables(cfg, table_of(tmp_path))
    head, *body = extra.csv
    assert {line[2] for line in body} == {"confidence", "max_conf", "entropy", "bi_acc", "el2n", "forgetting"}
    for line in (dict(zip(head, line, strict=True)) for line in body):
        values = events[line["score"]]
        known = np.isfinite(values)
        constant = np.ptp(values[known]) == 0
        rho = None if constant else pytest.approx(stats.spearmanr(values[known], truth[known]).statistic)
        assert line["spearman"] == rho and line["seconds"] == run.record["seconds"]["events"]
        assert line["polarity"] == (1 if line["score"] in ("entropy", "el2n", "forgetting") else -1)


def test_scores_are_compared_with_the_file_that_runs_were_cut_by(library: Path, tmp_path: Path) -> None:
    """No pool under the folder, but a published file named by --scores; one of another data set does not count."""
    events = shell.only(library, "train").folder / "events.npz"
    with np.load(events) as file:
        labels, confidence = file["labels"], file["confidence"]
    np.savez(tmp_path / "other.npz", memorization=np.zeros(len(labels) + 1))
    np.savez(tmp_path / "published.npz", tr_mem=-confidence, tr_labels=labels)
    for number, name in enumerate(("other", "published")):
        for method in ("retrain", "FT"):
            folder = grouped(pretend(library, tmp_path, method, 3, name=name), "memorization", mem=("low", "mid")[number])
            change(folder, scores=read_record(folder).record["scores"] | {"path": str(tmp_path / f"{name}.npz")})
    (extra,) = scores.tables(AnalysisConfig(save_dir=str(tmp_path)), table_of(tmp_path))
    head, *body = extra.csv
    (line,) = [dict(zip(head, line, strict=True)) for line in body if line[2] == "confidence"]
    assert line["spearman"] == pytest.approx(-1) and str(line["compared_with"]).endswith("published.npz")


def test_no_scores_make_no_table_of_them(library: Path, tmp_path: Path) -> None:
    for method in ("retrain", "FT"):
        pretend(library, tmp_path, method, 3)
    assert scores.tables(AnalysisConfig(save_dir=str(tmp_path)), table_of(tmp_path)) == []
