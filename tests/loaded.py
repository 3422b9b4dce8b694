"""Data sets as their readers and as the stages load them, for the tests of sources, splits and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dataset
import sources
from dataset import Data, DataConfig, ForgetConfig
from utils import BadInput, Runtime


def digits() -> sources.Arrays:
    """Of the package, whatever the folder."""
    return sources.load("digits", Path("unused"))


def read(name: str, root: Path, **more: Any) -> sources.Arrays:
    """A data set that is far smaller than the published one."""
    return sources.load(name, root, any_size=True, **more)


def load(rt: Runtime, forget: dict[str, Any] | None = None, data_key: str | None = None, **config: Any) -> Data:
    cfg = DataConfig(**{"dataset": "digits", "data": "nowhere"} | config)
    return dataset.load(cfg, rt, None if forget is None else ForgetConfig(**forget), data_key)


def rng() -> np.random.Generator:
    """Fresh numbers in every run: made a fixture in the files that need them."""
    return np.random.default_rng()


def refused(name: str, root: Path, *words: str, download: bool = False) -> None:
    """Loading the data set ends in one line that has all the words."""
    with pytest.raises(BadInput) as caught:
        read(name, root, download=download)
    assert "\n" not in str(caught.value)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, str(caught.value)
