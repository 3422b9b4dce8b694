"""Which original a stage starts from where none is named: a folder is searched alone, and what is unfinished is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import shell

import arg_parser
from utils import BadInput, RuntimeConfig, Saved

nowhere = pytest.fixture(autouse=True)(shell.nowhere)
RAW = ["--unlearn", "raw", *shell.FORGET]


def placed(original: Saved, save_dir: Path, name: str = "a", seed: int = 1, status: str = "done") -> Path:
    """A copy of the original in another save_dir, as one of that seed and status."""
    folder = Path(shutil.copytree(original.folder, save_dir / "train" / name))
    record = json.loads((folder / "record.json").read_text())
    record["settings"]["rt"]["seed"] = seed
    (folder / "record.json").write_text(json.dumps(record | {"status": status}))
    return folder


def found(*words: str, stage: str = "forget") -> Path:
    return arg_parser.parse(stage, [*(RAW if stage == "forget" else shell.FORGET), *words]).original.folder


def refused(*words: str) -> str:
    with pytest.raises(BadInput) as caught:
        found(*words)
    return str(caught.value)


def test_the_default_seed_is_one_everywhere(original: Saved, tmp_path: Path) -> None:
    assert RuntimeConfig().seed == 1
    for stage in ("train", "imp", "synflow"):
        assert arg_parser.parse(stage, shell.THREE).rt.seed == 1
    bare = shutil.copy(original.folder / "model.pt", tmp_path / "published.pt")
    args = arg_parser.parse("forget", [*shell.THREE, *RAW, "--checkpoint", str(bare)])
    assert args.rt.seed == 1


def test_the_only_original_is_taken_whatever_its_seed_and_several_are_listed(original: Saved, tmp_path: Path) -> None:
    one = placed(original, tmp_path / "rr", "one", seed=7)
    assert found("--save_dir", "rr").resolve() == one
    assert arg_parser.parse("forget", [*RAW, "--save_dir", "rr"]).rt.seed == 7
    two = placed(original, tmp_path / "rr", "two", seed=1)
    said = refused("--save_dir", "rr")
    assert "several originals" in said and "rr/train/one (seed 7)" in said and "rr/train/two (seed 1)" in said
    assert "--seed" in said and "--checkpoint" in said
    assert found("--save_dir", "rr", "--seed", "1").resolve() == two
    said = refused("--save_dir", "rr", "--seed", "3")
    assert "--seed 3" in said and "(seed 7)" in said and "(seed 1)" in said


def test_a_named_folder_is_searched_alone(original: Saved, tmp_path: Path) -> None:
    """Not even the one finished original of ./runs is taken in its place; the message says that it is there."""
    there = placed(original, tmp_path / "runs")
    assert found().resolve() == there
    (tmp_path / "intr").mkdir()
    for folder in ("intr", "not_there"):
        said = refused("--save_dir", folder)
        assert f"no finished original under {folder}" in said and "--checkpoint runs/train/a" in said
        assert f"main_train.py --save_dir {folder}" in said


def test_trainings_of_a_pruning_that_left_no_record_are_named(tmp_path: Path) -> None:
    (tmp_path / "intr" / "round" / "a").mkdir(parents=True)
    assert "intr/round holds trainings of a pruning that was not finished" in refused("--save_dir", "intr")


def test_the_published_spelling_of_the_masks_place_leaves_the_original_in_runs(
    original: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--save says where the mask goes; an original in that folder goes first all the same, and an unfinished one is named."""
    there = placed(original, tmp_path / "runs")
    assert found("--save", "saliency", stage="mask").resolve() == there
    assert "original: runs/train/a" in capsys.readouterr().out
    with pytest.raises(BadInput, match="no finished original under saliency"):
        found("--save_dir", "saliency", stage="mask")
    placed(original, tmp_path / "saliency", status="running")
    with pytest.raises(BadInput, match=r"saliency/train/a is not finished \(running\)"):
        found("--save", "saliency", stage="mask")
    mine = placed(original, tmp_path / "saliency", "mine")
    assert found("--save", "saliency", stage="mask").resolve() == mine


@pytest.mark.parametrize("status", ["running", "failed: RuntimeError: no memory"])
def test_an_unfinished_original_is_named_before_another_is_looked_for(original: Saved, tmp_path: Path, status: str) -> None:
    placed(original, tmp_path / "runs")
    placed(original, tmp_path / "intr", status=status)
    for words in (["--save_dir", "intr"], ["--save_dir", "intr", "--seed", "1"], ["--checkpoint", "intr"]):
        said = refused(*words)
        assert f"intr/train/a is not finished ({status})" in said
    said = refused("--checkpoint", "intr/train/a/model.pt")
    assert "intr/train/a is not finished" in said
    # of other settings than those that were typed it is not the one that was meant
    assert "is not finished" not in refused("--save_dir", "intr", "--seed", "5")
    finished = placed(original, tmp_path / "intr", "b")
    assert found("--save_dir", "intr").resolve() == finished
