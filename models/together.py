"""Batch norm over a batch of which each of several processes has a part.

    with synchronised(model, rt.ranks):
        loss(model(part)).backward()      # as of the whole batch, once the gradients are added up

Statistics, their gradient and the running statistics are those of the whole batch, as one process has them up to rounding.
torch's SyncBatchNorm is for CUDA alone, and other modules than those whose running statistics are folded here.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from models.files import ModelConfig
from models.registry import build_empty
from utils import Ranks


@contextlib.contextmanager
def synchronised(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Batch norm in training mode is over the parts of all processes inside the block; of one process nothing changes."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)] if ranks.size > 1 else []
    try:
        for norm in norms:
            norm.forward = functools.partial(_forward, norm, ranks)
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: _BatchNorm, ranks: Ranks, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    mean, var, count = statistics(x.detach(), ranks)
    if norm.track_running_stats:
        _follow(norm, mean, var * count / (count - 1))
    return _Normalised.apply(x, norm.weight, norm.bias, mean, var, count, norm.eps, ranks)


@torch.no_grad()
def _follow(norm: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    norm.num_batches_tracked += 1
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(var.to(norm.running_var.dtype), share)


def statistics(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C] and variance [C] of the parts x [B, C, ...] of all processes, and how many numbers a channel has [1].

    At least float32. The variance is over n, as batch norm divides by it. A part may be empty.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    count = x.numel() // x.shape[1]
    var, mean = torch.var_mean(x, _but_channels(x), correction=0) if count else x.new_zeros(2, x.shape[1])
    parts = ranks.gathered(torch.cat([mean, var, mean.new_full((1,), count)]))
    (means, variances), counts = parts[:, :-1].chunk(2, 1), parts[:, -1:]
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0), counts.sum(0)


class _Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, where mean and var are functions of the parts x of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, count: Tensor,
                eps: float, ranks: Ranks) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps, ctx.ranks = eps, ranks
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With y the normalised x: dx = weight / std (g - mean of g - y mean of (g y)), the means over all processes."""
        x, weight, mean, var, count = ctx.saved_tensors
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = (var + ctx.eps).rsqrt()
        g = grad.to(mean.dtype)
        y = (x.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([g.sum(_but_channels(x)), (g * y).sum(_but_channels(x))])
        sums = own.clone()
        ctx.ranks.add([sums])
        (g_mean, gy_mean), scale = sums / count, scale if weight is None else scale * weight
        dx = scale.view(shape) * (g - g_mean.view(shape) - y * gy_mean.view(shape))
        needs = ctx.needs_input_grad
        return dx.to(x.dtype), own[1] if needs[1] else None, own[0] if needs[2] else None, *[None] * 5


def _but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def identity(cfg: ModelConfig, data: Any, ranks: Ranks) -> dict[str, int]:
    """What tells a run by several processes from one by another number: nothing, but for the draws of a network's dropout.

    Args:
        data: Data, whose classes and images the network is for.
    """
    if ranks.size == 1:
        return {}
    model = build_empty(cfg.arch, data.num_classes, imagenet=cfg.imagenet_arch, image_size=data.images.x.shape[1],
                        input_size=cfg.input_size)
    drawn = any("Drop" in type(module).__name__ for module in model.modules())
    return {"processes": ranks.size} if drawn else {}
