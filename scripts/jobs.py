"""What both demos share: stages run side by side, a line for each on the screen and all that they say in a log.

    train = Job("main_train", ["--dataset", "digits"], "original")
    follow([train, Job("main_forget", ["--unlearn", "NG", ...], "NG", (train,))], Path("runs/demo"))

A process for each core, on one thread: images this small gain nothing from a second one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import multiprocessing
import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TextIO

import torch

from utils.signals import deaf_children, exit_code, terminable

LOG = "demo.log"
PATIENCE = 10.0  # seconds in which a stage that is stopped saves its state


@dataclass(frozen=True, eq=False)
class Job:
    """A stage's main and its command line; ``what`` it is to a person; the jobs that it comes ``after``."""

    stage: str
    words: Sequence[str]
    what: str
    after: tuple[Job, ...] = ()

    @property
    def command(self) -> str:
        return f"python {self.stage}.py {shlex.join(self.words)}"


def asked(about: str, out: str, argv: Sequence[str] | None) -> tuple[Path, list[int]]:
    """The folder and the seeds that a demo's command line asks for; ``out`` is the folder where none is named."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=out)
    parser.add_argument("--seeds", default="1,2,3,4,5")
    args = parser.parse_args(argv)
    return Path(args.out), [int(seed) for seed in args.seeds.split(",")]


def follow(todo: Sequence[Job], out: Path, workers: int | None = None) -> None:
    """Run all jobs, each once those that it comes after are done, and tell of each that it is.

    A job that fails ends all, with what it said last and its command; so does Ctrl-C. Finished runs stay, and the same jobs
    go on from them: those that were done before are only counted.

    Args:
        out: folder of the log, ``demo.log``, with every command and what it said.
        workers: processes; without it, one for each core that this process may use.
    """
    out.mkdir(parents=True, exist_ok=True)
    processes: dict[Connection, Any] = {}
    with terminable(), (out / LOG).open("a", encoding="utf-8") as log:
        try:
            for _ in range(min(workers or _cores(), len(todo))):
                _start(processes)
            hand_out(todo, list(processes), log)
        except KeyboardInterrupt as stop:
            print("\nstopped; the same command goes on from what is finished", flush=True)
            raise SystemExit(exit_code(stop)) from None
        finally:
            _end(processes)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hand_out(todo: Sequence[Job], workers: Sequence[Connection], log: TextIO) -> None:
    """Send each job to whoever is free (``work``), in order, but for those that have to wait for others."""
    left, done, before = list(todo), set(), 0
    running: dict[Connection, Job] = {}
    start, total = time.perf_counter(), len(todo)
    while left or running:
        for free in [worker for worker in workers if worker not in running]:
            ready = next((job for job in left if done.issuperset(job.after)), None)
            if ready is not None:
                left.remove(ready)
                running[free] = ready
                free.send((ready.stage, list(ready.words)))
        for worker in wait(list(running)):
            job = running.pop(worker)
            code, seconds, said = _answer(worker)
            log.write(f"$ {job.command}\n{said}\n")
            log.flush()
            if code:
                sys.exit(f"{said.strip()[-2000:]}\n{job.what} ended with code {code}: {job.command}")
            done.add(job)
            if ": already done; " in said:
                before += 1
                continue
            spent = time.perf_counter() - start
            print(f"[{len(done):{len(str(total))}}/{total}] {spent:4.0f} s   {job.what}  {seconds:.1f} s", flush=True)
    if before:
        print(f"{before} of {total} were done before")


def _answer(worker: Connection) -> tuple[int, float, str]:
    try:
        return worker.recv()
    except (EOFError, ConnectionResetError):
        return 1, 0.0, "its process was killed, as it is when memory runs out"


def _start(processes: dict[Connection, Any]) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    processes[ours] = context.Process(target=work, args=(theirs,), daemon=True)
    with deaf_children():  # the parent hears Ctrl-C, and ends them
        processes[ours].start()
    theirs.close()


def _end(processes: dict[Connection, Any]) -> None:
    started = [process for process in processes.values() if process.pid is not None]
    for process in started:
        process.terminate()
    for process in started:
        process.join(PATIENCE)
        process.kill()


def work(parent: Connection) -> None:
    """Run the stages that arrive, until the parent is gone or ends this process."""
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt), terminable():
        while True:
            stage, words = parent.recv()
            start = time.perf_counter()
            code, said = _run(stage, words)
            parent.send((code, time.perf_counter() - start, said))


def _run(stage: str, words: list[str]) -> tuple[int, str]:
    """The exit code, and what was said on both streams."""
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            importlib.import_module(stage).main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
    return code, said.getvalue()
