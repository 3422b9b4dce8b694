"""main_train.py by two processes of torchrun and gloo: the run of one process, its one folder, and its one message.

That the arithmetic is that of the whole batch, test_ranks.py shows in float64.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch

import processes
import stages
from memorization import factory
from utils import Ranks, Saved

ROOT = Path(__file__).resolve().parent.parent
# 216 images in batches of 71, the last of which has 3; at a rate where rounding stays small, but for a ReLU that it may switch
WORDS = [*shell.THREE[:-2], "--batch_size", "71", "--train_per_class", "80", "--epochs", "3", "--lr", "0.001",
         "--resume_every", "0"]
STEPS = 4  # in an epoch


@dataclass
class Job:
    """codes: of each process. out, err: what all of them said."""

    codes: list[int]
    out: str
    err: str


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchrun")


@pytest.fixture(scope="module")
def jobs(root: Path) -> dict[str, Job]:
    """What became of each start, one after another in one process."""
    def start(place: str, *words: str, **more: Any) -> dict[str, Any]:
        line = [*WORDS, *shell.QUIET, "--data", str(root), "--save_dir", str(root / place), *words]
        return {"processes": 2, "stage": "main_train.py", "words": line, **more}

    shell.write_digits(root)
    asked = {"whole": start("two"), "done": start("two"),
             "second killed": start("cut", hurt=(1, STEPS + 2, "kill")),
             "first killed": start("cut", hurt=(0, STEPS + 1, "kill")), "goes on": start("cut"),
             "second fails": start("failed", hurt=(1, STEPS + 2, "fail")), "diverges": start("none", "--lr", "1e30")}
    (root / "jobs.json").write_text(json.dumps(list(asked.values())))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen([sys.executable, str(ROOT / "tests" / "launched.py"), str(root / "jobs.json"), str(root)],
                               env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, told = process.communicate(timeout=100)
    finally:
        if process.poll() is None:  # processes that wait for one another would do so for ever
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, told
    return {name: Job(json.loads((root / f"{at}.json").read_text()), (root / f"{at}.out").read_text(),
                      (root / f"{at}.err").read_text()) for at, name in enumerate(asked)}


@pytest.fixture(scope="module")
def two(jobs: dict[str, Job], root: Path) -> Saved:
    assert jobs["whole"].codes == [0, 0], jobs["whole"].err
    return shell.only(root / "two", "train")


@pytest.fixture(scope="module")
def one(root: Path, jobs: dict[str, Job]) -> Saved:
    shell.call("main_train.py", *WORDS, "--data", root, save_dir=root / "one")
    return shell.only(root / "one", "train")


def test_two_processes_make_the_run_of_one(one: Saved, two: Saved) -> None:
    """Weights, losses, metrics and learning events, and the name of the folder."""
    assert one.folder.name == two.folder.name
    ours, theirs = shell.weights(one), shell.weights(two)
    for name, value in ours.items():
        assert torch.allclose(theirs[name].double(), value.double(), rtol=1e-4, atol=1e-4), name
    events, others = (dict(np.load(run.folder / "events.npz")) for run in (one, two))
    for name, value in events.items():
        same = np.allclose(others[name], value, rtol=1e-4, atol=1e-5, equal_nan=True) if value.dtype.kind == "f" else (
            np.array_equal(others[name], value))
        assert same, name
    rows, again = ([json.loads(row) for row in (run.folder / "log.jsonl").read_text().splitlines()] for run in (one, two))
    assert len(again) == 3 and [row["loss"] for row in again] == pytest.approx([row["loss"] for row in rows], rel=1e-4)


def test_records_differ_in_what_they_say_of_the_processes_alone(one: Saved, two: Saved) -> None:
    timed = ("started", "finished", "seconds", "peak_memory_mib")
    a, b = ({name: value for name, value in run.record.items() if name not in timed} for run in (one, two))
    for record in (a, b):
        del record["outputs"]["weights"]  # whose last digits are not the same
    assert {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)} == {"device", "processes"}
    assert two.record["processes"] == 2 and two.record["device"] == f"2 x {one.record['device']}"
    assert two.record["images_read"]["train"] == 3 * 216


def test_the_first_process_alone_speaks_and_writes(jobs: dict[str, Job], two: Saved, root: Path) -> None:
    told = jobs["whole"].out.splitlines()
    assert len(told) == 2 and told[0].startswith("notice: ") and told[1].startswith(str(two.folder))
    assert not jobs["whole"].err
    assert sorted(path.name for path in two.folder.iterdir()) == [
        "events.npz", "log.jsonl", "model.pt", "outputs.npz", "record.json"]


def test_a_finished_run_is_found_by_any_number_of_processes(
        jobs: dict[str, Job], two: Saved, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs["done"].codes == [0, 0] and jobs["done"].out.count("already done") == 1
    capsys.readouterr()
    shell.call("main_train.py", *WORDS, "--data", root, save_dir=root / "two")
    assert "already done" in capsys.readouterr().out


def test_killed_processes_go_on_bit_for_bit(jobs: dict[str, Job], two: Saved, root: Path) -> None:
    """First the second one is killed, then the first; each time all end, and the next start goes on from the last epoch."""
    assert jobs["second killed"].codes[1] == jobs["first killed"].codes[0] == -9
    for name in ("second killed", "first killed"):  # the other one tells, by which way it ever learns of it
        assert re.fullmatch("main_train.py: .*; the same command goes on where it was saved last\n", jobs[name].err), jobs[name]
    assert jobs["goes on"].codes == [0, 0], jobs["goes on"].err
    run = shell.only(root / "cut", "train")
    ours, theirs = shell.weights(run), shell.weights(two)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (run.folder / "log.jsonl").read_text() == (two.folder / "log.jsonl").read_text()
    events, others = (np.load(found.folder / "events.npz") for found in (run, two))
    assert all(np.array_equal(events[name], others[name], equal_nan=events[name].dtype.kind == "f") for name in events.files)
    assert run.record["images_read"] == two.record["images_read"]


def test_a_process_that_fails_ends_all_with_one_message_and_the_state_stays(jobs: dict[str, Job], root: Path) -> None:
    job = jobs["second fails"]
    assert 0 not in job.codes and job.err.count("RuntimeError: planted") == 1, job
    assert "stopped by" not in job.err and "Lost" not in job.err and job.out.count("\n") == 1
    (folder,) = (root / "failed" / "train").iterdir()
    assert torch.load(folder / "state.pt", weights_only=True)["epoch"] == 1
    assert json.loads((folder / "record.json").read_text())["status"] != "done" and not list(folder.glob("*.part"))


def test_a_training_that_diverges_is_told_once_and_leaves_nothing(jobs: dict[str, Job], root: Path) -> None:
    job = jobs["diverges"]
    assert job.codes[0] == 2 and job.err.count("the loss became") == 1 and "Traceback" not in job.err, job
    assert not list((root / "none").rglob("*.*"))


# ------------------------------------------------------------------------------------------------- in this process


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of the second of two processes."""
    for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
                           ("1", "2", "1", "2", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize("stage", [stage for stage in stages.STAGES if stage not in processes.TOGETHER])
def test_other_stages_refuse_several_processes(stage: str, started: pytest.MonkeyPatch, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, of the first process; it stands ahead of all else that may be wrong with the command."""
    name = stages.STAGES[stage][0]
    for rank in (1, 0):
        started.setenv("RANK", str(rank))
        with pytest.raises(SystemExit) as end:
            shell.STAGES[name].main(["--nonsense"])
        assert end.value.code == 2
        said = capsys.readouterr()
        assert not said.out and (not said.err if rank else re.fullmatch(f"{name}: error: torchrun started 2 .*\n", said.err))


@pytest.mark.parametrize("words", [["--compile", "default"], ["--nonsense"], ["--help"]], ids=lambda words: words[0])
def test_what_is_wrong_before_they_meet_is_told_by_the_first(words: list[str], started: pytest.MonkeyPatch,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    def said(rank: int) -> str:
        started.setenv("RANK", str(rank))
        with pytest.raises(SystemExit) as end:
            shell.STAGES["main_train.py"].main([*shell.THREE, *words])
        assert end.value.code == (0 if words == ["--help"] else 2)
        return "".join(capsys.readouterr())

    assert said(0) and not said(1)


def test_a_pool_and_its_processes_know_nothing_of_torchrun(started: pytest.MonkeyPatch) -> None:
    """What starts a pool from Python, under a launcher of its own: each process computes alone, on its card."""
    started.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert factory._places(4, 2) == [{"CUDA_VISIBLE_DEVICES": card} for card in ("4", "5", "4", "5")]
    assert Ranks().size == 1
