"""Pruned originals in the stages that follow: masks, plans, retraining, published files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from pruned import NET, TOTAL, assert_sparse, content, leaks, rounds, starts, trained
from test_prune import counted, same

import arg_parser
import trainer
from unlearn import METHODS
from utils import Saved, read_record

nowhere = pytest.fixture(autouse=True)(shell.nowhere)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory)


def test_pruned_run_is_the_original_of_later_stages(sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found under its save_dir, by its sparsity among others, and each round by its folder; masks travel."""
    final = shell.only(sparse, "imp")
    mask = content(final.folder)["mask"]
    folder = Saved(sparse, {})
    shell.forget(folder, tmp_path, "FT", *shell.FORGET)
    assert f"original: {final.folder}" in capsys.readouterr().out
    assert same(assert_sparse(shell.only(tmp_path, "forget").folder, round(0.64 * TOTAL)), mask)
    shell.forget(folder, tmp_path / "named", "FT", *shell.FORGET, "--sparsity", "0.36")
    with pytest.raises(SystemExit):
        shell.forget(folder, tmp_path / "none", "FT", *shell.FORGET, "--sparsity", "0.5")
    assert "main_imp.py --sparsity 0.5" in capsys.readouterr().err
    dense, one, _ = rounds(sparse)
    for number, run in enumerate((dense, one)):
        shell.forget(run, tmp_path / f"round{number}", "FT", *shell.FORGET)
        found = content(shell.only(tmp_path / f"round{number}", "forget").folder)
        assert ("mask" in found) == bool(number)
    assert shell.only(tmp_path / "round0", "forget").record["parent"]["training"] == dense.record["settings"]["cfg"]
    facts = shell.only(tmp_path, "forget").record["parent"]["training"]
    assert facts == final.record["settings"]["cfg"] | {"pruning": final.record["pruning"]}


def test_masks_travel_through_salun_and_plans(sparse: Path, tmp_path: Path) -> None:
    count = round(0.64 * TOTAL)
    shell.call("generate_mask.py", "--checkpoint", sparse, *shell.FORGET, save_dir=tmp_path)
    made = torch.load(shell.only(tmp_path, "mask").folder / "with_0.5.pt", weights_only=True)
    mask = content(shell.only(sparse, "imp").folder)["mask"]
    assert not any((made[name] & ~part).any() for name, part in mask.items())
    shell.call("main_random.py", "--checkpoint", sparse, "--unlearn", "RL", "--unlearn_epochs", 1, *shell.FORGET, "--path",
               tmp_path, save_dir=tmp_path)
    assert same(assert_sparse(shell.only(tmp_path, "forget").folder, count), mask)
    shell.call("main_rum.py", "--checkpoint", sparse, "--plan_name", "vanilla", "--unlearn", "RL", "--unlearn_epochs", 1,
               *shell.FORGET, save_dir=tmp_path)
    assert same(assert_sparse(shell.only(tmp_path, "rum").folder, count), mask)


def test_retrain_keeps_the_sparse_structure(sparse: Path, tmp_path: Path) -> None:
    shell.forget(Saved(sparse, {}), tmp_path, "retrain", *shell.FORGET)
    run = shell.only(tmp_path, "forget")
    final = content(shell.only(sparse, "imp").folder)
    found = content(run.folder)
    assert same(found["mask"], final["mask"])
    assert all(not found["state_dict"][name][~part].any() for name, part in final["mask"].items())
    assert run.setting("unlearn_lr") == 0.1 and run.setting("schedule") == "step"


