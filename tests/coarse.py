"""CIFAR-100 by its super-classes in little: four training and two test images of each sub-class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sources
from sources.small import COARSE_LABELS

EACH = {"train": 4, "test": 2}


def write(root: Path, fine: bool = True) -> dict[str, np.ndarray]:
    """A prepared cifar20.npz; its arrays."""
    random, found = np.random.default_rng(20), {}
    for part, each in EACH.items():
        labels = random.permutation(np.repeat(np.arange(100), each))
        found |= {f"x_{part}": random.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8),
                  f"y_{part}": np.array(COARSE_LABELS)[labels], f"fine_{part}": labels}
    if not fine:
        found = {name: array for name, array in found.items() if not name.startswith("fine")}
    np.savez(root / "cifar20.npz", **found)
    return found


def settings(root: Path, **more: Any) -> dict[str, Any]:
    """Of a DataConfig that reads it; all images train."""
    return {"dataset": "cifar20", "data": str(root), "any_size": True, "val_fraction": 0.0} | more


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a prepared cifar20.npz with fine labels."""
    root = tmp_path_factory.mktemp("cifar20")
    write(root)
    return root


def raw(root: Path) -> sources.Arrays:
    return sources.load("cifar20", root, any_size=True)
