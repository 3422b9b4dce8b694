"""The model factory: many models on subsets of one data set, trained as fast as the machine allows, kept for audits.

    pool = prepare(job, cfg)              # estimate, training of what is missing; None while other shards still work
    pool.masks()                          # bool [T, N]: who saw what
    pool.correct("test")                  # bool [T, M]
    for record in pool.records(): ...     # model by model, with float16 margins

A pool is a folder with a file for each model, written whole or not at all. Model number m alone decides its subset, its
initialisation and its batches, so engines, shards, machines that share the folder and later growth all make the same
model m, up to the rounding of their kernels and thread counts. Weights are not kept.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import dataset
from dataset import DataConfig
from memorization import engines
from memorization.engines import Trained
from memorization.pool import Pool, PoolConfig, Record
from memorization.registry import Job
from memorization.stack import refused
from models import ModelConfig
from utils import BadInput, Runtime, RuntimeConfig, make_folder, say, sweep, write_json
from utils.files import STALE

STACK = {"cpu": 4, "cuda": 16}  # models at once; predicted for a GPU, not measured
QUICK = 10.0  # seconds of work below which new processes cost more than they save

__all__ = ["Pool", "PoolConfig", "Record", "fill", "prepare"]


def prepare(job: Job, cfg: PoolConfig) -> Pool | None:
    """The pool with all its models, after training what is missing of this shard; None while other shards still work."""
    pool = Pool(Path(job.where.save_dir), cfg, job.data, job.config, job.rt, job.data_config)
    fill(pool)
    left = pool.missing()
    if not left:
        return pool
    count = cfg.part_of()[1]
    shards = ", ".join(f"{i}/{count}" for i in sorted({number % count for number in left}))
    say(f"{pool.folder}: {len(left)} of {cfg.models} models are missing; they belong to --shard {shards}, "
        "and the last one to finish goes on from here")
    return None


def fill(pool: Pool) -> None:
    """Train what is missing of this process's shard, after an estimate.

    Raises:
        BadInput: an engine that cannot train these models, a model that diverges, or a folder that cannot be written.
    """
    missing, cfg = pool.missing(pool.cfg.part_of()), pool.cfg
    if not missing:
        return
    _open(pool)
    way = _way(pool, missing)
    part = "" if len(missing) == cfg.models else f", {len(missing)} of them to train here"
    say(f"{cfg.models} models{part}: about {_spoken(way.seconds)} {way.text}; "
        f"scores to ±{pool.interval():.2f} (95 %, at worst)")
    hidden = None if pool.rt.cfg.progress else True  # None: hidden where nobody watches, as in a log file
    for _ in tqdm(way.train(missing), "pool", len(missing), unit="model", disable=hidden, leave=False):
        pass


def _open(pool: Pool) -> None:
    make_folder(pool.folder)
    sweep(pool.folder, ".*.part", STALE)  # of processes that were killed while they wrote
    if not (pool.folder / "pool.json").exists():
        write_json(pool.folder / "pool.json", pool.identity)


# --------------------------------------------------------------------------------------------------- choice of an engine


@dataclasses.dataclass(frozen=True)
class Way:
    """An engine, ready: ``train`` saves the models and yields once for each; ``seconds`` is for all."""

    train: Callable[[list[int]], Iterator[Any]]
    seconds: float
    text: str


@dataclasses.dataclass(frozen=True)
class Order:
    """What a process needs to make the pool again."""

    save_dir: str
    cfg: PoolConfig
    data: DataConfig
    model: ModelConfig
    rt: RuntimeConfig
    digest: str


def _way(pool: Pool, missing: list[int]) -> Way:
    """The engine, and how long it will take."""
    cfg, rt, subset = pool.cfg, pool.rt, pool.subset(missing[0])
    gpus, cores = torch.cuda.device_count() if rt.cuda else 0, _cores()
    workers = min(cfg.pool_workers or gpus or cores, len(missing))
    name = cfg.engine if cfg.engine != "auto" else _suited(pool, workers)
    cfg.check_stack(name)
    if name == "processes" and pool.data_config is None:
        raise BadInput("--engine processes reads the data anew in each process, and these are in memory alone; use serial")
    size = min(cfg.stack or STACK[rt.device.type], len(missing)) if name == "stack" else 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if name == "processes" else threads)
    try:
        size, each = engines.fitting(pool.setup, subset, size) if name == "stack" else (1, engines.pace(pool.setup, subset))
    finally:
        torch.set_num_threads(threads)
    # a forward pass is about a third of a training step
    seconds = each * (cfg.pool_epochs * len(subset) + sum(pool.sizes.values()) / 3) * len(missing)
    if name == "processes" and (cfg.engine != "auto" or seconds > QUICK):
        return Way(lambda numbers: _spread(pool, numbers, workers, gpus), seconds / workers, f"on {workers} processes")
    if name == "stack":
        return Way(lambda numbers: _saved(pool, engines.stacked(pool.setup, pool.subset, numbers, size, cfg.graphs)), seconds,
                   f"with {size} at once")
    return Way(lambda numbers: _saved(pool, engines.serial(pool.setup, pool.subset, numbers)), seconds, "one after another")


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _suited(pool: Pool, workers: int) -> str:
    """The engine that suits device and models: measured on a CPU, predicted for a GPU."""
    if workers > 1 and pool.data_config is not None:
        return "processes"
    return "stack" if pool.rt.cuda and not refused(pool.setup.new(-1), pool.rt.bf16) else "serial"


def _saved(pool: Pool, trained: Iterator[Trained]) -> Iterator[float]:
    return (pool.save(one) for one in trained)


def _spread(pool: Pool, numbers: list[int], workers: int, gpus: int) -> Iterator[Any]:
    order = Order(str(pool.save_dir), pool.cfg, pool.data_config, pool.setup.model,
                  dataclasses.replace(pool.rt.cfg, threads=1), pool.digest)
    return engines.spread(_in_process, order, numbers, _places(workers, gpus))


def _places(workers: int, gpus: int) -> list[dict[str, str]]:
    """Each process's variables: the one card that it sees, in turn, by the names (numbers or UUIDs) it has in this process.

    CUDA reads the list of names up to the first one that is no card of this machine.
    """
    named = [card.strip() for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card.strip()]
    cards = named[:gpus] if named else [str(card) for card in range(gpus)]
    return [{"CUDA_VISIBLE_DEVICES": cards[worker % len(cards)]} if gpus else {} for worker in range(workers)]


def _in_process(order: Order) -> Callable[[int], float]:
    """Make the pool again in a process of its own; what trains and saves a model there."""
    rt = Runtime(order.rt)
    data = dataset.load(dataclasses.replace(order.data, any_size=True), rt)  # whose size was told once already
    pool = Pool(Path(order.save_dir), order.cfg, data, order.model, rt, order.data)
    if pool.digest != order.digest:
        raise BadInput("the data or the --subsets changed while the pool was trained; run again with the ones you mean")
    return lambda number: next(_saved(pool, engines.serial(pool.setup, pool.subset, [number])))


def _spoken(seconds: float) -> str:
    size, unit = next(((s, u) for s, u in ((3600, "h"), (60, "min")) if seconds > 1.5 * s), (1, "s"))
    return f"{max(1.0, seconds / size):.{1 if seconds < 10 * size and unit == 'h' else 0}f} {unit}"