def test_pruned_weights_are_out_of_every_training(sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only in the files: 0 in retraining from its first step on, in steps without a saliency mask, held out."""
    run = shell.only(sparse, "imp")
    found = leaks(monkeypatch, content(run.folder)["mask"])
    shell.forget(run, tmp_path, "retrain", *shell.FORGET)
    shell.call("main_rum.py", "--checkpoint", run.folder, "--unlearn", "NG", "--unlearn_epochs", 1, "--shuffle", *shell.FORGET,
               save_dir=tmp_path)
    shell.call("main_memorization.py", "--checkpoint", run.folder, "--score", "ho_ret", "--ft_epochs", 1, save_dir=tmp_path)
    assert found == [0] * 5


def test_density_is_a_share_of_the_weights_that_are_left(sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a mask on disk as of a step's own; none of what they name is pruned."""
    run = shell.only(sparse, "imp")
    pruned, masks, real = content(run.folder)["mask"], [], type(METHODS["FT"]).apply

    def apply(self: Any, model: Any, data: Any, cfg: Any, rt: Any, run: Any, mask: Any, *rest: Any) -> Any:
        masks.append(mask)
        return real(self, model, data, cfg, rt, run, mask, *rest)

    monkeypatch.setattr(type(METHODS["FT"]), "apply", apply)
    shell.call("generate_mask.py", "--checkpoint", run.folder, *shell.FORGET, "--density", 0.3, save_dir=tmp_path)
    shell.call("main_rum.py", "--checkpoint", run.folder, "--unlearn", "FT", "--unlearn_epochs", 0, "--plan_name", "vanilla",
               "--density", 0.3, *shell.FORGET, save_dir=tmp_path)
    masks.append(torch.load(shell.only(tmp_path, "mask").folder / "with_0.3.pt", weights_only=True))
    whole = sum(part.numel() for part in masks[0].values())
    assert [counted(mask) for mask in masks] == [int(0.3 * (whole - TOTAL + counted(pruned)))] * 2
    assert not any((mask[name] & ~part).any() for mask in masks for name, part in pruned.items())


def test_retrain_can_find_its_own_mask_on_the_retain_set(sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many trainings, prunes and weights as the original; no example of the forget set in any of them."""
    seen = starts(monkeypatch)
    shell.forget(Saved(sparse, {}), tmp_path, "retrain", *shell.FORGET, "--own_pruning", "--unlearn_epochs", "3")
    run = shell.only(tmp_path, "forget")
    mask = assert_sparse(run.folder, round(0.64 * TOTAL))
    assert not same(mask, content(shell.only(sparse, "imp").folder)["mask"])
    with np.load(run.folder / "splits.npz") as splits:
        assert len(seen) == 3 and all(np.array_equal(one["index"].numpy(), splits["retain"]) for one in seen)
    assert [one["first"] for one in seen] == [0, 1, 1]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):  # another forget set shares none of them
        shell.interrupt_step(patch, trainer.Descent, 1)
        shell.forget(Saved(sparse, {}), tmp_path, "retrain", "--num_indexes_to_replace", 21, "--own_pruning",
                     "--unlearn_epochs", "3")
    parts = [read_record(Path(row["run"])).record for row in run.record["rounds"]]
    spent = sum(part["seconds"]["train"] + part["seconds"].get("prune", 0) for part in parts)
    assert run.record["seconds"]["unlearn"] == pytest.approx(spent)
    # its dense round is the retrained dense model
    dense = rounds(sparse)[0]
    shell.forget(dense, tmp_path / "dense", "retrain", *shell.FORGET, "--unlearn_epochs", "3")
    ours = shell.weights(Saved(Path(run.record["rounds"][0]["run"]), {}))
    assert all(torch.equal(v, ours[k]) for k, v in shell.weights(shell.only(tmp_path / "dense", "forget")).items())


def test_published_form_of_a_pruned_model_unlearns_as_ours(sparse: Path, tmp_path: Path) -> None:
    """weight_orig and weight_mask, with weights of the pruned places left in: the same model, the same run."""
    final = content(shell.only(sparse, "imp").folder)
    state = dict(final["state_dict"])
    for name, part in final["mask"].items():
        state[f"{name}_orig"], state[f"{name}_mask"] = torch.where(part, state.pop(name), torch.tensor(0.3)), part.float()
    path = tmp_path / "1model_SA_best.pth.tar"
    torch.save({"state": 1, "state_dict": state, "init_weight": None}, path)
    words = ["--unlearn_lr", "0.02", *shell.FORGET]
    shell.forget(Saved(path, {}), tmp_path / "a", "FT", *NET, "--protocol", "sparse", *words)
    shell.forget(Saved(sparse, {}), tmp_path / "b", "FT", *words)
    ours, theirs = (content(shell.only(tmp_path / place, "forget").folder) for place in "ba")
    assert same(ours["mask"], theirs["mask"])
    assert all(torch.equal(value, theirs["state_dict"][name]) for name, value in ours["state_dict"].items())


def test_published_form_with_a_layer_left_whole_goes_through_later_stages(sparse: Path, tmp_path: Path) -> None:
    """It has no pair for that layer; what is unlearned from it is a model of ours, to be unlearned further."""
    final = content(shell.only(sparse, "imp").folder)
    state = dict(final["state_dict"])
    for name, part in list(final["mask"].items())[1:]:
        state[f"{name}_orig"], state[f"{name}_mask"] = state.pop(name), part.float()
    torch.save({"state_dict": state}, tmp_path / "part.pth.tar")
    shell.forget(Saved(tmp_path / "part.pth.tar", {}), tmp_path / "a", "FT", *NET, *shell.FORGET)
    shell.forget(shell.only(tmp_path / "a", "forget"), tmp_path / "b", "GA", *shell.FORGET)
    mask = content(shell.only(tmp_path / "b", "forget").folder)["mask"]
    assert mask.pop("conv1.weight").all() and all(torch.equal(part, final["mask"][name]) for name, part in mask.items())


def test_the_published_lines_parse_with_their_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    omp = ("--data ./data --dataset cifar10 --arch resnet18 --prune_type rewind_lt --rewind_epoch 8 --save_dir D --rate 0.95 "
           "--pruning_times 2 --num_workers 8")
    args = arg_parser.parse("imp", shlex.split(omp))
    assert (args.cfg.epochs, args.cfg.schedule, args.cfg.decreasing_lr, args.cfg.lr) == (182, "step", (91, 136), 0.1)
    assert (args.protocol.protocol, args.data.aug, args.prune.rate) == ("sparse", True, 0.95)
    args = arg_parser.parse("synflow", shlex.split("--data ./data --dataset cifar10 --prune_type rewind_lt --rewind_epoch 8 "
                                                   "--save_dir D --rate 0.95 --pruning_times 1 --num_workers 8"))
    assert (args.cfg.epochs, args.data.aug, args.prune.synflow_rounds, args.prune.rate) == (182, True, 100, 0.95)
    said = capsys.readouterr().out
    assert all(f"notice: --{name} has no effect" in said for name in ("prune_type", "rewind_epoch", "pruning_times"))
    assert arg_parser.parse("train", ["--dataset", "digits"]).protocol.protocol == "rum"


def test_synflow_trains_what_it_pruned(tmp_path: Path) -> None:
    shell.call("main_synflow.py", *NET, "--epochs", 1, "--sparsity", "0.9", "--synflow_rounds", 10, save_dir=tmp_path)
    run = shell.only(tmp_path, "synflow", sparsity=0.9)
    left = TOTAL
    for _ in range(10):
        left -= round((1 - 0.1**0.1) * left)
    mask = assert_sparse(run.folder, left)
    assert run.record["layers"] == {name: [int(part.sum()), part.numel()] for name, part in mask.items()}
    assert run.record["seconds"].keys() == {"prune", "train", "evaluate"} and (run.folder / "sparsity.png").exists()
    shell.forget(Saved(tmp_path, {}), tmp_path, "FT", *shell.FORGET)
    assert same(assert_sparse(shell.only(tmp_path, "forget").folder, left), mask)
