"""Modes that a model is in while something is done with it, and is out of afterwards, whatever happens inside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from utils import BadInput

NORMS = ("eval", "batch", "update")  # ways of batch norm in a training pass: see ``normalising``


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards each module's own mode again, also of those that were frozen by hand."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """No TF32: differences of nearly equal numbers do not survive its three digits."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32


@contextlib.contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Eval mode, full float32, and the model's plain call: vmap, hooks and second gradients do not go through a compiler."""
    compiled, model._compiled_call_impl = model._compiled_call_impl, None
    try:
        with evaluating(model), full_float32():
            yield
    finally:
        model._compiled_call_impl = compiled


@contextlib.contextmanager
def normalising(model: nn.Module, how: str) -> Iterator[None]:
    """Batch norm's way inside the block, for a model in training mode.

    ``update``: normalise by the batch, whose statistics enter the running ones, as training does; ``batch``: normalise by
    the batch, and leave the running statistics as they are; ``eval``: normalise by the running statistics, which stay as
    they are: the function that is evaluated.

    Raises:
        BadInput: a batch of one example has no variance.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    modes = [norm.training for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = how != "batch"
            norm.training = norm.training and how != "eval"
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise BadInput("batch norm cannot train on a batch of one example at 1x1 maps: use a larger --batch_size or forget "
                       "set") from None
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            norm.track_running_stats, norm.training = True, mode


@contextlib.contextmanager
def without_gradient(params: Iterable[nn.Parameter]) -> Iterator[None]:
    """These parameters get no gradient inside the block."""
    asked = [p for p in params if p.requires_grad]
    try:
        for p in asked:
            p.requires_grad_(False)
        yield
    finally:
        for p in asked:
            p.requires_grad_(True)
