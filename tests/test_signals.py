"""Ctrl-C and SIGTERM end in one line that says how to go on; a screen that is closed, full or ASCII stops nobody."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import shell
import torch

import arg_parser
from utils import say
from utils.words import put

ROOT = Path(__file__).resolve().parent.parent
nowhere = pytest.fixture(autouse=True)(shell.nowhere)
# as an interactive shell starts it, however the tests themselves were started
PROGRAM = ("import signal, sys, runpy\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
           "sys.argv = sys.argv[1:]\nsys.path.insert(0, '.')\nrunpy.run_path(sys.argv[0], run_name='__main__')\n")


def start(stage: str, *words: object, save_dir: Path, **how: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", PROGRAM, stage, *shell.QUIET, "--save_dir", str(save_dir), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | how.pop("env", {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    return subprocess.Popen(line, cwd=ROOT, env=environment, text=True, start_new_session=True, **pipes)


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while process.poll() is None and not ready() and time.monotonic() < end:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_stopped_training_says_how_to_go_on_and_does(number: int, name: str, tmp_path: Path) -> None:
    """One line, the code that shells know, no half file, and the state from which the same command goes on."""
    words = [*shell.THREE, "--epochs", 10_000, "--resume_every", 0]
    process = start("main_train.py", *words, save_dir=tmp_path)
    wait_for(process, lambda: bool(list(tmp_path.glob("train/*/state.pt"))))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == f"main_train.py: stopped by {name}; the same command goes on where it was saved last\n" and not out
    (folder,) = (tmp_path / "train").iterdir()
    assert torch.load(folder / "state.pt")["epoch"] > 0 and not list(folder.glob(".*"))


def test_a_stopped_repeat_goes_on_without_force(capsys: pytest.CaptureFixture[str]) -> None:
    assert arg_parser.stopped("train", ["--force"], KeyboardInterrupt()) == (
        "stopped by Ctrl-C; the same command without --force goes on where it was saved last")
    assert arg_parser.stopped("analysis", [], KeyboardInterrupt()) == "stopped by Ctrl-C; the same command does it anew"


def test_a_stopped_pool_ends_in_one_line_with_its_processes(tmp_path: Path) -> None:
    """The terminal sends Ctrl-C to every process of the pool; none prints, none stays."""
    words = [*shell.THREE, "--models", 400, "--pool_epochs", 2, "--engine", "processes", "--pool_workers", 2]
    process = start("main_memorization.py", *words, save_dir=tmp_path)
    wait_for(process, lambda: bool(list(tmp_path.glob("pool/*/model-*.npz"))))
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "main_memorization.py: stopped by Ctrl-C; the same command goes on where it was "
                                              "saved last\n"), out
    with pytest.raises(ProcessLookupError):
        while True:  # the helper process of multiprocessing ends a moment later
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    assert not list(tmp_path.rglob("*.part"))


# ----------------------------------------------------------------------------------------------------------- the screen


@pytest.mark.parametrize("screen", ["closed pipe", "full"])
def test_a_screen_that_takes_nothing_does_not_stop_a_training(screen: str, tmp_path: Path) -> None:
    """The result goes to the disk; the code says that it did, and one line of stderr that nothing could be shown."""
    ours, theirs = os.pipe()
    os.close(ours)
    how = {"stdout": theirs if screen == "closed pipe" else open("/dev/full", "w")}  # noqa: SIM115
    process = start("main_train.py", *shell.THREE, "--epochs", 1, save_dir=tmp_path, **how)
    os.close(theirs)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err.count("\n") == 1 and "Traceback" not in err, err
    assert err.startswith("notice: nothing can be written to standard output")
    assert shell.only(tmp_path, "train").record["metrics"]


def test_help_on_a_full_screen_ends_without_a_traceback(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start("main_forget.py", "--help", save_dir=tmp_path, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err.count("\n") == 1 and "No space left" in err, err


def test_an_ascii_terminal_is_shown_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    say("scores to ±0.31, \x1b[31mred\x1b[0m, \udc80\nnext\tcell")
    assert raw.getvalue() == b"scores to \\xb10.31, \\x1b[31mred\\x1b[0m, \\udc80\nnext\tcell\n"


def test_a_stream_that_python_closed_is_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    closed = io.StringIO()
    closed.close()
    put("lost", closed)
    put("lost", None)
    assert capsys.readouterr() == ("", "")
