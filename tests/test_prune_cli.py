"""OMP, IMP, random pruning and SynFlow from the command line: rounds, rewinding, resuming, and the stages that follow."""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from test_prune import by_full_sort, counted, same

import arg_parser
import prune
import trainer
from utils import Saved, find_runs, read_record

NET = ["--dataset", "digits", "--arch", "resnet8s", "--classes", "0-2", "--batch_size", "64", "--seed", "1"]
SHORT = [*NET, "--epochs", "3"]
IMP = [*SHORT, "--rewind_epoch", "1", "--rate", "0.2", "--pruning_times", "3"]
TOTAL = 74_160  # weights in the convolutions of resnet8s
STEPS = 7  # of an epoch: 388 training images of three digits


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A save_dir with three trainings of IMP, made once and not to be changed."""
    root = tmp_path_factory.mktemp("sparse")
    shell.call("main_imp.py", *IMP, save_dir=root)
    return root


def content(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "model.pt", weights_only=True)


def rounds(root: Path) -> list[Saved]:
    """In the order of their trainings; with several plans, of equal ones in the order of their sparsity."""
    return sorted(find_runs(root, ("round",)), key=lambda run: run.record["label"])


def bits(weight: torch.Tensor) -> torch.Tensor:
    return weight.contiguous().view(torch.int32) if weight.is_floating_point() else weight


def assert_sparse(folder: Path, count: int) -> dict[str, torch.Tensor]:
    """The mask of a run's model: so many weights, of convolutions alone, +0 where pruned; returned."""
    found = content(folder)
    mask, state = found["mask"], found["state_dict"]
    assert list(mask) == [name for name, value in state.items() if value.dim() == 4]
    assert counted(mask) == count and all(part.dtype == torch.bool for part in mask.values())
    assert all(not bits(state[name])[~part].any() and (state[name][part] != 0).all() for name, part in mask.items())
    return mask


# ------------------------------------------------------------------------------------------------------------ the rounds


def test_rounds_leave_records_models_and_the_final_model(sparse: Path) -> None:
    """0.8^2 stays to the weight; each round is a subset of the one before; the run holds the last round's model."""
    dense, one, two = rounds(sparse)
    run = shell.only(sparse, "imp")
    assert "mask" not in content(dense.folder) and not (dense.folder / "sparsity.png").exists()
    first, second = (assert_sparse(r.folder, round(TOTAL * 0.8**n)) for n, r in ((1, one), (2, two)))
    assert not any((second[name] & ~first[name]).any() for name in first)
    last, final = content(two.folder), content(run.folder)
    assert same(final["mask"], second) and all(torch.equal(v, last["state_dict"][k]) for k, v in final["state_dict"].items())
    assert run.record["layers"] == {name: [int(part.sum()), part.numel()] for name, part in second.items()}
    assert run.record["remaining"] == pytest.approx(0.64, abs=1 / TOTAL)
    assert run.record["metrics"] == two.record["metrics"] and set(run.record["metrics"]) == {"train", "val", "test"}
    assert [Path(row["run"]) for row in run.record["rounds"]] == [r.folder for r in (dense, one, two)]
    assert [Path(r.record["parent"]["path"]).parent for r in (one, two)] == [dense.folder, one.folder]
    assert (run.folder / "sparsity.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert {name: run.setting(name) for name in ("rate", "sparsity", "pruning_times", "protocol")} == {
        "rate": 0.2, "sparsity": 0.36, "pruning_times": 3, "protocol": "sparse"}
    assert not list(sparse.rglob("state.pt"))


def test_dense_round_is_the_model_of_main_train(sparse: Path, tmp_path: Path) -> None:
    shell.call("main_train.py", *SHORT, "--protocol", "sparse", save_dir=tmp_path)
    theirs, ours = shell.weights(shell.only(tmp_path, "train")), shell.weights(rounds(sparse)[0])
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_kept_weights_are_the_largest_of_the_trained_ones(sparse: Path) -> None:
    dense, one, two = (content(run.folder) for run in rounds(sparse))
    for before, after, count in ((dense, one, round(0.8 * TOTAL)), (one, two, round(0.64 * TOTAL))):
        scores = {name: before["state_dict"][name].abs() for name in after["mask"]}
        assert same(after["mask"], by_full_sort(scores, count, before.get("mask")))


