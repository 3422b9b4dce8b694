"""Follow a plan: groups forgotten one after another, each step on the model of the step before, each with its record."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import models
from dataset import Data
from evaluation.accuracy import standing
from groups import Chosen, ForgetConfig, given
from models import ModelConfig, Original
from pruner.mask import both
from trainer import predict
from unlearn.plan import Plan, grouped, purpose_of, read_requests, retained
from unlearn.registry import METHODS
from unlearn.saliency import own_mask
from utils import BadInput, Config, Mask, Run, RunConfig, Runtime, say


@dataclasses.dataclass
class Request:
    """A deletion request.

    data: its forget set is all that is to be forgotten by the end of this request; parts: its own examples by the groups of
    the steps, int64; done: int64, what earlier requests forgot, and no step retains. The data's groups are of this request.
    """

    number: int
    data: Data
    parts: dict[str, np.ndarray]
    done: np.ndarray

    def facts(self) -> dict[str, Any]:
        """Hashes that tell the same forget set in other groups, or after other requests, apart."""
        hashes = {name: hashlib.sha256(index.tobytes()).hexdigest()[:12] for name, index in self.parts.items()}
        earlier = hashlib.sha256(self.done.tobytes()).hexdigest()[:12]
        return {"number": self.number, "parts": hashes, "earlier": earlier}

    def arrays(self) -> dict[str, np.ndarray]:
        """What splits.npz holds: the index sets, and ``part_<group>`` as the steps took them."""
        return self.data.splits.arrays() | {f"part_{name}": index for name, index in self.parts.items()}


def requests(plan: Plan, data: Data, forget: ForgetConfig) -> list[Request]:
    """The one request of the forget set, or those of ``--requests`` in their order, each cut into the plan's groups.

    All are made, hence checked, before any is served.
    """
    if plan.cfg.requests is None:
        return [Request(0, data, grouped(plan, data), np.empty(0, np.int64))]
    found, done = [], np.empty(0, np.int64)
    for number, index in enumerate(read_requests(Path(plan.cfg.requests), data.splits.train)):
        own = data.forgetting(given(forget, data.candidates, index))
        union = np.union1d(done, index)
        whole = data.forgetting(Chosen(union, own.splits.groups, own.splits.scores))
        found.append(Request(number, whole, grouped(plan, own), done))
        done = union
    return found


@dataclasses.dataclass
class Chain:
    """The model on its way through the steps of one request after another.

    original: what it starts from, and start: how that stood; file: of the model as it is now, read when it is needed; facts:
    what tells this chain from others, the original first; each step's run is found by it. seconds, read (images), rows: of
    the request at work. diverged: why a step broke the model, which the steps after it then leave as it is.
    """

    original: Original
    where: RunConfig
    config: ModelConfig
    settings: dict[str, Config]
    facts: dict[str, Any]
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    read: dict[str, int] = dataclasses.field(default_factory=dict)
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    told: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    diverged: str | None = None
    file: Path = dataclasses.field(init=False)
    start: dict[str, Any] | None = None
    _held: tuple[nn.Module, Mask | None] | None = None

    def __post_init__(self) -> None:
        self.file = self.original.file

    def _check_original(self, data: Data, rt: Runtime) -> None:
        """Load the original, once, whether or not its model is the one that goes on: its record says how it stood."""
        if self.start is None:
            model, pruned, facts = models.load_original(self.original, self.config, data, rt)
            self.start = standing(self.original, facts, model, data, rt)
            if self.file == self.original.file:
                self._held = model, pruned

    def model(self, data: Data, rt: Runtime) -> tuple[nn.Module, Mask | None]:
        """The model as it stands, and the mask of its pruned weights."""
        if self._held is None:
            self._held = models.load(self.file, self.config, data, rt)
        return self._held

    def _label(self) -> str:
        """Without the plan, since plans that begin alike share their first steps."""
        return f"{self.settings['data'].dataset}-{self.config.arch}-s{self.settings['rt'].seed}"

    def _goes_on_from(self, run: Run) -> None:
        self.file, self._held = run.folder / "model.pt", None

    def close(self, plan: Plan, request: Request, run: Run) -> None:
        """The request's run is finished: the next one goes on from the model that it left."""
        self._goes_on_from(run)
        self.diverged = run.values.get("diverged")
        self.told = self.told + self._tell(plan, request)

    @staticmethod
    def _tell(plan: Plan, request: Request) -> list[dict[str, Any]]:
        return [{**request.facts(), **step.facts(), "retain": plan.cfg.rum_retain} for step in plan.steps]

    def follow(self, plan: Plan, request: Request, rt: Runtime) -> None:
        """Take every step of the plan; a step that has a finished record is read from it."""
        self.rows, self.seconds, self.read = [], {}, {}
        self._check_original(request.data, rt)
        for number, step in enumerate(plan.steps):
            told = self.told + self._tell(plan, request)[: number + 1]
            key = request.data.splits.data_key  # a published original has no record that the data are checked against
            facts = {**self.facts, "data_key": key, "steps": told, "mask_mode": plan.cfg.mask_mode}
            label = f"{self._label()}-{number + 1}-{step.group}-{step.method.label}"
            with Run(self.where, "step", label, self.settings, **facts) as run:
                if run.done:
                    self._goes_on_from(run)
                else:
                    self._take(plan, request, number, rt, run)
            self.diverged = run.values.get("diverged")
            row = {"run": str(run.folder), **step.facts(), **{k: run.values[k] for k in ("retain_size", "before", "after")},
                   "did_nothing": run.values.get("did_nothing", False)}
            say(f"step {number + 1} of {len(plan.steps)}, {step.group}: {step.method.name}  {_line(row)}")
            self.rows.append(row)
            seconds, read = run.spent()
            self.seconds = {name: self.seconds.get(name, 0.0) + seconds.get(name, 0.0) for name in ("mask", "unlearn")}
            self.read = {name: self.read.get(name, 0) + read.get(name, 0) for name in ("mask", "unlearn")}

    def _take(self, plan: Plan, request: Request, number: int, rt: Runtime, run: Run) -> None:
        step, data = plan.steps[number], at_step(plan, request, number)
        model, pruned = self.model(data, rt)
        before, finite = accuracies(model, data, request.parts, rt)
        if self.diverged is None and not finite:  # its last update broke it, after the last loss that was looked at
            self.diverged = f"outputs were not finite before step {number + 1}, {step.group}"
        if self.diverged is None:
            mask = own_mask(model, step.density, data, rt, run, pruned)
            with run.timed(rt, "unlearn"):
                purpose = purpose_of(request.number, number)
                try:
                    made = step.method.apply(model, data, step.cfg, rt, run, both(pruned, mask), plan.cfg.mask_mode, purpose)
                except BadInput as error:
                    raise type(error)(f"step {number + 1}, {step.group}: {step.method.name}: {error}") from None
            pruned = both(pruned, made)
        else:
            say(f"notice: step {number + 1}, {step.group}, is left out, since the model is broken: {self.diverged}")
            run.result(diverged=self.diverged)
        self._held = model, pruned
        models.save(run, model, pruned)
        after, _ = accuracies(model, data, request.parts, rt)
        run.result(before=before, after=after, forget_size=len(data.splits.forget), retain_size=len(data.splits.retain),
                   **rt.facts())

    def outcome(self) -> dict[str, Any]:
        """What the request's record says of its steps."""
        idle = [row["did_nothing"] for row in self.rows if METHODS[row["method"]].uses]
        told = {"original": self.start, "rows": self.rows, "did_nothing": bool(idle) and all(idle)}
        return told | ({} if self.diverged is None else {"diverged": self.diverged})


