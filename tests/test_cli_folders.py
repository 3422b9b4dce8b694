"""Run folders from the command line: equal settings meet the same one, and originals are found in theirs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import shell
import torch

import arg_parser
import dataset
import trainer
import utils
from evaluation import accuracy
from utils import Runtime, Saved, find_runs

nowhere = pytest.fixture(autouse=True)(shell.nowhere)


# ---------------------------------------------------------------------------------------------------------- run folders


def test_equal_settings_meet_the_same_folder_and_return_at_once(
    library: Path, original: Saved, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = shell.listing(library)
    monkeypatch.setattr(trainer.Descent, "epoch", None)
    monkeypatch.setattr(accuracy, "predict", None)
    shell.train(library)
    # what cannot change the weights does not count
    shell.call("main_forget.py", "--progress", "--resume_every", 0, "--checkpoint", original.folder / "model.pt",
               "--unlearn", "FT", "--unlearn_epochs", 1, *shell.FORGET, save_dir=library)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all(": already done; " in line for line in said)
    assert f"forget {shell.only(library, 'forget', unlearn='FT').record['metrics']['forget']:.2f}" in said[1]
    assert shell.listing(library) == before


def test_other_settings_make_another_folder(library: Path, original: Saved, tmp_path: Path) -> None:
    names = []
    for change in ([], ["--unlearn_lr", "0.02"], ["--seed", "7"], ["--num_indexes_to_replace", "21"], ["--aug"],
                   ["--batch_size", "32"], ["--precision", "bf16"], ["--device", "auto"]):
        words = ["--unlearn", "FT", "--unlearn_epochs", "1", *shell.FORGET, "--device", "cpu", *change]
        args = arg_parser.parse("forget", ["--checkpoint", str(original.folder), "--save_dir", str(tmp_path), *words])
        data = dataset.load(args.data, Runtime(args.rt), args.forget)
        run = utils.Run(args.run, "forget", args.label, args.settings, **args.identity, **data.splits.keys())
        names.append(run.folder.name)
    assert len(set(names[:-1])) == len(names) - 1
    assert names[0] == shell.only(library, "forget", unlearn="FT").folder.name
    assert (names[-1] == names[0]) == (not torch.cuda.is_available())  # auto is the GPU where there is one


def test_force_repeats_a_finished_run(library: Path, original: Saved, tmp_path: Path) -> None:
    known = shell.only(library, "forget", unlearn="NG")
    folder = tmp_path / "forget" / known.folder.name
    shutil.copytree(known.folder, folder)
    spoiled = bytes((folder / "model.pt").stat().st_size)
    (folder / "model.pt").write_bytes(spoiled)
    shell.forget(original, tmp_path, "NG", *shell.FORGET)
    assert (folder / "model.pt").read_bytes() == spoiled
    shell.forget(original, tmp_path, "NG", *shell.FORGET, "--force")
    again = shell.only(tmp_path, "forget")
    assert again.folder == folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in known.folder.iterdir())
    theirs = shell.weights(known)
    assert all(torch.equal(value, theirs[name]) for name, value in shell.weights(again).items())
    assert (folder / "log.jsonl").read_text() == (known.folder / "log.jsonl").read_text()


def test_another_attack_rereads_the_stored_logits(
    library: Path, original: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No model runs, the record stays, and the value is that of a run which was evaluated so from the start."""
    shell.forget(original, tmp_path, "NG", *shell.FORGET, "--mia", "svc", "--mia_mode", "published")
    fresh = shell.only(tmp_path, "forget").record["metrics"]
    stored = shell.only(library, "forget", unlearn="NG").record["metrics"]
    assert set(fresh["mia"]["forget"]) == {*stored["mia"]["forget"], "m_entropy_published"}
    assert fresh["mia"]["forget"] != stored["mia"]["forget"] | {"m_entropy_published": 0}
    monkeypatch.setattr(trainer, "predict", None)
    monkeypatch.setattr(accuracy, "predict", None)
    before = shell.listing(library)
    capsys.readouterr()
    shell.forget(original, library, "NG", *shell.FORGET, "--mia", "svc", "--mia_mode", "published")
    assert f"MIA {fresh['MIA']:.2f}" in capsys.readouterr().out
    assert shell.listing(library) == before
    shell.call("analysis_mia.py", "--mia", "svc", "--mia_mode", "published", "--unlearn", "NG",
               "--out", tmp_path / "out", save_dir=library)
    row = re.search(r"^\| NG .*$", capsys.readouterr().out, re.M)[0]
    assert row.split("|")[4].strip() == f"{fresh['MIA']:.2f}"


