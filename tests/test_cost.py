"""What a method costs that needs no machine: the images that it reads, counted by hand, and its share of retrain's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shell
from pretended import four_methods, row_of, table_of

from utils import read_arrays, read_record


def sizes(library: Path) -> dict[str, int]:
    run = shell.only(library, "forget", unlearn="retrain")
    arrays = read_arrays(run.folder / "splits.npz", {name: ("iu", name) for name in ("train", "retain", "forget", "val")})
    return {name: len(index) for name, index in arrays.items()}


def read(library: Path, stage: str = "forget", **wanted: str) -> dict[str, int]:
    found = shell.only(library, stage, **wanted).record["images_read"]
    if stage != "mask":  # apart, and no part of the cost; the outputs of raw are the original's
        assert (found.pop("evaluate") == 0) == (wanted.get("unlearn") == "raw")
    return found


@pytest.mark.parametrize(("method", "expected"), [
    ("raw", lambda n: 0), ("retrain", lambda n: n["retain"]), ("FT", lambda n: n["retain"]), ("GA", lambda n: n["forget"]),
    ("RL_og", lambda n: n["retain"] + n["forget"]),
    ("NG", lambda n: n["retain"] + -(-n["retain"] // 64) * n["forget"])])  # the 20 forget images, in every step's batch
def test_images_read_in_one_epoch_are_those_of_its_batches(method: str, expected: object, library: Path) -> None:
    assert read(library, unlearn=method) == {"mask": 0, "unlearn": expected(sizes(library))}


def test_a_saliency_mask_reads_the_forget_set_once_and_counts_towards_its_method(library: Path) -> None:
    n = sizes(library)
    assert read(library, "mask") == {"mask": n["forget"]}
    assert read(library, unlearn="RL") == {"mask": n["forget"], "unlearn": n["retain"] + n["forget"]}


def test_a_plan_reads_what_its_steps_read_and_evaluation_is_not_counted(library: Path, tmp_path: Path) -> None:
    original = shell.only(library, "train")
    shell.call("main_rum.py", "--checkpoint", original.folder, *shell.FORGET, "--shuffle", "--unlearn", "GA",
               "--unlearn_epochs", 2, save_dir=tmp_path)
    assert read(tmp_path, "rum") == {"mask": 0, "unlearn": 2 * 20}


def test_speed_up_and_share_of_images_are_against_the_retrain_of_the_same_seed(library: Path, tmp_path: Path) -> None:
    """SEEDS 3, 5, 8: retrain takes 1.25 + seed seconds; so does every other, but for the NG that is made slower here."""
    root = four_methods(library, tmp_path)
    for seed, seconds, images in ((3, 8.5, 920), (5, 2.5, 460), (8, 18.5, 92)):
        for method, spent, read in (("NG", seconds, images), ("retrain", 1.25 + seed, 368)):
            folder = root / "forget" / f"{method}-{seed}"
            record = read_record(folder).record | {"seconds": {"unlearn": spent - 0.25, "mask": 0.25, "evaluate": 99.0},
                                                   "images_read": {"unlearn": read, "mask": 0, "evaluate": 9999}}
            (folder / "record.json").write_text(json.dumps(record))
    table = table_of(root)
    row = row_of(table, "NG")
    assert row.values["speed_up"] == pytest.approx({3: 0.5, 5: 2.5, 8: 0.5})
    assert row.values["images_read"] == pytest.approx({3: 250.0, 5: 125.0, 8: 25.0})
    assert row_of(table, "retrain").numbers["images_read"].mean == 100
    assert row_of(table, "retrain").numbers["speed_up"].mean == 1 and "speed_up" not in row_of(table, "raw").numbers


def test_no_speed_up_is_told_between_two_devices(library: Path, tmp_path: Path) -> None:
    root = four_methods(library, tmp_path)
    folder = root / "forget" / "NG-3"
    record = read_record(folder).record | {"device": "another"}
    (folder / "record.json").write_text(json.dumps(record))
    table = table_of(root)
    assert "speed_up" not in row_of(table, "NG").numbers and "speed_up" in row_of(table, "FT").numbers


def test_tow_val_has_validation_in_the_place_of_test(library: Path, tmp_path: Path) -> None:
    row = row_of(table_of(four_methods(library, tmp_path)), "NG")
    for pair in row.pairs:
        product = 1.0
        for part in ("forget", "retain", "val"):
            product *= 1 - abs(pair.metrics[part] - pair.reference[part]) / 100
        assert row.values["ToW_val"][pair.seed] == pytest.approx(product) != row.values["ToW"][pair.seed]
