"""What a method declares, and what it gets to see: ``register`` and ``Task``."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from dataset import Data, Loader
from models.modes import NORMS
from pruner.magnitude import apply_mask
from pruner.mask import both
from trainer import Descent, Diverged, ScheduleConfig, predict, resumable
from utils import BadInput, Config, Mask, Registry, Run, Runtime, hp, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoConfig(Config):
    """A method without settings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateConfig(ScheduleConfig):
    """What everything that trains has; schedule ``step`` is constant within 91 epochs, as published."""

    unlearn_lr: float = hp(0.01, "learning rate", above=0)
    unlearn_epochs: int = hp(10, "epochs", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DescentConfig(RateConfig):
    """What every method has that unlearns by steps on a loss: penalties that are added to any."""

    l1: float = hp(0.0, "weight of a constant penalty sum |theta| on all parameters, added to any loss", low=0)
    l2: float = hp(0.0, "weight of a penalty ||theta - theta_0||^2 on the way from the weights at the start", low=0)


ROUNDING = 1e-6  # relative change of weights up to which a model's outputs are the original's
# settings of the methods that are counted in epochs, and grow with their number
IN_EPOCHS = ("unlearn_epochs", "msteps", "no_l1_epochs", "warmup", "decreasing_lr")
IN_REPLAY = ("replay_epochs", "replay_plain_epochs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForgetPassConfig(DescentConfig):
    """A method with steps on the forget set alone."""

    bn: str = hp("batch", "batch norm in steps on the forget set alone. batch: by the batch's own statistics, and the running "
                 "ones stay; eval: by the running ones, so that what moves is the function that is evaluated, at a rate to be "
                 "tuned for it; update: as published, by the batch's own, which enter the running ones", choices=NORMS)


@dataclasses.dataclass(frozen=True)
class Method:
    """One entry of the registry; ``uses`` and ``config`` are all that the rest of the suite needs to know.

    fresh: starts from new weights, not from the original's.
    masked: takes a saliency mask (``--path``).
    random_labels: belongs to main_random too.
    departs: where it differs from the published code, for the README.
    per_protocol: protocol -> values that replace the dataclass defaults there.
    inherits: own setting -> setting of the original's training whose value is the default.
    same_as: the method whose computation this is, under another name; the same settings give the same model.
    phases: their names, where it has several.
    needs_mask: is nothing without a saliency mask.
    whole: forgets whole classes only.
    over_forget: its epochs pass over the forget set, though it reads retain beside it.
    label: the name in those of run folders, which no other method's is, also where upper and lower case are one.
    """

    name: str
    function: Callable[[Task, Any], None]
    config: type[Config]
    uses: frozenset[str]
    source: str
    fresh: bool = False
    masked: bool = True
    random_labels: bool = False
    departs: str = ""
    per_protocol: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    inherits: dict[str, str] = dataclasses.field(default_factory=dict)
    same_as: str = ""
    phases: tuple[str, ...] = ()
    needs_mask: bool = False
    whole: bool = False
    over_forget: bool = False
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", _label(self.name))

    @property
    def over_retain(self) -> tuple[str, ...]:
        """Its settings that are counted in epochs over the retain set: of a method of two phases the replay's alone."""
        if "retain" not in self.uses or self.over_forget:
            return ()
        return tuple(name for name in (IN_REPLAY if self.phases else IN_EPOCHS) if hasattr(self.config, name))

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def apply(self, model: nn.Module, data: Data, cfg: Config, rt: Runtime, run: Run | None = None,
              mask: Mask | None = None, mask_mode: str = "strict", purpose: str = "") -> Mask | None:
        """Unlearn ``data``'s forget set from ``model``, in place.

        Args:
            mask: parameter name -> bool, False stays bit-identical; a pruned model's own mask comes in here too.
            purpose: names the random streams of a step of a plan; without it, methods of one seed share theirs, so that
                they differ by what they do, and retrain has its own.

        Returns:
            The mask of the weights that the method itself pruned, for the checkpoint; None from all that prune nothing.

        Raises:
            Diverged: retrain did, the reference of all others; or any method without a ``run``. In a run it is the method's
                outcome, ``diverged`` in the record, and the model stays as broken as it is.
        """
        idle_norms(model, cfg)
        task = Task(self, model, data, rt, run, mask, mask_mode, purpose or ("retrain" if self.fresh else "unlearn"))
        if self.whole and not task.whole_classes:
            task.refuse("it forgets whole classes, and of every class there are examples to retain; name classes by "
                        "--class_to_replace, or take another method")
        before = None if self.fresh or run is None else copy.deepcopy(model.state_dict())
        try:
            self.function(task, cfg)
        except Diverged as error:
            if self.fresh or run is None:
                raise
            run.result(diverged=str(error).partition(":")[0])  # the fact without the advice
            say(f"notice: {self.name} broke the model: {error}")
        if before is not None:
            share = moved(before, model.state_dict())
            idle = share <= ROUNDING and bool(self.uses)  # that reads nothing is to do nothing
            run.result(did_nothing=idle, moved=share if math.isfinite(share) else None)
            if idle:
                say(f"notice: {self.name} did nothing: its model is the original; change its settings")
        return task.pruned


def idle_norms(model: nn.Module, cfg: Config) -> None:
    """Say where ``--bn`` was given another value than its own, and there is no batch norm that it would be about."""
    own = {field.name: field.default for field in dataclasses.fields(cfg)}
    if getattr(cfg, "bn", None) != own.get("bn") and not any(isinstance(m, _BatchNorm) for m in model.modules()):
        say(f"notice: --bn has no effect: {getattr(model, 'arch', 'this network')} has no batch norm")


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """The largest change of a parameter or buffer, as a share of its own norm: ||after - before|| / ||before||."""
    shares = [(after[name].double() - value.double()).norm() / value.double().norm().clamp_min(torch.finfo().tiny)
              for name, value in before.items()]
    return float(torch.stack(shares).max())  # not a number where one is none


class Methods(Registry[Method]):
    """The methods by name; ``names`` lists those that are registered, ``derive`` makes others from their name."""

    listed = "main_forget.py --list names all"
    derive: Callable[[str], Method | None] = staticmethod(lambda name: None)
    more: Callable[[list[str]], list[str]] = staticmethod(lambda names: [])  # what is to be said of those that are derived

    def known(self, name: str) -> Method | None:
        """The method that is registered under this very name, if one is."""
        return super().__getitem__(name) if super().__contains__(name) else None

    def __contains__(self, name: str) -> bool:
        try:
            return super().__contains__(name) or self.derive(name) is not None
        except BadInput:
            return False

    def __getitem__(self, name: str) -> Method:
        return self.known(name) or self.derive(name) or super().__getitem__(name)


METHODS = Methods("unlearning method")


def register(name: str, *, config: type[Config] = NoConfig, uses: str = "", source: str, **more: Any) -> Callable:
    """Add a method under its published name.

    Args:
        uses: the parts of the data it reads, of ``retain forget val``; it gets no other.
        source: paper, venue, arXiv number and equation.
    """

    def add(function: Callable[[Task, Any], None]) -> Callable[[Task, Any], None]:
        METHODS.add(name, Method(name, function, config, frozenset(uses.split()), source, **more))
        return function

    return add


def _label(name: str) -> str:
    """The name, with a number where one that is there differs from it by upper and lower case alone."""
    taken = {METHODS[other].label.lower() for other in METHODS.names() if other != name}
    spelled = (name if count == 1 else f"{name}_{count}" for count in itertools.count(1))
    return next(label for label in spelled if label.lower() not in taken)


class Task:
    """What a method works on: the model, the parts of the data it declared, random streams, its log and its epochs."""

    def __init__(self, method: Method, model: nn.Module, data: Data, rt: Runtime, run: Run | None,
                 mask: Mask | None, mask_mode: str, purpose: str = "unlearn", hidden: Collection[str] = ()) -> None:
        self.model, self.num_classes, self.mask, self._purpose = model, data.num_classes, mask, purpose
        self.batch_size = data.batch_size
        self.pruned: Mask | None = None
        self._method, self._data, self._rt, self._run, self._mask_mode, self._hidden = method, data, rt, run, mask_mode, hidden

    def within(self, name: str, run: Any, hidden: Collection[str], method: Method | None) -> Task:
        """The same task as one phase of it sees it: its own streams (under a name), run, and parts that are empty to it."""
        purpose = f"{self._purpose}/{name}" if name else self._purpose
        return Task(method or self._method, self.model, self._data, self._rt, run, self.mask, self._mask_mode, purpose, hidden)

    def _check(self, part: str) -> None:
        if part not in self._method.uses:
            raise AttributeError(f"{self._method.name} did not declare that it uses {part!r}")

    def _part(self, name: str) -> Loader:
        self._check(name)
        loader = self._data.loader(name, self._rt, self._purpose)
        return loader.none() if name in self._hidden else loader

    def class_shares(self, part: str) -> Tensor:
        """Share of each class in a part: float64 [K] on the CPU."""
        self._check(part)
        labels = self._data.loader(part).labels.cpu()
        return torch.bincount(labels, minlength=self.num_classes).double() / max(1, len(labels))

    def error(self, part: str, shares: Tensor | None = None) -> float:
        """Error rate of the model on a part, in eval mode, in order and without augmentation; no stream moves.

        Args:
            shares: float64 [K], weigh the classes as these (each must be there), instead of as the part has them.
        """
        self._check(part)
        logits, labels = (t.cpu() for t in predict(self.model, self._data.loader(part), self._rt))
        wrong = (logits.argmax(1) != labels).double()
        if shares is None:
            return float(wrong.mean())
        counts = torch.bincount(labels, minlength=self.num_classes).clamp_min(1)
        return float((torch.bincount(labels, wrong, self.num_classes) / counts) @ shares)

    @cached_property
    def retain(self) -> Loader:
        return self._part("retain")

    @cached_property
    def forget(self) -> Loader:
        return self._part("forget")

    @cached_property
    def val(self) -> Loader:
        return self._part("val")

    def share(self, part: str, share: float, purpose: str) -> Loader:
        """A share of a part's examples, drawn once by the purpose's own stream."""
        loader, stream = getattr(self, part), self.generator(purpose)
        chosen = torch.randperm(loader.size, generator=stream)[: round(share * loader.size)]
        at = chosen.sort().values.to(loader.index.device)
        return Loader(loader.images, loader.index[at], loader.labels[at], loader.batch_size, loader.shuffle, loader.augment)

    def in_order(self, *parts: str, batch_size: int | None = None) -> Loader:
        """The examples of declared parts together, in the data set's order and without augmentation; no stream moves."""
        for part in parts:
            self._check(part)
        index = np.sort(np.concatenate([self._data.index(part) for part in parts]))
        loader = self._data.subset(index)
        return Loader(loader.images, loader.index, loader.labels, batch_size or loader.batch_size)

    @property
    def whole_classes(self) -> list[int]:
        """Classes that retain has no example of, but the forget set has; empty where random examples are forgotten.

        From the index sets, since a step of a plan forgets a part of what its request does.
        """
        self._check("retain")
        y = self._data.images.y.cpu().numpy()
        return np.setdiff1d(y[self._data.index("forget")], y[self._data.index("retain")]).tolist()

    def free(self, name: str) -> Tensor:
        """Which weights of a parameter the masks let change: bool of its shape, on its device."""
        p = self.model.get_parameter(name)
        part = None if self.mask is None else self.mask.get(name)
        return torch.ones_like(p, dtype=torch.bool) if part is None else part.to(p.device)

    @torch.no_grad()
    def replace(self, values: dict[str, Tensor]) -> None:
        """Give every parameter its new value, by name, but where the mask holds it: there it stays bit-identical."""
        for name, p in self.model.named_parameters():
            p.copy_(torch.where(self.free(name), values[name].to(p), p))

    def prune(self, mask: Mask) -> None:
        """Set the weights with False to 0; they stay out of the checkpoint's structure from here on."""
        places = dict(self.model.named_parameters())
        self.pruned = both(self.pruned, {name: part.to(places[name].device) for name, part in mask.items()})
        apply_mask(self.model, self.pruned)

    def shown(self, items: Iterable[Any], about: str) -> Iterable[Any]:
        """The same items (of a known number) under a progress bar, where somebody watches."""
        return tqdm(items, about, disable=None if self._rt.cfg.progress else True, leave=False)

    def descent(self, cfg: RateConfig) -> Descent:
        penalties = {name: getattr(cfg, name, 0.0) for name in ("l1", "l2")}
        return Descent(self.model, cfg, lr=cfg.unlearn_lr, epochs=cfg.unlearn_epochs, rt=self._rt,
                       purpose=self._purpose, mask=self.mask, mask_mode=self._mask_mode, **penalties)

    def epochs(self, cfg: RateConfig, opt: Descent, keep: dict[str, Any] | None = None) -> Iterator[int]:
        """The epochs to do, resuming where a killed run stood; ``keep`` is the method's own part of the state."""
        return resumable(cfg.unlearn_epochs, opt, self._rt, self._run, keep)

    def log(self, **row: Any) -> None:
        if self._run is not None:
            self._run.log(**row)

    def log_whole(self, **row: Any) -> None:
        """All that a method without epochs has to log; in the record too. What a killed run of the same wrote before goes."""
        if self._run is not None:
            self._run.load_state()
            self._run.log(**row)
            self._run.result(measured=row)

    def frozen_copy(self) -> nn.Module:
        """The model as it is now, in eval mode and out of reach of any optimiser (a teacher)."""
        return copy.deepcopy(self.model).eval().requires_grad_(False)

    def fresh_copy(self, purpose: str) -> nn.Module:
        """The architecture with new random weights of the purpose's own stream, in eval mode and out of reach as well."""
        model = copy.deepcopy(self.model).cpu()
        with self._rt.seeded(f"{self._purpose}/{purpose}"):
            for module in [*list(model.modules())[1:], model]:  # last the model, whose way is its source's
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        return model.to(self._rt.device).eval().requires_grad_(False)

    def generator(self, purpose: str) -> torch.Generator:
        return self._rt.generator(f"{self._purpose}/{purpose}")

    def refuse(self, why: str) -> None:
        raise BadInput(f"--unlearn {self._method.name}: {why}")


def method_rows(names: list[str]) -> list[tuple[str, str, str, str]]:
    """Method, what it does, its own flags with defaults, source: one row each, for --list and the README.

    The flags of the optimiser and of the penalties, which every method that trains has, are left out where their defaults are
    the common ones.
    """
    shared = [field for field in dataclasses.fields(DescentConfig) if not field.name.startswith("unlearn_")]
    rows, usual = [], {field.name: field.default for field in shared}
    for method in map(METHODS.__getitem__, names):
        same = dataclasses.fields(METHODS[method.same_as].config) if method.same_as else ()
        common = {field.name: field.default for field in same} or usual
        flags = [f"as {method.same_as}"] if method.same_as else []
        for field in dataclasses.fields(method.config):
            if field.name in common and common[field.name] == field.default and field.name not in method.inherits:
                continue
            default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            default = "(off)" if default is False else "(see --help)" if default is None else default
            others = [f"{p}: {v[field.name]}" for p, v in method.per_protocol.items() if field.name in v]
            if field.name in method.inherits:
                continue
            flags.append(f"--{field.name} {default}" + (f" ({', '.join(others)})" if others else ""))
        if method.inherits:
            flags.append(f"as the original: {' '.join(f'--{name}' for name in method.inherits)}")
        rows.append((method.name, method.summary, ", ".join(flags) or "none", method.source))
    return rows


def method_list(names: list[str]) -> str:
    told = [f"{name}: {text}\n  {flags}\n  [{source}]" for name, text, flags, source in method_rows(names)]
    return "\n\n".join([*told, *METHODS.more(names)])
