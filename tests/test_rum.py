"""RUM through the command line: steps chain bit for bit, each with its record; killed, repeated and shuffled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from conftest import quiet_runtime
from planned import MIX, assert_as_if_never_stopped, assert_seconds_of_its_steps, forget, parts_of, same, steps_of
from scored import digits, memorization_run, scored_original, write_scores
from torch import Tensor

import models
import trainer
from dataset import Data
from evaluation.accuracy import load_outputs
from groups import LEVELS
from models import ModelConfig
from pruner.mask import largest
from unlearn import METHODS, rum
from unlearn.plan import purpose_of
from unlearn.saliency import saliency
from utils import Saved, find_runs, sha256

PLAN = "low:FT(unlearn_lr=0.03,unlearn_epochs=1) mid:NG(unlearn_epochs=1,alpha=0.7) high:RL(unlearn_epochs=2,density=0.3)"

scored = pytest.fixture(scope="module")(scored_original)


@pytest.fixture(scope="module")
def chained(scored: tuple[Saved, Path], tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Three methods, one after another; not to be changed."""
    return forget(scored, tmp_path_factory.mktemp("chained"), "--plan", PLAN)


# ------------------------------------------------------------------------------------- a plan of one step is the method


@pytest.mark.parametrize("plan", ["all:NG(unlearn_epochs=1,alpha=0.8)", "vanilla single", "vanilla equal"])
def test_a_plan_of_one_group_is_the_method_bit_for_bit(plan: str, scored: tuple[Saved, Path], tmp_path: Path) -> None:
    name, _, budget = plan.partition(" ")
    flags = ["--unlearn_epochs", 3 if budget == "equal" else 1, "--alpha", 0.8]
    shell.forget(scored[0], tmp_path, "NG", *MIX, "--scores", scored[1], *flags)
    flags = ["--unlearn", "NG", "--plan_name", name, "--budget", budget, "--alpha", 0.8, "--unlearn_epochs", 1]
    run, known = forget(scored, tmp_path, *(flags if budget else ["--plan", plan])), shell.only(tmp_path, "forget")
    assert same(shell.weights(run), shell.weights(known)) and run.record["split_key"] == known.record["split_key"]
    assert run.record["metrics"] == known.record["metrics"]
    ours, theirs = load_outputs(run.folder), load_outputs(known.folder)
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[part], theirs[part]) for part in ours)


def test_a_masked_plan_of_one_group_is_salun_bit_for_bit(scored: tuple[Saved, Path], tmp_path: Path) -> None:
    """generate_mask.py and then main_random.py --path, against one line."""
    flags = [*MIX, "--scores", scored[1]]
    shell.call("generate_mask.py", "--checkpoint", scored[0].folder, "--density", 0.4, *flags, save_dir=tmp_path)
    shell.call("main_random.py", "--checkpoint", scored[0].folder, "--unlearn", "RL", "--unlearn_epochs", 1,
               "--path", tmp_path, *flags, save_dir=tmp_path)
    run = forget(scored, tmp_path, "--plan", "all:RL(unlearn_epochs=1,density=0.4)")
    assert same(shell.weights(run), shell.weights(shell.only(tmp_path, "forget")))
    assert run.record["seconds"]["mask"] > 0
    assert not same(shell.weights(run), shell.weights(forget(scored, tmp_path, "--plan", "all:RL(unlearn_epochs=1)")))


# ---------------------------------------------------------------------------------------------------------- the chain