def at_step(plan: Plan, request: Request, number: int) -> Data:
    """The data as a step sees them: its group to forget, and what it retains."""
    parts = [request.parts[step.group] for step in plan.steps]
    levels = tuple(step.group for step in plan.steps)
    left = np.setdiff1d(request.data.splits.train, request.done)
    retain = retained(left, parts, number, plan.cfg.rum_retain, levels)
    splits = request.data.splits
    splits = dataclasses.replace(splits, train=np.union1d(retain, parts[number]), retain=retain, forget=parts[number])
    return dataclasses.replace(request.data, splits=splits)


def accuracies(model: nn.Module, data: Data, parts: dict[str, np.ndarray], rt: Runtime) -> tuple[dict[str, float], bool]:
    """Accuracy in percent on every group, by one pass over all of them, and whether all outputs are finite."""
    logits, labels = predict(model, data.subset(np.concatenate(list(parts.values()))), rt)
    finite = torch.isfinite(logits).all(1)
    right = ((logits.argmax(1) == labels) & finite).cpu().split([len(index) for index in parts.values()])
    return {name: 100 * float(torch.mean(part.double())) for name, part in zip(parts, right, strict=True)}, bool(finite.all())


def _line(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {row['before'][name]:.1f} -> {row['after'][name]:.1f} %" for name in row["before"])
