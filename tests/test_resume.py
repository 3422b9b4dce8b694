"""Killed runs go on to bit-identical weights, half-written files are never read, and two runs at once do no harm."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import shell
import torch
from conftest import quiet_runtime

import trainer
from unlearn import Task
from utils import Saved, find_runs, read_arrays

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 3
# stage and words after those of the data or the original; {root} is the library
JOBS = {
    "train": ("main_train.py", f"--epochs {EPOCHS} --warmup 2"),
    "train sparse": ("main_train.py", f"--epochs {EPOCHS} --alpha 1e-4 --aug"),
    "retrain": ("main_forget.py", f"--unlearn retrain --unlearn_epochs {EPOCHS}"),
    "FT_prune": ("main_forget.py", f"--unlearn FT_prune --unlearn_epochs {EPOCHS} --aug"),
    "GA": ("main_forget.py", f"--unlearn GA --unlearn_epochs {EPOCHS} --bn update --batch_size 8"),
    "NG": ("main_forget.py", f"--unlearn NG --unlearn_epochs {EPOCHS} --alpha 0.8"),
    "SCRUB": ("main_forget.py", f"--unlearn SCRUB --unlearn_epochs {EPOCHS} --msteps 2"),
    "SCRUB and rewind": ("main_forget.py", f"--unlearn SCRUB --unlearn_epochs {EPOCHS} --msteps 3 --rewind"),
    "RL with a mask": ("main_random.py", f"--unlearn RL --unlearn_epochs {EPOCHS} --path {{root}}"),
    "FT_prune_bi": ("main_forget.py", f"--unlearn FT_prune_bi --unlearn_epochs {EPOCHS} --rate 0.7"),
    "RL_proximal": ("main_random.py", f"--unlearn RL_proximal --unlearn_epochs {EPOCHS}"),
    "RL_og in two passes": ("main_random.py", f"--unlearn RL_og --unlearn_epochs {EPOCHS} --rl_form sequential"),
}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shell.library(tmp_path_factory)


def command(job: str, library: Path) -> tuple[str, list[str]]:
    """Stage and words of a job, its state saved after every epoch."""
    stage, line = JOBS[job]
    original = ["--checkpoint", str(shell.only(library, "train").folder), *shell.FORGET]
    words = line.format(root=library).split()
    return stage, [*(shell.THREE if stage == "main_train.py" else original), "--resume_every", "0", *words]


def finished(stage: str, save_dir: Path) -> Saved:
    return shell.only(save_dir, "train" if stage == "main_train.py" else "forget")


def run_whole(stage: str, words: list[str], save_dir: Path) -> Saved:
    shell.call(stage, *words, save_dir=save_dir)
    return finished(stage, save_dir)


def assert_same(a: Saved, b: Saved) -> None:
    """Two runs of the same settings have the same folder name, weights, log, metrics and logits, bit for bit."""
    assert a.folder.name == b.folder.name
    ours, theirs = shell.weights(a), shell.weights(b)
    assert list(ours) == list(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    rows = [[json.loads(row) for row in (run.folder / "log.jsonl").read_text().splitlines()] for run in (a, b)]
    assert rows[0] == rows[1]
    assert a.record["metrics"] == b.record["metrics"]
    assert sorted(path.name for path in a.folder.iterdir()) == sorted(path.name for path in b.folder.iterdir())
    if (a.folder / "outputs.npz").exists():
        outputs, others = (read_arrays(run.folder / "outputs.npz", {}) for run in (a, b))
        assert all(np.array_equal(outputs[name], others[name]) for name in outputs)


# --------------------------------------------------------------------------------- stopped anywhere, in this process


@pytest.mark.parametrize("job", JOBS)
def test_a_run_stopped_at_random_steps_ends_as_if_never_stopped(job: str, library: Path, tmp_path: Path) -> None:
    """Three stops, each at a random step of what is left, as far as that comes."""
    stage, words = command(job, library)
    with pytest.MonkeyPatch.context() as patch:
        taken = shell.interrupt_step(patch, trainer.Descent, 0)
        whole = run_whole(stage, words, tmp_path / "whole")
    draw, stops = random.Random(zlib.crc32(job.encode())), 0
    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch:
            shell.interrupt_step(patch, trainer.Descent, draw.randint(1, max(2, 2 * len(taken) // 3)))
            try:
                shell.call(stage, *words, save_dir=tmp_path / "cut")
            except KeyboardInterrupt:
                stops += 1
            else:
                break
    assert stops
    assert_same(run_whole(stage, words, tmp_path / "cut"), whole)


def test_resuming_does_not_start_anew(library: Path, tmp_path: Path) -> None:
    """Stopped in the last epoch, a run has only that epoch to do."""
    stage, words = command("NG", library)
    with pytest.MonkeyPatch.context() as patch:
        taken = shell.interrupt_step(patch, trainer.Descent, 0)
        run_whole(stage, words, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        shell.interrupt_step(patch, trainer.Descent, len(taken))
        shell.call(stage, *words, save_dir=tmp_path / "cut")
    (folder,) = (tmp_path / "cut" / "forget").iterdir()
    spent = torch.load(folder / "state.pt", weights_only=True)["seconds"]["unlearn"]
    with pytest.MonkeyPatch.context() as patch:
        left = shell.interrupt_step(patch, trainer.Descent, 0)
        run = run_whole(stage, words, tmp_path / "cut")
    assert len(left) == len(taken) // EPOCHS
    assert run.record["seconds"]["unlearn"] > spent > 0
    assert run.record["images_read"] == shell.only(tmp_path / "whole", "forget").record["images_read"]


def test_rewinding_reaches_epochs_from_before_the_stop(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With errors that make the first epoch the one to go back to, and a stop in the last one."""
    calls = itertools.count(1)
    monkeypatch.setattr(Task, "error", lambda task, part, shares=None: 0.0 if part == "val" else float(next(calls)))
    stage, words = command("SCRUB and rewind", library)
    with pytest.MonkeyPatch.context() as patch:
        taken = shell.interrupt_step(patch, trainer.Descent, 0)
        whole = run_whole(stage, words, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        shell.interrupt_step(patch, trainer.Descent, len(taken))
        shell.call(stage, *words, save_dir=tmp_path / "cut")
    assert_same(run_whole(stage, words, tmp_path / "cut"), whole)
    assert json.loads((whole.folder / "log.jsonl").read_text().splitlines()[-1])["rewound_to"] == 0


def test_a_run_stopped_at_any_of_its_file_writes_ends_as_if_never_stopped(library: Path, tmp_path: Path) -> None:
    """Stopped just before a file gets its name, for every file; what dead writers left is not read, and goes."""
    stage, words = command("GA", library)
    words = [*words, "--unlearn_epochs", "2"]
    real, written = os.replace, []

    def replace(part: Path, path: Path) -> None:
        written.append(Path(path).name)
        if len(written) == stop:
            raise KeyboardInterrupt
        real(part, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        stop = 0
        whole = run_whole(stage, words, tmp_path / "whole")
        names = list(written)
        assert names == ["record.json", "state.pt", "outputs.npz", "model.pt", "splits.npz", "record.json"]
        for stop in range(1, len(names) + 1):
            written.clear()
            with pytest.raises(KeyboardInterrupt):
                shell.call(stage, *words, save_dir=tmp_path / f"cut{stop}")
            assert not list((tmp_path / f"cut{stop}").rglob("*.part"))
    for stop, name in enumerate(names, 1):
        folder = tmp_path / f"cut{stop}" / "forget" / whole.folder.name
        folder.mkdir(parents=True, exist_ok=True)  # one that nothing was written to is gone
        (folder / f".{name}.123.part").write_bytes(b"half a file")
    for stop in range(1, len(names) + 1):
        assert_same(run_whole(stage, words, tmp_path / f"cut{stop}"), whole)


def test_streams_asked_for_after_resuming_stand_where_they_stood() -> None:
    """Also those that are asked for only after another stop."""
    first = quiet_runtime()
    drawn = {name: torch.rand(3, generator=first.generator(name)) for name in ("early", "late", "last")}
    states = {name: state.clone() for name, state in first.streams().items()}
    wanted = {name: torch.rand(3, generator=stream) for name, stream in first._streams.items()}
    second, third = quiet_runtime(), quiet_runtime()
    streams = {"early": second.generator("early")}
    second.restore_streams(states)
    streams["late"] = second.generator("late")
    third.restore_streams(second.streams())
    streams["last"] = third.generator("last")
    for name, stream in streams.items():
        assert torch.equal(torch.rand(3, generator=stream), wanted[name]) and not torch.equal(drawn[name], wanted[name])


# ------------------------------------------------------------------------------------------------- real kills, slowly


def start(program: list[str], words: list[str], save_dir: Path) -> subprocess.Popen[str]:
    """A stage in a process of its own, on one thread as the tests."""
    line = [sys.executable, *program, *shell.QUIET, "--save_dir", str(save_dir), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(line, cwd=save_dir.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)


def kill_after(process: subprocess.Popen[str], save_dir: Path, rows: int, seconds: float) -> bool:
    """Kill -9 so long after the run's log has so many rows; False where it was faster and has ended well."""
    while process.poll() is None and sum(
            len(log.read_text().splitlines()) for log in save_dir.glob("*/*/log.jsonl")) < rows:
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    said = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), said
    return process.returncode != 0


@pytest.mark.parametrize("job", ["train", "SCRUB and rewind"])
def test_a_process_killed_at_a_random_moment_resumes_bit_identically(job: str, library: Path, tmp_path: Path) -> None:
    stage, words = command(job, library)
    words = [*words, "--epochs" if job == "train" else "--unlearn_epochs", "6"]
    save_dir, draw = tmp_path / "cut", random.Random()
    program = [str(ROOT / stage)]
    while not kill_after(start(program, words, save_dir), save_dir, draw.randint(1, 3), draw.uniform(0, 0.1)):
        shutil.rmtree(save_dir)
    assert not find_runs(save_dir, ("train", "forget"))
    assert_same(run_whole(stage, words, save_dir), run_whole(stage, words, tmp_path / "whole"))


KILLED_WHILE_WRITING = """
import os, signal, sys, utils.files, main_random
real, states = utils.files.write_atomic, []
def write_atomic(path, write, *flag):
    def half(file):
        write(file)
        file.flush()
        file.truncate(file.tell() // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    states.append(path.name == "state.pt")
    real(path, half if path.name == "state.pt" and sum(states) == 2 else write, *flag)
utils.files.write_atomic = write_atomic
main_random.main(sys.argv[1:])
"""


def test_a_process_killed_in_the_middle_of_a_write_leaves_no_file_that_is_read(library: Path, tmp_path: Path) -> None:
    """The second state is half on the disk when the process dies; the first one is what the next run goes on from."""
    stage, words = command("RL with a mask", library)
    save_dir = tmp_path / "cut"
    process = start(["-c", KILLED_WHILE_WRITING], words, save_dir)
    said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    (folder,) = (save_dir / "forget").iterdir()
    (part,) = folder.glob(".state.pt.*.part")
    with pytest.raises(Exception, match="zip|archive"):
        torch.load(part, weights_only=True)
    assert torch.load(folder / "state.pt", weights_only=True)["epoch"] == 1
    assert_same(run_whole(stage, words, save_dir), run_whole(stage, words, tmp_path / "whole"))
    assert not part.exists()


def test_two_processes_on_the_same_settings_make_one_run(library: Path, tmp_path: Path) -> None:
    stage, words = command("train", library)
    save_dir = tmp_path / "both"
    processes = [start([str(ROOT / stage)], words, save_dir) for _ in range(2)]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sorted("already done" in out for out, _ in said) == [False, True]
    assert_same(finished(stage, save_dir), run_whole(stage, words, tmp_path / "whole"))


def test_a_second_process_says_that_it_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While another holds the folder, a run says so and begins when it is free; here the other gave up."""
    words = [*shell.THREE, "--epochs", "1"]
    hold = ("import os, sys, time, pathlib\n"
            "from utils.folders import FolderLock\n"
            "os.makedirs(sys.argv[1])\n"
            "lock = FolderLock(pathlib.Path(sys.argv[1]))\n"
            "lock.acquire(None)\n"
            "print('held', flush=True)\n"
            "time.sleep(0.5)\n")
    name = run_whole("main_train.py", words, tmp_path / "whole").folder.name
    folder = tmp_path / "held" / "train" / name
    with subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "held\n"
        capsys.readouterr()
        begun = time.monotonic()
        run_whole("main_train.py", words, tmp_path / "held")
    assert f"waiting for the process that works in {folder}" in capsys.readouterr().out
    assert time.monotonic() - begun > 0.4
