"""The digits as they come and as a stage loads them, for the tests of splits and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dataset
import sources
from dataset import Data, DataConfig, ForgetConfig
from utils import Runtime


def digits() -> sources.Arrays:
    """Of the package, whatever the folder."""
    return sources.load("digits", Path("unused"))


def load(rt: Runtime, forget: dict[str, Any] | None = None, data_key: str | None = None, **config: Any) -> Data:
    cfg = DataConfig(**{"dataset": "digits", "data": "nowhere"} | config)
    return dataset.load(cfg, rt, None if forget is None else ForgetConfig(**forget), data_key)
