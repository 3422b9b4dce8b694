"""What the words of a command line mean: spellings, the lines that were published, and what defaults."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import shell

import arg_parser
import utils
from unlearn import METHODS
from utils import BadInput, Saved

RUM = {
    "main_train.py --dataset cifar10 --arch resnet18 --epochs 30 --lr 0.1 --batch_size 256":
        {"dataset": "cifar10", "arch": "resnet18", "epochs": 30, "lr": 0.1, "batch_size": 256, "schedule": "cosine"},
    "main_forget.py --unlearn retrain --num_indexes_to_replace 3000 --unlearn_epochs 30 --unlearn_lr 0.1":
        {"unlearn": "retrain", "num_indexes_to_replace": 3000, "unlearn_epochs": 30, "unlearn_lr": 0.1},
    "main_forget.py --unlearn FT --num_indexes_to_replace 3000 --unlearn_lr 0.01 --unlearn_epochs 10":
        {"unlearn": "FT", "num_indexes_to_replace": 3000, "unlearn_epochs": 10, "unlearn_lr": 0.01},
    "main_forget.py --unlearn FT_prune --num_indexes_to_replace 3000 --alpha 5e-4 --unlearn_lr 0.01 "
    "--unlearn_epochs 10":
        {"unlearn": "FT_prune", "alpha": 5e-4, "unlearn_epochs": 10, "unlearn_lr": 0.01, "no_l1_epochs": 0},
    "main_forget.py --unlearn GA --num_indexes_to_replace 3000 --unlearn_lr 0.0001 --unlearn_epochs 5":
        {"unlearn": "GA", "unlearn_lr": 1e-4, "unlearn_epochs": 5},
    "main_forget.py --unlearn NG --num_indexes_to_replace 3000 --alpha 0.97 --unlearn_lr 0.01 --unlearn_epochs 5":
        {"unlearn": "NG", "alpha": 0.97, "unlearn_lr": 0.01, "unlearn_epochs": 5},
    "main_forget.py --unlearn SCRUB --num_indexes_to_replace 3000 --msteps 4 --kd_T 4.0 --beta 0.2 --gamma 0.9 "
    "--unlearn_lr 5e-3 --unlearn_epochs 5":
        {"msteps": 4, "kd_T": 4.0, "beta": 0.2, "gamma": 0.9, "unlearn_lr": 5e-3, "unlearn_epochs": 5},
    "generate_mask.py --save salun --num_indexes_to_replace 3000 --unlearn_epochs 1":
        {"save_dir": "salun", "num_indexes_to_replace": 3000, "density": (0.5,)},
    "main_random.py --unlearn RL --unlearn_lr 0.1 --unlearn_epochs 10 --num_indexes_to_replace 3000 --path salun":
        {"unlearn": "RL", "path": "salun", "unlearn_lr": 0.1, "rl_form": "mixed", "save_dir": "runs"},
    "main_random.py --unlearn RL_og --unlearn_lr 0.1 --unlearn_epochs 10 --num_indexes_to_replace 3000":
        {"unlearn": "RL_og", "path": None, "unlearn_lr": 0.1},
    "analysis.py --dataset cifar10 --arch resnet18 --no_aug --unlearn NG --num_indexes_to_replace 3000":
        {"dataset": "cifar10", "arch": "resnet18", "aug": False, "unlearn": ("NG",), "num_indexes_to_replace": 3000},
    "analysis_mia.py --dataset cifar10 --arch resnet18 --no_aug --unlearn SCRUB --num_indexes_to_replace 3000":
        {"unlearn": ("SCRUB",), "save_dir": "runs", "mia": "threshold"},
}
SPARSITY = {
    "--unlearn retrain --num_indexes_to_replace 4500 --unlearn_epochs 160 --unlearn_lr 0.1":
        {"unlearn": "retrain", "unlearn_epochs": 160, "schedule": "step", "decreasing_lr": (91, 136)},
    "--unlearn FT --num_indexes_to_replace 4500 --unlearn_lr 0.01 --unlearn_epochs 10":
        {"unlearn": "FT", "unlearn_lr": 0.01, "unlearn_epochs": 10},
    "--unlearn GA --num_indexes_to_replace 4500 --unlearn_lr 0.0001 --unlearn_epochs 5":
        {"unlearn": "GA", "unlearn_lr": 1e-4, "unlearn_epochs": 5},
    "--unlearn FT_prune --num_indexes_to_replace 4500 --alpha 1e-4 --unlearn_lr 0.01 --unlearn_epochs 10":
        {"unlearn": "FT_prune", "alpha": 1e-4},
}
nowhere = pytest.fixture(autouse=True)(shell.nowhere)


def settings_of(stage: str, words: list[str]) -> dict[str, object]:
    """Every resolved setting by its flag's name."""
    args = arg_parser.parse(stage, words)
    groups = [value for value in vars(args).values() if isinstance(value, utils.Config)]
    return {name: value for group in groups for name, value in vars(group).items()}


