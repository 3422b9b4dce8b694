"""Plans of main_rum.py through the command line: one call, its run, steps, sets and weights, and two of them held equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from torch import Tensor

from utils import Saved, find_runs, read_record

MIX = ["--mem", "mix", "--num_indexes_to_replace", 30]


def forget(scored: tuple[Saved, Path], save_dir: Path, *words: Any, chosen: list[Any] | None = None) -> Saved:
    """One plan from the original, and its run: the newest of the folder."""
    by = MIX if chosen is None else chosen
    shell.call("main_rum.py", "--checkpoint", scored[0].folder, *(["--scores", scored[1]] if by is MIX else []), *by, *words,
               "--resume_every", 0, save_dir=save_dir)
    return max(find_runs(save_dir, ("rum",)), key=lambda run: (run.folder / "record.json").stat().st_mtime_ns)


def steps_of(run: Saved) -> list[Saved]:
    return [read_record(Path(row["run"])) for row in run.record["rows"]]


def assert_seconds_of_its_steps(run: Saved) -> None:
    """Also of those that were taken before, and of no other request's."""
    spent = [step.record["seconds"]["unlearn"] for step in steps_of(run)]
    assert run.record["seconds"]["unlearn"] == pytest.approx(sum(spent)) and min(spent) > 0


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def parts_of(run: Saved) -> dict[str, np.ndarray]:
    with np.load(run.folder / "splits.npz") as file:
        return {name: file[name] for name in file.files}


def assert_as_if_never_stopped(run: Saved, whole: Saved) -> None:
    assert run.folder.name == whole.folder.name and run.record["metrics"] == whole.record["metrics"]
    for ours, theirs in zip([run, *steps_of(run)], [whole, *steps_of(whole)], strict=True):
        assert ours.folder.name == theirs.folder.name and same(shell.weights(ours), shell.weights(theirs))
        assert sorted(path.name for path in ours.folder.iterdir()) == sorted(path.name for path in theirs.folder.iterdir())
    pairs = zip(run.record["rows"], whole.record["rows"], strict=True)
    assert all({**a, "run": ""} == {**b, "run": ""} for a, b in pairs)
