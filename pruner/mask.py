"""Mask algebra: parameter name -> bool of the parameter's shape, True = may change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils import BadInput, Config, Mask, hp, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaliencyMaskConfig(Config):
    """Masks that the method works under: a saliency mask (SalUn), and that of a pruned original."""

    path: str | None = hp(None, "mask from generate_mask.py: the .pt file, its run folder, or a folder of run folders "
                          "where one matches", digest=False)
    mask_mode: str = hp("strict", "strict: masked weights stay bit-identical; published: only their gradient is "
                        "masked, so that weight decay shrinks them", choices=("strict", "published"))
    own_pruning: bool = hp(False, "retrain of a pruned original: train and prune anew on the retain set alone, instead of "
                           "taking the mask that the forget set helped to find")

    def check(self, method: Any, typed: Mapping[str, Any]) -> None:
        """Refuse a mask that the method does not take, a mode without a mask, and pruning anew without training anew."""
        if self.own_pruning and not method.fresh:
            raise BadInput(f"--own_pruning: {method.name} goes on from the original's weights; it belongs to retrain")
        if self.path is not None and not method.masked:
            raise BadInput(f"--unlearn {method.name} takes no saliency mask; leave --path away"
                           + ("" if method.name != "RL_og" else ", or use RL, which is SalUn with --path"))
        if self.path is None and method.needs_mask:
            raise BadInput(f"--unlearn {method.name} needs a saliency mask: give --path MASK, of generate_mask.py, or take "
                           "relabel, which is the same without a mask")
        if self.path is None and "mask_mode" in typed:
            raise BadInput("--mask_mode says how a saliency mask acts; give one by --path")
        if self.mask_mode == "published" and "weight_decay" not in {f.name for f in dataclasses.fields(method.config)}:
            raise BadInput(f"--mask_mode published lets masked weights decay, and {method.name} has no weight decay; leave it "
                           "away")
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
    host = {name: s.detach().cpu() for name, s in scores.items()}
    ours = None if free is None else {name: part.cpu() for name, part in free.items()}
    left = sum(int(ours[n].sum()) if ours is not None and n in ours else s.numel() for n, s in host.items())
    kept = {density: int(density * left) for density in densities}
    if not all(kept.values()):
        raise BadInput(f"--density {min(kept):g} leaves none of the {left} weights free; choose a larger share")
    return dict(zip(densities, top(host, tuple(kept.values()), ours), strict=True))


def top(scores: Mapping[str, Tensor], counts: Sequence[int], free: Mask | None = None) -> list[Mask]:
    """For each count the mask of exactly so many largest scores over all tensors together, on the scores' device.

    Equal scores are taken in the order of the tensors. One ranking of what is free serves all counts.

    Args:
        scores: parameter name -> float tensor.
        counts: at least 1 and at most as many as are free.
        free: no other score is chosen; a tensor without an entry is free as a whole.

    Raises:
        BadInput: a score is not finite.
    """
    flat, left = torch.cat([s.detach().flatten() for s in scores.values()]), None
    if free is not None:
        parts = [free[n] if n in free else torch.ones_like(s, dtype=torch.bool) for n, s in scores.items()]
        left = torch.cat([part.flatten() for part in parts])
        flat = flat[left]
    if not torch.isfinite(flat).all():
        raise BadInput("the scores of the weights are not all finite, so they have no ranking; the model has diverged")
    masks = []
    for k, threshold in zip(counts, _thresholds(flat, counts), strict=True):
        chosen, equal = flat > threshold, (flat == threshold).nonzero().flatten()
        chosen[equal[: k - int(chosen.sum())]] = True
        whole = chosen
        if left is not None:
            whole = torch.zeros_like(left)
            whole[left] = chosen
        parts = whole.split([s.numel() for s in scores.values()])
        masks.append({name: part.reshape(s.shape).clone() for (name, s), part in zip(scores.items(), parts, strict=True)})
    return masks


def _thresholds(flat: Tensor, counts: Sequence[int]) -> list[Any]:
    """The k-th largest value for each k; on the host numpy's partition takes a third of torch's time.

    On a GPU all are sorted: CUDA's kthvalue leaves them to one block, and deterministic mode refuses it.
    """
    places = [flat.numel() - k for k in counts]
    if flat.is_cuda:
        ranked = flat.sort().values
        return [ranked[place] for place in places]
    ranked = np.partition(flat.cpu().numpy(), sorted(set(places)))
    return [ranked[place].item() for place in places]


def as_mask(content: Mapping[str, Tensor], model: nn.Module, path: Path) -> Mask:
    """A mask file's tensors (ours, or the published name -> 0/1 tensors) as a mask of this very model.

    Raises:
        BadInput: names missing or too many, another shape, values other than 0 and 1, the weights of a model.
    """
    if any(name.endswith("running_var") for name in content) and not all(_binary(v) for v in content.values()):
        raise BadInput(f"{path} holds the weights of a model and no mask; give it by --checkpoint, and by --path a mask of "
                       "generate_mask.py")
    params = dict(model.named_parameters())
    wrong = sorted(set(content) ^ set(params)) or [n for n, p in params.items() if content[n].shape != p.shape]
    if wrong:
        raise BadInput(f"{path} is a mask of another model ({len(wrong)} parameters differ, such as {wrong[0]}); make one "
                       "for this checkpoint by generate_mask.py")
    if not any(bool(v.any()) for v in content.values()):
        raise BadInput(f"{path} lets no weight change; make a mask by generate_mask.py")
    if not all(_binary(v) for v in content.values()):
        raise BadInput(f"{path} holds values other than 0 and 1; make a mask by generate_mask.py")
    return {name: content[name].bool().to(p.device) for name, p in params.items()}


def _binary(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def both(a: Mask | None, b: Mask | None) -> Mask | None:
    """What may change under two masks at once; a mask without an entry leaves that parameter free."""
    if a is None or b is None:
        return a if b is None else b
    return {name: a[name] & b[name].to(a[name].device) if name in a and name in b else a.get(name, b.get(name))
            for name in {**a, **b}}
