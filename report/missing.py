"""Retrains that are missing: which runs wait for each, and the command that makes it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataset import DataConfig
from models import locate
from report.settings import pairing
from utils import BadInput, RuntimeConfig, Saved, flag_words, program

LISTED = 3  # runs that are named where many are left out
HASH = 12  # letters of a hash that are told
MACHINE = ("device", "precision", "compile", "deterministic")  # of the original's training, which a retrain repeats


def missing(runs: list[Saved], damaged: list[Saved], save_dir: str) -> list[str]:
    """A line for each retrain that is missing, with the command that makes it.

    Args:
        runs: those that have none. damaged: retrains that cannot be used, since a file of theirs is lost.
    """
    waiting: dict[str, list[Saved]] = {}
    for run in runs:
        waiting.setdefault(pairing(run), []).append(run)
    spoiled = {pairing(run): run for run in damaged}
    return [f"note: without a retrain to compare with, and left out: {listed(there)}; "
            f"{_first(there[0], spoiled.get(key), save_dir)}make it: {retrain_command(there[0], save_dir)}"
            for key, there in waiting.items()]


def _first(run: Saved, damaged: Saved | None, save_dir: str) -> str:
    """What has to be done before the retrain can be made."""
    parent, steps = run.record["parent"], ""
    if locate(parent, Path(save_dir)) is None:
        steps = (f"its original (sha256 {parent['sha256'][:HASH]}...) is neither at {parent['path']} nor under {save_dir}: "
                 "bring it back there, then ")
    return steps + (f"remove {damaged.folder}, which is damaged, then " if damaged is not None else "")


def retrain_command(run: Saved, save_dir: str) -> str:
    """The command line that makes a run's retrain, to be pasted into a shell where this program was called."""
    parent, settings = run.record["parent"], run.record["settings"]
    found = locate(parent, Path(save_dir)) or Path(parent["path"])
    words = [*program("main_forget.py"), "--unlearn", "retrain", "--checkpoint", str(found),
             "--forget_index", str(run.folder / "splits.npz"), "--seed", str(run.setting("seed")), "--save_dir", save_dir]
    if parent["training"] is None:  # a published file has no record to take these from
        for name, value in {**settings["protocol"], **settings["data"], **settings["model"]}.items():
            words += flag_words(name, value)
    elif run.setting("data") != DataConfig().data:  # where this run found the images, which may have moved since
        words += flag_words("data", run.setting("data"))
    return shlex.join([*words, *_machine(parent)])


def _machine(parent: Mapping[str, Any]) -> list[str]:
    """Flags without which the retrain would be computed otherwise than its original was, on this machine."""
    with contextlib.suppress(BadInput):
        here = RuntimeConfig().unmeasured()
        setup = parent.get("setup") or {}
        return [word for name in MACHINE if name in setup and setup[name] != getattr(here, name)
                for word in flag_words(name, setup[name])]
    return []


def listed(runs: list[Saved], told: str = "") -> str:
    """The first folders of some runs, each with a field of its record."""
    shown = [f"{run.folder}{f' ({run.record[told]})' if told else ''}" for run in runs[:LISTED]]
    return ", ".join(shown) + (f" and {len(runs) - LISTED} more" if len(runs) > LISTED else "")
