"""Methods that train on the retain set: retraining, fine-tuning, l1-sparse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from torch import Tensor

from pruner import magnitude
from pruner.mask import both, top
from trainer import SCHEDULES, cross_entropy
from unlearn.presets import also
from unlearn.registry import DescentConfig, RateConfig, Task, register
from utils import Mask, hp


@register("raw", uses="", source="no-op baseline", masked=False)
def raw(task: Task, cfg: object) -> None:
    """Do nothing: the original model, evaluated as if it had forgotten."""


INHERITED = ("optimizer", "schedule", "decreasing_lr", "lr_gamma", "warmup", "momentum", "weight_decay", "bias_lr", "head_lr",
             "early_epochs", "alpha", "label_smoothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrainConfig(RateConfig):
    """Without flags, rate, epochs and schedule are those of the original's record."""

    unlearn_lr: float = hp(0.1, "learning rate; without the flag, the original's", above=0)
    unlearn_epochs: int = hp(30, "epochs, over which the schedule runs; without the flag, the original's", low=0)
    schedule: str = hp("cosine", "the rate over the epochs; without the flag, the original's",
                       choices=SCHEDULES)
    alpha: float = hp(0.0, "weight of a constant l1 penalty; without the flag, the original's", low=0)
    early_epochs: int = hp(0, "epochs in which a whitening layer's bias trains; without the flag, the original's", low=0)
    label_smoothing: float = hp(0.0, "share of the label spread over all classes; without the flag, the original's", low=0,
                                below=1)


@register("retrain", config=RetrainConfig, uses="retain", source="exact unlearning (the reference)", fresh=True,
          masked=False, per_protocol={"sparse": {"unlearn_epochs": 160, "schedule": "step"}},
          inherits={"unlearn_lr": "lr", "unlearn_epochs": "epochs"} | {same: same for same in INHERITED},
          departs="starts from an initialisation of its own; the published code gives original and retrain the same one, "
                  "and anneals over --epochs while it trains --unlearn_epochs")
def retrain(task: Task, cfg: RetrainConfig) -> None:
    """Train a new model on the retain set alone: the reference that every metric compares with."""
    _descend(task, cfg, lambda epoch: cfg.alpha, partial(cross_entropy, smoothing=cfg.label_smoothing))


