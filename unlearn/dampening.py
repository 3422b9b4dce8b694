"""Methods that shrink the weights the forget set needs most: selective synaptic dampening."""

from __future__ import annotations

import dataclasses

import torch

from unlearn.persample import Values, squared, squared_means
from unlearn.registry import Task, register
from utils import Config, hp, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class DampeningConfig(Config):
    """Selective synaptic dampening."""

    alpha: float = hp(10.0, "dampen where importance to the forget set exceeds alpha times that to all training images; "
                      "in the exact mode never so where the forget set is 1/alpha of them or more", low=0)
    ssd_lambda: float = hp(1.0, "factor of the dampening, lambda; the smaller, the more is taken away", low=0)
    ssd_mode: str = hp("exact", "exact: importances by squared gradients of single examples; published: of batch means",
                       choices=("exact", "published"))


@register("ssd", config=DampeningConfig, uses="retain forget",
          source="Foster et al., AAAI 2024, arXiv:2308.07707",
          departs="importances by single examples, so that the batch size is no part of them (--ssd_mode published: by "
                  "batches)")
def dampening(task: Task, cfg: DampeningConfig) -> None:
    """Shrink weights that matter far more to the forget set than to the training set (SSD); no training, no noise."""
    of_forget, of_all = _importances(task, cfg)
    new, chosen, count = {}, [], 0
    for name, p in task.model.named_parameters():
        mine, all_of = of_forget[name], of_all[name]
        choose = (mine > cfg.alpha * all_of) & task.free(name)
        shrink = (cfg.ssd_lambda * all_of / mine).clamp(max=1)
        new[name] = torch.where(choose, p.detach() * shrink, p.detach().double())
        chosen.append(choose.sum())
        count += p.numel()
    task.replace(new)
    share = int(torch.stack(chosen).sum()) / count
    task.log_whole(dampened_share=share)
    if not share:
        say(f"notice: ssd dampened nothing: no weight's importance to the forget set exceeds --alpha {cfg.alpha:g} times that "
            "to all training images; lower --alpha")


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
