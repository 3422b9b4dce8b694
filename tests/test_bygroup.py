"""Runs by group of the forget set: what makes one setting over seeds, and accuracy and attack by group."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from grouped import KINDS, SEEDS, equals, grouped, levels_and_plans, planned, share_tow
from pretended import change, copied, notes_of, pretend, row_of, table_of, text_of

from evaluation import mia
from evaluation.accuracy import load_outputs
from groups import LEVELS
from report import bygroup
from report.rows import FLOOR
from utils import BadInput, read_record


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return levels_and_plans(library, tmp_path_factory.mktemp("groups"))


def read_groups(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "splits.npz") as file:
        return {level: file[f"group_{level}"] for level in LEVELS}


def by_loop(folder: Path, index: Iterable[int]) -> float:
    """Accuracy in percent on some examples, by a loop."""
    outputs = load_outputs(folder)
    row_of_example = {int(i): row for row, i in enumerate(outputs["forget_index"])}
    rows = [row_of_example[int(i)] for i in index]
    return 100 * sum(int(outputs["forget_logits"][r].argmax()) == int(outputs["forget_labels"][r]) for r in rows) / len(rows)


# ------------------------------------------------------------------------------------------------------------- settings


def test_groups_by_a_proxy_are_averaged_over_seeds(bench: Path) -> None:
    """Other images for each seed, the same request: one row, with the mean over both seeds."""
    table = table_of(bench, mem="high")
    assert [row.method for row in table] == ["retrain", "FT", "NG"]  # no floor: every seed forgets other images
    assert "Every seed forgets other examples" in text_of(table)
    assert len({row.setting for row in table}) == 1 and "forget 24 images (high by confidence), " in table[0].setting
    row = row_of(table, "FT")
    assert row.seeds == list(SEEDS)
    forget = bench / "forget"
    assert equals(row.numbers["ToW"], [share_tow(forget / f"FT-{s}-high", forget / f"retrain-{s}-high") for s in SEEDS], top=1)


def test_groups_levels_proxies_and_data_keep_settings_apart(bench: Path, tmp_path: Path) -> None:
    table = table_of(bench)
    wanted = {"low by confidence", "mid by confidence", "high by confidence", "mix by confidence", "mix by entropy"}
    assert {row.setting.split("(")[1].split(")")[0] for row in table} == wanted
    assert len({row.place.tag for row in table}) == 5
    root = copied(bench, tmp_path)
    for method in ("retrain", "NG", "FT"):
        change(root / "forget" / f"{method}-5-high", data_key="of another split")
    assert {tuple(row.seeds) for row in table_of(root, mem="high") if row.method == "FT"} == {(3,), (5,)}


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
    assert [row.method for row in table] == ["retrain", "FT", "NG"] and len({row.setting for row in table}) == 1
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
    assert [row.method for row in table[:2]] == ["retrain", FLOOR]
    assert sorted(row.method for row in table[2:]) == ["NG", "RUM^F NG (by confidence)", "RUM^F NG (by entropy)", "shuffle NG",
                                                       "vanilla NG"]
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


def test_proxy_filter_goes_by_the_record_of_the_scores(library: Path, tmp_path: Path) -> None:
    """The score in the record is what the set was cut by, whatever flag led to it: a file of scores names itself."""
    for method in ("retrain", "FT"):
        for score, flag in (("confidence", None), ("entropy", "confidence")):
            folder = grouped(pretend(library, tmp_path, method, 3, name=f"-{score}"), score, mem="low")
            settings = read_record(folder).record["settings"]
            change(folder, settings=settings | {"forget": settings["forget"] | {"mem_proxy": flag}})
    for score in ("confidence", "entropy"):
        assert {row.setting.split("(")[1].split(")")[0] for row in table_of(tmp_path, mem_proxy=score)} == {f"low by {score}"}
    with pytest.raises(BadInput, match="passes the filters"):
        table_of(tmp_path, mem_proxy="memorization")


def test_plan_without_retrain_is_told_how_to_make_it(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    shutil.rmtree(root / "forget" / "retrain-5-mix-entropy")
    for path in root.glob("forget/FT-5-mix-entropy"):
        shutil.rmtree(path)
    (line,) = notes_of(root).splitlines()
    assert all(word in line for word in (f"{root / 'rum'}", "left out", "--unlearn retrain", "--seed 5", "splits.npz"))


# -------------------------------------------------------------------------------------------------- accuracy and attack


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
    table = table_of(bench, mem="mix", mem_proxy="confidence", mia=rule, mia_mode=mode, mia_fits=10)
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
        assert numbers["seconds_scores"] == (0, (0, 0), 2) and numbers["seconds_total"] == numbers["seconds"]
    numbers = row_of(table, "RUM^F NG").numbers
    assert equals(numbers["seconds_scores"], [7.5 + seed for seed in SEEDS], top=math.inf)
    assert equals(numbers["seconds_total"], [1.25 + 7.5 + 2 * seed for seed in SEEDS], top=math.inf)
    assert "seconds, all" in text_of(table, columns=("all",))
    assert "seconds, all" not in text_of(table_of(bench, mem="low"), columns=("all",))


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
