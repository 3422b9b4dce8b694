"""Sparse originals at toy size, by main_imp.py, for the tests of pruning from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import shell
import torch
from test_prune import counted

import prune
from trainer import Descent
from utils import Mask, Saved, find_runs

NET = ["--dataset", "digits", "--arch", "resnet8s", "--classes", "0-2", "--batch_size", "64", "--seed", "1"]
SHORT = [*NET, "--epochs", "3"]
IMP = [*SHORT, "--rewind_epoch", "1", "--rate", "0.2", "--pruning_times", "3"]
TOTAL = 74_160  # weights in the convolutions of resnet8s
STEPS = 7  # of an epoch: 388 training images of three digits


def trained(factory: pytest.TempPathFactory) -> Path:
    """A save_dir with three trainings of IMP, for a fixture of a module; not to be changed."""
    root = factory.mktemp("sparse")
    shell.call("main_imp.py", *IMP, save_dir=root)
    return root


def content(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "model.pt", weights_only=True)


def rounds(root: Path) -> list[Saved]:
    """In the order of their trainings; with several plans, of equal ones in the order of their sparsity."""
    return sorted(find_runs(root, ("round",)), key=lambda run: run.record["label"])


def bits(weight: torch.Tensor) -> torch.Tensor:
    return weight.contiguous().view(torch.int32) if weight.is_floating_point() else weight


def assert_sparse(folder: Path, count: int) -> dict[str, torch.Tensor]:
    """The mask of a run's model: so many weights, of convolutions alone, +0 where pruned; returned."""
    found = content(folder)
    mask, state = found["mask"], found["state_dict"]
    assert list(mask) == [name for name, value in state.items() if value.dim() == 4]
    assert counted(mask) == count and all(part.dtype == torch.bool for part in mask.values())
    assert all(not bits(state[name])[~part].any() and (state[name][part] != 0).all() for name, part in mask.items())
    return mask


def leaks(patch: pytest.MonkeyPatch, mask: Mask) -> list[int]:
    """How many of the pruned weights are not 0 after each pass of any training, whatever is written later."""
    found, real = [], Descent.epoch

    def epoch(self: Descent, *args: Any) -> float:
        loss, now = real(self, *args), dict(self.model.named_parameters())
        found.append(sum(int(now[name].detach()[~part].count_nonzero()) for name, part in mask.items()))
        return loss

    patch.setattr(Descent, "epoch", epoch)
    return found


def starts(patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each training begins with, as the rounds go on: weights, mask, epoch of the schedule and epochs."""
    seen, real = [], prune.fit

    def fit(model: Any, loader: Any, cfg: Any, rt: Any, run: Any, mask: Any = None, first: int = 0, epochs: Any = None,
            snapshot: int = 0, purpose: str = "train") -> None:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        order = loader.shuffle.get_state().numpy().tobytes()
        seen.append({"state": state, "mask": mask, "first": first, "epochs": epochs, "index": loader.index, "order": order})
        real(model, loader, cfg, rt, run, mask, first, epochs, snapshot, purpose)

    patch.setattr(prune, "fit", fit)
    return seen
