"""Run as a program: stages in processes that are told of one another as torchrun tells its own, forked from this one.

    python tests/launched.py JOBS.json FOLDER

Forked, they need not import torch again. As torchrun does, this process keeps the store by which they meet, and ends all by
SIGTERM once one has failed. Of each job number i the standard streams go to FOLDER/i.out and FOLDER/i.err, the exit code of
each process (minus the signal's number) to FOLDER/i.json.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

import main_train  # noqa: F401
import trainer

torch.set_num_threads(1)


def hurt(step: int, how: str) -> None:
    """Have this process be killed, or fail, at a step (from 1)."""
    real, taken = trainer.Descent._step, []

    def stopped(opt: trainer.Descent, rate: float) -> None:
        taken.append(rate)
        if len(taken) == step:
            if how == "fail":
                raise RuntimeError("planted")
            os.kill(os.getpid(), signal.SIGKILL)
        real(opt, rate)

    trainer.Descent._step = stopped


def work(rank: int, job: dict[str, Any], port: int) -> None:
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["processes"], "LOCAL_WORLD_SIZE": job["processes"],
            "MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ |= {name: str(value) for name, value in told.items()}
    if job.get("hurt", [None])[0] == rank:
        hurt(*job["hurt"][1:])
    sys.argv = [job["stage"], *job["words"]]
    importlib.import_module(job["stage"].removesuffix(".py")).main()


def forked(rank: int, job: dict[str, Any], port: int) -> int:
    """The number of a new process, which ends in here as a program of its own would."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        work(rank, job, port)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def launch(job: dict[str, Any]) -> list[int]:
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    left = {forked(rank, job, store.port): rank for rank in range(job["processes"])}
    codes = [0] * len(left)
    while left:
        number, status = os.wait()
        codes[left.pop(number)] = os.waitstatus_to_exitcode(status)
        for other in left if any(codes) else ():
            os.kill(other, signal.SIGTERM)
    return codes


def main(jobs: Path, folder: Path) -> None:
    for number, job in enumerate(json.loads(jobs.read_text())):
        for stream, ending in ((1, "out"), (2, "err")):
            file = os.open(folder / f"{number}.{ending}", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, stream)
            os.close(file)
        (folder / f"{number}.json").write_text(json.dumps(launch(job)))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
