"""Methods that shrink the weights the forget set needs most: selective synaptic dampening."""

from __future__ import annotations

import dataclasses
import math

import torch

from unlearn.persample import Values, squared, squared_means
from unlearn.presets import also, preset
from unlearn.registry import Task, register
from utils import Config, hp, say

PUBLISHED = 10.0  # the alpha of Foster et al., section 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class DampeningConfig(Config):
    """Selective synaptic dampening."""

    alpha: float | None = hp(None, "dampen where importance to the forget set exceeds alpha times that to all training images, "
                             "never so in the exact mode where the forget set is 1/alpha of them or more; without the flag, "
                             "the percentile 100 - ln(1 + 100 share) of the weights' ratios, for the forget set's share of "
                             "the training images (adaptive SSD); published: 10", low=0)
    ssd_lambda: float = hp(1.0, "factor of the dampening, lambda; the smaller, the more is taken away", low=0)
    ssd_mode: str = hp("exact", "exact: importances by squared gradients of single examples; published: of batch means",
                       choices=("exact", "published"))


@register("ssd", config=DampeningConfig, uses="retain forget",
          source="Foster et al., AAAI 2024, arXiv:2308.07707",
          departs="importances by single examples, so that the batch size is no part of them (--ssd_mode published: by "
                  "batches); without --alpha the threshold is measured as in adaptive SSD (Schoepf et al., arXiv:2402.10098), "
                  "where the published 10 chooses no weight once a tenth of the images is forgotten (--ssd_mode published: 10)")
def dampening(task: Task, cfg: DampeningConfig) -> None:
    """Shrink weights that matter far more to the forget set than to the training set (SSD); no training, no noise."""
    of_forget, of_all = _importances(task, cfg)
    alpha = cfg.alpha
    if alpha is None:
        alpha = PUBLISHED if cfg.ssd_mode == "published" else _measured(task, of_forget, of_all)
    new, chosen, count = {}, [], 0
    for name, p in task.model.named_parameters():
        mine, all_of = of_forget[name], of_all[name]
        choose = (mine > alpha * all_of) & task.free(name)
        shrink = (cfg.ssd_lambda * all_of / mine).clamp(max=1)
        new[name] = torch.where(choose, p.detach() * shrink, p.detach().double())
        chosen.append(choose.sum())
        count += p.numel()
    task.replace(new)
    share = int(torch.stack(chosen).sum()) / count
    task.log_whole(dampened_share=share, alpha=alpha)
    if not share:
        say(f"notice: ssd dampened nothing: no weight's importance to the forget set exceeds --alpha {alpha:g} times that "
            "to all training images; lower --alpha")


def _measured(task: Task, of_forget: Values, of_all: Values) -> float:
    """The percentile 100 - ln(1 + 100 share) of importance to the forget set over that to all, of the weights that may change.

    Weights without importance to any image (0/0) are no part of it, nor are those without any but to batches of the forget
    set (x/0).
    """
    share = task.forget.size / (task.forget.size + task.retain.size)
    ratios = torch.cat([(of_forget[name] / of_all[name])[task.free(name)] for name in of_forget])
    ratios = ratios[ratios.isfinite()].sort().values  # torch.quantile takes no more than 2^24
    if not len(ratios):
        task.refuse("no weight has any importance to these images; start from another original")
    percentile = 1 - math.log1p(100 * share) / 100
    return float(ratios[max(0, min(len(ratios) - 2, int(percentile * len(ratios))))])  # so that one weight at least exceeds it


def _importances(task: Task, cfg: DampeningConfig) -> tuple[Values, Values]:
    """Of every weight to the forget set, and to all training images, it among them; float64."""
    if cfg.ssd_mode == "published":
        parts = [task.in_order(*names, batch_size=task.batch_size) for names in (("forget",), ("retain", "forget"))]
        forget, both = (squared_means(task.model, task.shown(part, "importances")) for part in parts)
        return forget, both
    parts = [task.in_order(name) for name in ("forget", "retain")]
    forget, retain = (squared(task.model, task.shown(part, "importances")) for part in parts)
    share = parts[0].size / (parts[0].size + parts[1].size)
    return forget, {name: share * forget[name] + (1 - share) * retain[name] for name in forget}


# the Reminiscence project's names
also("ssd_tuning", "ssd", config=preset(DampeningConfig, "DampeningConfig", alpha=5.0, ssd_lambda=0.5))
