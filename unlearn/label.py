"""Methods that teach the forget set wrong labels: random label, SalUn with a saliency mask, amnesiac."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dataset import Batch, Loader
from trainer import cross_entropy
from unlearn.presets import ADAM, REMINISCENCE, AdamConfig, also, preset
from unlearn.registry import DescentConfig, ForgetPassConfig, Task, register
from utils import BadInput, hp


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrongLabelConfig(DescentConfig):
    """Which labels the forget set gets, anew in every epoch."""

    unlearn_lr: float = hp(0.1, "learning rate", above=0)
    rl_labels: str = hp("wrong", "wrong: never the true class; any: uniform over all, as published",
                        choices=("wrong", "any"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomLabelConfig(WrongLabelConfig, ForgetPassConfig):
    """Random labels, redrawn in every epoch."""

    rl_form: str = hp("mixed", "mixed: forget and retain shuffled together (RUM); sequential: a pass over the forget "
                      "set, then one over retain (SalUn)", choices=("mixed", "sequential"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rl_form == "mixed" and self.bn != "batch":
            raise BadInput("--bn is about passes over the forget set alone, and --rl_form mixed has none; leave it away, or "
                           "take --rl_form sequential")


RL_SPARSE = {"sparse": {"unlearn_lr": 0.013, "rl_form": "sequential"}}
BN_DEPARTS = ("; a pass over the forget set alone (--rl_form sequential) does not move batch norm's running statistics (--bn "
              "update: as published)")
RL_DEPARTS = ("labels are drawn from all classes of the data set on every data set, and never the true one "
              "(--rl_labels any as published); the published code leaves true labels on CIFAR-100 and TinyImageNet")


@register("RL", config=RandomLabelConfig, uses="retain forget", source="Fan et al., ICLR 2024, arXiv:2310.12508, eq. 5",
          random_labels=True, per_protocol=RL_SPARSE, departs=RL_DEPARTS + BN_DEPARTS + "; masked weights stay "
          "bit-identical (--mask_mode published lets them decay)")
def salun(task: Task, cfg: RandomLabelConfig) -> None:
    """Random labels for the forget set, retain as it is; with --path MASK only salient weights move (SalUn)."""
    _random_labels(task, cfg)


@register("RL_og", config=RandomLabelConfig, uses="retain forget", masked=False, random_labels=True,
          source="Graves et al., AAAI 2021, arXiv:2010.10981", per_protocol=RL_SPARSE, departs=RL_DEPARTS + BN_DEPARTS)
def random_label(task: Task, cfg: RandomLabelConfig) -> None:
    """Random labels for the forget set, retain as it is, all weights free."""
    _random_labels(task, cfg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProximalConfig(WrongLabelConfig):
    """Random labels close to the original weights."""

    mask_ratio: float = hp(0.5, "share of the weights put back on their anchor at first; falls linearly to 0", low=0, high=1)
    rl_proximal_mode: str = hp("exact", "exact: the anchor is the original model, and the share falls with every step; "
                               "published: the anchor is taken and the share lowered once an epoch",
                               choices=("exact", "published"))


@register("RL_proximal", config=ProximalConfig, uses="retain forget", random_labels=True,
          source="Fan et al., ICLR 2024, arXiv:2310.12508, SalUn-soft (the l1 penalty on theta - theta_o)",
          per_protocol={"sparse": {"unlearn_lr": 0.013}},
          departs=RL_DEPARTS + "; --mask_ratio exists (the published code reads it, but no parser has it) and is a share of "
          "the weights that may change; the anchor is the original model and the share falls with every step, as in the paper "
          "(--rl_proximal_mode published: both once an epoch)")
def salun_soft(task: Task, cfg: ProximalConfig) -> None:
    """Random labels, each step drawn back to the original weights by a soft threshold that fades (SalUn-soft)."""
    opt, stream = task.descent(cfg), task.generator("labels")
    names, params = zip(*task.model.named_parameters(), strict=True)
    free = torch.cat([task.free(name).flatten() for name in names])
    n, anchor = int(free.sum()), [p.detach().clone() for p in params]
    true = task.forget.labels
    for epoch in task.epochs(cfg, opt):
        if cfg.rl_proximal_mode == "published":
            anchor = [p.detach().clone() for p in params]
        batches = task.forget.relabelled(draw_labels(true, task.num_classes, cfg.rl_labels, stream)) + task.retain
        length = len(batches)

        def draw_back(step: int, epoch: int = epoch, length: int = length, anchor: list[Tensor] = anchor) -> None:
            at = epoch * length + (step if cfg.rl_proximal_mode == "exact" else 1)
            total = cfg.unlearn_epochs * length
            soft_threshold(params, anchor, free, int(cfg.mask_ratio * (total - at) / total * n))

        task.log(epoch=epoch, loss=opt.epoch(after_each(batches, draw_back), cross_entropy, length), lr=opt.rate(1))


def after_each(batches: Loader, act: Callable[[int], None]) -> Iterator[Batch]:
    """The batches, with ``act(step)`` (from 1) when the step on each is over, which is when the next one is asked for."""
    for step, batch in enumerate(batches, 1):
        yield batch
        act(step)


@torch.no_grad()
def soft_threshold(params: tuple[nn.Parameter, ...], anchor: list[Tensor], free: Tensor, rank: int) -> None:
    """theta <- anchor + sign(d) max(|d| - t, 0) with d = theta - anchor, t the ``rank``-th smallest |d|; in place.

    The proximal step of t |theta - anchor|_1. At least ``rank`` weights are then on their anchor, bit by bit; rank 0 leaves
    all as they are.

    Args:
        free: bool [D], over all parameters one after the other; the others neither count nor move.
    """
    if not rank:
        return
    here, home = torch.cat([p.flatten() for p in params]), torch.cat([a.flatten() for a in anchor])
    d = here - home
    # those that are held stand behind all others, so that no rank within the free ones reaches them
    size = d.abs().masked_fill_(~free, torch.inf)
    # CUDA's kthvalue leaves a row to one block, and is refused in deterministic mode for the sake of its indices
    ranked = size.sort().values[rank - 1] if size.is_cuda else size.kthvalue(rank).values
    there = torch.where(free, torch.where(size <= ranked, home, here - d.sign() * ranked), here)
    parts = there.split([p.numel() for p in params])
    torch._foreach_copy_(list(params), [part.view_as(p) for part, p in zip(parts, params, strict=True)])


def draw_labels(labels: Tensor, num_classes: int, how: str, stream: torch.Generator) -> Tensor:
    """Random labels int64 [M] for examples of true ``labels`` [M]: ``wrong`` ones, or ``any``."""
    if how == "any":
        return torch.randint(num_classes, labels.shape, generator=stream).to(labels.device)
    return (labels + torch.randint(1, num_classes, labels.shape, generator=stream).to(labels.device)) % num_classes


def _random_labels(task: Task, cfg: RandomLabelConfig) -> None:
    opt, stream = task.descent(cfg), task.generator("labels")
    true = task.forget.labels
    for epoch in task.epochs(cfg, opt):
        forget = task.forget.relabelled(draw_labels(true, task.num_classes, cfg.rl_labels, stream))
        if cfg.rl_form == "mixed":
            row = {"loss": opt.epoch(forget + task.retain, cross_entropy)}
        else:
            row = {"forget_loss": opt.epoch(forget, cross_entropy, bn=cfg.bn), "loss": opt.epoch(task.retain, cross_entropy)}
        task.log(epoch=epoch, **row, lr=opt.rate(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AmnesiacConfig(AdamConfig):
    """Amnesiac unlearning."""

    unlearn_lr: float = hp(1e-4, "learning rate", above=0)
    unlearn_epochs: int = hp(3, "epochs over both sets", low=0)


@register("amnesiac", config=AmnesiacConfig, uses="retain forget",
          source=f"{REMINISCENCE}; Graves et al., AAAI 2021, arXiv:2010.10981, section 4.1")
def amnesiac(task: Task, cfg: AmnesiacConfig) -> None:
    """Train on retain and on the forget set under wrong labels, one to each example and for good (amnesiac unlearning)."""
    drawn = draw_labels(task.forget.labels, task.num_classes, "wrong", task.generator("labels"))
    opt, batches = task.descent(cfg), task.forget.relabelled(drawn) + task.retain
    for epoch in task.epochs(cfg, opt):
        task.log(epoch=epoch, loss=opt.epoch(batches, cross_entropy), lr=opt.rate(1))


# the Reminiscence project's names
RELABEL = ADAM | {"rl_form": "sequential", "rl_labels": "any", "unlearn_epochs": 3}
also("relabel", "RL", config=preset(RandomLabelConfig, "RelabelConfig", **RELABEL, unlearn_lr=6.5e-4))
also("salun", "RL", config=preset(RandomLabelConfig, "SalunConfig", **RELABEL, unlearn_lr=4e-4), needs_mask=True)
