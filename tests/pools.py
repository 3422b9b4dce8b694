"""Small pools of models of toy images, for the tests of memorization's engines, pools and processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOY, quiet_runtime, toy_arrays

from dataset import Data, Images, Splits
from memorization.engines import Recipe, Setup
from memorization.factory import Pool, PoolConfig, fill
from models import ModelConfig
from utils import BadInput, Runtime

SMALL = ModelConfig(arch="resnet8s")


def make_toy(rt: Runtime, count: int = 60, tests: int = 20, aug: bool = False, seed: int = 0) -> Data:
    x, y = toy_arrays(count, seed)
    x_test, y_test = toy_arrays(tests, seed + 1, wrong=0.0)
    train = np.arange(count)
    splits = Splits(train[6:], train[:6], train[6:], train[:0], (), "toy", "toy", f"toy-{seed}-{count}")
    return Data(TOY, Images(x, y, TOY, rt), Images(x_test, y_test, TOY, rt), 3, splits, 16, aug)


def make_setup(dtype: torch.dtype, aug: bool = False, **recipe: Any) -> Setup:
    rt = quiet_runtime()
    values = {"pool_epochs": 1, "pool_lr": 0.05, "pool_batch": 16} | recipe
    return Setup(make_toy(rt, aug=aug), SMALL, Recipe(**values), rt, dtype)


def quick(**values: Any) -> PoolConfig:
    return PoolConfig(**{"models": 4, "pool_epochs": 1, "pool_lr": 0.05, "pool_batch": 32, "engine": "serial"} | values)


def make_pool(folder: Path, rt: Runtime | None = None, data: Data | None = None, **values: Any) -> Pool:
    rt = rt or quiet_runtime()
    return Pool(folder, quick(**values), data or make_toy(rt), SMALL, rt)


def filled(folder: Path, **values: Any) -> Pool:
    pool = make_pool(folder, **values)
    fill(pool)
    return pool


def contents(pool: Pool, number: int) -> dict[str, np.ndarray]:
    """A model's file without its seconds."""
    with np.load(pool.path(number), allow_pickle=False) as file:
        return {name: value for name, value in file.items() if name != "seconds"}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def subsets(setup: Setup, numbers: list[int], size: int) -> list[np.ndarray]:
    return [np.sort(np.random.default_rng(number).permutation(len(setup.data.images.y))[:size]) for number in numbers]


def refusal(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(BadInput) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
