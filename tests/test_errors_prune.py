"""Bad input of pruning: exit code 2, one line, before anything is trained; masks that are not of their weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shell
import torch
from pruned import NET, SHORT, STEPS, rounds, trained

import trainer

nowhere = pytest.fixture(autouse=True)(shell.nowhere)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory)


# what is wrong | stage | its command line | what the message must say
TABLE = """
rate above 1 | imp | {NET} --rewind_epoch 1 --rate 1.5 | --rate must lie in (0, 1); got 1.5
rate that is no number | imp | {NET} --rewind_epoch 1 --rate nan | --rate must lie in (0, 1); got nan
rate 0 | imp | {NET} --rewind_epoch 1 --rate 0 | --rate must lie in (0, 1); got 0
rate 1 of SynFlow | synflow | {NET} --rate 1 | --rate must lie in (0, 1); got 1
sparsity 1 | imp | {NET} --rewind_epoch 1 --sparsity 1 | --sparsity must lie in [0, 1); got 1
rate and sparsity | imp | {NET} --rewind_epoch 1 --rate 0.5 --sparsity 0.5 | --rate and --sparsity
rate and sparsity of SynFlow | synflow | {NET} --rate 0.5 --sparsity 0.5 | --rate and --sparsity
no rewind epoch | imp | {NET} | rewind_lt needs --rewind_epoch & --prune_type lt
rewind epoch of another type | imp | {NET} --prune_type lt --rewind_epoch 1 | --prune_type lt & rewind_lt
rewind epoch too late | imp | {NET} --rewind_epoch 3 | --rewind_epoch 3 & 3 epochs
one training | imp | {NET} --rewind_epoch 1 --rate 0.5 --pruning_times 1 | --pruning_times 1 & OMP is 2
published schedule of a cosine | imp | {NET} --rewind_epoch 1 --schedule cosine --rewind_schedule published | --schedule cosine
sparsity that leaves nothing | imp | {NET} --rewind_epoch 1 --sparsity 0.9999999 | leaves 0 of 74160 weights & --sparsity
sparsity in too many rounds | imp | {NET} --rewind_epoch 1 --sparsity 0.001 --pruning_times 900 | \
prunes all or nothing & fewer rounds
more rounds than anybody has | imp | {NET} --rewind_epoch 1 --sparsity 0.5 --pruning_times 1000000000 | \
--pruning_times must lie in [1, 1000]
rate that takes nothing | imp | {NET} --rewind_epoch 1 --rate 1e-9 | prunes all or nothing
layer wholly pruned | imp | {NET} --rewind_epoch 1 --rate 0.999 --prune_scope layerwise_conv | leaves 0 of 432 & conv1.weight
SynFlow that leaves nothing | synflow | {NET} --sparsity 0.9999999 | leaves 0 of the 74160 convolution weights
SynFlow that prunes nothing | synflow | {NET} --sparsity 0 | leaves 74160 of the 74160 & --sparsity
rewind file missing | imp | {NET} --rewind_pth no/where.pt | no/where.pt & No such file
rewind file of another model | imp | {NET} --rewind_pth {other} | resnet20s & --arch
rewind file that is no model | imp | {NET} --rewind_pth {junk} | junk.pt
rewind file that is pruned | imp | {NET} --rewind_pth {pruned} | is pruned itself
rewind file of another split | imp | {NET} --val_seed 7 --rewind_pth {rewind} | rewind.pt & other data & --val_seed
model of another split to rewind to | imp | {NET} --val_seed 7 --rewind_pth {dense}/model.pt | other data & --val_seed
own pruning of another method | forget | --checkpoint {imp} {SOME} --unlearn FT --own_pruning | --own_pruning & retrain
own pruning of a dense model | forget | --checkpoint {dense} {SOME} --unlearn retrain --own_pruning | tells of no mask
own pruning in fewer epochs | forget | --checkpoint {imp} {SOME} --unlearn retrain --unlearn_epochs 1 --own_pruning | \
back to its epoch 1 & --unlearn_epochs
own pruning without an epoch | forget | --checkpoint {imp} {SOME} --unlearn retrain --unlearn_epochs 0 --own_pruning | \
--own_pruning & --unlearn_epochs
several pruned originals | forget | --checkpoint {two} {SOME} --unlearn FT | several originals & --checkpoint
"""
CASES = {name: [part.strip() for part in parts] for name, *parts in (line.split(" | ") for line in TABLE.splitlines() if line)}


@pytest.fixture
def room(sparse: Path, tmp_path: Path) -> dict[str, str]:
    made = tmp_path / "made"
    shutil.copytree(shell.only(sparse, "imp").folder, made / "imp" / "a")
    shutil.copytree(made / "imp" / "a", made / "imp" / "b")
    (made / "junk.pt").write_bytes(b"nothing")
    other = {"schema": 1, "arch": "resnet20s", "num_classes": 3, "imagenet": False, "state_dict": {}}
    torch.save(other, made / "other.pt")
    shutil.copy(rounds(sparse)[0].folder / "rewind.pt", made)  # away from its record
    return {"NET": " ".join(SHORT), "SOME": " ".join(shell.FORGET), "other": str(made / "other.pt"),
            "junk": str(made / "junk.pt"), "imp": str(made / "imp" / "a"), "dense": str(rounds(sparse)[0].folder),
            "two": str(made), "pruned": str(made / "imp" / "a" / "model.pt"), "rewind": str(made / "rewind.pt")}


def refused(stage: str, words: list[str], root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a command that ends with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        shell.call(stage, *words, save_dir=root)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "error: " in said
    return said


@pytest.mark.parametrize("wrong", CASES)
def test_bad_input_ends_in_one_line_before_training(
    wrong: str, room: dict[str, str], tmp_path: Path, sparse: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, line, words = CASES[wrong]
    monkeypatch.setattr(trainer.Descent, "epoch", None)
    before = shell.listing(tmp_path, sparse)
    program = {"imp": "main_imp.py", "synflow": "main_synflow.py", "forget": "main_forget.py"}[stage]
    said = refused(program, line.format_map(room).split(), tmp_path / "new" / "runs", capsys)
    assert not [word for word in words.split(" & ") if word not in said], said
    assert shell.listing(tmp_path, sparse) == before


def lacking(content: dict[str, Any]) -> None:
    del content["mask"]["layer1.0.conv1.weight"]


def additional(content: dict[str, Any]) -> None:
    content["mask"]["layer9.weight"] = torch.ones(3, dtype=torch.bool)


def reshaped(content: dict[str, Any]) -> None:
    content["mask"]["conv1.weight"] = content["mask"]["conv1.weight"][1:]


def of_floats(content: dict[str, Any]) -> None:
    content["mask"]["conv1.weight"] = content["mask"]["conv1.weight"].float()


def with_weights_that_are_there(content: dict[str, Any]) -> None:
    content["state_dict"]["conv1.weight"][~content["mask"]["conv1.weight"]] = 0.5


def no_names(content: dict[str, Any]) -> None:
    content["mask"] = [0, 1]


@pytest.mark.parametrize("spoil", [lacking, additional, reshaped, of_floats, with_weights_that_are_there, no_names])
def test_a_mask_that_is_not_of_its_weights_is_refused(spoil: Callable[[dict[str, Any]], None], sparse: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(shell.only(sparse, "imp").folder / "model.pt", weights_only=True)
    spoil(content)
    torch.save(content, tmp_path / "model.pt")
    network = ["--dataset", "digits", "--arch", "resnet8s", "--classes", "0-2"]  # a file alone has no record that says so
    words = ["--checkpoint", tmp_path / "model.pt", *network, "--unlearn", "FT", *shell.FORGET]
    said = refused("main_forget.py", words, tmp_path / "runs", capsys)
    assert "pruning mask that is not of its own weights" in said and not (tmp_path / "runs").exists()


def test_a_layer_that_pruning_empties_is_named_and_the_dense_round_kept(tmp_path: Path,
                                                                        capsys: pytest.CaptureFixture[str]) -> None:
    """Which one is known only after training; the next command goes on from there."""
    words = [*NET, "--epochs", 2, "--rewind_epoch", 1]
    said = refused("main_imp.py", [*words, "--sparsity", "0.9999"], tmp_path, capsys)
    (dense,) = rounds(tmp_path)
    assert "leaves no weight in" in said and ".weight" in said and "layerwise_conv" in said and str(dense.folder) in said
    assert {path.name for path in tmp_path.iterdir()} == {"round"}
    with pytest.MonkeyPatch.context() as patch:
        taken = shell.interrupt_step(patch, trainer.Descent, 0)
        shell.call("main_imp.py", *words, "--sparsity", "0.9", save_dir=tmp_path)
    assert len(taken) == STEPS and len(rounds(tmp_path)) == 2
