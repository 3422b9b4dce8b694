"""The chain train, mask, retrain, forget, random, analysis from the command line, and what its words mean."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import shell
import torch
from conftest import TRAINED

import arg_parser
import dataset
import models
import trainer
import utils
from evaluation import accuracy
from unlearn import METHODS
from utils import Runtime, RuntimeConfig, Saved, find_runs


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """./runs and ./data are not those of the person who tests."""
    monkeypatch.chdir(tmp_path)


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


# ---------------------------------------------------------------------------------------------------------- the chain


def test_chain_leaves_a_finished_record_of_every_stage_and_method(library: Path) -> None:
    assert {run.setting("unlearn") for run in find_runs(library, ("forget",))} == set(METHODS.names())
    for run in find_runs(library, ("train", "mask", "forget")):
        record = run.record
        assert record["stage"] == run.folder.parent.name
        assert record["status"] == "done" and record["schema"] == utils.SCHEMA
        assert run.setting("seed") == 1 and run.setting("classes") == "0-2" and run.setting("arch") == "resnet20s"
        assert re.fullmatch(r"[0-9a-f]{40}|unknown", record["commit"])
        assert record["torch"] == torch.__version__ and record["device"].startswith("cpu")
        assert 50 < record["peak_memory_mib"] < 20_000
        assert all(0 <= seconds < 100 for seconds in record["seconds"].values())
        assert not (run.folder / "state.pt").exists()
    assert {key for run in find_runs(library, ("mask", "forget")) for key in run.record["seconds"]} == {
        "mask", "unlearn", "evaluate"}


def test_children_name_their_original_by_its_hash(library: Path, original: Saved) -> None:
    digest = hashlib.sha256((original.folder / "model.pt").read_bytes()).hexdigest()
    for run in find_runs(library, ("mask", "forget")):
        parent = run.record["parent"]
        assert Path(parent["path"]) == original.folder / "model.pt" and parent["sha256"] == digest
        assert parent["training"] == original.record["settings"]["cfg"]
        assert run.record["data_key"] == original.record["data_key"]
    assert len({run.record["split_key"] for run in find_runs(library, ("mask", "forget"))}) == 1


@pytest.mark.parametrize("name", METHODS.names())
def test_metrics_are_those_of_the_stored_logits(name: str, library: Path) -> None:
    """Accuracies by hand in numpy from outputs.npz, whose indices are those of splits.npz."""
    run = shell.only(library, "forget", unlearn=name)
    outputs, splits = arrays(run.folder / "outputs.npz"), arrays(run.folder / "splits.npz")
    hits = {}
    for part, size in (("retain", 368), ("forget", 20), ("val", 42), ("test", 107)):
        logits, labels = outputs[f"{part}_logits"], outputs[f"{part}_labels"]
        assert logits.dtype == np.float32 and logits.shape == (size, 3) and labels.shape == (size,)
        assert np.array_equal(outputs[f"{part}_index"], splits.get(part, np.arange(107)))
        hits[part] = 100 * float((logits.argmax(1) == labels).mean())
    metrics = run.record["metrics"]
    assert {part: metrics[part] for part in hits} == pytest.approx(hits)
    assert metrics["UA"] == pytest.approx(100 - hits["forget"])
    assert (metrics["RA"], metrics["TA"]) == pytest.approx((hits["retain"], hits["test"]))
    assert metrics["MIA"] == metrics["mia"]["forget"]["confidence"]
    log = run.folder / "log.jsonl"
    rows = [json.loads(row) for row in log.read_text().splitlines()] if log.exists() else []
    assert [row["epoch"] for row in rows if "epoch" in row] == ([0] if name in TRAINED else [])


def test_models_are_plain_and_differ_by_method(library: Path, original: Saved) -> None:
    seen = {}
    for run in [original, *find_runs(library, ("forget",))]:
        content = torch.load(run.folder / "model.pt", weights_only=True)
        assert (content["schema"], content["arch"], content["num_classes"]) == (utils.SCHEMA, "resnet20s", 3)
        pruned = {"mask"} if run.setting("unlearn") == "FT_prune_bi" else set()
        assert set(content) == {"schema", "state_dict", "arch", "num_classes", "imagenet"} | pruned
        seen[run.setting("unlearn")] = content["state_dict"]["layer1.0.conv1.weight"]
    assert torch.equal(seen["raw"], seen[None])
    # in its one epoch FT_prune does what FT_l1 does, and only counts small weights besides
    assert torch.equal(seen.pop("FT_prune"), seen["FT_l1"]) and seen.pop("raw") is not None
    names = list(seen)
    assert not [(a, b) for i, a in enumerate(names) for b in names[:i] if torch.equal(seen[a], seen[b])]


def test_salun_moves_only_the_weights_of_the_mask(library: Path, original: Saved) -> None:
    mask = torch.load(shell.only(library, "mask").folder / "with_0.5.pt", weights_only=True)
    total = sum(part.numel() for part in mask.values())
    assert all(part.dtype == torch.bool for part in mask.values())
    assert sum(int(part.sum()) for part in mask.values()) == total // 2
    run = shell.only(library, "forget", unlearn="RL")
    before, after = shell.weights(original), shell.weights(run)
    moved = {name: after[name] != before[name] for name in mask}
    assert not any(bool((moved[name] & ~mask[name]).any()) for name in mask)
    assert sum(int(part.sum()) for part in moved.values()) > 0.9 * total / 2
    assert run.record["mask"]["density"] == 0.5
    made = shell.only(library, "mask")
    assert run.record["seconds"]["mask"] == made.record["seconds"]["mask"] > 0


def test_several_densities_come_from_one_ranking(library: Path, original: Saved, tmp_path: Path) -> None:
    shell.call("generate_mask.py", "--checkpoint", original.folder, *shell.FORGET, "--density", "0.1,0.5,1",
               save_dir=tmp_path)
    folder = shell.only(tmp_path, "mask").folder
    low, half, full = (torch.load(folder / f"with_{d}.pt", weights_only=True) for d in ("0.1", "0.5", "1"))
    known = torch.load(shell.only(library, "mask").folder / "with_0.5.pt", weights_only=True)
    for name in low:
        assert not (low[name] & ~half[name]).any() and torch.equal(half[name], known[name]) and full[name].all()


def test_analysis_writes_its_tables_and_plots(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, name, figures in (("analysis.py", "tow", {"tow", "accuracy", "confidence", "cost"}),
                                 ("analysis_mia.py", "tow_mia", {"tow_mia", "mia", "cost_mia"})):
        out = tmp_path / stage
        shell.call(stage, "--out", out, save_dir=library)
        said = capsys.readouterr().out
        assert {path.name for path in out.iterdir()} == {f"{name}.csv", f"{name}.md", *(f"{f}.png" for f in figures)}
        assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in out.glob("*.png"))
        assert (out / f"{name}.md").read_text().strip() in said
        assert all(re.search(rf"^\| {method}[ (].*\|$", said, re.M) for method in METHODS.names())
        shell.call(stage, "--out", out, "--unlearn", "NG,GA", "--dataset", "digits", "--no_aug", "--seed", "1,2",
                   "--num_indexes_to_replace", 20, save_dir=library)
        rows = re.findall(r"^\| ([\w.]+)", capsys.readouterr().out, re.M)
        assert rows == ["method", "retrain", "GA", "NG"]


# --------------------------------------------------------------------------------------------------------- run folders


def test_equal_settings_meet_the_same_folder_and_return_at_once(
    library: Path, original: Saved, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = shell.listing(library)
    monkeypatch.setattr(trainer.Sgd, "epoch", None)
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
    assert names[0] == names[-1] == shell.only(library, "forget", unlearn="FT").folder.name


def test_force_repeats_a_finished_run(library: Path, original: Saved, tmp_path: Path) -> None:
    known = shell.only(library, "forget", unlearn="NG")
    folder = tmp_path / "forget" / known.folder.name
    shutil.copytree(known.folder, folder)
    (folder / "model.pt").write_bytes(b"spoiled")
    (folder / "left.over").write_bytes(b"")
    shell.forget(original, tmp_path, "NG", *shell.FORGET)
    assert (folder / "model.pt").read_bytes() == b"spoiled"
    shell.forget(original, tmp_path, "NG", *shell.FORGET, "--force")
    again = shell.only(tmp_path, "forget")
    assert again.folder == folder and not (folder / "left.over").exists()
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


# ------------------------------------------------------------------------------------------------ finding the original


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


# --------------------------------------------------------------------------------------------------------------- words


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


def test_list_and_help_show_what_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for stage, methods in (("main_forget.py", METHODS.names()), ("main_random.py", ["RL", "RL_og", "RL_proximal"])):
        with pytest.raises(SystemExit) as end:
            shell.STAGES[stage].main(["--list"])
        said = capsys.readouterr().out
        assert not end.value.code and re.findall(r"^(\w+): ", said, re.M) == methods
    assert "arXiv:2310.12508" in said
    shown = {}
    for method in ("NG", "FT"):
        with pytest.raises(SystemExit) as end:
            shell.STAGES["main_forget.py"].main(["--unlearn", method, "--help"])
        assert not end.value.code
        shown[method] = " ".join(capsys.readouterr().out.split())
    assert "--alpha X" in shown["NG"] and "1 - alpha" in shown["NG"] and "--alpha X" not in shown["FT"]


# ---------------------------------------------------------------------------------------------- published command lines

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


@pytest.mark.parametrize("line", RUM)
def test_published_rum_lines_parse_with_their_values(line: str, tmp_path: Path) -> None:
    pretend_to_train(tmp_path / "runs", "--dataset", "cifar10", "--arch", "resnet18")
    program, *words = shlex.split(line)
    stage = {name: stage for stage, (name, _) in arg_parser.STAGES.items()}[program]
    found = settings_of(stage, words)
    assert found == found | RUM[line]
    if "parent" in arg_parser.STAGES[stage][1]:
        assert (found["dataset"], found["arch"], found["protocol"], found["seed"]) == ("cifar10", "resnet18", "rum", 2)
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
               "--aug", "--seed", "5", "--split_seed", "3", "--val_fraction", "0.2", "--classes", "1-4"]
    run = pretend_to_train(tmp_path, "--dataset", "digits", "--arch", "resnet32s", *trained)
    base = ["--checkpoint", str(run.folder), "--num_indexes_to_replace", "20"]
    found = settings_of("forget", [*base, "--unlearn", "retrain"])
    inherited = {"schedule": "step", "decreasing_lr": (2, 5), "lr_gamma": 0.2, "warmup": 1, "momentum": 0.8,
                 "weight_decay": 1e-3, "alpha": 2e-5}
    data = {"batch_size": 100, "aug": True, "seed": 5, "split_seed": 3, "val_fraction": 0.2, "classes": "1-4",
            "dataset": "digits", "arch": "resnet32s"}
    assert found == found | {"unlearn_lr": 0.03, "unlearn_epochs": 7} | inherited | data
    typed = settings_of("forget", [*base, "--unlearn", "retrain", "--unlearn_lr", "0.5", "--unlearn_epochs", "9",
                                   "--schedule", "constant", "--seed", "6", "--no_aug"])
    assert typed == found | {"unlearn_lr": 0.5, "unlearn_epochs": 9, "schedule": "constant", "seed": 6, "aug": False}
    # the others keep their own rate and schedule, but the data are the original's
    tuned = settings_of("forget", [*base, "--unlearn", "FT"])
    assert tuned == tuned | data | {"unlearn_lr": 0.01, "unlearn_epochs": 10, "schedule": "step", "momentum": 0.9}


def test_retrain_starts_elsewhere_than_the_original_of_the_same_seed(original: Saved, tmp_path: Path) -> None:
    """Retrained for no epoch, a model is its initialisation: that of the stream ``init/retrain``."""
    shell.forget(original, tmp_path, "retrain", *shell.FORGET, "--unlearn_epochs", 0)
    start = shell.weights(shell.only(tmp_path, "forget"))["conv1.weight"]
    args = arg_parser.parse("forget", ["--checkpoint", str(original.folder), "--unlearn", "retrain", *shell.FORGET])
    rt = Runtime(RuntimeConfig(seed=1, device="cpu"))
    data = dataset.load(args.data, rt)
    fresh = {purpose: models.new(args.model, data, rt, purpose).conv1.weight for purpose in ("train", "retrain")}
    assert torch.equal(start, fresh["retrain"])
    shared = float((start == fresh["train"]).float().mean())
    assert shared < 0.01, "the original of this seed begins with other weights"


def test_seeds_vary_the_training_and_not_the_forget_set(library: Path, original: Saved, tmp_path: Path) -> None:
    known = shell.only(library, "forget", unlearn="FT")
    shell.forget(original, tmp_path, "FT", *shell.FORGET, "--seed", 8)
    other = shell.only(tmp_path, "forget")
    assert other.record["split_key"] == known.record["split_key"]
    splits = [arrays(run.folder / "splits.npz") for run in (known, other)]
    assert all(np.array_equal(splits[0][part], splits[1][part]) for part in ("train", "val", "retain", "forget"))
    assert not torch.equal(shell.weights(known)["conv1.weight"], shell.weights(other)["conv1.weight"])


# -------------------------------------------------------------------------------------------------------- whole classes


def test_whole_class_by_index_file_is_the_whole_class(
    original: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However it is named, test accuracy is over the remaining classes, and test_all over all."""
    shell.forget(original, tmp_path / "class", "NG", "--class_to_replace", 1)
    named = shell.only(tmp_path / "class", "forget")
    forget = arrays(named.folder / "splits.npz")["forget"]
    np.save(tmp_path / "forget.npy", forget[::-1])
    (tmp_path / "forget.json").write_text(json.dumps(forget.tolist()))
    count = len(forget)
    for words in (["--forget_index", tmp_path / "forget.npy"], ["--forget_index", tmp_path / "forget.json"],
                  ["--forget_index", named.folder / "splits.npz"],
                  ["--class_to_replace", 1, "--num_indexes_to_replace", count],
                  ["--class_to_replace", 1, "--forget_fraction", 1]):
        capsys.readouterr()
        shell.forget(original, tmp_path / "class", "NG", *words)
        assert "already done" in capsys.readouterr().out, words
    shell.forget(original, tmp_path / "index", "NG", "--forget_index", tmp_path / "forget.npy")
    indexed = shell.only(tmp_path / "index", "forget")
    assert indexed.record["metrics"] == named.record["metrics"] and indexed.record["whole_classes"] == [1]
    outputs = arrays(named.folder / "outputs.npz")
    hit, rest = outputs["test_logits"].argmax(1) == outputs["test_labels"], outputs["test_labels"] != 1
    metrics = named.record["metrics"]
    assert 0 < rest.sum() < len(hit) and hit[rest].mean() != hit.mean()
    assert (metrics["test"], metrics["TA"], metrics["test_all"]) == pytest.approx(
        (100 * hit[rest].mean(), 100 * hit[rest].mean(), 100 * hit.mean()))


def test_all_but_one_of_a_class_is_no_whole_class(original: Saved, tmp_path: Path) -> None:
    shell.forget(original, tmp_path, "raw", "--class_to_replace", 1, "--num_indexes_to_replace", 131)
    run = shell.only(tmp_path, "forget")
    assert run.record["whole_classes"] == [] and run.record["forget_size"] == 131
    assert run.record["metrics"]["test"] == run.record["metrics"]["test_all"]


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
