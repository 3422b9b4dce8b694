"""The validation split and the choice of the forget set have a seed each, so that one original serves many requests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import shell

import arg_parser
from report.missing import retrain_command
from utils import Saved, find_runs

nowhere = pytest.fixture(autouse=True)(shell.nowhere)


def test_one_original_serves_many_requests(original: Saved, tmp_path: Path) -> None:
    """It is found whatever the request's seed; each request pairs its own mask, methods and retrain."""
    shutil.copytree(original.folder, tmp_path / "train" / original.folder.name)
    for seed in (1, 7):
        asked = ["--seed", 1, "--split_seed", seed, *shell.FORGET]
        shell.call("generate_mask.py", *asked, save_dir=tmp_path)
        for method in ("retrain", "FT"):
            shell.call("main_forget.py", "--unlearn", method, "--unlearn_epochs", 0, *asked, save_dir=tmp_path)
    runs = find_runs(tmp_path, ("mask", "forget"))
    assert {run.record["data_key"] for run in runs} == {original.record["data_key"]}
    forget = {}
    for seed in (1, 7):
        mine = [run for run in runs if run.setting("split_seed") == seed]
        (key,) = {run.record["split_key"] for run in mine}
        with np.load(mine[0].folder / "splits.npz") as file:
            forget[key], val = file["forget"], file["val"]
        with np.load(runs[0].folder / "splits.npz") as file:
            assert np.array_equal(file["val"], val)
    assert len(forget) == 2 and not np.array_equal(*forget.values())


def test_a_request_by_seed_is_that_by_its_indices(original: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell.forget(original, tmp_path, "raw", *shell.FORGET, "--split_seed", 7)
    (run,) = find_runs(tmp_path, ("forget",))
    shell.forget(original, tmp_path, "raw", "--forget_index", run.folder / "splits.npz")
    assert "already done" in capsys.readouterr().out and find_runs(tmp_path, ("forget",)) == [run]


@pytest.mark.parametrize("stage", ["train", "imp", "synflow", "memorization"])
def test_a_stage_before_the_choice_says_that_its_seed_has_no_effect(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = arg_parser.parse(stage, ["--dataset", "digits", "--arch", "resnet8s", "--split_seed", "9", "--val_seed", "3",
                                    *(["--rewind_epoch", "1"] if stage == "imp" else [])])
    assert args.data.val_seed == 3
    assert "notice: --split_seed has no effect: " in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--val_seed", "--split_seed"])
@pytest.mark.parametrize("value", ["-1", "4294967296"])
def test_seeds_that_numpy_cannot_take_are_refused(
    flag: str, value: str, original: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        shell.forget(original, tmp_path, "raw", *shell.FORGET, flag, value)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and flag in said and value in said


def test_the_command_of_a_missing_retrain_names_the_validation_split(
    original: Saved, tmp_path: Path
) -> None:
    """Of a bare file, which has no record to take it from; the forget set goes by its indices."""
    shutil.copy(original.folder / "model.pt", tmp_path / "bare.pt")
    words = ["--dataset", "digits", "--arch", "resnet8s", "--classes", "0-2", "--val_seed", "4", "--split_seed", "7"]
    shell.call("main_forget.py", "--checkpoint", tmp_path / "bare.pt", *words, *shell.FORGET, "--unlearn", "raw", "--seed", 1,
               save_dir=tmp_path)
    command = retrain_command(shell.only(tmp_path, "forget"), str(tmp_path))
    assert "--val_seed 4" in command and "--split_seed" not in command and "--forget_index" in command


def test_an_original_of_an_earlier_version_is_refused_with_what_helps(
    original: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its record has one seed for both; the validation split it learned without would otherwise be another."""
    old = tmp_path / "old"
    shutil.copytree(original.folder, old)
    record = json.loads((old / "record.json").read_text())
    record["settings"]["data"] |= {"split_seed": record["settings"]["data"].pop("val_seed")}
    (old / "record.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit) as end:
        shell.call("main_forget.py", "--checkpoint", old, "--unlearn", "raw", *shell.FORGET, save_dir=tmp_path)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "earlier version" in said and "run its command again" in said
