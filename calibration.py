"""What is fastest on this machine, measured by training steps and predictions of the very network.

    rt = settled(rt, network)            # what was not typed: as measured here, else the defaults
    rows = calibrate("resnet20s", cfg)   # main_calibrate.py: measures all there is to choose, and keeps it

Precision alone is measured unasked, once a network and machine, and only where the processor has bf16 of its own.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

import models
from dataset import Batch, Images, Loader
from models import ModelConfig
from sources import SOURCES
from trainer import Descent, ScheduleConfig, cross_entropy, predict
from utils import BadInput, Config, Runtime, RuntimeConfig, hp, machine, say
from utils.machine import Network

SURE = 1.1  # times as fast as float32 that bf16 has to be
WORTH = 1.05  # times as fast as the default that anything else has to be
ROUNDS = 3  # at least, of which the median counts
SHORT, SMALL, LARGE = 0.03, 16, 256  # seconds that a step should take at least; images in it, from and to
CLASSES, EVALUATED = 10, {"cpu": 512, "cuda": 8192}
EVAL_BATCHES = {"cpu": (64, 128, 256, 512), "cuda": (256, 512, 1024, 2048)}
COMMON = ("cifarnet", "resnet20s", "resnet18", "vgg16_bn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateConfig(Config):
    """What is measured."""

    arch: tuple[str, ...] = hp(COMMON, "networks")
    image_size: int = hp(32, "pixels a side of their images", low=4, high=4096)
    device: str = hp("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    budget: float = hp(2.0, "seconds for each comparison, more where a step is long", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.arch:
            ModelConfig.check_values({"arch": name})


def network_of(cfg: ModelConfig, dataset: str) -> Network:
    return Network(cfg.arch, cfg.imagenet_arch, cfg.input_size, SOURCES[dataset].size)


# ---------------------------------------------------------------------------------------------------- what stages ask for


def settled(cfg: RuntimeConfig, network: Network) -> RuntimeConfig:
    """The settings with what was not typed: as it was measured on this machine, else the defaults.

    Where bf16 is a question that nobody has answered yet for this network, it is measured now, in about half a second (more
    where a step is long), and kept. An explicit ``bf16`` that the processor has to emulate is told.
    """
    here = cfg.resolved()
    known = machine.read(here.device, network)
    chosen = {name: known[name] for name, default in (("eval_batch", None), ("threads", None), ("layout", "auto"))
              if name in known and getattr(cfg, name) == default}
    found, why = dict(chosen), {}
    if here.device == "cpu" and cfg.precision == "auto":
        found["precision"], why = _precision(here.measured({}, **chosen), network, known)
    elif here.device == "cpu" and cfg.precision == "bf16" and not machine.native_bf16():
        say("notice: --precision bf16 is emulated on this processor, which takes 12-20 times as long as fp32")
    return here.measured({**found, **why}, **found)


def _precision(here: RuntimeConfig, network: Network, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The faster one, and why."""
    if not machine.native_bf16():
        return "fp32", {"because": "this processor has no bf16 of its own"}
    if "bf16_speed" not in known:
        try:
            known = _measure_precision(here, network)
        except BadInput:  # a network that cannot be made for these images; the stage itself says why
            return "fp32", {"because": "the network could not be measured"}
    speed = known["bf16_speed"]
    why = {"because": f"bf16 trains {speed:g} times as fast as fp32 here", "bf16_speed": speed}
    return "bf16" if speed >= SURE else "fp32", why


def _measure_precision(here: RuntimeConfig, network: Network, seconds: float = 0.5) -> dict[str, Any]:
    """Measured now; where another process was faster to keep its own number, that one."""
    spent = compared(precisions(here, network), seconds)
    known = machine.read(here.device, network)
    if "bf16_speed" not in known:
        known = {"bf16_speed": round(spent["fp32"] / spent["bf16"], 3)}
        where = machine.write(here.device, network, known, {"seconds of a step": spent})
        say(f"notice: bf16 trains {network.arch} {known['bf16_speed']:g} times as fast as fp32 on this machine (measured"
            + (f" and kept in {where})" if where else ")"))
    return known


# ------------------------------------------------------------------------------------------------------------- measuring


def compared(ways: Mapping[str, Callable[[], None]], seconds: float, clock: Callable[[], float] = time.perf_counter,
             ) -> dict[str, float]:
    """Seconds of each way to do the same: the median of turns, one after another, after one that does not count."""
    for way in ways.values():
        way()
    spent: dict[str, list[float]] = {name: [] for name in ways}
    start, rounds = clock(), 0
    while rounds < ROUNDS or clock() - start < seconds:
        for name, way in ways.items():
            before = clock()
            way()
            spent[name].append(clock() - before)
        rounds += 1
    return {name: statistics.median(taken) for name, taken in spent.items()}


