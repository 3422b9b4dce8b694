"""What is pruned, how often, and where training goes on from: settings, and the plan that they make.

Frankle, Dziugaite, Roy and Carbin, ICML 2020, arXiv:1912.05671 (rewinding to an early epoch); Renda, Frankle and Carbin,
ICLR 2020, arXiv:2003.02389 (rewinding the rate alone); Jia et al., NeurIPS 2023, arXiv:2304.04934 (before unlearning).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from pruner import magnitude, synflow
from utils import BadInput, Config, Mask, hp, open_regular, reading, say, sha256

PUBLISHED_RATE, DIGITS = 0.95, 12  # shares are rounded, so that --rate and --sparsity of one plan meet in one folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class AmountConfig(Config):
    """How much is pruned; with neither flag the published rate of 0.95."""

    rate: float | None = hp(None, "share of the surviving weights that each prune takes (default: 0.95)", above=0, below=1)
    sparsity: float | None = hp(None, "share of the weights that is gone in the end, instead of --rate", low=0, below=1)

    def amount(self) -> float:
        """What one prune takes, if there is but one."""
        if self.rate is not None and self.sparsity is not None:
            raise BadInput("--rate and --sparsity both say how much to prune; give one of them")
        return next((value for value in (self.sparsity, self.rate) if value is not None), PUBLISHED_RATE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneConfig(AmountConfig):
    """Which weights are pruned, how often, and where training goes on from."""

    pruning_times: int | None = hp(None, "number of trainings, as published: 1 prunes nothing, 2 is OMP (the default), N "
                                   "is IMP and leaves (1 - rate)^(N - 1)", low=1, high=1000)
    prune_type: str = hp("rewind_lt", "go on from the initial weights (lt), the trained dense ones (pt), or those after "
                         "--rewind_epoch epochs (rewind_lt)", choices=("lt", "pt", "rewind_lt"))
    rewind_epoch: int = hp(0, "epochs of the dense training after which the weights to rewind to are taken", low=0)
    # which file it is, its hash says, in the plan's facts
    rewind_pth: str | None = hp(None, "file with the weights to rewind to, instead", digest=False)
    rewind_schedule: str = hp("rest", "training after rewinding: the epochs that are left from --rewind_epoch on, or, as "
                              "published, all --epochs from there", choices=("rest", "published"))
    random_prune: bool = hp(False, "prune at random instead of by magnitude")
    prune_scope: str = hp("global_conv", "all convolutions ranked together (published), each by itself, or linear layers "
                          "too; of a network with hardly any convolutions, its linear layers but the head",
                          choices=magnitude.SCOPES)

    def check_dense(self) -> None:
        """Refuse what is about pruning where nothing is pruned; --rewind_epoch writes the weights for later prunes."""
        default = type(self)()
        for name in ("rewind_pth", "rewind_schedule", "random_prune", "prune_scope"):
            if getattr(self, name) != getattr(default, name):
                raise BadInput(f"--sparsity 0 prunes nothing, so that --{name} has no effect; leave one of the two away")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynFlowConfig(AmountConfig):
    """SynFlow's schedule."""

    synflow_rounds: int = hp(100, "rounds of scoring and pruning", low=1)
    keep_shortcuts: bool = hp(False, "never prune the 1x1 convolutions on shortcuts; they count in the sparsity")

    def settings(self) -> SynFlowConfig:
        """The settings with both words for the amount filled in, so that records can be searched by either."""
        return dataclasses.replace(self, rate=self.amount() or None, sparsity=self.amount())

    def facts(self) -> dict[str, Any]:
        """What tells an original pruned so from others."""
        return {"synflow": self.sparsity, "rounds": self.synflow_rounds, "keep_shortcuts": self.keep_shortcuts}

    def mask(self, model: nn.Module, shape: synflow.Shape) -> Mask:
        """The weights that stay of a freshly initialised model, for images of the shape (colours, height, width)."""
        spared = synflow.shortcuts(model) if self.keep_shortcuts else []
        if self.keep_shortcuts and not spared:
            say(f"notice: --keep_shortcuts has no effect: {model.arch} has no convolution on a shortcut")
        mask = synflow.prune(model, 1 - self.sparsity, self.synflow_rounds, shape, spared)
        if lost := magnitude.gone(mask):
            say(f"notice: SynFlow left no weight in {', '.join(lost)}")
        return mask


