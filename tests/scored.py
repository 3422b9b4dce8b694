"""Scores of the three digits' training images, in files and in runs, an original beside them, and the cut by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
from conftest import quiet_runtime

import dataset
from dataset import DataConfig
from groups import Candidates
from stages import ScoreConfig
from utils import Run, RunConfig, Saved


def tied(random: np.random.Generator, count: int) -> np.ndarray:
    """Scores as memorization has them: most are exactly 0, a few negative, the rest between 0 and 1, many of them equal."""
    values = np.where(random.random(count) < 0.6, 0.0, random.random(count).round(1))
    return np.where(random.random(count) < 0.1, -random.random(count).round(2), values)


def places(total: int, seed: int = 1) -> list[int]:
    """The place of each training image in the order in which equal scores are taken."""
    return np.random.RandomState([seed, 0x74696573]).permutation(total).tolist()


def by_hand(values: np.ndarray, index: np.ndarray, size: int | tuple[int, int, int], middle: float,
            place: list[int]) -> dict[str, list[int]]:
    """Low, mid and high by sorting (key, place, index), each from what is left; size: of each, or of low, mid and high."""
    left = dict(zip(index.tolist(), values.tolist(), strict=True))
    low, mid, high = size if isinstance(size, tuple) else (size,) * 3
    found = {}
    for level, number, key in (("high", high, lambda v: -v), ("low", low, lambda v: v),
                               ("mid", mid, lambda v: abs(v - middle))):
        chosen = [i for *_, i in sorted((key(value), place[i], i) for i, value in left.items())[:number]]
        found[level] = sorted(chosen)
        left = {i: value for i, value in left.items() if i not in chosen}
    return found


def write_chunks(path: Path, among: Candidates, random: np.random.Generator, count: int = 15,
                 **changed: np.ndarray) -> dict[str, np.ndarray]:
    """A file of chunks as main_memorization.py --score es writes it, with values of our own."""
    group = np.full(len(among.y), -1)
    group[among.train] = random.permutation(np.arange(len(among.train)) % count)
    measured = random.permutation(count) + 0.25
    order = np.argsort(measured)
    content = {"es": np.where(group < 0, np.nan, measured[group]), "group": group, "chunk_es": measured,
               "distance": random.random(len(group)).round(1), "levels": order[[0, count // 2, -1]]}
    np.savez(path, **(content | changed))
    return content


def digits() -> dataset.Data:
    return dataset.load(DataConfig(dataset="digits", classes="0-2", batch_size=64), quiet_runtime())


def write_scores(path: Path, seed: int, **changed: np.ndarray | None) -> Path:
    """Memorization and two proxies of the three digits' training images, unrelated to one another, many of them equal."""
    data, random = digits(), np.random.default_rng(seed)
    y = data.candidates.y
    content = {name: tied(random, len(y)) for name in ("memorization", "confidence", "entropy")}
    content |= {name: np.abs(content[name]) for name in ("confidence", "entropy")}
    content |= {"labels": y, "images_key": np.array(data.splits.images_key), **changed}
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return path


def scored_original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Saved, Path]:
    """An original of three digits that has learned some, and a file of scores: one for all modules of a process."""
    root = tmp_path_factory.getbasetemp() / "scored"
    if not (root / "train").exists():
        shell.train(root, 1, "--epochs", 2)
        write_scores(root / "scores.npz", 11)
    return shell.only(root, "train"), root / "scores.npz"


def memorization_run(root: Path, label: str, scores: np.ndarray, pool_of: str, models: int, classes: str = "0-2",
                     **more: Any) -> Path:
    """A finished run of main_memorization.py with scores of our own; more: of the data's settings."""
    settings = {"data": DataConfig(dataset="digits", classes=classes, **more), "choice": ScoreConfig()}
    with Run(RunConfig(save_dir=str(root)), "memorization", label, settings, parent={}) as run:
        run.save_arrays("scores.npz", memorization=scores)
        run.result(pool=pool_of, models=models)
        run.seconds |= {"score": 1.0, "pool": 40.0}
    return run.folder
