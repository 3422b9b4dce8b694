"""Models per hour of the pool's engines, on random images of CIFAR's shape: what is measured does not look at them.

Each side trains a few models of a few steps and evaluates them, and tells seconds of one model; a process's start is not
counted, since a real pool pays it once in hours. On a machine that is not idle, processor seconds say more.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dataset
from benchmarks.harness import Case, Context, Took, row, threads
from benchmarks.inputs import make_arrays, make_model, write_arrays
from dataset import DataConfig
from memorization import engines, factory
from memorization.factory import Pool, PoolConfig
from models import ModelConfig

ARCHS = ("resnet8s", "resnet20s", "cifarnet")
WORKERS, STACKED = 2, 4
ALONE = "one after another, 1 thread"


@row("pool", "models of a pool: the engines against one after another and against a plain loop", seconds=600)
def pools(c: Context) -> Iterator[Case]:
    train, test = c.size(400, 30), c.size(80, 10)
    write_arrays(c.place, train, test)
    config = DataConfig(dataset="cifar10", data=str(c.place), download=False, any_size=True)
    data = dataset.load(config, c.rt)
    for arch in ARCHS[: c.size(len(ARCHS), 1)]:
        cfg = PoolConfig(models=96, fraction=0.8, pool_epochs=1, pool_batch=64)
        pool = Pool(c.place, cfg, data, ModelConfig(arch=arch), c.rt, config)
        pool.folder.mkdir(parents=True, exist_ok=True)
        yield Case(f"pool {arch}", sides_of(pool, c), base=ALONE, work=3600, unit="models/h", in_process=False)
        yield Case(f"model of a pool {arch}, one thread", {
            "ours": lambda p=pool, c=c: in_turn(p, c, 1, 1), "plain": lambda p=pool, a=arch: plain_model(p, c, a, train, test)},
            work=3600, unit="models/h", in_process=False, threads=1)


def sides_of(pool: Pool, c: Context) -> dict[str, Callable]:
    """Name -> what trains some models and says what one took."""
    some = 4 if not c.quick else 1
    return {
        ALONE: lambda: in_turn(pool, c, some, 1),
        f"one after another, {c.threads} threads": lambda: in_turn(pool, c, some, c.threads),
        f"{STACKED} at once, 1 thread": lambda: lambda: here(
            c, lambda: engines.stacked(pool.setup, pool.subset, numbers(STACKED), STACKED), STACKED, 1),
        f"{WORKERS} processes": lambda: lambda: rate(
            factory._spread(pool, numbers(5 * some * WORKERS // 2), WORKERS, torch.cuda.device_count() if c.rt.cuda else 0),
            5 * some * WORKERS // 2, WORKERS),
    }


FIRST = itertools.cycle(range(0, 64, 8))  # models that no side has trained yet, as long as there are any


def numbers(count: int) -> list[int]:
    first = next(FIRST)
    return list(range(first, first + count))


def in_turn(pool: Pool, c: Context, count: int, on: int) -> Callable[[], Took]:
    return lambda: here(c, lambda: engines.serial(pool.setup, pool.subset, numbers(count)), count, on)


def here(c: Context, start: Callable[[], Iterator[Any]], count: int, on: int) -> Took:
    with threads(on):
        took = rate(start(), count, 0)
        c.rt.drain()
        return took


def plain_model(pool: Pool, c: Context, arch: str, train: int, test: int) -> Callable[[], Took]:
    """The same number of images in the same batches, by the plain loader and loop."""
    from benchmarks import plain

    x, y, *tests = make_arrays(train, test)
    cfg = pool.cfg

    def run() -> Took:
        start, before = time.perf_counter(), time.process_time()
        model, subset = make_model(c.rt, arch, channels_last=False), np.sort(pool.subset(numbers(1)[0]))
        plain.one_of_a_pool(model, x, y, tuple(tests), subset, cfg.pool_epochs, cfg.pool_batch)
        return Took(time.perf_counter() - start, time.process_time() - before)

    return run


def rate(done: Iterator[Any], count: int, skip: int) -> Took:
    """Seconds of one of ``count`` models, with the first ``skip`` of them and the start of processes left out."""
    spent: dict[int, float] = {}
    start, before = time.perf_counter(), processor(spent)
    for place, _ in enumerate(done, 1):
        now = processor(spent)  # while those that have just answered are still there to be asked
        if place == skip:
            start, before = time.perf_counter(), now
    return Took((time.perf_counter() - start) / (count - skip), (now - before) / (count - skip))


def processor(spent: dict[int, float]) -> float:
    """Processor seconds of this process and its children; ``spent`` remembers those that have ended."""
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        spent[child.pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return time.process_time() + sum(spent.values())
