"""Mask algebra: parameter name -> bool of the parameter's shape, True = may change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils import BadInput, Config, Mask, hp, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaliencyMaskConfig(Config):
    """A saliency mask for the method (SalUn)."""

    path: str | None = hp(None, "mask from generate_mask.py: the .pt file, its run folder, or a folder of run folders "
                          "where one matches", digest=False)
    mask_mode: str = hp("strict", "strict: masked weights stay bit-identical; published: only their gradient is "
                        "masked, so that weight decay shrinks them", choices=("strict", "published"))

    def check(self, method: Any, typed: Mapping[str, Any]) -> None:
        """Refuse a mask that the method does not take, and a mode without a mask."""
        if self.path is not None and not method.masked:
            raise BadInput(f"--unlearn {method.name} takes no saliency mask; leave --path away"
                           + ("" if method.name != "RL_og" else ", or use RL, which is SalUn with --path"))
        if self.path is None and "mask_mode" in typed:
            raise BadInput("--mask_mode says how a saliency mask acts; give one by --path")
        if self.path is None and method.name == "RL":
            say("notice: RL without --path MASK is RL_og, random labels on all weights")


def largest(scores: Mapping[str, Tensor], densities: tuple[float, ...], free: Mask | None = None) -> dict[float, Mask]:
    """For each density the mask of the ``int(density * n)`` largest scores over all tensors together.

    One partition serves all densities. Equal scores are taken in the order of the tensors, so counts are exact.

    Args:
        scores: parameter name -> float tensor.
        free: a pruned model's mask; n counts the weights it has left, and no other is chosen.

    Raises:
        BadInput: a score is not finite, or a density leaves no weight.
    """
    every = torch.cat([s.detach().flatten().cpu() for s in scores.values()]).numpy()
    left = np.flatnonzero(torch.cat([(free or {}).get(n, torch.ones_like(s, dtype=torch.bool)).flatten().cpu()
                                     for n, s in scores.items()]).numpy())
    flat = every[left]
    if not np.isfinite(flat).all():
        raise BadInput("the scores of the weights are not all finite, so they have no ranking; the model has diverged")
    kept = {density: int(density * flat.size) for density in densities}
    if not all(kept.values()):
        raise BadInput(f"--density {min(kept):g} leaves none of the {flat.size} weights free; choose a larger share")
    ranked = np.partition(flat, sorted({flat.size - k for k in kept.values()}))
    masks = {}
    for density, k in kept.items():
        threshold = ranked[flat.size - k]
        larger, equal = flat > threshold, np.flatnonzero(flat == threshold)
        larger[equal[: k - int(larger.sum())]] = True
        chosen = np.zeros(every.size, bool)
        chosen[left[larger]] = True
        parts = torch.from_numpy(chosen).split([s.numel() for s in scores.values()])
        masks[density] = {name: part.reshape(s.shape).clone()
                          for (name, s), part in zip(scores.items(), parts, strict=True)}
    return masks


def as_mask(content: Any, model: nn.Module, path: Path) -> Mask:
    """A mask file's content (ours, or the published name -> 0/1 tensors) as a mask of this very model.

    Raises:
        BadInput: names missing or too many, another shape, values other than 0 and 1.
    """
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise BadInput(f"{path} is no saliency mask; generate_mask.py writes with_<density>.pt")
    params = dict(model.named_parameters())
    wrong = sorted(set(content) ^ set(params)) or [n for n, p in params.items() if content[n].shape != p.shape]
    if wrong:
        raise BadInput(f"{path} is a mask of another model ({len(wrong)} parameters differ, such as {wrong[0]}); make one "
                       "for this checkpoint by generate_mask.py")
    if not any(bool(v.any()) for v in content.values()):
        raise BadInput(f"{path} lets no weight change; make a mask by generate_mask.py")
    if any(bool(((v != 0) & (v != 1)).any()) for v in content.values()):
        raise BadInput(f"{path} holds values other than 0 and 1; make a mask by generate_mask.py")
    return {name: content[name].bool().to(p.device) for name, p in params.items()}


def both(a: Mask | None, b: Mask | None) -> Mask | None:
    """What may change under two masks at once; a mask without an entry leaves that parameter free."""
    if a is None or b is None:
        return a if b is None else b
    return {name: a[name] & b[name] if name in a and name in b else a.get(name, b.get(name)) for name in {**a, **b}}
