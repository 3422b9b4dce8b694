"""Pruning by magnitude: which weights are in scope, how many of them stay, and which these are.

A rate is the share of the weights left that one prune takes, as published; counts are of the weights that stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pruner.mask import top
from utils import BadInput, Mask, say

SCOPES = ("global_conv", "layerwise_conv", "global_all")


def prunable(model: nn.Module, scope: str = "global_conv") -> dict[str, Tensor]:
    """The weights in scope by name, in the model's order; biases and norms never are.

    ``*_conv``: every Conv2d, the first one and 1x1 shortcuts included, as published; of a network whose convolutions are
    fewer than its linear layers, such as a transformer with one for its patches, the linear layers but the head instead.
    ``global_all``: all of both.

    Raises:
        BadInput: there is none.
    """
    convolutions, linear = _weights(model, nn.Conv2d), _weights(model, nn.Linear, nn.MultiheadAttention)
    if scope == "global_all":
        found = {name: p for name, p in model.named_parameters() if name in convolutions or name in linear}
    else:
        found = _but_head(linear) if by_linear(model) else convolutions
    if not found:
        raise BadInput(f"--prune_scope {scope}: {getattr(model, 'arch', 'this network')} has neither convolutions nor linear "
                       "layers before its head, so that there is nothing to prune; choose another --arch")
    return found


def by_linear(model: nn.Module) -> bool:
    """Whether a network's linear layers are pruned where a method speaks of convolutions: before the head there are more."""
    return len(_but_head(_weights(model, nn.Linear, nn.MultiheadAttention))) > len(_weights(model, nn.Conv2d))


def told_scope(model: nn.Module, what: str) -> None:
    """Say where linear layers take the place of convolutions. what: the method or the flag that speaks of them."""
    if by_linear(model):
        say(f"notice: {what}: {getattr(model, 'arch', 'this network')} has fewer convolutions than linear layers; its linear "
            "layers but the head are pruned in their place")


def _weights(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, Tensor]:
    """Name -> weight of the layers of some kinds; of torch's attention the queries, keys and values, which are one."""
    found = {}
    for name, module in model.named_modules():
        own = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        if isinstance(module, kinds) and isinstance(getattr(module, own), nn.Parameter):  # fixed filters are none
            found[f"{name}.{own}".lstrip(".")] = getattr(module, own)
    return found


def _but_head(linear: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the last one, which makes the logits."""
    return dict(list(linear.items())[:-1])


def left_after(rate: float, count: int) -> int:
    """How many of ``count`` weights a prune leaves: it takes ``round(rate * count)``, a half to the even number.

    To the weight what torch.nn.utils.prune takes, by which the published code prunes, round after round off the survivors.
    """
    return count - round(rate * count)


def ranked_together(names: Iterable[str], scope: str = "global_conv") -> list[tuple[str, ...]]:
    """Groups of tensors: each by itself, or all of them."""
    return [(name,) for name in names] if scope.startswith("layerwise") else [tuple(names)]


def keep_largest(scores: Mapping[str, Tensor], rate: float, scope: str = "global_conv", free: Mask | None = None) -> Mask:
    """The mask that a prune at this rate leaves, True = stays; weights pruned before (``free`` False) never come back.

    The published rule (Jia et al., NeurIPS 2023, arXiv:2304.04934, section 3) with scores |w|, over all tensors together.

    Raises:
        BadInput: a group is left with no weight, or the scores are not finite.
    """
    mask: Mask = {}
    for group in ranked_together(scores, scope):
        count = left_after(rate, sum(int(free[n].sum()) if free and n in free else scores[n].numel() for n in group))
        if not count:
            raise BadInput(f"a prune of {100 * rate:.8g} % leaves no weight in {', '.join(group[:3])}: prune less")
        part = None if free is None else {name: free[name] for name in group if name in free}
        mask |= top({name: scores[name] for name in group}, (count,), part)[0]
    return {name: mask[name] for name in scores}


def magnitudes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().abs() for name, weight in weights.items()}


def random_scores(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform draws (float64, so that ties do not matter) for random pruning by the same counts."""
    return {name: torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
            for name, weight in weights.items()}


def gone(mask: Mask) -> list[str]:
    """Names of the tensors in which no weight stays."""
    return [name for name, part in mask.items() if not part.any()]


@torch.no_grad()
def apply_mask(model: nn.Module, mask: Mask) -> None:
    """Set the pruned weights to +0, in place; a product would leave zeros of either sign."""
    params = dict(model.named_parameters())
    for name, part in mask.items():
        params[name].masked_fill_(~part.to(params[name].device), 0.0)
