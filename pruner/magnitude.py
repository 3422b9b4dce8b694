"""Pruning by magnitude: which weights are in scope, how many of them stay, and which these are.

A rate is the share of the weights left that one prune takes, as published; counts are of the weights that stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pruner.mask import top
from utils import BadInput, Mask

SCOPES = ("global_conv", "layerwise_conv", "global_all")


def prunable(model: nn.Module, scope: str = "global_conv") -> dict[str, Tensor]:
    """The weights in scope by name, in the model's order; biases and batch norm never are.

    ``*_conv``: every Conv2d, the first one and 1x1 shortcuts included, as published; ``global_all``: Linear ones too.

    Raises:
        BadInput: there is none, as in a network without convolutions.
    """
    kinds = (nn.Conv2d, nn.Linear) if scope == "global_all" else (nn.Conv2d,)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    if not layers:
        raise BadInput(f"--prune_scope {scope}: {getattr(model, 'arch', 'this network')} has no convolution to prune; "
                       + ("choose another --arch" if scope == "global_all" else "use --prune_scope global_all"))
    return {f"{name}.weight" if name else "weight": module.weight for name, module in layers}


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
    return {name: torch.rand(weight.shape, generator=generator, dtype=torch.float64, device=generator.device)
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
