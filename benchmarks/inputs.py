"""What benchmarks compute on: random images of CIFAR's shape, which what is measured does not look at, and fresh models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import models
from dataset import Data, Images, Splits
from sources import SOURCES
from utils import Runtime

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # training images, labels, test images, labels


def make_data(rt: Runtime, train: int, test: int, forget: int, aug: bool = True, batch_size: int = 256) -> tuple[Data, Arrays]:
    """A data set, of which the first tenth is validation and the next ``forget`` images are to be forgotten."""
    arrays, source = make_arrays(train, test), SOURCES["cifar10"]
    cut = train // 10
    splits = Splits(np.arange(cut, train), np.arange(cut), np.arange(cut + forget, train), np.arange(cut, cut + forget), (),
                    "benchmark", "benchmark")
    images, tests = (Images(x, y, source, rt) for x, y in (arrays[:2], arrays[2:]))
    return Data(source, images, tests, 10, splits, batch_size, aug), arrays


def make_arrays(train: int, test: int) -> Arrays:
    """The images and labels that ``make_data`` cuts."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (n, 32, 32, 3), np.uint8) for n in (train, test)]
    labels = [random.permutation(np.arange(n) % 10) for n in (train, test)]
    return images[0], labels[0], images[1], labels[1]


def write_arrays(folder: Path, train: int, test: int) -> None:
    """The same as a prepared cifar10.npz."""
    x, y, x_test, y_test = make_arrays(train, test)
    np.savez(folder / "cifar10.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)


def make_model(rt: Runtime, arch: str, channels_last: bool = True) -> torch.nn.Module:
    """The same initial weights in either layout, on the runtime's device."""
    source = SOURCES["cifar10"]
    with rt.seeded("benchmark"):
        model = models.build(arch, 10, source.mean, source.std)
    return model.to(rt.device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def settled(rt: Runtime, arch: str, steps: int = 20) -> dict[str, torch.Tensor]:
    """Weights after some steps: untrained running statistics of batch norm give logits that no real model has."""
    from trainer import Descent, ScheduleConfig, cross_entropy

    data, _ = make_data(rt, 200, 10, 128, batch_size=128)
    model = make_model(rt, arch)
    opt = Descent(model, ScheduleConfig(), lr=0.01, epochs=1, rt=rt, purpose="benchmark")
    for _ in range(steps):
        opt.epoch(data.loader("forget", rt, "benchmark"), cross_entropy)
    return {name: value.contiguous() for name, value in model.state_dict().items()}
