"""What runs must have in common to share a row and a reference: every setting that changes a run, or its original, tells."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import shell
from grouped import grouped, planned
from pretended import change, notes_of, pretend, row_of, table_of, text_of

from report.rows import FLOOR
from report.settings import by_split, departures, pairing
from report.variants import variant_of
from stages import STAGES
from unlearn import METHODS
from utils import Saved, read_record

SEEDS = (3, 5)
# settings that need not tell runs apart, and why
ELSEWHERE = {"seed": "means are over seeds", "protocol": "gives defaults alone", "classes": "in the data_key",
             "val_fraction": "in the data_key", "val_seed": "in the data_key", "split_seed": "in the split_key",
             "train_per_class": "in the data_key", "label_noise": "in the data_key", "noise_seed": "in the data_key"}
# settings of a run that may differ from those of another with the same original and forget set -> another value
OF_A_RUN = {"aug": True, "aug_form": "alternate", "batch_size": 128, "device": "cuda", "precision": "bf16",
            "compile": "default", "deterministic": True, "mask_mode": "published", "unlearn_lr": 0.5}


def edit(folder: Path, group: str, **values: Any) -> Path:
    record = read_record(folder).record
    change(folder, settings=record["settings"] | {group: record["settings"].get(group, {}) | values})
    return folder


def of_original(folder: Path, part: str, **values: Any) -> Path:
    parent = read_record(folder).record["parent"]
    change(folder, parent=parent | {part: parent[part] | values})
    return folder


def labels_of(root: Path, method: str) -> dict[str, list[int]]:
    """The rows of a method by their label, with their seeds."""
    return {row.method: row.seeds for row in table_of(root) if row.method.split(" (")[0] == method}


# ------------------------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize("name", OF_A_RUN)
def test_runs_that_differ_in_a_setting_share_no_row(name: str, library: Path, tmp_path: Path) -> None:
    for seed in SEEDS:
        for method in ("retrain", "FT"):
            pretend(library, tmp_path, method, seed, **({name: OF_A_RUN[name]} if (method, seed) == ("FT", 5) else {}))
    found = labels_of(tmp_path, "FT")
    assert sorted(found.values()) == [[3], [5]] and all(name in label for label in found)


@pytest.mark.parametrize("name", ["rum_retain", "mask_mode"])
def test_plans_that_differ_in_a_setting_share_no_row(name: str, library: Path, tmp_path: Path) -> None:
    for seed in SEEDS:
        pretend(library, tmp_path, "retrain", seed)
        folder = planned(pretend(library, tmp_path, "NG", seed), "vanilla NG", ("all",))
        edit(folder, "plan" if name == "rum_retain" else "mask", **{name: "published" if seed == 5 else "strict"})
    found = labels_of(tmp_path, "vanilla NG")
    assert sorted(found.values()) == [[3], [5]] and all(name in label for label in found)


def test_saliency_masks_of_two_modes_share_no_row(library: Path, tmp_path: Path) -> None:
    for seed, mode in zip(SEEDS, ("exact", "published"), strict=True):
        pretend(library, tmp_path, "retrain", seed)
        change(pretend(library, tmp_path, "FT", seed), mask={"path": "m", "density": 0.5, "saliency_mode": mode})
    assert labels_of(tmp_path, "FT") == {"FT (mask 0.5, saliency_mode exact)": [3],
                                         "FT (mask 0.5, saliency_mode published)": [5]}


def test_plans_by_two_files_of_scores_share_no_row(library: Path, tmp_path: Path) -> None:
    """Memorization by one file for both seeds is one row, by a file each two; a proxy has a file of its own in every seed."""
    for seed in SEEDS:
        pretend(library, tmp_path, "retrain", seed)
        folder = planned(grouped(pretend(library, tmp_path, "NG", seed), "memorization"), "RUM^F NG")
        change(folder, scores=read_record(folder).record["scores"] | {"sha256": "same"})
    assert labels_of(tmp_path, "RUM^F NG") == {"RUM^F NG": [3, 5]}
    change(folder, scores=read_record(folder).record["scores"] | {"sha256": "another"})
    assert labels_of(tmp_path, "RUM^F NG") == {"RUM^F NG (file same)": [3], "RUM^F NG (file anothe)": [5]}
    for seed in SEEDS:
        planned(grouped(pretend(library, tmp_path, "NG", seed, name="b"), "entropy"), "shuffle NG")
    assert labels_of(tmp_path, "shuffle NG") == {"shuffle NG": [3, 5]}


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return [7] if isinstance(value, list) else "another"


def keys_of(run: Saved) -> tuple[str, ...]:
    return by_split(run, {}).label, variant_of(run), pairing(run)


@pytest.mark.parametrize("method", ["FT", "RL", "wfisher", "retrain"])
def test_every_setting_that_changes_a_run_is_in_its_keys(method: str, library: Path) -> None:
    """All settings that are in the digest of the run folder, of the stage and of the method; the exceptions have a reason."""
    run = shell.only(library, "forget", unlearn=method)
    configs = {**STAGES["forget"][1], "cfg": METHODS[method].config}
    seen = set()
    for group, config in configs.items():
        for name, field in ((field.name, field) for field in dataclasses.fields(config)):
            if not field.metadata["digest"] or name in ELSEWHERE or group == "evaluation":
                continue
            record = copy.deepcopy(run.record)
            record["settings"][group][name] = other(record["settings"][group][name])
            assert keys_of(Saved(run.folder, record)) != keys_of(run), f"{group}.{name} tells no run apart"
            seen.add(name)
    assert {"batch_size", "aug", "precision", "device", "imagenet_arch", "mask_mode"} <= seen


def test_every_setting_of_the_originals_training_is_in_the_origin(library: Path) -> None:
    run = shell.only(library, "forget", unlearn="FT")
    assert {"batch_size", "aug", "precision", "device", "compile", "deterministic", "arch", "val_fraction"} <= run.record[
        "parent"]["setup"].keys()
    origins = {by_split(run, {}).origin}
    for part in ("training", "setup"):
        for name, value in run.record["parent"][part].items():
            record = copy.deepcopy(run.record)
            record["parent"][part][name] = other(value)
            origins.add(by_split(Saved(run.folder, record), {}).origin)
    assert len(origins) == 1 + len(run.record["parent"]["training"]) + len(run.record["parent"]["setup"])


# --------------------------------------------------------------------------------------------------------------- originals


def test_originals_of_two_batch_sizes_share_no_row_and_say_so(tmp_path: Path) -> None:
    """No pretence: one seed each, by main_train.py."""
    for seed, size in ((1, 32), (2, 64)):
        original = shell.train(tmp_path, seed, "--batch_size", size)
        for method in ("retrain", "raw"):
            shell.forget(original, tmp_path, method, *shell.FORGET)
    table = table_of(tmp_path)
    told = {row.setting.split(", forget ")[0]: row.seeds for row in table if row.method == "raw"}
    assert told == {"digits resnet8s trained with batch_size 32": [1], "digits resnet8s trained with batch_size 64": [2]}
    assert len({row.place.tag for row in table}) == 2 and not [row for row in table if row.method == FLOOR]


@pytest.mark.parametrize("name", ["batch_size", "aug", "aug_form", "precision", "device", "compile", "deterministic"])
def test_originals_that_were_trained_otherwise_share_no_row(name: str, library: Path, tmp_path: Path) -> None:
    for seed in SEEDS:
        for method in ("retrain", "FT"):
            folder = pretend(library, tmp_path, method, seed)
            if seed == 5:
                of_original(folder, "setup", **{name: OF_A_RUN[name]})
    rows = [row for row in table_of(tmp_path) if row.method == "FT"]
    assert sorted(row.seeds for row in rows) == [[3], [5]] and all(f"trained with {name} " in row.setting for row in rows)


def test_two_stems_of_a_published_file_share_no_row(library: Path, tmp_path: Path) -> None:
    """A file has no record of its training, so that the stem stands in the child's alone."""
    for seed in SEEDS:
        for method in ("retrain", "FT"):
            folder = pretend(library, tmp_path, method, seed, imagenet_arch=seed == 5)
            change(folder, parent=read_record(folder).record["parent"] | {"training": None, "setup": None})
    rows = [row for row in table_of(tmp_path) if row.method == "FT"]
    assert len({row.setting for row in rows}) == 2 and all("trained with imagenet_arch o" in row.setting for row in rows)
    assert notes_of(tmp_path) == ""  # a file is no record of an older form


