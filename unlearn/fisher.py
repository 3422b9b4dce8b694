"""Methods that blur what the Fisher information calls free: Fisher forgetting in the two forms in use."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.persample import Values, every_label, squared, squared_means
from unlearn.presets import also
from unlearn.registry import Task, register
from utils import Config, hp

GOLATKAR = "Golatkar et al., CVPR 2020, arXiv:1911.04933"
FLOOR = 1e-8  # added to the Fisher information
PUBLISHED_BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class FisherConfig(Config):
    """Noise by the diagonal of the empirical Fisher matrix."""

    alpha: float | None = hp(None, "scale of the noise's variance, alpha / Fisher information. exact: the information in units "
                             "of its mean over the weights and its inverse at most 100, 5e-5 without the flag; published: as "
                             "it is, the variance at most 1e-6, 1e-6 without the flag", low=0)
    fisher_mode: str = hp("exact", "exact: ten times the noise on the head's weight and bias; published: on tensors whose "
                          "last dimension is the number of classes, which is the head's bias", choices=("exact", "published"))

    def __post_init__(self) -> None:
        super().__post_init__()
        by_mode(self, {"exact": 5e-5, "published": 1e-6})


def by_mode(cfg: Any, alphas: dict[str, float]) -> None:
    """Resolve an alpha that was left to the mode, so that the record holds a number."""
    if cfg.alpha is None:
        object.__setattr__(cfg, "alpha", alphas[cfg.fisher_mode])


@register("fisher", config=FisherConfig, uses="retain", source=GOLATKAR,
          departs="the information counts in units of its mean over the weights, since its own scale differs a "
                  "thousandfold between models, and --alpha with it; images in order and without augmentation; the factor of "
                  "ten reaches the head's weight too (--fisher_mode published: the bias alone; its --alpha 1e-6, published: "
                  "0.2)")
def fisher(task: Task, cfg: FisherConfig) -> None:
    """Add noise that is larger where the retain set's empirical Fisher information is small."""
    info = squared(task.model, task.shown(task.in_order("retain"), "Fisher information"))
    stream, head, exact = task.generator("noise"), head_of(task.model, task.num_classes), cfg.fisher_mode == "exact"
    unit = mean_of(task, info)
    new, power = {}, 0.0
    for name, p in task.model.named_parameters():
        if exact:
            size = (cfg.alpha / (info[name] / unit + FLOOR).clamp(min=0.01)).sqrt()
        else:
            size = (cfg.alpha / (info[name] + FLOOR)).sqrt().clamp(max=1e-3)
        noise = size * _normal(p, stream)
        widened = name in head if exact else p.shape[-1:] == (task.num_classes,)
        noise = noise * 10 if widened else noise
        new[name], power = p.detach() + noise, power + noise.square().sum()
    task.replace(new)
    task.log_whole(noise_norm=float(power) ** 0.5, mean_information=unit)


def mean_of(task: Task, info: Values) -> float:
    """The mean Fisher information of the weights that may change; the smallest number instead of 0."""
    free = {name: task.free(name) for name in info}
    total = torch.stack([(part * free[name]).sum() for name, part in info.items()]).sum()
    count = sum(int(part.sum()) for part in free.values())
    return max(float(total) / max(1, count), torch.finfo(torch.float64).tiny)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForgettingConfig(Config):
    """Noise by the diagonal of the Fisher matrix."""

    alpha: float | None = hp(None, "scale of the noise's variance, alpha / Fisher information. exact: the information in units "
                             "of its mean over the weights, 1e-4 without the flag; published: as it is, 3e-8 without the flag",
                             low=0)
    fisher_mode: str = hp("exact", "exact: squared gradients of single examples, the head by its place; published: of means "
                          "over batches of 32, the head by its shape", choices=("exact", "published"))

    def __post_init__(self) -> None:
        super().__post_init__()
        by_mode(self, {"exact": 1e-4, "published": 3e-8})


@register("fisher_new", config=ForgettingConfig, uses="retain", source=GOLATKAR,
          departs="the information counts in units of its mean over the weights (--fisher_mode published: as it is, --alpha "
                  "3e-8; published: 0.2); images in order and without augmentation; the head's rows are "
                  "reset for whole forgotten classes only, where the published code resets the last class for random "
                  "examples (in --fisher_mode published too); the mean over an output's weights leaves out those that a mask "
                  "holds (--fisher_mode published: pruned ones count with the largest variance)")
def fisher_forgetting(task: Task, cfg: ForgettingConfig) -> None:
    """Draw weights anew around their values, wider where the retain set's Fisher information is small (FF)."""
    if cfg.fisher_mode == "exact":
        info = squared(task.model, task.shown(task.in_order("retain"), "Fisher information"), every_label)
        head, unit = head_of(task.model, task.num_classes), mean_of(task, info)
        info = {name: part / unit for name, part in info.items()}
    else:
        batches = task.in_order("retain", batch_size=PUBLISHED_BATCH)
        info = squared_means(task.model, task.shown(batches, "Fisher information"), every_label)
        head, unit = {name for name, p in task.model.named_parameters() if p.shape[:1] == (task.num_classes,)}, 1.0
    stream, whole, new = task.generator("noise"), task.whole_classes, {}
    for name, p in task.model.named_parameters():
        free = task.free(name)
        if cfg.fisher_mode == "published":  # there a pruned weight (held at 0) has no gradient, and counts in the mean
            info[name], free = info[name] * (free | (p.detach() != 0)), None
        mean, variance = spread(p.detach(), info[name], cfg.alpha, name in head, whole, free)
        new[name] = mean + variance.sqrt() * _normal(p, stream)
    task.replace(new)
    task.log_whole(whole_classes=whole, mean_information=unit)


def spread(p: Tensor, info: Tensor, alpha: float, head: bool, whole: list[int],
           free: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and variance, float64, that the weights of a parameter are drawn with.

    Args:
        info: Fisher information of each weight; its inverse counts up to 1e3 (the head's up to 1e2).
        alpha: scale of the variance, which weights that differ by their input alone share: the mean over dimension 1, of a
            convolution for each place of its kernel.
        free: bool of the parameter's shape, what a mask lets change; the mean is over those alone, NaN where there is none.
        head: the parameter has a row for each class; those of the ``whole`` forgotten classes start again from 0.
    """
    mean, variance = p.double().clone(), alpha * (1 / (info + FLOOR)).clamp(max=1e2 if head else 1e3)
    if p.ndim > 1:
        free = torch.ones_like(p, dtype=torch.bool) if free is None else free
        shared = variance.masked_fill(~free, 0).sum(1, keepdim=True) / free.sum(1, keepdim=True)
        variance = shared.expand_as(p).clone()
    if head:
        mean[whole], variance[whole] = 0, 1e-4
    return mean, variance * 10 if head or p.ndim == 1 else variance


def head_of(model: nn.Module, num_classes: int) -> set[str]:
    """Names of weight and bias of the last layer that has a row for each class."""
    found: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and len(module.weight) == num_classes:
            found = {f"{name}.{own}".lstrip(".") for own, _ in module.named_parameters(recurse=False)}
    return found


def _normal(p: Tensor, stream: torch.Generator) -> Tensor:
    return torch.randn(p.shape, generator=stream).to(p.device, torch.float64)


# the Reminiscence project's names
also("FisherForgetting", "fisher_new")