def test_rounds_are_a_recipe_on_the_screen(sparse: Path, capsys: pytest.CaptureFixture[str],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command again says what is done and trains nothing; the table has a line a layer."""
    monkeypatch.setattr(trainer.Sgd, "epoch", None)
    before = shell.listing(sparse)
    shell.call("main_imp.py", *IMP, save_dir=sparse)
    said = capsys.readouterr().out
    assert "already done" in said and shell.listing(sparse) == before
    layers = shell.only(sparse, "imp").record["layers"]
    for name, (kept, total) in layers.items():
        layer, share = re.escape(name.removesuffix(".weight")), f"{100 * kept / total:.2f}"
        assert re.search(rf"^\| {layer} +\| +{total} \| +{kept} \| +{share} \|$", said, re.M)
    assert re.search(rf"^\| all +\| +{TOTAL} \| +{round(0.64 * TOTAL)} \| +64\.00 \|$", said, re.M)


def test_more_rounds_reuse_the_finished_ones(sparse: Path, tmp_path: Path) -> None:
    """A fourth training after three has that one to do; OMP to any sparsity goes on from the dense round."""
    root = tmp_path / "more"
    shutil.copytree(sparse, root)
    for words, prunes in ((["--rate", "0.2", "--pruning_times", "4"], 0.8**3), (["--sparsity", "0.9"], 0.1)):
        with pytest.MonkeyPatch.context() as patch:
            taken = shell.interrupt_step(patch, trainer.Sgd, 0)
            shell.call("main_imp.py", *SHORT, "--rewind_epoch", "1", *words, save_dir=root)
        assert len(taken) == 2 * STEPS
        assert_sparse(shell.only(root, "imp", sparsity=round(1 - prunes, 12)).folder, round(TOTAL * prunes))
    # the dense model of the same sweep needs no training any more
    with pytest.MonkeyPatch.context() as patch:
        taken = shell.interrupt_step(patch, trainer.Sgd, 0)
        shell.call("main_imp.py", *SHORT, "--rewind_epoch", "1", "--sparsity", "0", save_dir=root)
    assert not taken and "mask" not in content(shell.only(root, "imp", sparsity=0.0).folder)


# ------------------------------------------------------------------------------------------------------------ rewinding


def starts(patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each training begins with, as the rounds go on: weights, mask, epoch of the schedule and epochs."""
    seen, real = [], prune.fit

    def fit(model: Any, loader: Any, cfg: Any, rt: Any, run: Any, mask: Any = None, first: int = 0, epochs: Any = None,
            snapshot: int = 0) -> None:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        seen.append({"state": state, "mask": mask, "first": first, "epochs": epochs, "index": loader.index})
        real(model, loader, cfg, rt, run, mask, first, epochs, snapshot)

    patch.setattr(prune, "fit", fit)
    return seen


def target(kind: str, root: Path, seen: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    dense = rounds(root)[0].folder
    if kind == "lt":
        return seen[0]["state"]
    return torch.load(dense / ("model.pt" if kind == "pt" else "rewind.pt"), weights_only=True)["state_dict"]


@pytest.mark.parametrize("kind", ["lt", "pt", "rewind_lt"])
def test_kept_weights_are_rewound_bit_by_bit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm, its statistics and the head too; where pruned, +0."""
    seen = starts(monkeypatch)
    at = ["--rewind_epoch", "2"] if kind == "rewind_lt" else []
    shell.call("main_imp.py", *SHORT, "--prune_type", kind, *at, "--sparsity", "0.7", "--pruning_times", "3", save_dir=tmp_path)
    wanted = target(kind, tmp_path, seen)
    assert [one["first"] for one in seen] == ([0, 2, 2] if at else [0, 0, 0])
    for start in seen[1:]:
        for name, value in start["state"].items():
            kept = start["mask"].get(name, torch.ones_like(value, dtype=torch.bool))
            assert torch.equal(value[kept], wanted[name][kept]), name
            assert not bits(value)[~kept].any() if name in start["mask"] else True
    assert counted(seen[2]["mask"]) == round(0.3 * TOTAL) < counted(seen[1]["mask"]) == round(0.3**0.5 * TOTAL)


def test_rewind_weights_are_those_after_so_many_epochs(tmp_path: Path) -> None:
    """rewind.pt equals a training that is stopped there, under the whole training's schedule."""
    shell.call("main_imp.py", *SHORT, "--rewind_epoch", "2", "--sparsity", "0", "--schedule", "cosine", save_dir=tmp_path / "a")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        shell.interrupt_step(patch, trainer.Sgd, 2 * STEPS + 1)
        shell.call("main_train.py", *SHORT, "--protocol", "sparse", "--schedule", "cosine", "--resume_every", 0,
                   save_dir=tmp_path / "b")
    (state,) = (tmp_path / "b").rglob("state.pt")
    wanted = torch.load(state, weights_only=True)["opt"]["model"]
    found = torch.load(rounds(tmp_path / "a")[0].folder / "rewind.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def rates(run: Saved) -> list[float]:
    return [json.loads(row)["lr"] for row in (run.folder / "log.jsonl").read_text().splitlines()]


def test_schedule_goes_on_where_the_weights_come_from(tmp_path: Path) -> None:
    """By default the epochs that are left; as published, all of them from there, so that the milestones come early."""
    words = [*NET, "--epochs", "4", "--decreasing_lr", "2,3", "--rewind_epoch", "1", "--sparsity", "0.5"]
    shell.call("main_imp.py", *words, save_dir=tmp_path)
    shell.call("main_imp.py", *words, "--rewind_schedule", "published", save_dir=tmp_path)
    dense, rest, published = (rates(run) for run in rounds(tmp_path))
    assert dense == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert rest == pytest.approx(dense[1:]) and published == pytest.approx([*dense[1:], 0.001])


def test_weights_can_be_rewound_to_a_file(sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare state dict as published; another file under the same settings is another run."""
    torch.save(torch.load(rounds(sparse)[0].folder / "rewind.pt", weights_only=True)["state_dict"], "epoch_1_rewind_weight.pt")
    seen = starts(monkeypatch)
    shell.call("main_imp.py", *SHORT, "--rewind_pth", "epoch_1_rewind_weight.pt", "--sparsity", "0.7", save_dir=tmp_path)
    wanted = torch.load("epoch_1_rewind_weight.pt", weights_only=True)
    assert seen[1]["first"] == 0
    kept = seen[1]["mask"]
    for name, value in seen[1]["state"].items():
        part = kept.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value[part], wanted[name][part]), name
    run = shell.only(tmp_path, "imp")
    assert run.record["pruning"]["file"]
    shutil.move("epoch_1_rewind_weight.pt", "renamed.pt")  # what is in it counts, not its name
    monkeypatch.setattr(trainer.Sgd, "epoch", None)
    shell.call("main_imp.py", *SHORT, "--rewind_pth", "renamed.pt", "--sparsity", "0.7", save_dir=tmp_path)
    assert shell.only(tmp_path, "imp").folder == run.folder


def test_random_pruning_takes_as_many_and_others(sparse: Path, tmp_path: Path) -> None:
    shell.call("main_imp.py", *IMP, "--random_prune", save_dir=tmp_path)
    one, two = (content(run.folder)["mask"] for run in rounds(tmp_path)[1:])
    ours = assert_sparse(shell.only(tmp_path, "imp").folder, round(0.64 * TOTAL))
    assert same(ours, two) and not any((two[name] & ~one[name]).any() for name in one)
    assert not same(two, content(shell.only(sparse, "imp").folder)["mask"])
    # at random every layer loses alike
    large = [part for part in two.values() if part.numel() > 2000]
    assert all(float(part.double().mean()) == pytest.approx(0.64, abs=0.05) for part in large)


# ------------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("job", ["imp", "synflow"])
def test_runs_stopped_in_any_round_end_as_if_never_stopped(job: str, sparse: Path, tmp_path: Path) -> None:
    """Stopped at a random step of each training in turn, with a state after every epoch."""
    stage = "main_synflow.py" if job == "synflow" else "main_imp.py"
    words = {"imp": IMP, "synflow": [*SHORT, "--synflow_rounds", "5"]}[job]
    whole = sparse if job == "imp" else tmp_path / "whole"
    if job != "imp":
        shell.call(stage, *words, save_dir=whole)
    draw = random.Random(zlib.crc32(job.encode()))
    for epochs in (3,) if job == "synflow" else (3, 2, 2):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            # what is left begins within this training: stop in a later epoch of it
            shell.interrupt_step(patch, trainer.Sgd, draw.randint(STEPS + 1, epochs * STEPS))
            shell.call(stage, *words, "--resume_every", 0, save_dir=tmp_path / "cut")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            shell.interrupt_step(patch, trainer.Sgd, 1)
            shell.call(stage, *words, "--resume_every", 0, save_dir=tmp_path / "cut")
        if job != "synflow":
            finish_round(stage, words, tmp_path / "cut")
    shell.call(stage, *words, save_dir=tmp_path / "cut")
    theirs = {run.folder.name: run for run in find_runs(whole, ("imp", "round", "synflow"))}
    ours = find_runs(tmp_path / "cut", ("imp", "round", "synflow"))
    assert {run.folder.name for run in ours} <= theirs.keys() and len(ours) == (1 if job == "synflow" else 4)
    for run in ours:
        a, b = content(run.folder), content(theirs[run.folder.name].folder)
        assert all(torch.equal(bits(v), bits(b["state_dict"][k])) for k, v in a["state_dict"].items())
        assert same(a.get("mask", {}), b.get("mask", {})) and run.record["metrics"] == theirs[run.folder.name].record["metrics"]
        assert sorted(p.name for p in run.folder.iterdir()) == sorted(p.name for p in theirs[run.folder.name].folder.iterdir())


def finish_round(stage: str, words: list[str], save_dir: Path) -> None:
    """Go on until the training that was stopped is done, and stop before the next one's first step."""
    done = len(rounds(save_dir))
    with pytest.MonkeyPatch.context() as patch:
        real = trainer.Sgd._step

        def step(self: Any, rate: float) -> None:
            if len(rounds(save_dir)) > done:
                raise KeyboardInterrupt
            real(self, rate)

        patch.setattr(trainer.Sgd, "_step", step)
        try:
            shell.call(stage, *words, "--resume_every", 0, save_dir=save_dir)
        except KeyboardInterrupt:
            assert len(rounds(save_dir)) == done + 1


def test_resumed_synflow_keeps_the_mask_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*SHORT, "--rate", "0.9", "--synflow_rounds", "5", "--resume_every", 0]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        shell.interrupt_step(patch, trainer.Sgd, STEPS + 1)
        shell.call("main_synflow.py", *words, save_dir=tmp_path)
    (file,) = tmp_path.rglob("mask.pt")
    begun = torch.load(file, weights_only=True)["mask"]
    monkeypatch.setattr(prune.SynFlowConfig, "mask", None)
    shell.call("main_synflow.py", *words, save_dir=tmp_path)
    assert same(assert_sparse(shell.only(tmp_path, "synflow").folder, round(0.1 * TOTAL)), begun)


# ------------------------------------------------------------------------------------------- the stages that follow


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
    mask = assert_sparse(run.folder, round(0.1 * TOTAL))
    assert run.record["layers"] == {name: [int(part.sum()), part.numel()] for name, part in mask.items()}
    assert run.record["seconds"].keys() == {"prune", "train", "evaluate"} and (run.folder / "sparsity.png").exists()
    shell.forget(Saved(tmp_path, {}), tmp_path, "FT", *shell.FORGET)
    assert same(assert_sparse(shell.only(tmp_path, "forget").folder, round(0.1 * TOTAL)), mask)


# ------------------------------------------------------------------------------------------------------------ bad input

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
rewind file missing | imp | {NET} --rewind_pth no/where.pt | no/where.pt & no such file
rewind file of another model | imp | {NET} --rewind_pth {other} | resnet20s & --arch
rewind file that is no model | imp | {NET} --rewind_pth {junk} | junk.pt
rewind file that is pruned | imp | {NET} --rewind_pth {pruned} | is pruned itself
rewind file of another split | imp | {NET} --split_seed 7 --rewind_pth {rewind} | rewind.pt & other data & --split_seed
model of another split to rewind to | imp | {NET} --split_seed 7 --rewind_pth {dense}/model.pt | other data & --split_seed
own pruning of another method | forget | --checkpoint {imp} {SOME} --unlearn FT --own_pruning | --own_pruning & retrain
own pruning of a dense model | forget | --checkpoint {dense} {SOME} --unlearn retrain --own_pruning | tells of no mask
own pruning in fewer epochs | forget | --checkpoint {imp} {SOME} --unlearn retrain --unlearn_epochs 1 --own_pruning | \
--rewind_epoch 1 lies beyond the 1 epochs
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
    monkeypatch.setattr(trainer.Sgd, "epoch", None)
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
    folder = Path(shutil.copytree(shell.only(sparse, "imp").folder, tmp_path / "imp"))
    content = torch.load(folder / "model.pt", weights_only=True)
    spoil(content)
    torch.save(content, folder / "model.pt")
    said = refused("main_forget.py", ["--checkpoint", folder, "--unlearn", "FT", *shell.FORGET], tmp_path / "runs", capsys)
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
        taken = shell.interrupt_step(patch, trainer.Sgd, 0)
        shell.call("main_imp.py", *words, "--sparsity", "0.9", save_dir=tmp_path)
    assert len(taken) == STEPS and len(rounds(tmp_path)) == 2