# -------------------------------------------------------------------------------------------------------------- references


def test_of_several_retrains_the_one_trained_as_the_original_is_the_reference(library: Path, tmp_path: Path) -> None:
    """The others are methods beside it: named by what they depart in, and judged by it."""
    for seed in SEEDS:
        for method in ("retrain", "FT"):
            pretend(library, tmp_path, method, seed)
    pretend(library, tmp_path, "retrain", 3, name="b", unlearn_lr=0.5)
    table = table_of(tmp_path)
    reference = row_of(table, "retrain (unlearn_lr=0.1)")
    assert reference.is_reference and reference.seeds == [3, 5] and reference.numbers["ToW"].mean == 1
    beside = row_of(table, "retrain (unlearn_lr=0.5)")
    assert not beside.is_reference and beside.seeds == [3] and beside.numbers["ToW"].mean < 1
    assert {pair.retrain.folder.name for row in table for pair in row.pairs} == {"retrain-3", "retrain-5"}
    assert [row.method for row in table_of(tmp_path, unlearn=("FT",))] == ["retrain", FLOOR, "FT"]


@pytest.mark.parametrize(("name", "value"), [("batch_size", 128), ("aug", True), ("device", "cuda"), ("precision", "bf16"),
                                             ("compile", "default"), ("unlearn_epochs", 7), ("weight_decay", 0.25)])
