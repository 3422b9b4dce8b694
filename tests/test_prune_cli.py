"""OMP, IMP, random pruning and SynFlow from the command line: rounds, rewinding, resuming."""

from __future__ import annotations

import json
import random
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
import shell
import torch
from pretended import change
from pruned import IMP, NET, SHORT, STEPS, TOTAL, assert_sparse, bits, content, rounds, starts, trained
from test_prune import by_full_sort, counted, same

import prune
import trainer
from utils import Saved, find_runs, read_record

nowhere = pytest.fixture(autouse=True)(shell.nowhere)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory)


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
    monkeypatch.setattr(trainer.Descent, "epoch", None)
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
            taken = shell.interrupt_step(patch, trainer.Descent, 0)
            shell.call("main_imp.py", *SHORT, "--rewind_epoch", "1", *words, save_dir=root)
        assert len(taken) == 2 * STEPS
        run = shell.only(root, "imp", sparsity=round(1 - prunes, 12))
        assert_sparse(run.folder, round(TOTAL * prunes))
        spent = [read_record(Path(row["run"])).record["seconds"]["train"] for row in run.record["rounds"]]
        assert run.record["seconds"]["train"] == pytest.approx(sum(spent))  # also of those that were done before
    # the dense model of the same sweep needs no training any more
    with pytest.MonkeyPatch.context() as patch:
        taken = shell.interrupt_step(patch, trainer.Descent, 0)
        shell.call("main_imp.py", *SHORT, "--rewind_epoch", "1", "--sparsity", "0", save_dir=root)
    assert not taken and "mask" not in content(shell.only(root, "imp", sparsity=0.0).folder)


def test_rounds_that_rewind_elsewhere_train_a_dense_model_of_their_own(sparse: Path, tmp_path: Path) -> None:
    """What is finished rewinds to its first epoch and has no weights of the second; it begins with a new dense round."""
    root = tmp_path / "more"
    shutil.copytree(sparse, root)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        shell.interrupt_step(patch, trainer.Descent, 1)
        shell.call("main_imp.py", *SHORT, "--rewind_epoch", "2", "--rate", "0.2", save_dir=root)
    assert len(list((root / "round").glob("*-round0-*"))) == 2 and len(rounds(root)) == 3


def test_rounds_after_another_dense_model_are_trained_anew(sparse: Path, tmp_path: Path) -> None:
    """As where the dense round was repeated on another machine: what follows is known by the file it goes on from."""
    root = tmp_path / "more"
    shutil.copytree(sparse, root)
    shutil.rmtree(root / "imp")
    dense = rounds(root)[0].folder
    whole = content(dense)
    whole["state_dict"]["fc.bias"] += 1e-3
    torch.save(whole, dense / "model.pt")
    change(dense)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        shell.interrupt_step(patch, trainer.Descent, 1)
        shell.call("main_imp.py", *IMP, save_dir=root)
    assert len(list((root / "round").glob("*-round1-*"))) == 2


# ------------------------------------------------------------------------------------------------------------ rewinding


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
    assert len({one["order"] for one in seen}) == 3  # each training shuffles in an order of its own
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
        shell.interrupt_step(patch, trainer.Descent, 2 * STEPS + 1)
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
    monkeypatch.setattr(trainer.Descent, "epoch", None)
    shell.call("main_imp.py", *SHORT, "--rewind_pth", "renamed.pt", "--sparsity", "0.7", save_dir=tmp_path)
    assert shell.only(tmp_path, "imp").folder == run.folder


def test_random_pruning_takes_as_many_and_others(sparse: Path, tmp_path: Path) -> None:
    shell.call("main_imp.py", *IMP, "--random_prune", save_dir=tmp_path)
    one, two = (content(run.folder)["mask"] for run in rounds(tmp_path)[1:])
    ours = assert_sparse(shell.only(tmp_path, "imp").folder, round(0.64 * TOTAL))
    assert same(ours, two) and not any((two[name] & ~one[name]).any() for name in one)
    assert not same(two, content(shell.only(sparse, "imp").folder)["mask"])
    run = shell.only(tmp_path, "imp")
    shell.forget(run, tmp_path, "retrain", *shell.FORGET, "--own_pruning", "--unlearn_epochs", 2)
    own = assert_sparse(shell.only(tmp_path, "forget").folder, counted(two))
    assert not same(own, two)  # drawn anew
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
            shell.interrupt_step(patch, trainer.Descent, draw.randint(STEPS + 1, epochs * STEPS))
            shell.call(stage, *words, "--resume_every", 0, save_dir=tmp_path / "cut")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            shell.interrupt_step(patch, trainer.Descent, 1)
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
        real = trainer.Descent._step

        def step(self: Any, rate: float) -> None:
            if len(rounds(save_dir)) > done:
                raise KeyboardInterrupt
            real(self, rate)

        patch.setattr(trainer.Descent, "_step", step)
        try:
            shell.call(stage, *words, "--resume_every", 0, save_dir=save_dir)
        except KeyboardInterrupt:
            assert len(rounds(save_dir)) == done + 1


def test_resumed_synflow_keeps_the_mask_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*SHORT, "--rate", "0.9", "--synflow_rounds", "5", "--resume_every", 0]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        shell.interrupt_step(patch, trainer.Descent, STEPS + 1)
        shell.call("main_synflow.py", *words, save_dir=tmp_path)
    (file,) = tmp_path.rglob("mask.pt")
    begun = torch.load(file, weights_only=True)["mask"]
    monkeypatch.setattr(prune.SynFlowConfig, "mask", None)
    shell.call("main_synflow.py", *words, save_dir=tmp_path)
    assert same(assert_sparse(shell.only(tmp_path, "synflow").folder, round(0.1 * TOTAL)), begun)