def by_hand(original: Saved, plan: list[tuple[str, str, Any, float | None]], parts: dict[str, np.ndarray],
            retains: list[np.ndarray]) -> list[dict[str, Tensor]]:
    """The model after each step of group, method, settings and density, over sets that the caller made."""
    rt, data = quiet_runtime(original.setting("seed")), digits()
    model, _ = models.load(original.folder / "model.pt", ModelConfig(arch="resnet8s"), data, rt)
    states = []
    for number, ((group, name, cfg, density), retain) in enumerate(zip(plan, retains, strict=True)):
        data = digits()
        train = np.union1d(retain, parts[group])
        splits = type(data.splits)(train, data.splits.val, retain, parts[group], (), "", "")
        here = Data(data.source, data.images, data.test, 3, splits, 64, False)
        mask = None if density is None else largest(saliency(model, here.loader("forget", batch_size=64)), (density,))[density]
        METHODS[name].apply(model, here, cfg, rt, None, mask, "strict", purpose_of(0, number))
        states.append({key: value.clone().contiguous() for key, value in model.state_dict().items()})
    return states


def test_every_step_goes_on_from_the_model_before_it(scored: tuple[Saved, Path], chained: Saved) -> None:
    """Each step's model, made anew from the original's with sets cut here; the record's order, sizes and settings."""
    parts = parts_of(chained)
    groups = {level: parts[f"part_{level}"] for level in LEVELS}
    assert all(np.array_equal(parts[f"group_{level}"], groups[level]) for level in LEVELS)
    left = [i for i in parts["train"] if i not in groups["low"]]
    retains = [np.array(left)]
    for level in ("mid", "high"):
        left = [i for i in left if i not in groups[level]]
        retains.append(np.array(left))
    assert np.array_equal(retains[2], parts["retain"])
    plan = [("low", "FT", METHODS["FT"].config(unlearn_lr=0.03, unlearn_epochs=1), None),
            ("mid", "NG", METHODS["NG"].config(unlearn_epochs=1, alpha=0.7), None),
            ("high", "RL", METHODS["RL"].config(unlearn_epochs=2), 0.3)]
    states = by_hand(scored[0], plan, groups, retains)
    steps = steps_of(chained)
    for step, state, retain, (group, method, _, density) in zip(steps, states, retains, plan, strict=True):
        assert same(shell.weights(step), state), group
        assert step.record["retain_size"] == len(retain) and step.record["forget_size"] == 10
        assert step.record["status"] == "done" and step.record["parent"]["sha256"] == chained.record["parent"]["sha256"]
        last = step.record["steps"][-1]
        assert (last["group"], last["method"], last["density"]) == (group, method, density)
    assert same(shell.weights(chained), states[-1]) and not same(states[0], states[1])
    assert [row["method"] for row in chained.record["rows"]] == ["FT", "NG", "RL"]


def test_a_mask_is_of_the_model_as_it_is_then(scored: tuple[Saved, Path], chained: Saved) -> None:
    """Weights that step 3 left alone are outside the mask of step 2's model, and that is not the original's mask."""
    rt, data, (_, second, third) = quiet_runtime(), digits(), steps_of(chained)
    high = data.subset(parts_of(chained)["part_high"])
    masks = []
    for run in (second, scored[0]):
        model, _ = models.load(run.folder / "model.pt", ModelConfig(arch="resnet8s"), data, rt)
        masks.append(largest(saliency(model, high), (0.3,))[0.3])
    before, after = shell.weights(second), shell.weights(third)
    moved = {name: before[name] != after[name] for name in masks[0]}
    inside = [sum(int((moved[name] & mask[name]).sum()) for name in moved) for mask in masks]
    total = sum(int(part.sum()) for part in moved.values())
    assert inside[0] == total > 0.29 * sum(part.numel() for part in moved.values()) and inside[1] < 0.9 * total


