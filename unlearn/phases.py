"""Methods of several phases: each an ordinary piece of training with its own epochs, resumable at any of them, and measured.

A killed run goes on in the phase that it was in: the state on the disk holds the phase's number, and between two phases the
model itself. A phase knows of no other. This is machinery of the suite: unlike a method it sees the task's run and data.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from evaluation import accuracy
from trainer import cross_entropy, predict_all
from unlearn.registry import Method, RateConfig, Task
from updates import UPDATES
from utils import BadInput, Config, Run, hp, say
from utils.runs import unlike


class Phase(NamedTuple):
    """name: in the record and the log; act: what is done; hidden: declared parts that are empty to it; method: whose it is."""

    name: str
    act: Callable[[Task], None]
    hidden: Collection[str] = ()
    method: Method | None = None


class _Unfit(Exception):
    """A state on the disk that the phase cannot go on from."""


class _Part:
    """A run as one of its phases sees it: its own state and its own rows of the log."""

    def __init__(self, run: Run, number: int, name: str, told: dict[str, dict[str, Any]], state: dict[str, Any] | None) -> None:
        self.run, self.number, self.name, self.told, self.state = run, number, name, told, state
        self.cfg, self.label = run.cfg, f"{run.label} {name}"

    def load_state(self, like: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        if self.state is None or not like:  # what has no form of its own has nothing to go on from
            return None
        if (why := unlike(self.state, like)) is not None:
            raise _Unfit(why)
        return self.state

    def save_state(self, **content: Any) -> None:
        self.run.save_state(phase=self.number, told=self.told, **content)

    def log(self, **row: Any) -> None:
        self.run.log(phase=self.name, **row)

    def result(self, **values: Any) -> None:
        self.run.result(**values)


def follow(task: Task, phases: Sequence[Phase]) -> None:
    """Take the phases one after another, or go on in the one in which a killed run was.

    The record's ``phases`` has of each, by its name, the seconds, and the accuracy (%) on forget, retain and val after it,
    which is evaluation and no part of the method's cost.
    """
    run = task._run
    state = None if run is None else run.load_state({"phase": 0, "told": {}})
    first, told = (0, {}) if state is None else (state["phase"], state["told"])
    if state is not None and "between" in state:
        task.model.load_state_dict(state["between"])
        task._rt.restore_streams(state["streams"])
        state = None
    for number, phase in enumerate(phases):
        if number < first:
            continue
        part = None if run is None else _Part(run, number, phase.name, told, state if number == first else None)
        try:
            phase.act(task.within(phase.name if number else "", part, phase.hidden, phase.method))
        except _Unfit as why:
            say(f"notice: {run.folder / 'state.pt'} {why}; the run starts anew")
            (run.folder / "state.pt").unlink()
            return follow(task, phases)
        if run is not None:
            seconds = run.so_far("unlearn") - sum(row["seconds"] for row in told.values())
            told = told | {phase.name: {"seconds": seconds, **_accuracies(task)}}
            run.result(phases=told)
            if number + 1 < len(phases):
                between = task.model.state_dict()
                run.save_state(phase=number + 1, told=told, between=between, streams=task._rt.streams())


def _accuracies(task: Task) -> dict[str, float]:
    """Accuracy (%) on forget, retain and val; counted as evaluation."""
    with task._run.apart("evaluate"):
        loaders = {part: task._data.loader(part) for part in ("forget", "retain", "val")}
        loaders = {part: loader for part, loader in loaders.items() if loader.size}
        found = predict_all(task.model, list(loaders.values()), task._rt)
        return {part: accuracy.of(*outputs) for part, outputs in zip(loaders, found, strict=True)}


# ------------------------------------------------------------------------------------------------------------- replay


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig(Config):
    """The second phase: training on the retain set, sparse, by an optimiser that knows nothing of the first."""

    replay_lr: float = hp(0.01, "learning rate of the replay", above=0)
    replay_epochs: tuple[int, ...] = hp((3,), "epochs over the retain set; several numbers are parts, each of which begins "
                                        "with a fresh optimiser", low=0)
    replay_factors: tuple[float, ...] = hp((1.0,), "share of --replay_lr in each part, one for all or one for each", above=0)
    replay_l1: tuple[float, ...] = hp((5e-5,), "weight of the l1 penalty on all parameters, one for all parts or one for each",
                                      low=0)
    replay_plain_epochs: int = hp(0, "last epochs of it without augmentation, where --aug is on", low=0)
    replay_optimizer: str = hp("sgd", "optimiser of the replay", choices=tuple(UPDATES))
    replay_weight_decay: float = hp(5e-4, "weight decay of the replay", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = len(self.replay_epochs)
        for name in ("replay_factors", "replay_l1"):
            if (count := len(getattr(self, name))) not in (1, parts):
                raise BadInput(f"--{name} has {count} numbers, --replay_epochs {parts}; give one for all, or one for each")

    def parts(self) -> list[tuple[int, float, float]]:
        """Epochs, share of the rate and l1 weight of each part."""
        same = [values * len(self.replay_epochs) if len(values) == 1 else values
                for values in (self.replay_factors, self.replay_l1)]
        return list(zip(self.replay_epochs, *same, strict=True))


def replay(task: Task, cfg: ReplayConfig) -> None:
    """Cross-entropy on the retain set under an l1 penalty, part by part."""
    parts, total = cfg.parts(), sum(cfg.replay_epochs)
    steady = RateConfig(unlearn_lr=cfg.replay_lr, unlearn_epochs=total, optimizer=cfg.replay_optimizer,
                        weight_decay=cfg.replay_weight_decay, schedule="constant")
    starts = set(itertools.accumulate(cfg.replay_epochs, initial=0))
    each = [(factor, l1) for epochs, factor, l1 in parts for _ in range(epochs)]
    opt = task.descent(steady)
    for epoch in task.epochs(steady, opt):
        if epoch in starts:
            opt.restart()
        factor, opt.l1 = each[epoch]
        opt.lr = factor * cfg.replay_lr
        batches = task.retain if epoch < total - cfg.replay_plain_epochs else task.retain.plain()
        task.log(epoch=epoch, loss=opt.epoch(batches, cross_entropy), lr=opt.rate(1))
