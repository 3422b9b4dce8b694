"""Methods that climb on the forget set: NegGrad, NegGrad+ and the short SFRon."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from batches import Batch, Pairs
from models.modes import normalising
from trainer import cross_entropy
from unlearn.presets import PLAIN, REMINISCENCE, also, preset
from unlearn.registry import ForgetPassConfig, Task, register
from utils import hp


@dataclasses.dataclass(frozen=True, kw_only=True)
class AscentConfig(ForgetPassConfig):
    """Gradient ascent."""

    unlearn_lr: float = hp(1e-4, "learning rate", above=0)
    unlearn_epochs: int = hp(5, "epochs over the forget set", low=0)


GA_SOURCE = "Golatkar et al., CVPR 2020, arXiv:1911.04933; Thudi et al., EuroS&P 2022, arXiv:2109.13398"
GA_DEPARTS = "batch norm's running statistics stay as they are, since only forget data is seen (--bn update: as published)"


@register("GA", config=AscentConfig, uses="forget", source=GA_SOURCE, departs=GA_DEPARTS)
def gradient_ascent(task: Task, cfg: AscentConfig) -> None:
    """Climb the loss of the forget set (NegGrad)."""
    _climb(task, cfg, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AscentL1Config(AscentConfig):
    """Gradient ascent under an l1 penalty."""

    alpha: float = hp(1e-4, "weight of a constant l1 penalty on all parameters", low=0)


@register("GA_l1", config=AscentL1Config, uses="forget", source=GA_SOURCE + "; Jia et al., arXiv:2304.04934",
          departs=GA_DEPARTS + "; in the later published code it stops with a TypeError")
def gradient_ascent_l1(task: Task, cfg: AscentL1Config) -> None:
    """Climb the loss of the forget set under a constant l1 penalty."""
    _climb(task, cfg, cfg.alpha)


def ascent(model: nn.Module, batch: Batch) -> Tensor:
    return -cross_entropy(model, batch)


def _climb(task: Task, cfg: AscentConfig, l1: float) -> None:
    opt = task.descent(cfg)
    opt.l1 += l1
    for epoch in task.epochs(cfg, opt):
        task.log(epoch=epoch, loss=opt.epoch(task.forget, ascent, bn=cfg.bn), lr=opt.rate(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegGradConfig(ForgetPassConfig):
    """NegGrad+."""

    unlearn_epochs: int = hp(5, "epochs over the retain set", low=0)
    alpha: float = hp(0.95, "weight of the retain loss; the forget loss has 1 - alpha", low=0, high=1)


@register("NG", config=NegGradConfig, uses="retain forget",
          source="Kurmanji et al., NeurIPS 2023, arXiv:2302.09880 (NegGrad+)",
          departs="forget batches are reshuffled in every pass; the published itertools.cycle repeats the first ones; they do "
                  "not move batch norm's running statistics (--bn update: as published)")
def neggrad_plus(task: Task, cfg: NegGradConfig) -> None:
    """Descend on the retain set and climb on the forget set in every step (NegGrad+)."""

    def loss(model: nn.Module, pair: tuple[Batch | None, Batch]) -> Tensor:
        keep, drop = pair
        down = 0.0 if keep is None else cfg.alpha * cross_entropy(model, keep)
        with normalising(model, cfg.bn):
            return down - (1 - cfg.alpha) * cross_entropy(model, drop)

    opt = task.descent(cfg)
    for epoch in task.epochs(cfg, opt):
        task.log(epoch=epoch, loss=opt.epoch(Pairs(task.retain, task.forget), loss), lr=opt.rate(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SfronConfig(preset(ForgetPassConfig, "PlainConfig", **PLAIN)):
    """The short SFRon."""

    unlearn_lr: float = hp(1e-3, "learning rate", above=0)
    unlearn_epochs: int = hp(8, "epochs over the retain set", low=0)
    ascent_every: int = hp(5, "retain batches to one step up on a forget batch, which follows the first of them", low=1)


@register("sfron", config=SfronConfig, uses="retain forget", source=f"{REMINISCENCE}; after Huang et al., NeurIPS 2024, "
          "arXiv:2409.19732",
          departs="stands in for the published SFRon, as it does in its source: neither the saliency of forget and retain "
                  "together nor a natural gradient; a step up follows the first of every five retain batches, so that a short "
                  "epoch has one; forget batches are reshuffled in every pass, and do not move batch norm's running statistics "
                  "(--bn update: as published)")
def sfron(task: Task, cfg: SfronConfig) -> None:
    """Descend on the retain set, with a step up on a forget batch after every few steps (short SFRon)."""

    def loss(model: nn.Module, step: tuple[bool, Batch]) -> Tensor:
        up, batch = step
        if not up:
            return cross_entropy(model, batch)
        with normalising(model, cfg.bn):
            return ascent(model, batch)

    opt = task.descent(cfg)
    for epoch in task.epochs(cfg, opt):
        pairs = Pairs(task.retain, task.forget, cfg.ascent_every)
        steps = (step for pair in pairs for step in enumerate(pair) if step[1] is not None)
        task.log(epoch=epoch, loss=opt.epoch(steps, loss, pairs.batches), lr=opt.rate(1))


# the Reminiscence project's names
also("negative_grad", "NG", config=preset(NegGradConfig, "NegativeGradConfig", **PLAIN))
also("negative_grad_2", "GA", config=preset(AscentConfig, "NegativeGrad2Config", **PLAIN))
also("negative_grad_l2", "GA", config=preset(AscentConfig, "NegativeGradL2Config", **PLAIN, l2=0.05))