def test_steps_on_other_data_are_other_steps(tmp_path: Path) -> None:
    """A bare checkpoint has no record to check the data against: other labels are another step, not a finished one."""
    original = shell.train(tmp_path / "trained")
    bare = tmp_path / "published.pt"
    bare.write_bytes((original.folder / "model.pt").read_bytes())
    for name, relabel in (("a", lambda y: y), ("b", lambda y: (y + 1) % 3)):
        folder = shell.write_digits(tmp_path / name, relabel)
        shell.call("main_rum.py", *shell.THREE, *shell.FORGET, "--data", folder, "--checkpoint", bare, "--val_fraction", 0,
                   "--plan", "all:FT(unlearn_epochs=1)", save_dir=tmp_path)
    found = [shell.weights(run) for run in find_runs(tmp_path, ("step",))]
    assert len(found) == 2 and any(not torch.equal(value, found[1][name]) for name, value in found[0].items())


# ------------------------------------------------------------------------------------------------- finding the original


def test_original_is_found_by_the_flags_that_were_typed(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for seed, words in ((1, ()), (2, ()), (2, ("--lr", "0.05"))):
        found[seed, words] = shell.train(tmp_path, seed, *words) if not words else None
        if words:
            shell.call("main_train.py", *shell.THREE, "--epochs", 1, "--seed", seed, *words, save_dir=tmp_path)
            found[seed, words] = shell.only(tmp_path, "train", seed=seed, lr=0.05)
    for words, wanted in ((["--seed", "1"], (1, ())), (["--seed", "2", "--lr", "0.1"], (2, ())),
                          (["--lr", "0.05"], (2, ("--lr", "0.05"))), (["--epochs", "1", "--seed", "1"], (1, ()))):
        capsys.readouterr()
        args = arg_parser.parse("forget", ["--save_dir", str(tmp_path), "--unlearn", "raw", *shell.FORGET, *words])
        assert args.original.folder == found[wanted].folder
        assert capsys.readouterr().out == f"original: {found[wanted].folder}\n"
        assert args.rt.seed == args.original.setting("seed")
        assert args.data.classes == "0-2" and args.data.batch_size == 64
    # a folder of run folders narrows as well, but the seed only where it is typed
    named = ["--checkpoint", str(library), "--unlearn", "raw", *shell.FORGET]
    assert arg_parser.parse("forget", named).original.folder == shell.only(library, "train").folder
    assert arg_parser.parse("forget", [*named, "--seed", "9"]).rt.seed == 9


def test_original_elsewhere_is_found_under_runs(tmp_path: Path, original: Saved) -> None:
    """As published: the mask goes to --save, while the original lies in the default folder."""
    shutil.copytree(original.folder.parent.parent / "train", tmp_path / "runs" / "train")
    words = ["--seed", "1", "--num_indexes_to_replace", "20", "--device", "cpu"]
    shell.STAGES["generate_mask.py"].main(["--save", "saliency", *words, "--unlearn_epochs", "1"])
    shell.STAGES["main_random.py"].main(["--unlearn", "RL", "--unlearn_epochs", "1", *words, "--path", "saliency"])
    assert shell.only(Path("saliency"), "mask") and shell.only(Path("runs"), "forget").record["mask"]["density"] == 0.5


def test_an_unlearned_model_can_be_unlearned_again(library: Path, tmp_path: Path) -> None:
    first = shell.only(library, "forget", unlearn="NG")
    shell.forget(first, tmp_path, "raw", "--class_to_replace", 1)
    again = shell.only(tmp_path, "forget")
    assert again.record["parent"]["path"] == str(first.folder / "model.pt")
    theirs = shell.weights(first)
    assert all(torch.equal(value, theirs[name]) for name, value in shell.weights(again).items())