def test_every_step_tells_the_accuracy_of_every_group(scored: tuple[Saved, Path], chained: Saved) -> None:
    """Counted from the models that were saved, one image at a time; after a step is before the next."""
    parts, data, rt = parts_of(chained), digits(), quiet_runtime()
    runs, rows = [scored[0], *steps_of(chained)], chained.record["rows"]
    found = []
    for run in runs:
        model, _ = models.load(run.folder / "model.pt", ModelConfig(arch="resnet8s"), data, rt)
        model.eval()
        right = {}
        for level in LEVELS:
            index = torch.from_numpy(parts[f"part_{level}"])
            with torch.inference_mode():
                hits = model(data.images.batch(index, None)).argmax(1) == data.images.y[index]
            right[level] = pytest.approx(100 * hits.tolist().count(True) / len(index))
        found.append(right)
    assert [rows[0]["before"], *(row["after"] for row in rows)] == found
    assert [row["before"] for row in rows[1:]] == [row["after"] for row in rows[:-1]]
    assert [{key: step.record[key] for key in ("before", "after")} for step in runs[1:]] == [
        {key: row[key] for key in ("before", "after")} for row in rows]
    assert len({json.dumps(row["after"]) for row in rows}) > 1


@pytest.mark.parametrize("how", ["whole", "published"])
def test_retain_sets_are_a_setting(how: str, scored: tuple[Saved, Path], tmp_path: Path) -> None:
    """From high to low, as the released driver goes by confidence, published steps retain what was forgotten."""
    run = forget(scored, tmp_path, "--unlearn", "raw", "--rum_retain", how, "--order", "high,mid,low")
    sizes = [step.record["retain_size"] for step in steps_of(run)]
    train = len(parts_of(run)["train"])
    assert sizes == ([train - 30] * 3 if how == "whole" else [train - 30, train - 20, train - 10])


def test_what_a_step_prunes_stays_pruned(scored: tuple[Saved, Path], tmp_path: Path) -> None:
    run = forget(scored, tmp_path, "--plan",
                 "low:FT_prune_bi(unlearn_epochs=1,rate=0.5) mid:FT(unlearn_epochs=1) high:FT(unlearn_epochs=1)")
    contents = [torch.load(one.folder / "model.pt", weights_only=True) for one in (*steps_of(run), run)]
    mask = contents[0]["mask"]
    assert sum(int(part.sum()) for part in mask.values()) == round(0.5 * sum(part.numel() for part in mask.values()))
    for content in contents:
        assert same(content["mask"], mask) and not any(content["state_dict"][name][~part].any() for name, part in mask.items())


def test_typed_flags_reach_every_step(scored: tuple[Saved, Path], tmp_path: Path) -> None:
    run = forget(scored, tmp_path, "--unlearn", "NG", "--unlearn_epochs", 0, "--alpha", 0.31, "--momentum", 0.2,
                 "--order", "high,mid,low")
    assert [(row["group"], row["cfg"]["alpha"], row["cfg"]["momentum"]) for row in run.record["rows"]] == [
        (level, 0.31, 0.2) for level in ("high", "mid", "low")]
    assert run.record["plan"]["name"] == "RUM^F NG (high, mid, low)"


# ---------------------------------------------------------------------------------- killed, repeated, shared, shuffled


def kill_at_step(patch: pytest.MonkeyPatch, begins: str) -> None:
    """End the plan as Ctrl-C does when it says that a step is finished."""
    def say(text: str) -> None:
        if text.startswith(begins):
            raise KeyboardInterrupt

    patch.setattr(rum, "say", say)


