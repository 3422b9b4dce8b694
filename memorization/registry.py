"""What a score of the training examples declares, and what it is computed from: ``score`` and ``Job``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

import models
from dataset import Data, DataConfig
from evaluation.accuracy import standing
from models import ModelConfig, Original
from sources.scores import POLARITY
from utils import BadInput, Config, Mask, Registry, Run, RunConfig, Runtime


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoScoreConfig(Config):
    """A score without settings."""


@dataclasses.dataclass
class Job:
    """The data, and the original model or the pool of models that a score is taken from.

    original: None where the score needs none (memorization, which has models of its own).
    run: the open run of the score; None while ``prepare`` works.
    prepared: what the score's ``prepare`` returned.
    """

    data: Data
    rt: Runtime
    data_config: DataConfig
    config: ModelConfig
    where: RunConfig
    original: Original | None = None
    run: Run | None = None
    prepared: Any = None

    @property
    def identity(self) -> dict[str, str]:
        """What tells the run apart beside its settings: the pool, whose subsets may come from a file."""
        return {"pool_digest": self.prepared.digest} if self.prepared is not None else {}

    def model(self) -> nn.Module:
        """The original model, in eval mode on the device."""
        return self.start()[0]

    def start(self) -> tuple[nn.Module, Mask | None]:
        """The original model, in eval mode on the device, and the mask of its pruned weights; how it stands, to the record."""
        if self.original is None:
            raise BadInput("this score is taken from an original model; name one by --checkpoint")
        model, mask, facts = models.load_original(self.original, self.config, self.data, self.rt)
        told = standing(self.original, facts, model, self.data, self.rt)
        if self.run is not None:
            self.run.result(original=told)
        return model.eval(), mask


@dataclasses.dataclass(frozen=True)
class Score:
    """One entry of the registry.

    original: whether it is taken from an original model.
    prepare: work before the run's folder is opened, which other processes may share; None from it ends the stage there.
    """

    name: str
    function: Callable[[Job, Any], dict[str, np.ndarray]]
    config: type[Config]
    source: str
    original: bool = True
    prepare: Callable[[Job, Any], Any] | None = None

    @property
    def polarity(self) -> int:
        """+1 where larger values go with memorization, -1 where smaller ones do, 0 for what orders nothing (ES)."""
        return POLARITY[self.name]

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def ready(self, job: Job, cfg: Config) -> bool:
        """Do what comes before the run's folder is opened; False where other processes have to do their part first."""
        if self.prepare is not None:
            job.prepared = self.prepare(job, cfg)
        return self.prepare is None or job.prepared is not None

    def apply(self, job: Job, cfg: Config) -> dict[str, np.ndarray]:
        """The arrays of scores.npz.

        Returns:
            ``name`` float32 [N], one value for each training image of the data set (the validation split's included),
            NaN where there is none; and whatever else the score has.
        """
        return self.function(job, cfg)


SCORES: Registry[Score] = Registry("score")


def score(name: str, *, config: type[Config] = NoScoreConfig, source: str, **more: Any) -> Callable:
    """Add a score; its function's first docstring line is its summary."""

    def add(function: Callable[[Job, Any], dict[str, np.ndarray]]) -> Callable[[Job, Any], dict[str, np.ndarray]]:
        SCORES.add(name, Score(name, function, config, source, **more))
        return function

    return add
