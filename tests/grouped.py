"""Pretended runs by group of the forget set, RUM's plans among them, and numbers by hand from their records."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recomputed
from pretended import change, pretend

from groups import LEVELS
from utils import read_record

SEEDS = (3, 5)
SIZE = 24  # of pretended forget sets
KINDS = {"RUM^F NG": LEVELS, "shuffle NG": LEVELS, "vanilla NG": ("all",)}


def grouped(folder: Path, score: str, **asked: Any) -> Path:
    """Make a pretended run one whose forget set was cut by scores, into random thirds by its seed and score.

    Args:
        asked: mem, group_index; the split_key of a proxy differs by seed.
    """
    run = read_record(folder)
    seed, name = run.setting("seed"), asked.get("mem")
    settings = run.record["settings"] | {"forget": run.record["settings"]["forget"] | {
        "num_indexes_to_replace": SIZE, "mem_proxy": None if score == "memorization" else score, **asked}}
    index = np.random.default_rng([seed, *score.encode()]).permutation(SIZE)
    parts = {level: np.sort(part) for level, part in zip(LEVELS, np.split(index, 3), strict=True)}
    if name in LEVELS or asked.get("group_index", -1) >= 0:
        parts = {str(name or asked["group_index"]): np.arange(SIZE)}
    np.savez(folder / "splits.npz", forget=np.arange(SIZE), **{f"group_{level}": part for level, part in parts.items()})
    kind = name or asked.get("group_index")
    split = run.record["split_key"] if kind is None else f"{kind} {score}" + ("" if score == "memorization" else f" {seed}")
    change(folder, settings=settings, groups={level: len(part) for level, part in parts.items()}, split_key=split,
           scores={"name": score, "path": "scores.npz", "sha256": f"file of {score} {seed}", "seconds": 7.5 + seed})
    return folder


def planned(folder: Path, name: str, groups: Iterable[str] = LEVELS, **changed: Any) -> Path:
    """Make a pretended run one of main_rum.py; its steps have the method and settings of the pretended one."""
    run, root = read_record(folder), folder.parent.parent
    step = {"method": run.setting("unlearn"), "cfg": run.record["settings"]["cfg"], "density": None}
    plan = {"name": name, "steps": [{"group": group, **step} for group in groups], "shuffle": name.startswith("shuffle")}
    request = {"number": changed.get("number", 0), "parts": {}, "earlier": ""}
    change(folder, plan=plan | changed.get("plan", {}), request=request)
    if "requests" in changed:
        record = read_record(folder).record
        change(folder, settings=record["settings"] | {"plan": {"requests": changed["requests"]}})
    target = root / "rum" / f"{folder.name}-{name.replace(' ', '-')}"
    target.parent.mkdir(exist_ok=True)
    return folder.rename(target)


def levels_and_plans(library: Path, root: Path) -> Path:
    """Two seeds: low, mid and high by confidence with two methods; the mix by two proxies with plans. Not to be changed."""
    for seed in SEEDS:
        for level in LEVELS:
            for method in ("retrain", "FT", "NG"):
                grouped(pretend(library, root, method, seed, name=f"-{level}"), "confidence", mem=level)
        for score in ("confidence", "entropy"):
            for method in ("retrain", "FT"):
                grouped(pretend(library, root, method, seed, name=f"-mix-{score}"), "confidence" if score == "confidence"
                        else "entropy", mem="mix")
            for name, groups in KINDS.items():
                folder = grouped(pretend(library, root, "NG", seed, name=f"-{score}-{name.split()[0]}"), score, mem="mix")
                planned(folder, name, groups)
    return root


def share_tow(run: Path, retrain: Path, mia_instead: bool = False) -> float:
    """ToW from the metrics in two records, by hand."""
    a, b = (read_record(folder).record["metrics"] for folder in (run, retrain))
    product = 1.0
    for part in ("MIA" if mia_instead else "forget", "retain", "test"):
        product *= 1 - abs(a[part] - b[part]) / 100
    return product


def equals(number: tuple[float, tuple[float, float] | None, int], values: list[float], top: float = 100.0, low: float = 0.0
           ) -> bool:
    """Whether a number is the mean of values over seeds with its interval; top: 1 of ToW, 100 of percent, inf of seconds."""
    ends = pytest.approx(recomputed.interval(values, low, top), abs=1e-9)
    return number[0] == pytest.approx(np.mean(values)) and number[1] == ends and number[2] == len(values)


def csv_lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
