"""SynFlow: pruning at initialisation without data.

Tanaka, Kunin, Yamins and Ganguli, NeurIPS 2020, arXiv:2006.05467, algorithm 1: score |theta * dR/dtheta|, R the sum of
the outputs for one image of ones, in a network of absolute values, over rounds of an exponential schedule.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models.resnet import Projection
from models.wide import WideBlock
from pruner.magnitude import by_linear, gone, left_after, prunable
from pruner.mask import top
from utils import BadInput, Mask

Shape = tuple[int, int, int]  # colours, height and width of an image


def shortcuts(model: nn.Module) -> list[str]:
    """Names of the 1x1 convolutions on shortcuts (option B), which SynFlow tends to prune wholly."""
    return [f"{place}.{name}.weight" for place, module in model.named_modules() if isinstance(module, (Projection, WideBlock))
            for name, layer in module.named_modules()
            if isinstance(layer, nn.Conv2d) and (isinstance(module, Projection) or name == "shortcut")]


def absolute(model: nn.Module) -> nn.Module:
    """A copy in eval mode and float64 of which every parameter and buffer is its absolute value, as published.

    Float64 holds the products over all layers that overflow in float32 from some fifty layers on. The model itself is not
    touched, so there are no signs to restore.
    """
    net = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for value in (*net.parameters(), *net.buffers()):
            value.abs_()
    return net


def check(model: nn.Module) -> None:
    """Refuse a network in which SynFlow's product over the paths is not defined.

    LayerNorm takes the mean off and attention divides by a sum, so that outputs do not grow with the weights, and the score
    of a layer is no sum over its paths.

    Raises:
        BadInput: it normalises each example, or its weights are in linear layers for want of convolutions.
    """
    norms = (nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)
    if by_linear(model) or any(isinstance(module, norms) for module in model.modules()):
        raise BadInput(f"SynFlow follows weights through convolutions and batch norm; {getattr(model, 'arch', 'this network')} "
                       "is not made of these: choose another --arch, or main_imp.py, which prunes it by magnitude")


def scores(net: nn.Module, shape: Shape) -> dict[str, Tensor]:
    """|theta * dR/dtheta| of every convolution of a network of absolute values: float64 of the weight's shape.

    Raises:
        BadInput: not finite even in float64.
    """
    weights = prunable(net)
    first = next(iter(weights.values()))
    total = net(torch.ones(1, *shape, dtype=first.dtype, device=first.device)).sum()
    if not torch.isfinite(total):
        raise BadInput("SynFlow's scores overflow even in float64: the network is too deep or its weights too large")
    gradients = torch.autograd.grad(total, list(weights.values()))
    with torch.no_grad():
        return {name: gradient.mul_(weight).abs_()
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)}


def _reached(net: nn.Module, shape: Shape) -> bool:
    """Whether a network of absolute values passes anything on from the image; biases reach the outputs without one."""
    image = torch.ones(1, *shape, dtype=torch.float64, device=next(net.parameters()).device, requires_grad=True)
    return bool(torch.autograd.grad(net(image).sum(), image)[0].any())


def budget(model: nn.Module, share: float, rounds: int, spared: list[str]) -> list[int]:
    """How many convolution weights stay after each round, the spared ones among them.

    As published every round takes the rate 1 - share^(1 / rounds) off the survivors, rounded to whole weights.

    Raises:
        BadInput: nothing or everything stays, or the spared ones alone are as many.
    """
    sizes = {name: weight.numel() for name, weight in prunable(model).items()}
    total, fixed = sum(sizes.values()), sum(sizes[name] for name in spared)
    left = [total]
    for _ in range(rounds):
        left.append(left_after(1 - share ** (1 / rounds), left[-1]))
    kept = left[-1] if round(share * total) else 0  # of a few survivors a round takes none, and all the rounds never the last
    if not 0 < kept < total:
        raise BadInput(f"{100 * (1 - share):.8g} % sparsity leaves {kept} of the {total} convolution weights; choose a "
                       "--rate or --sparsity between")
    if fixed and kept <= fixed:
        raise BadInput(f"--keep_shortcuts: the {fixed} weights on shortcuts are more than the {kept} that stay at "
                       f"{100 * (1 - share):.8g} % sparsity; leave the flag away or prune less")
    return left[1:]


def prune(model: nn.Module, share: float, rounds: int, shape: Shape, spared: list[str]) -> Mask:
    """The mask of ``share`` of the convolution weights after ``rounds`` rounds, as many as ``budget`` says; the model is not
    changed.

    Args:
        shape: of an image, (colours, height, width).
        spared: names of convolutions that are never pruned; they count in the share.

    Raises:
        BadInput: see ``budget`` and ``scores``; or no path of weights is left from the image to the outputs.
    """
    check(model)
    counts = budget(model, share, rounds, spared)
    net = absolute(model)
    weights = prunable(net)
    fixed = sum(weights[name].numel() for name in spared)
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    open_to = [name for name in weights if name not in spared]
    for count in counts:
        found = scores(net, shape)
        mask |= top({name: found[name] for name in open_to}, (count - fixed,), {name: mask[name] for name in open_to})[0]
        with torch.no_grad():
            for name, weight in weights.items():
                weight.masked_fill_(~mask[name], 0.0)
    if not _reached(net, shape):
        lost = ", ".join(gone(mask))
        raise BadInput(f"{100 * (1 - share):.8g} % sparsity leaves no path from the image to the outputs"
                       + (f", and no weight in {lost}" if lost else "") + "; prune less")
    return mask