def test_retrains_are_told_apart_by_all_of_their_training(name: str, value: Any, library: Path, tmp_path: Path) -> None:
    pretend(library, tmp_path, "FT", 3)
    other_one = pretend(library, tmp_path, "retrain", 3, name="b", **{name: value})
    (told,) = {row.setting for row in table_of(tmp_path)}
    assert f" against retrain with {name} " in told and "(original: " in told  # said at the numbers it produces
    plain = pretend(library, tmp_path, "retrain", 3)
    table = table_of(tmp_path)
    assert {pair.retrain.folder for row in table for pair in row.pairs} == {plain}
    assert "against" not in table[0].setting and departures(read_record(plain)) == ""
    assert departures(read_record(other_one)).startswith(f"{name} ")


def test_where_no_retrain_was_trained_as_the_original_each_is_a_reference(library: Path, tmp_path: Path) -> None:
    for seed in SEEDS:
        pretend(library, tmp_path, "FT", seed)
        for rate in (0.5, 0.25):
            pretend(library, tmp_path, "retrain", seed, name=f"-{rate}", unlearn_lr=rate)
    table = table_of(tmp_path)
    told = {row.setting.split(" against ")[1].split(", ")[0] for row in table}
    assert told == {"retrain with unlearn_lr 0.5 (original: 0.1)", "retrain with unlearn_lr 0.25 (original: 0.1)"}
    assert len({row.place.tag for row in table}) == 2
    for row in table:
        rates = {pair.retrain.setting("unlearn_lr") for pair in row.pairs}
        assert len(rates) == 1 and f"unlearn_lr {rates.pop()} " in row.setting and row.seeds == [3, 5]
        assert row.numbers["ToW"].mean == 1 or not row.is_reference


def test_seeds_whose_retrains_were_trained_otherwise_share_no_reference(library: Path, tmp_path: Path) -> None:
    for seed in SEEDS:
        pretend(library, tmp_path, "FT", seed)
        pretend(library, tmp_path, "retrain", seed, **({"batch_size": 128} if seed == 5 else {}))
    rows = [row for row in table_of(tmp_path) if row.method == "FT"]
    assert sorted((row.seeds, "batch_size 128 (original: 64)" in row.setting) for row in rows) == [([3], False), ([5], True)]


def test_of_two_retrains_that_were_trained_alike_the_first_is_taken_and_said(library: Path, tmp_path: Path) -> None:
    """As where a retrain that had stopped goes on after the command for a missing one was followed."""
    pretend(library, tmp_path, "FT", 3)
    late, first = (pretend(library, tmp_path, "retrain", 3, name=name) for name in ("", "b"))
    change(first, finished="2020-01-01T00:00:00Z")
    table = table_of(tmp_path)
    assert [row.method for row in table] == ["retrain", "FT"]
    assert {pair.retrain.folder for row in table for pair in row.pairs} == {first}
    (said,) = notes_of(tmp_path).splitlines()
    assert said.endswith(f"one computation, so that the first to finish is taken: {first}, {late}")


def test_versions_that_differ_inside_a_row_are_said(library: Path, tmp_path: Path) -> None:
    for seed in SEEDS:
        for method in ("retrain", "FT", "NG"):
            change(pretend(library, tmp_path, method, seed), commit="a" * 40, torch="2.1")
    assert "Versions differ" not in text_of(table_of(tmp_path))
    change(tmp_path / "forget" / "FT-5", commit="b" * 40)
    change(tmp_path / "forget" / "NG-5", torch="2.2")
    text = text_of(table_of(tmp_path))
    assert "Versions differ inside a row: FT (commit aaaaaaa, bbbbbbb), NG (torch 2.1, 2.2)." in text


def test_keys_are_json_that_reads_back(library: Path) -> None:
    """The variant of a row is what its label is made of."""
    name, cfg, density, rest = json.loads(variant_of(shell.only(library, "forget", unlearn="RL")))
    assert (name, density, rest["saliency_mode"]) == ("RL", 0.5, "exact") and cfg["batch_size"] == 64