@dataclasses.dataclass(frozen=True)
class Plan:
    """The trainings of an OMP or IMP run; its facts are in the record, from which ``of_record`` makes it again.

    shares: of the weights in scope that each training has, the first being 1, but for the rounding of each prune. file: hash
    of the --rewind_pth file, or None.
    """

    shares: tuple[float, ...]
    prune_type: str
    rewind_epoch: int
    rewind_schedule: str
    random_prune: bool
    prune_scope: str
    file: str | None = None

    @classmethod
    def of(cls, cfg: PruneConfig, epochs: int, schedule: str) -> Plan:
        """The plan of the settings, for trainings of so many epochs under a schedule.

        Raises:
            BadInput: settings that contradict one another, before anything is trained.
        """
        taken, asked = cfg.amount(), cfg.rate is not None or bool(cfg.sparsity)
        times = cfg.pruning_times or (2 if taken else 1)
        if times == 1 and asked:
            raise BadInput("--pruning_times 1 trains once and prunes nothing: it counts trainings, OMP is 2")
        if times > 1 and not taken:
            raise BadInput(f"--sparsity 0 prunes nothing; leave --pruning_times {times} away")
        prunes = times - 1 if cfg.sparsity is not None else 1
        shares = tuple(round((1 - taken) ** (number / max(1, prunes)), DIGITS) for number in range(times))
        file = cfg.rewind_pth
        if times == 1:
            cfg.check_dense()
        if file is not None:
            with reading(f"--rewind_pth {file}", "the folder of a dense round holds rewind.pt"):
                open_regular(Path(file)).close()
        plan = cls(shares, cfg.prune_type, cfg.rewind_epoch, cfg.rewind_schedule, cfg.random_prune, cfg.prune_scope,
                   None if file is None else sha256(Path(file)))
        plan._check(epochs, schedule)
        return plan

    def _check(self, epochs: int, schedule: str) -> None:
        at, early = self.rewind_epoch, self.prune_type == "rewind_lt"
        if at >= epochs:
            raise BadInput(f"--rewind_epoch {at} lies beyond the {epochs} epochs of training; choose an earlier one")
        if early and not at and self.file is None and len(self.shares) > 1:
            raise BadInput("--prune_type rewind_lt needs --rewind_epoch N (published: 8) or --rewind_pth FILE; to rewind to "
                           "the initial weights use --prune_type lt")
        if not early and (at or self.file):
            raise BadInput(f"--prune_type {self.prune_type} rewinds to weights of its own; leave --rewind_epoch and "
                           "--rewind_pth away, or use rewind_lt")
        if self.rewind_schedule == "published" and at and schedule not in ("step", "constant"):
            raise BadInput(f"--rewind_schedule published runs {at} epochs past the end of --schedule {schedule}; use "
                           "--schedule step, or --rewind_schedule rest")

    @classmethod
    def of_record(cls, record: dict[str, Any], epochs: int, schedule: str) -> Plan:
        """The plan by which an original was pruned, to be followed on other data (BadInput where it cannot be)."""
        facts = record.get("pruning", {})
        if "shares" not in facts:
            raise BadInput("--own_pruning: the original's record tells of no mask that main_imp.py took from training data; "
                           "leave the flag away")
        if facts["file"] is not None:
            raise BadInput("--own_pruning: the original was rewound to a file, which may have seen the forget set; leave the "
                           "flag away")
        plan = cls(**{**facts, "shares": tuple(facts["shares"])})
        try:
            plan._check(epochs, schedule)
        except BadInput:
            raise BadInput(f"--own_pruning: the original went back to its epoch {plan.rewind_epoch} and trained on as its own "
                           f"--epochs and --schedule allowed, which {epochs} epochs under {schedule} do not: leave "
                           "--unlearn_epochs and --schedule away, or --own_pruning") from None
        return plan

    @property
    def rate(self) -> float | None:
        """The share of the surviving weights that each prune takes; None where there is no prune."""
        return round(1 - self.shares[1], DIGITS) if len(self.shares) > 1 else None

    def settings(self, cfg: PruneConfig) -> PruneConfig:
        """The settings with all three words for the amount filled in, so that records can be searched by any."""
        sparsity = round(1 - self.shares[-1], DIGITS)
        return dataclasses.replace(cfg, rate=self.rate, pruning_times=len(self.shares), sparsity=sparsity)

    def name(self) -> str:
        how = "dense" if len(self.shares) == 1 else "omp" if len(self.shares) == 2 else f"imp{len(self.shares)}"
        how = "random" if self.random_prune and len(self.shares) > 1 else how
        return how if len(self.shares) == 1 else f"{how}-{100 * (1 - self.shares[-1]):.4g}"

    def facts(self, number: int | None = None) -> dict[str, Any]:
        """What decides the weights of a training (the last by default); the dense one is shared by all later prunes."""
        last = len(self.shares) - 1 if number is None else number
        if not last:
            return {}
        return {**dataclasses.asdict(self), "shares": self.shares[: last + 1]}

    def snapshot(self) -> int:
        """The epoch before which the dense training writes rewind.pt; 0: it need not."""
        return self.rewind_epoch if self.prune_type == "rewind_lt" and self.file is None else 0

    def check(self, model: nn.Module) -> None:
        """Refuse, before any training, shares that this network cannot have."""
        if len(self.shares) > 1 and self.prune_scope != "global_all":
            magnitude.told_scope(model, f"--prune_scope {self.prune_scope}")
        weights = magnitude.prunable(model, self.prune_scope)
        for group in magnitude.ranked_together(weights, self.prune_scope):
            count = before = sum(weights[name].numel() for name in group)
            where = group[0] if len(group) == 1 else f"the {len(group)} layers in scope"
            for share in self.shares[1:]:
                count, before = magnitude.left_after(self.rate, count), count
                if not 0 < count < before:
                    raise BadInput(f"{100 * (1 - share):.8g} % sparsity leaves {count} of {before} weights in {where}, which "
                                   "prunes all or nothing; choose another --rate or --sparsity, or fewer rounds")
