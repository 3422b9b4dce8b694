"""Methods that teach the forget set wrong labels: random label, and SalUn with a saliency mask."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from trainer import cross_entropy
from unlearn.registry import SgdConfig, Task, register
from utils import hp


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomLabelConfig(SgdConfig):
    """Random labels, redrawn in every epoch."""

    unlearn_lr: float = hp(0.1, "learning rate", above=0)
    rl_form: str = hp("mixed", "mixed: forget and retain shuffled together (RUM); sequential: a pass over the forget "
                      "set, then one over retain (SalUn)", choices=("mixed", "sequential"))
    rl_labels: str = hp("wrong", "wrong: never the true class; any: uniform over all, as published",
                        choices=("wrong", "any"))


RL_SPARSE = {"sparse": {"unlearn_lr": 0.013, "rl_form": "sequential"}}
RL_DEPARTS = ("labels are drawn from all classes of the data set on every data set, and never the true one "
              "(--rl_labels any as published); the published code leaves true labels on CIFAR-100 and TinyImageNet")


@register("RL", config=RandomLabelConfig, uses="retain forget", source="Fan et al., ICLR 2024, arXiv:2310.12508, eq. 5",
          random_labels=True, per_protocol=RL_SPARSE, departs=RL_DEPARTS + "; masked weights stay bit-identical "
          "(--mask_mode published lets them decay)")
def salun(task: Task, cfg: RandomLabelConfig) -> None:
    """Random labels for the forget set, retain as it is; with --path MASK only salient weights move (SalUn)."""
    _random_labels(task, cfg)


@register("RL_og", config=RandomLabelConfig, uses="retain forget", masked=False, random_labels=True,
          source="Graves et al., AAAI 2021, arXiv:2010.10981", per_protocol=RL_SPARSE, departs=RL_DEPARTS)
def random_label(task: Task, cfg: RandomLabelConfig) -> None:
    """Random labels for the forget set, retain as it is, all weights free."""
    _random_labels(task, cfg)


def draw_labels(labels: Tensor, num_classes: int, how: str, stream: torch.Generator) -> Tensor:
    """Random labels int64 [M] for examples of true ``labels`` [M]: ``wrong`` ones, or ``any``."""
    shape, device = labels.shape, labels.device
    if how == "any":
        return torch.randint(num_classes, shape, generator=stream, device=device)
    return (labels + torch.randint(1, num_classes, shape, generator=stream, device=device)) % num_classes


def _random_labels(task: Task, cfg: RandomLabelConfig) -> None:
    opt, stream = task.sgd(cfg), task.generator("labels")
    true = task.forget.labels
    for epoch in task.epochs(cfg, opt):
        forget = task.forget.relabelled(draw_labels(true, task.num_classes, cfg.rl_labels, stream))
        if cfg.rl_form == "mixed":
            row = {"loss": opt.epoch(forget + task.retain, cross_entropy)}
        else:
            row = {"forget_loss": opt.epoch(forget, cross_entropy), "loss": opt.epoch(task.retain, cross_entropy)}
        task.log(epoch=epoch, **row, lr=opt.rate(1))
