"""Dropout in the training loop: masks of every pass its own, and the same ones after a run was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import equal, make_data, quiet_runtime, snapshot
from torch import nn

import trainer
from dataset import Data
from trainer import Descent, ScheduleConfig, TrainConfig, cross_entropy
from utils import Run, RunConfig, Runtime


def dropping(rt: Runtime) -> nn.Module:
    """A small network with dropout, the same for every runtime of a seed."""
    with rt.seeded("model"):
        return nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def test_every_pass_has_masks_of_its_own(data: Data, rt: Runtime) -> None:
    """At rate 0, over the same batches, nothing else can tell the losses of the passes apart."""
    opt = Descent(dropping(rt), ScheduleConfig(), lr=0.0, epochs=4, rt=rt, purpose="train")
    losses = [opt.epoch(data.loader("retain"), cross_entropy) for _ in range(4)]
    assert len(set(losses)) == 4


def finished(folder: Path, stop: int = 0) -> dict[str, torch.Tensor]:
    """The weights after four epochs, with a state after each; ``stop``: end before this step (from 1) as Ctrl-C does."""
    rt, cfg, steps, real = quiet_runtime(), TrainConfig(epochs=4, lr=0.05), [], Descent._step

    def step(self: Descent, rate: float) -> None:
        steps.append(rate)
        if len(steps) == stop:
            raise KeyboardInterrupt
        real(self, rate)

    model, data = dropping(rt), make_data(rt)
    with pytest.MonkeyPatch.context() as patch, \
            Run(RunConfig(save_dir=str(folder), resume_every=0), "train", "toy", {"cfg": cfg}) as run:
        patch.setattr(Descent, "_step", step)
        trainer.train(model, data.loader("train", rt, "train"), cfg, rt, run)
    return snapshot(model)


def test_a_resumed_run_goes_on_with_the_masks_of_its_next_pass(tmp_path: Path) -> None:
    """Stopped in the third of four epochs, of four steps each."""
    whole = finished(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        finished(tmp_path / "cut", stop=10)
    assert equal(finished(tmp_path / "cut"), whole)