def steps(cfg: RuntimeConfig, network: Network, images: int) -> Callable[[], None]:
    """A training step of the network, on random images."""
    rt, model = _made(cfg, network)
    batch = next(iter(_loader(rt, network, images, images)))
    opt = Descent(model, ScheduleConfig(), lr=1e-6, epochs=1, rt=rt, purpose="trial")

    def step() -> None:
        _threads(rt)
        opt.epoch([Batch(*batch)], cross_entropy)
        rt.drain()

    return step


def predictions(cfg: RuntimeConfig, network: Network, eval_batch: int) -> Callable[[], None]:
    """A prediction of some images, ``eval_batch`` at once."""
    rt, model = _made(cfg, network)
    loader = _loader(rt, network, EVALUATED[cfg.device], eval_batch)

    def look() -> None:
        _threads(rt)
        predict(model.eval(), loader, rt)
        rt.drain()

    return look


def precisions(cfg: RuntimeConfig, network: Network) -> dict[str, Callable[[], None]]:
    images = _images(cfg, network)
    return {name: steps(dataclasses.replace(cfg, precision=name), network, images) for name in ("fp32", "bf16")}


def _made(cfg: RuntimeConfig, network: Network) -> tuple[Runtime, torch.nn.Module]:
    rt = Runtime(dataclasses.replace(cfg, seed=0, compile="off", progress=False))
    with rt.seeded("trial"):
        model = models.build(network.arch, CLASSES, (0.5,) * 3, (0.25,) * 3, imagenet=network.imagenet_arch,
                             image_size=network.image_size, input_size=network.input_size)
    return rt, model.to(rt.device, memory_format=rt.layout)


def _loader(rt: Runtime, network: Network, count: int, batch_size: int) -> Loader:
    random, side = np.random.default_rng(0), network.image_size
    x = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    images = Images(x, random.integers(0, CLASSES, count), SOURCES["cifar10"], rt)
    return Loader(images, torch.arange(count, device=images.home), images.y, batch_size)


def _threads(rt: Runtime) -> None:
    torch.set_num_threads(rt.cfg.threads or machine.threads())


def _images(cfg: RuntimeConfig, network: Network, seconds: float = SHORT) -> int:
    """How many in a step, so that it takes so many seconds at least, yet not many more."""
    count = SMALL
    while count < LARGE:
        step = steps(dataclasses.replace(cfg, precision="fp32"), network, count)
        step()
        start = time.perf_counter()
        step()
        if time.perf_counter() - start >= seconds:
            break
        count *= 4
    return count


# ------------------------------------------------------------------------------------------------------------- calibrate


def calibrate(arch: str, cfg: CalibrateConfig) -> list[tuple[str, str, str]]:
    """Measure all there is to choose for a network, and keep it: (what, the choice, what was measured), a row each."""
    network = Network(arch, False, None, cfg.image_size)
    base = RuntimeConfig(device=cfg.device, precision="fp32", progress=False).resolved()
    values: dict[str, Any] = {}
    numbers: dict[str, dict[str, float]] = {}
    images = _images(base, network, 10 * SHORT)

    def choose(setting: str, candidates: Mapping[Any, Callable[[], None]], default: Any) -> None:
        taken = compared({str(value): way for value, way in candidates.items()}, cfg.budget)
        best = min(candidates, key=lambda value: taken[str(value)])
        values[setting] = best if taken[str(default)] >= WORTH * taken[str(best)] else default
        numbers[setting] = taken

    def given(**more: Any) -> RuntimeConfig:
        return dataclasses.replace(base, **{name: value for name, value in values.items() if name != "eval_batch"}, **more)

    if base.device == "cpu" and machine.threads() > 1:
        choose("threads", {n: steps(given(threads=n), network, images) for n in _counts()}, machine.threads())
    choose("layout", {name: steps(given(layout=name), network, images) for name in machine.LAYOUTS}, "channels_last")
    choose("eval_batch", {n: predictions(given(), network, n) for n in EVAL_BATCHES[base.device]}, base.eval_batch)
    if base.device == "cpu" and machine.native_bf16():
        numbers["bf16_speed"] = taken = compared(precisions(given(), network), cfg.budget)
        values["bf16_speed"] = round(taken["fp32"] / taken["bf16"], 3)
    where = machine.write(base.device, network, values, {"seconds": numbers, "images in a step": images})
    rows = [(name, str(value), ", ".join(f"{way} {1000 * spent:.4g} ms" for way, spent in numbers[name].items()))
            for name, value in values.items()]
    return [*rows, ("kept in", str(where), "")] if where else rows


def _counts() -> list[int]:
    """Of threads, to choose among."""
    return sorted({1, (machine.threads() + 1) // 2, machine.threads()})


def busy() -> str:
    """A notice where other programs are at work, which measurements suffer from; "" where none are, or nobody counts them."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < max(1, machine.threads()) / 2:
        return ""
    return f"notice: other programs are at work on this machine (load {load:.1f}); measure again once it is quiet\n"