def pretend_to_train(save_dir: Path, *words: str) -> Saved:
    """A finished original that was never trained: its record and an empty model.pt."""
    args = arg_parser.parse("train", ["--save_dir", str(save_dir), *words])
    with utils.Run(args.run, "train", args.label, args.settings, data_key="none") as run:
        run.save_tensors("model.pt", {})
    return utils.read_record(run.folder)


# ------------------------------------------------------------------------------------------------------------ spellings


def test_dashes_are_underscores_and_equals_signs_are_spaces(original: Saved) -> None:
    ours = ["--checkpoint", str(original.folder), "--unlearn", "FT_l1", "--unlearn_lr", "0.02", "--no_l1_epochs", "1",
            "--num_indexes_to_replace", "20", "--no_progress"]
    theirs = [word.replace("_", "-") if word.startswith("--") else word for word in ours]
    joined = [f"{a}={b}" for a, b in zip(ours[:-1:2], ours[1::2], strict=True)] + ["--no-progress"]
    args = [arg_parser.parse("forget", words) for words in (ours, theirs, joined)]
    assert args[0] == args[1] == args[2]
    assert args[0].cfg.unlearn_lr == 0.02 and args[0].cfg.no_l1_epochs == 1 and not args[0].rt.progress


@pytest.mark.parametrize(("stage", "words", "notice"), [
    ("forget", "--mask {run}", "--mask is taken as --checkpoint"),
    ("forget", "--model_path {run}", "--model_path is taken as --checkpoint"),
    ("forget", "--checkpoint {run} --num_workers 8", "--num_workers has no effect"),
    ("forget", "--checkpoint {run} --workers=8", "--workers has no effect"),
    ("forget", "--checkpoint {run} --print_freq 50", "--print_freq has no effect"),
    ("random", "--checkpoint {run} --mask_path {mask}", "--mask_path is taken as --path"),
    ("mask", "--checkpoint {run} --save elsewhere", "--save is taken as --save_dir"),
    ("mask", "--checkpoint {run} --unlearn_epochs 1", "--unlearn_epochs has no effect"),
])
def test_published_spellings_announce_themselves(
    stage: str, words: str, notice: str, library: Path, original: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = shell.only(library, "mask").folder / "with_0.5.pt"
    method = {"forget": "--unlearn FT", "random": "--unlearn RL --path x", "mask": ""}[stage].split()
    method = method[:2] if "--mask_path" in words else method
    args = arg_parser.parse(stage, [*method, *words.format(run=original.folder, mask=mask).split(), *shell.FORGET])
    said = capsys.readouterr().out.splitlines()
    assert f"notice: {notice}" in said[0]
    assert args.original.folder == original.folder and args.forget.num_indexes_to_replace == 20
    assert stage != "random" or args.mask.path == str(mask)
    assert "--save " not in words or args.run.save_dir == "elsewhere"


def test_own_spelling_needs_no_notice(original: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    arg_parser.parse("forget", ["--checkpoint", str(original.folder), "--unlearn", "FT", *shell.FORGET])
    assert capsys.readouterr().out == ""


def test_random_label_without_a_mask_says_so_once(original: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    arg_parser.parse("random", ["--checkpoint", str(original.folder), "--unlearn", "RL", *shell.FORGET])
    assert capsys.readouterr().out.count("RL_og") == 1


@pytest.mark.parametrize(("stage", "words", "told"), [
    ("forget", "--unlearn salun", "--unlearn salun needs a saliency mask: give --path MASK"),
    ("forget", "--unlearn salun_our", "--unlearn salun_our needs a saliency mask: give --path MASK"),
    ("random", "--unlearn salun", "--unlearn salun needs a saliency mask"),
    ("backdoor", "--unlearn salun", "--unlearn salun needs a saliency mask: give --density")])
def test_salun_without_a_mask_is_refused(stage: str, words: str, told: str, original: Saved) -> None:
    """By its own name it is nothing without one; relabel is."""
    given = [] if stage == "backdoor" else ["--checkpoint", str(original.folder), *shell.FORGET]
    with pytest.raises(BadInput, match=told) as raised:
        arg_parser.parse(stage, [*given, *words.split()])
    assert "\n" not in str(raised.value) and "relabel" in str(raised.value)


def test_runs_of_two_names_that_differ_by_case_have_labels_that_do_not(original: Saved) -> None:
    given = ["--checkpoint", str(original.folder), *shell.FORGET, "--unlearn"]
    labels = [arg_parser.parse("forget", [*given, name]).label for name in ("SCRUB", "scrub", "scrub_our", "SCRUB_our")]
    assert len({label.lower() for label in labels}) == 4 and "scrub_2" in labels[1]


def test_list_and_help_show_what_exists(capsys: pytest.CaptureFixture[str]) -> None:
    random = ["RL", "RL_og", "RL_proximal", "relabel", "salun"]
    for stage, methods in (("main_forget.py", METHODS.names()), ("main_random.py", random)):
        with pytest.raises(SystemExit) as end:
            shell.STAGES[stage].main(["--list"])
        said = capsys.readouterr().out
        assert not end.value.code and re.findall(r"^(\w+): ", said, re.M) == [*methods, "NAME_our"]
    assert "arXiv:2310.12508" in said
    shown = {}
    for method in ("NG", "FT"):
        with pytest.raises(SystemExit) as end:
            shell.STAGES["main_forget.py"].main(["--unlearn", method, "--help"])
        assert not end.value.code
        shown[method] = " ".join(capsys.readouterr().out.split())
    assert "--alpha X" in shown["NG"] and "1 - alpha" in shown["NG"] and "--alpha X" not in shown["FT"]


# ---------------------------------------------------------------------------------------------- published command lines


@pytest.mark.parametrize("line", RUM)
def test_published_rum_lines_parse_with_their_values(line: str, tmp_path: Path) -> None:
    pretend_to_train(tmp_path / "runs", "--dataset", "cifar10", "--arch", "resnet18")
    program, *words = shlex.split(line)
    stage = {name: stage for stage, (name, _) in arg_parser.STAGES.items()}[program]
    found = settings_of(stage, words)
    assert found == found | RUM[line]
    if "parent" in arg_parser.STAGES[stage][1]:
        assert (found["dataset"], found["arch"], found["protocol"], found["seed"]) == ("cifar10", "resnet18", "rum", 1)
        assert found["class_to_replace"] == (-1,) and not found["aug"]


@pytest.mark.parametrize("line", SPARSITY)
@pytest.mark.parametrize("published", [False, True], ids=["our run", "published file"])
def test_published_sparsity_lines_parse_with_their_values(
    line: str, published: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretend_to_train(tmp_path / "dense", "--protocol", "sparse")
    shutil.copy(run.folder / "model.pt", tmp_path / "0model_SA_best.pth.tar")
    mask = "0model_SA_best.pth.tar" if published else str(run.folder)
    words = ["--save_dir", "out", "--mask", mask, *shlex.split(line)]
    found = settings_of("forget", [*words, *(["--protocol", "sparse"] if published else [])])
    assert found == found | SPARSITY[line] | {"save_dir": "out", "num_indexes_to_replace": 4500, "protocol": "sparse"}
    assert found["aug"] is True and (found["dataset"], found["arch"]) == ("cifar10", "resnet18")
    said = capsys.readouterr().out
    assert "notice: --mask is taken as --checkpoint" in said and "--class_to_replace 0" in said
    found = settings_of("forget", [*words, "--class_to_replace", "0"])
    assert found["class_to_replace"] == (0,) and "mean --class_to_replace 0" not in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------- what defaults


def test_sparse_protocol_has_its_own_defaults(tmp_path: Path) -> None:
    dense = settings_of("train", ["--dataset", "cifar10"])
    sparse = settings_of("train", ["--dataset", "cifar10", "--protocol", "sparse"])
    wanted = {"epochs": 182, "schedule": "step", "aug": True, "protocol": "sparse"}
    assert dense == dense | {"epochs": 30, "schedule": "cosine", "aug": False, "protocol": "rum"}
    assert sparse == dense | wanted and sparse["decreasing_lr"] == (91, 136)
    assert settings_of("train", ["--dataset", "svhn", "--protocol", "sparse"])["aug"] is False  # it has no augmentation
    typed = ["--protocol", "sparse", "--epochs", "3", "--schedule", "constant", "--no_aug", "--decreasing_lr", "1,2"]
    assert settings_of("train", typed) == settings_of("train", typed) | {
        "epochs": 3, "schedule": "constant", "aug": False, "decreasing_lr": (1, 2)}
    run = pretend_to_train(tmp_path, "--protocol", "sparse")
    for stage, method, values in (
        ("forget", "FT_l1", {"alpha": 1e-4}), ("forget", "FT_prune", {"alpha": 1e-4}),
        ("random", "RL", {"unlearn_lr": 0.013, "rl_form": "sequential"}), ("forget", "RL_og", {"unlearn_lr": 0.013}),
        ("forget", "retrain", {"unlearn_epochs": 182, "schedule": "step", "unlearn_lr": 0.1}),
    ):
        found = settings_of(stage, ["--checkpoint", str(run.folder), "--unlearn", method, *shell.FORGET])
        assert found == found | values | {"protocol": "sparse", "aug": True}


def test_retrain_takes_what_was_not_typed_from_the_original(tmp_path: Path) -> None:
    trained = ["--lr", "0.03", "--epochs", "7", "--schedule", "step", "--decreasing_lr", "2,5", "--lr_gamma", "0.2",
               "--warmup", "1", "--momentum", "0.8", "--weight_decay", "1e-3", "--alpha", "2e-5", "--batch_size", "100",
               "--aug", "--seed", "5", "--val_seed", "3", "--val_fraction", "0.2", "--classes", "1-4"]
    run = pretend_to_train(tmp_path, "--dataset", "digits", "--arch", "resnet32s", *trained)
    base = ["--checkpoint", str(run.folder), "--num_indexes_to_replace", "20"]
    found = settings_of("forget", [*base, "--unlearn", "retrain"])
    inherited = {"schedule": "step", "decreasing_lr": (2, 5), "lr_gamma": 0.2, "warmup": 1, "momentum": 0.8,
                 "weight_decay": 1e-3, "alpha": 2e-5}
    data = {"batch_size": 100, "aug": True, "seed": 5, "val_seed": 3, "val_fraction": 0.2, "classes": "1-4",
            "dataset": "digits", "arch": "resnet32s"}
    assert found == found | {"unlearn_lr": 0.03, "unlearn_epochs": 7} | inherited | data
    typed = settings_of("forget", [*base, "--unlearn", "retrain", "--unlearn_lr", "0.5", "--unlearn_epochs", "9",
                                   "--schedule", "constant", "--seed", "6", "--no_aug"])
    assert typed == found | {"unlearn_lr": 0.5, "unlearn_epochs": 9, "schedule": "constant", "seed": 6, "aug": False}
    # the others keep their own rate and schedule, but the data are the original's
    tuned = settings_of("forget", [*base, "--unlearn", "FT"])
    assert tuned == tuned | data | {"unlearn_lr": 0.01, "unlearn_epochs": 10, "schedule": "step", "momentum": 0.9}
