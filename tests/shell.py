"""The stages in this process at toy size, for the tests of the command line: three digits, a ResNet-8, one epoch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OWN
from filelock import FileLock
from sklearn.datasets import load_digits

import analysis
import analysis_distribution
import analysis_mia
import generate_mask
import main_backdoor
import main_calibrate
import main_forget
import main_imp
import main_memorization
import main_random
import main_rum
import main_synflow
import main_train
from unlearn import METHODS
from utils import Saved, find_runs

STAGES = {"main_train.py": main_train, "main_imp.py": main_imp, "main_synflow.py": main_synflow,
          "generate_mask.py": generate_mask, "main_forget.py": main_forget,
          "main_random.py": main_random, "main_rum.py": main_rum, "main_backdoor.py": main_backdoor,
          "main_memorization.py": main_memorization, "main_calibrate.py": main_calibrate,
          "analysis.py": analysis, "analysis_mia.py": analysis_mia, "analysis_distribution.py": analysis_distribution}
QUIET = ["--device", "cpu", "--no_progress"]
THREE = ["--dataset", "digits", "--arch", "resnet8s", "--classes", "0-2", "--batch_size", "64"]
FORGET = ["--num_indexes_to_replace", "20"]


def call(stage: str, *words: Any, save_dir: Path) -> None:
    """A main of this process, as if from the shell; stages that compute are kept on the CPU."""
    quiet = [] if stage.startswith(("analysis", "main_calibrate")) else QUIET
    place = [] if stage == "main_calibrate.py" else ["--save_dir", str(save_dir)]  # which has one of its own
    STAGES[stage].main([*quiet, *place, *map(str, words)])


def train(save_dir: Path, seed: int = 1, *words: Any) -> Saved:
    """An original model on three digits."""
    call("main_train.py", *THREE, "--epochs", 1, "--seed", seed, *words, save_dir=save_dir)
    return only(save_dir, "train", seed=seed)


def forget(original: Saved, save_dir: Path, method: str, *words: Any) -> None:
    """One epoch of a method (or of retraining) from an original."""
    trained = "unlearn_epochs" in {field.name for field in dataclasses.fields(METHODS[method].config)}
    epochs = ["--unlearn_epochs", 1] if trained and "--unlearn_epochs" not in words else []
    call("main_forget.py", "--checkpoint", original.folder, "--unlearn", method, *epochs, *words, save_dir=save_dir)


def only(save_dir: Path, stage: str, **wanted: Any) -> Saved:
    """The one finished run of a stage with these settings."""
    (found,) = find_runs(save_dir, (stage,), **wanted)
    return found


def library(factory: pytest.TempPathFactory) -> Path:
    """A save_dir, made once for all test processes and not to be changed: original, mask, every method on one forget set."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "library"
    with FileLock(f"{root}.lock"):
        if not (root / "whole").exists():
            original = train(root)
            call("generate_mask.py", "--checkpoint", original.folder, *FORGET, save_dir=root)
            more = {"RL": ["--path", root]}
            for method in [name for name in OWN if not METHODS[name].whole]:
                forget(original, root, method, *FORGET, *more.get(method, []))
            (root / "whole").touch()
    return root


def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made a fixture for every test of a file: ./runs and ./data are not those of the person who tests."""
    monkeypatch.chdir(tmp_path)


def weights(run: Saved) -> dict[str, torch.Tensor]:
    """The parameters and buffers in a run's model.pt."""
    return torch.load(run.folder / "model.pt", weights_only=True)["state_dict"]


def listing(*roots: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below some folders; a folder has 0, 0."""
    return {str(path): (0, 0) if path.is_dir() else (path.stat().st_size, path.stat().st_mtime_ns)
            for root in roots for path in root.rglob("*")}


def three_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits 0 to 2: uint8 [N, 8, 8, 3] and int64 [N]."""
    found = load_digits()
    keep = found.target < 3
    x = np.round(found.images[keep] * 255 / 16).astype(np.uint8)
    return np.repeat(x[..., None], 3, axis=3), found.target[keep].astype(np.int64)


def write_digits(folder: Path, relabel: Callable[[np.ndarray], np.ndarray] = lambda y: y, test: int = 137) -> Path:
    """A prepared digits.npz of the three digits, of which the last ``test`` are the test set; relabels training."""
    x, y = three_digits()
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "digits.npz", x_train=x[:-test], y_train=relabel(y[:-test]), x_test=x[-test:], y_test=y[-test:])
    return folder


def interrupt_step(patch: pytest.MonkeyPatch, sgd: type, number: int) -> list[float]:
    """Make the optimiser's step of this number (from 1; 0: none) end the run as Ctrl-C does.

    Returns:
        A list that gets the learning rate of every step that is begun.
    """
    real, rates = sgd._step, []

    def step(self: Any, rate: float) -> None:
        rates.append(rate)
        if len(rates) == number:
            raise KeyboardInterrupt
        real(self, rate)

    patch.setattr(sgd, "_step", step)
    return rates
