"""Models per hour of the pool's engines, on random images of CIFAR's shape: what is measured does not look at them.

Each side trains a few models of a few steps and evaluates them; a process's start is not counted, since a real pool pays
it once in hours. Ratios are to one model after another on one thread, of the same round. On a machine that is not idle,
processor seconds say more.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import dataset
from dataset import DataConfig
from memorization import engines, factory
from memorization.factory import Pool, PoolConfig
from models import ModelConfig
from utils import Runtime

ARCHS = ("resnet8s", "resnet20s")
WORKERS, STACKED = 2, 4


def bench(rt: Runtime, args: argparse.Namespace) -> list[tuple[str, dict[str, float]]]:
    """A row for each architecture and engine: models per hour (median of the rounds) and the ratio to the plain way."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        write_images(Path(place) / "cifar10.npz")
        config = DataConfig(dataset="cifar10", data=place, download=False)
        data = dataset.load(config, rt)
        for arch in ARCHS:
            cfg = PoolConfig(models=96, fraction=0.8, pool_epochs=1, pool_batch=64)
            pool = Pool(Path(place), cfg, data, ModelConfig(arch=arch), rt, config)
            pool.folder.mkdir(parents=True)
            sides = sides_of(pool, args.threads)
            seen: dict[str, list[Seen]] = {name: [] for name in sides}
            for _, (name, side) in itertools.product(range(min(args.rounds, 3)), sides.items()):
                seen[name].append(side())
            plain = seen["one after another, 1 thread"]
            for name, rates in seen.items():
                ratio = statistics.median(ours.rate / base.rate for ours, base in zip(rates, plain, strict=True))
                found = {"models per hour": 3600 * statistics.median(one.rate for one in rates), "ratio": ratio,
                         "cpu s per model": statistics.median(one.cpu for one in rates)}
                rows.append((f"pool {arch}, {name}", found))
    return rows


def write_images(path: Path, train: int = 400, test: int = 80) -> None:
    random = np.random.default_rng(0)
    x, x_test = (random.integers(0, 256, (count, 32, 32, 3), np.uint8) for count in (train, test))
    y, y_test = (np.arange(count) % 10 for count in (train, test))
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)


def sides_of(pool: Pool, threads: int) -> dict[str, Callable[[], Seen]]:
    """Name -> what trains some models and says how many it made a second."""
    numbers = itertools.cycle(range(0, 64, 8))

    def some(count: int) -> list[int]:
        first = next(numbers)
        return list(range(first, first + count))

    def here(start: Callable[[], Iterator[Any]], count: int, threads: int) -> Seen:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return rate(start(), count, 0)
        finally:
            torch.set_num_threads(before)

    return {
        "one after another, 1 thread": lambda: here(lambda: engines.serial(pool.setup, pool.subset, some(4)), 4, 1),
        f"one after another, {threads} threads": lambda: here(
            lambda: engines.serial(pool.setup, pool.subset, some(4)), 4, threads),
        f"{STACKED} at once, 1 thread": lambda: here(
            lambda: engines.stacked(pool.setup, pool.subset, some(STACKED), STACKED), STACKED, 1),
        f"{WORKERS} processes": lambda: rate(factory._spread(pool, some(20), WORKERS, 0), 20, WORKERS),
    }


class Seen(NamedTuple):
    """Models a second, and processor seconds a model, which a busy machine moves less."""

    rate: float
    cpu: float


def rate(done: Iterator[Any], count: int, skip: int) -> Seen:
    """Of ``count`` models, with the first ``skip`` of them and the start of processes left out."""
    spent: dict[int, float] = {}
    start, before = time.perf_counter(), processor(spent)
    for place, _ in enumerate(done, 1):
        now = processor(spent)  # while those that have just answered are still there to be asked
        if place == skip:
            start, before = time.perf_counter(), now
    return Seen((count - skip) / (time.perf_counter() - start), (now - before) / (count - skip))


def processor(spent: dict[int, float]) -> float:
    """Processor seconds of this process and its children; ``spent`` remembers those that have ended."""
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        spent[child.pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return time.process_time() + sum(spent.values())