@register("FT", config=DescentConfig, uses="retain", source="fine-tuning, e.g. Golatkar et al., CVPR 2020, arXiv:1911.04933")
def fine_tune(task: Task, cfg: DescentConfig) -> None:
    """Go on training on the retain set and let the forget set fade."""
    _descend(task, cfg, lambda epoch: 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class L1Config(DescentConfig):
    """Fine-tuning with an l1 penalty that fades over the epochs."""

    alpha: float = hp(5e-4, "first weight of the l1 penalty on all parameters; fades linearly to 0", low=0)
    no_l1_epochs: int = hp(0, "epochs at the end without the penalty", low=0)


L1_SOURCE = "Jia et al., NeurIPS 2023, arXiv:2304.04934, eq. 4"
L1_DEPARTS = "alpha defaults to 5e-4 (sparse: 1e-4); the published default 0.2 destroys the model"


def l1_weight(cfg: L1Config, epoch: int) -> float:
    """alpha (1 - e / (E - E0)) while e < E - E0, then 0; with E = E0 the published code keeps alpha constant."""
    span = cfg.unlearn_epochs - cfg.no_l1_epochs
    if span == 0:
        return cfg.alpha
    return cfg.alpha * (1 - epoch / span) if epoch < span else 0.0


@register("FT_l1", config=L1Config, uses="retain", source=L1_SOURCE, departs=L1_DEPARTS,
          per_protocol={"sparse": {"alpha": 1e-4}})
def fine_tune_l1(task: Task, cfg: L1Config) -> None:
    """Fine-tune on the retain set under an l1 penalty that fades to zero (l1-sparse)."""
    if cfg.no_l1_epochs > cfg.unlearn_epochs:
        task.refuse(f"--no_l1_epochs {cfg.no_l1_epochs} exceeds --unlearn_epochs {cfg.unlearn_epochs}")
    _descend(task, cfg, lambda epoch: l1_weight(cfg, epoch))


@register("FT_prune", config=L1Config, uses="retain", source=L1_SOURCE, same_as="FT_l1",
          departs=L1_DEPARTS + "; as published nothing is pruned, the share of near-zero weights is logged",
          per_protocol={"sparse": {"alpha": 1e-4}})
def l1_sparse(task: Task, cfg: L1Config) -> None:
    """l1-sparse under its published name: FT_l1, and the share of weights it drove below 1e-4 in the log."""
    fine_tune_l1(task, cfg)
    weights = magnitude.magnitudes(magnitude.prunable(task.model)).values()
    share = sum(int((w < 1e-4).sum()) for w in weights) / sum(w.numel() for w in weights)
    kind = "linear" if magnitude.by_linear(task.model) else "conv"
    task.log(**{f"share_of_{kind}_weights_below_1e_4": share})


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlternatingConfig(DescentConfig):
    """Fine-tuning and pruning in turns."""

    rate: float = hp(0.95, "share of the convolutions' weights that is gone in the end, of those that may change", above=0,
                     below=1)


@register("FT_prune_bi", config=AlternatingConfig, uses="retain",
          source="prune and unlearn in turns, after Jia et al., NeurIPS 2023, arXiv:2304.04934",
          departs="prunes before the epochs 0, 2, 4, ..., so that --rate is reached for every number of epochs (the published "
                  "test misses a prune where it is odd, and the call ends in a TypeError in the later code); the checkpoint "
                  "holds the mask, and pruned weights stay exactly 0")
def alternate(task: Task, cfg: AlternatingConfig) -> None:
    """Fine-tune on the retain set, and before every other epoch prune the convolutions' smallest weights.

    Of a network with hardly any, such as a transformer, the linear layers' but the head's, which a notice says.
    """
    magnitude.told_scope(task.model, "FT_prune_bi")
    opt = task.descent(cfg)
    weights, keep = magnitude.prunable(task.model), {}
    prunes = (cfg.unlearn_epochs + 1) // 2  # as many as the published exponent, (E - 1) // 2 + 1, counts
    for epoch in task.epochs(cfg, opt, keep):
        if epoch % 2 == 0:
            keep["mask"] = _smallest_off(task, weights, 1 - (1 - cfg.rate) ** (1 / prunes), keep.get("mask"))
        task.prune(keep["mask"])
        opt.hold(task.pruned)
        task.log(epoch=epoch, loss=opt.epoch(task.retain, cross_entropy), lr=opt.rate(1))


def _smallest_off(task: Task, weights: dict[str, Tensor], rate: float, before: Mask | None) -> Mask:
    """The mask, True = stays, that a prune of this rate leaves: the largest of the free weights that are still there.

    What the masks hold cannot be pruned here: it is pruned already, or must not change.
    """
    held = {name: ~task.free(name) for name in weights}
    still = both({name: ~part for name, part in held.items()}, before)
    count = magnitude.left_after(rate, sum(int(still[name].sum()) for name in held))
    if not count:
        task.refuse("--rate leaves no weight of the convolutions; prune less")
    mask = {name: part | held[name] for name, part in top(magnitude.magnitudes(weights), (count,), still)[0].items()}
    if lost := magnitude.gone(mask):
        task.refuse(f"--rate leaves no weight in {', '.join(lost)}; prune less")
    return mask


def _descend(task: Task, cfg: RateConfig, l1: Callable[[int], float], loss: Callable[..., Tensor] = cross_entropy) -> None:
    """Cross-entropy on the retain set, with ``l1(epoch)`` more as the weight of the l1 penalty."""
    opt = task.descent(cfg)
    always = opt.l1
    for epoch in task.epochs(cfg, opt):
        opt.l1 = always + l1(epoch)
        task.log(epoch=epoch, loss=opt.epoch(task.retain, loss), lr=opt.rate(1))


# the Reminiscence project's names
also("baseline", "raw")
also("finetune", "FT")
