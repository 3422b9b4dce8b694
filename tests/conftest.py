"""Fixtures: one thread, synthetic data with wrong labels (so that memorization exists), tiny models, digits from the shell."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dataset
import sources
from dataset import Data, Images, Splits
from evaluation import mia, style

assert mia.FITS == 10
mia.FITS = 2  # logistic regressions, which the metrics of every run wait for; settings take the number when they are made

from unlearn import METHODS  # noqa: E402
from utils import Config, Runtime, RuntimeConfig, Saved, machine  # noqa: E402

torch.set_num_threads(1)
assert style.PDF_FONTS == 42, "publishers refuse other fonts"
style.PDF_FONTS = 3  # four times as fast to write, and looks the same
# the longest first, so that no process is left alone with one of them at the end
LONGEST = ("test_readme", "test_resume", "test_flags", "test_rum", "test_backdoor_cli", "test_report", "test_signals",
           "test_names", "test_contrasts", "test_missing", "test_collapsed", "test_bysparsity")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of LONGEST, then the others as they stand."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


# names of the methods that are no other's very function under other defaults, which its tests hold
OWN = [n for n in METHODS.names() if not METHODS[n].same_as or METHODS[n].function is not METHODS[METHODS[n].same_as].function]
TRAINED = [n for n in OWN if "unlearn_epochs" in {f.name for f in dataclasses.fields(METHODS[n].config)}]

TOY = sources.Source(name="toy", num_classes=3, size=6, mean=(0.5,) * 3, std=(0.25,) * 3, pad=1, flip=True, about="test",
                     read=lambda root, download: None)


def toy_arrays(count: int, seed: int, classes: int = 3, size: int = 6, wrong: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Images whose brightness pattern tells the class, under noise; a share of the labels is wrong."""
    random = np.random.default_rng(seed)
    true = random.integers(0, classes, count)
    patterns = np.random.default_rng(7).integers(40, 215, (classes, size, size, 3))
    x = np.clip(patterns[true] + random.normal(0, 30, (count, size, size, 3)), 0, 255).astype(np.uint8)
    flipped = random.random(count) < wrong
    return x, np.where(flipped, (true + random.integers(1, classes, count)) % classes, true).astype(np.int64)


def make_data(rt: Runtime, count: int = 60, forget: int = 12, batch_size: int = 16, seed: int = 0, aug: bool = False,
              method: str = "", size: int = 6) -> Data:
    """A toy data set cut by hand: the first tenth is validation, ``forget`` random others are to be forgotten.

    Of a ``method`` that forgets whole classes alone, it is the last class.
    """
    x, y = toy_arrays(count, seed, size=size)
    x_test, y_test = toy_arrays(count // 2, seed + 1, size=size, wrong=0.0)
    val, train = np.arange(count // 10), np.arange(count // 10, count)
    gone = np.sort(np.random.default_rng(seed).choice(train, forget, replace=False))
    gone = train[y[train] == 2] if method and METHODS[method].whole else gone
    splits = Splits(train, val, np.setdiff1d(train, gone), gone, (), "toy-data", "toy-split")
    return Data(TOY, Images(x, y, TOY, rt), Images(x_test, y_test, TOY, rt), 3, splits, batch_size, aug)


class TinyNet(nn.Module):
    """Convolution, batch norm and a linear layer: every kind of parameter, in a few hundred weights."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)
        self.arch, self.num_classes, self.imagenet = "tiny", classes, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def short_config(name: str, **values: Any) -> Config:
    """A method's settings for two epochs at a rate that moves weights; values it has no setting for are left out.

    ssd's measured alpha leaves all but one weight in a hundred, which are few in a toy model; a TinyNet has three layers, its
    head among them. A replay is as long as the rest.
    """
    config = METHODS[name].config
    fields = {field.name for field in dataclasses.fields(config)}
    toy = dict(our_layers=("conv", "bn", "fc"), repair_lr=0.05, noise_images=4, noise_copies=5, noise_steps=5)
    toy |= dict(alpha=1.2) if name.startswith("ssd") else {}
    values = dict(unlearn_lr=0.05, unlearn_epochs=2) | toy | values
    values = dict(replay_epochs=(values["unlearn_epochs"],), replay_factors=(1.0,)) | values
    return config(**{key: value for key, value in values.items() if key in fields})


def quiet_runtime(seed: int = 5) -> Runtime:
    return Runtime(RuntimeConfig(seed=seed, device="cpu", progress=False))


def tiny_net(rt: Runtime, classes: int = 3) -> TinyNet:
    """A TinyNet with the same weights for every runtime of a seed."""
    with rt.seeded("model"):
        return TinyNet(classes)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """The same names and bit-identical values."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session", autouse=True)
def machine_unknown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What was measured on this machine is not what the tests know of it, nor do they add to it."""
    folder = tmp_path_factory.mktemp("cache") / "unwritten"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(machine.PLACE, str(folder))
        yield
    assert not folder.exists(), "a test that measures needs a place of its own"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs at toy size that the tests of the command line share; copied by a test that changes them."""
    import shell  # the stages, which a test of a formula does not need

    return shell.library(tmp_path_factory)


@pytest.fixture
def original(library: Path) -> Saved:
    import shell

    return shell.only(library, "train")


@pytest.fixture
def rt() -> Runtime:
    return Runtime(RuntimeConfig(seed=5, device="cpu", progress=False))


@pytest.fixture
def data(rt: Runtime) -> Data:
    return make_data(rt)


@pytest.fixture
def model(rt: Runtime) -> nn.Module:
    with rt.seeded("model"):
        return TinyNet()


__all__ = ["OWN", "TOY", "TRAINED", "TinyNet", "dataset", "equal", "make_data", "quiet_runtime", "short_config", "snapshot",
           "tiny_net", "toy_arrays"]
