"""Requests of RUM through the command line: each goes on from the one before; killed, reordered, bad and told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from planned import assert_as_if_never_stopped, assert_seconds_of_its_steps, forget, parts_of, same
from scored import digits, places, scored_original

import trainer
from dataset import Data
from groups import LEVELS
from unlearn import METHODS, rum
from utils import Saved, find_runs, sha256

scored = pytest.fixture(scope="module")(scored_original)


def write_requests(folder: Path) -> tuple[Path, list[np.ndarray]]:
    train = digits().splits.train
    drawn = np.random.default_rng(5).choice(train, 27, replace=False)
    lists = [np.sort(drawn[:12]), np.sort(drawn[12:])]
    (folder / "requests.json").write_text(json.dumps([part.tolist() for part in lists]))
    return folder / "requests.json", lists


def stream(scored: tuple[Saved, Path], save_dir: Path, file: Path, *words: Any) -> list[Saved]:
    """Both requests, by RUM^F of NegGrad+ (or of another method) on the groups of the scores."""
    method = words or ("--unlearn", "NG", "--unlearn_epochs", 1)
    forget(scored, save_dir, *method, "--requests", file, "--scores", scored[1], chosen=[])
    return sorted(find_runs(save_dir, ("rum",)), key=lambda run: run.record["request"]["number"])


def test_requests_follow_one_another(scored: tuple[Saved, Path], tmp_path: Path) -> None:
    file, lists = write_requests(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        first, second = stream(scored, tmp_path, file)
    union = np.sort(np.concatenate(lists))
    assert parts_of(first)["forget"].tolist() == lists[0].tolist() and parts_of(second)["forget"].tolist() == union.tolist()
    ours = parts_of(second)
    assert np.sort(np.concatenate([ours[f"part_{level}"] for level in LEVELS])).tolist() == lists[1].tolist()
    used = [dict(run.record["scores"]) for run in (first, second)]
    ties = [scores.pop("ties") for scores in used]  # of each request its own
    assert all(set(found) == set(LEVELS) for found in ties) and used[0] == used[1] and used[0]["sha256"] == sha256(scored[1])
    # the second request begins where the first ended
    assert same(seen[3]["before"], shell.weights(first)) and same(seen[0]["before"], shell.weights(scored[0]))
    scores, train = np.load(scored[1])["memorization"], set(ours["train"].tolist())
    place = places(len(scores))
    order = sorted(lists[1].tolist(), key=lambda i: (scores[i], place[i]))
    thirds, gone = [order[:5], order[5:10], order[10:]], set(lists[0].tolist())
    for step, own in zip(seen[3:], thirds, strict=True):
        gone |= set(own)
        assert step["forget"] == sorted(own) and step["retain"] == sorted(train - gone)
        assert not gone & set(step["retain"])
    assert set(seen[0]["retain"]) > set(lists[1].tolist())  # nobody knows of the second request yet
    assert_seconds_of_its_steps(first)
    assert_seconds_of_its_steps(second)
    assert len({step["purpose"] for step in seen}) == 6  # no two steps of a stream draw alike

    shell.forget(scored[0], tmp_path, "retrain", "--forget_index", second.folder / "splits.npz", "--unlearn_epochs", 0)
    retrain = shell.only(tmp_path, "forget", unlearn="retrain")
    assert retrain.record["split_key"] == second.record["split_key"] != first.record["split_key"]


def watch(patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every method that is applied begins with: weights, its sets, and the name of its random streams."""
    seen, real = [], type(METHODS["NG"]).apply

    def apply(self: Any, model: torch.nn.Module, data: Data, *rest: Any) -> None:
        before = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
        seen.append({"before": before, "retain": data.splits.retain.tolist(), "forget": data.splits.forget.tolist(),
                     "purpose": rest[-1]})
        real(self, model, data, *rest)

    patch.setattr(type(METHODS["NG"]), "apply", apply)
    return seen


@pytest.mark.parametrize("moment", ["between requests", "in a step of the second"])
def test_a_killed_stream_goes_on(moment: str, scored: tuple[Saved, Path], tmp_path: Path) -> None:
    file, _ = write_requests(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        taken = shell.interrupt_step(patch, trainer.Descent, 0)
        whole = stream(scored, tmp_path / "whole", file)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if moment == "between requests":
            kill_after = rum.Chain.close
            patch.setattr(rum.Chain, "close", lambda *args: [kill_after(*args), stop()])
        else:
            shell.interrupt_step(patch, trainer.Descent, len(taken) * 4 // 6 + 2)
        stream(scored, tmp_path / "cut", file)
    (first,) = find_runs(tmp_path / "cut", ("rum",))
    before = shell.listing(first.folder)
    assert len(find_runs(tmp_path / "cut", ("step",))) == (3 if moment == "between requests" else 4)
    for ours, theirs in zip(stream(scored, tmp_path / "cut", file), whole, strict=True):
        assert_as_if_never_stopped(ours, theirs)
    assert shell.listing(first.folder) == before


def stop() -> None:
    raise KeyboardInterrupt


def test_the_same_request_after_another_one_is_another_run(scored: tuple[Saved, Path], tmp_path: Path) -> None:
    """What was forgotten before is part of what a run is; so is the order of what was forgotten."""
    file, lists = write_requests(tmp_path)
    once = stream(scored, tmp_path, file, "--unlearn", "raw")
    file.write_text(json.dumps([part.tolist() for part in lists[::-1]]))
    both = stream(scored, tmp_path, file, "--unlearn", "raw")
    assert len(once) == 2 and len(both) == 4 and len(find_runs(tmp_path, ("step",))) == 12
    union = [run for run in both if run.record["request"]["number"] == 1]
    assert union[0].record["split_key"] == union[1].record["split_key"]


def test_a_stream_is_told_apart_by_every_step_before(scored: tuple[Saved, Path], tmp_path: Path) -> None:
    """The two plans share two steps of the first request, and none after the one in which they differ."""
    file, _ = write_requests(tmp_path)
    stream(scored, tmp_path, file, "--plan", "low:raw mid:raw high:raw")
    stream(scored, tmp_path, file, "--plan", "low:raw mid:raw high:NG(unlearn_epochs=0)")
    assert len(find_runs(tmp_path, ("rum",))) == 4 and len(find_runs(tmp_path, ("step",))) == 6 + 4


def test_a_late_bad_request_is_said_before_the_first_is_served(
    scored: tuple[Saved, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two examples have no thirds; nothing is written, though the first request was sound."""
    file, lists = write_requests(tmp_path)
    file.write_text(json.dumps([lists[0].tolist(), lists[1][:2].tolist()]))
    with pytest.raises(SystemExit) as end:
        stream(scored, tmp_path / "none", file)
    assert end.value.code == 2 and "has no thirds" in capsys.readouterr().err and not (tmp_path / "none").exists()