@pytest.mark.parametrize("moment", ["in step 1", "in step 2", "in step 3", "after step 1", "after step 2", "after step 3"])
def test_a_killed_plan_goes_on_at_its_step(moment: str, scored: tuple[Saved, Path], chained: Saved, tmp_path: Path) -> None:
    """Bit-identical to one that nobody stopped; what was finished is not done again."""
    each = -(-len(parts_of(chained)["train"]) // 64)  # optimiser steps in an epoch, give or take the smaller retain set
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if moment.startswith("in"):
            # the last one in the second of two epochs
            at = {"in step 1": 3, "in step 2": each + 3, "in step 3": 3 * each + 3}[moment]
            shell.interrupt_step(patch, trainer.Descent, at)
        else:
            kill_at_step(patch, moment.removeprefix("after "))
        forget(scored, tmp_path, "--plan", PLAN)
    done = find_runs(tmp_path, ("step",))
    assert len(done) == int(moment[-1]) - moment.startswith("in") and not find_runs(tmp_path, ("rum",))
    before = {run.folder: shell.listing(run.folder) for run in done}
    run = forget(scored, tmp_path, "--plan", PLAN)
    assert {folder: shell.listing(folder) for folder in before} == before
    assert_as_if_never_stopped(run, chained)


def copied(chained: Saved, tmp_path: Path) -> Path:
    """The folder of the chained plan, at its own place in another save_dir."""
    root = tmp_path / "runs"
    shutil.copytree(chained.folder.parent.parent, root)
    return root


def test_plans_that_begin_alike_share_their_steps(scored: tuple[Saved, Path], chained: Saved, tmp_path: Path) -> None:
    """From a step that is read, the next goes on as from one that was just taken; vanilla shares none."""
    root = copied(chained, tmp_path)
    before = shell.listing(root)
    other = PLAN.replace("high:RL(unlearn_epochs=2,density=0.3)", "high:FT(unlearn_epochs=1)")
    run, alone = forget(scored, root, "--plan", other), forget(scored, tmp_path / "alone", "--plan", other)
    assert [path for path in before if shell.listing(root)[path] != before[path]] == []
    assert len(find_runs(root, ("step",))) == 4
    assert_as_if_never_stopped(run, alone)
    assert_seconds_of_its_steps(run)
    same_method = forget(scored, tmp_path / "alone", "--unlearn", "FT", "--unlearn_lr", 0.03, "--unlearn_epochs", 1)
    assert same_method.record["rows"][0]["run"] == alone.record["rows"][0]["run"]
    assert len(find_runs(tmp_path / "alone", ("step",))) == 5


def test_settings_of_a_plan_tell_its_steps_apart(scored: tuple[Saved, Path], tmp_path: Path) -> None:
    """Under other masks or with other retain sets no step is one that was taken before."""
    words = ["--unlearn", "FT", "--density", 0.5, "--unlearn_epochs", 0]
    runs = [forget(scored, tmp_path, *words, *more) for more in ([], ["--mask_mode", "published"], ["--rum_retain", "whole"])]
    assert len({row["run"] for run in runs for row in run.record["rows"]}) == 9


def test_a_finished_plan_is_done_and_force_repeats_it(
    scored: tuple[Saved, Path], chained: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copied(chained, tmp_path)
    before = shell.listing(root)
    capsys.readouterr()
    forget(scored, root, "--plan", PLAN)
    assert "already done" in capsys.readouterr().out and shell.listing(root) == before
    run = forget(scored, root, "--plan", PLAN, "--force")
    assert_as_if_never_stopped(run, chained)
    assert all(value != before[path] for path, value in shell.listing(root).items() if path.endswith("model.pt"))


def told(run: Saved) -> dict[str, Any]:
    """What two plans that differ by their groups alone have in common."""
    keep = ("group", "method", "cfg", "density", "retain_size")
    parts = parts_of(run)
    return {"rows": [{name: row[name] for name in keep} for row in run.record["rows"]], "split_key": run.record["split_key"],
            "sets": {name: parts[name].tolist() for name in ("train", "val", "retain", "forget")},
            "sizes": {name: len(index) for name, index in parts.items() if name.startswith("part_")}}


def test_shuffle_differs_in_the_groups_alone(scored: tuple[Saved, Path], tmp_path: Path) -> None:
    own = ["--unlearn", "NG", "--unlearn_epochs", 1, "--alpha", 0.7]
    run, mixed = forget(scored, tmp_path, *own), forget(scored, tmp_path, *own, "--shuffle")
    assert told(run) == told(mixed)
    assert (run.record["plan"]["name"], mixed.record["plan"]["name"]) == ("RUM^F NG", "shuffle NG")
    groups, random = parts_of(run), parts_of(mixed)
    assert all(set(groups[f"part_{level}"]) != set(random[f"part_{level}"]) for level in LEVELS)
    whole = np.sort(np.concatenate([random[f"part_{level}"] for level in LEVELS]))
    assert np.array_equal(whole, groups["forget"])
    assert not {row["run"] for row in run.record["rows"]} & {row["run"] for row in mixed.record["rows"]}


def test_every_method_and_seed_gets_the_same_shuffle(scored: tuple[Saved, Path], tmp_path: Path) -> None:
    """Methods, orders, plans and originals; with no scores named too. Another set has another partition."""
    other = shell.train(tmp_path, 2)
    file = parts_of(forget(scored, tmp_path / "a", "--unlearn", "raw", "--shuffle"))
    np.save(tmp_path / "set.npy", file["forget"])
    runs = [forget(start, tmp_path / name, *words, "--shuffle", chosen=chosen) for name, start, words, chosen in (
        ("b", scored, ["--unlearn", "FT", "--unlearn_epochs", 0], None),
        ("c", scored, ["--plan", "high:raw low:raw mid:NG(unlearn_epochs=0)"], None),
        ("d", (other, scored[1]), ["--unlearn", "raw", "--seed", 2], None),
        ("e", scored, ["--unlearn", "raw"], ["--forget_index", tmp_path / "set.npy"]))]
    for run in runs:
        found = parts_of(run)
        assert all(np.array_equal(found[f"part_{level}"], file[f"part_{level}"]) for level in LEVELS)
    another = parts_of(forget(scored, tmp_path / "f", "--unlearn", "raw", "--shuffle", chosen=["--forget_fraction", 0.1]))
    assert {level: len(another[f"part_{level}"]) for level in LEVELS} == {"low": 13, "mid": 13, "high": 13}


# ------------------------------------------------------------------------------------------------------ published lines


def test_published_line_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Original and scores are found under runs by their records; the flags of the line are those of the original."""
    monkeypatch.chdir(tmp_path)
    root = Path("runs")
    original = shell.train(root, 2, "--batch_size", 256)
    with np.load(write_scores(tmp_path / "scores.npz", 12)) as file:
        made = memorization_run(root, "estimate", file["memorization"], "pool", 4)
    line = ("--unlearn NG --mem mix --num_indexes_to_replace 30 --class_to_replace -1 --dataset digits --arch resnet8s "
            "--epochs 1 --lr 0.1 --batch_size 256 --no_aug --sequential --unlearn_epochs 1")
    shell.STAGES["main_rum.py"].main([*line.split(), *shell.QUIET])
    run = shell.only(root, "rum")
    assert run.record["parent"]["sha256"] == sha256(original.folder / "model.pt")
    assert run.record["scores"]["path"] == str(made / "scores.npz") and run.record["groups"] == dict.fromkeys(LEVELS, 10)
    assert run.record["plan"]["name"] == "RUM^F NG" and len(run.record["rows"]) == 3


def test_a_chunk_is_forgotten_whole_by_the_vanilla_plan_and_shuffled(scored: tuple[Saved, Path], tmp_path: Path) -> None:
    """Entanglement orders no examples within a chunk, so only these two plans are there for one."""
    data = digits().candidates
    group = np.arange(len(data.y)) % 15
    np.savez(tmp_path / "es.npz", es=group * 1.0, group=group, distance=np.arange(len(group)) * 1.0, chunk_es=np.arange(15.0),
             levels=np.array([0, 7, 14]))
    chosen = ["--group_index", 3, "--num_indexes_to_replace", 9, "--scores", tmp_path / "es.npz"]
    expected = [i for i in data.train.tolist() if group[i] == 3][:9]
    for number, words in enumerate((["--plan_name", "vanilla"], ["--shuffle"])):
        run = forget(scored, tmp_path / str(number), "--unlearn", "raw", *words, chosen=chosen)
        assert parts_of(run)["forget"].tolist() == expected
