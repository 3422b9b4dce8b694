"""Proxies: cheap scores of one original model that stand in for memorization.

Learning events are read from what the original's own training recorded (events.npz); held-out retraining and loss
curvature are computed from its final weights.

Shapes: N training images of the data set (the validation split's included), K classes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
from dataset import Data, Loader
from memorization.events import curvature
from memorization.registry import Job, NoScoreConfig, score
from sources.scores import read_scores
from trainer import Descent, ScheduleConfig, cross_entropy, predict, resumable
from utils import BadInput, Config, hp, run_of

PATIENCE = 4  # epochs without a lower loss, after which held-out retraining stops
PROXIES_PAPER = "Zhao et al., arXiv:2410.16516"
C_SCORE = f"Jiang et al., ICML 2021, arXiv:2002.03206; {PROXIES_PAPER}"

# name -> summary, source
RECORDED: dict[str, tuple[str, str]] = {
    "confidence": ("Mean over the original's training of the probability of the true class.", C_SCORE),
    "max_conf": ("Mean over the original's training of the largest probability.", C_SCORE),
    "entropy": ("Mean over the original's training of the entropy of the prediction, in nats.", C_SCORE),
    "bi_acc": ("Share of the original's epochs in which the example was predicted right.", C_SCORE),
    "el2n": ("Mean norm of the error p - onehot(y) over the first tenth of the original's epochs.",
             "Paul et al., NeurIPS 2021, arXiv:2107.07075"),
    "forgetting": ("How often training went from right to wrong on the example; never right: the number of epochs.",
                   "Toneva et al., ICLR 2019, arXiv:1812.05159"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutConfig(Config):
    """Held-out retraining; published code tunes on the test set, in order."""

    held_out: str = hp("val", "images to fine-tune on: the validation split, or the test set as published",
                       choices=("val", "test"))
    held_out_mode: str = hp("exact", "published: batches in the data set's order instead of shuffled",
                            choices=("exact", "published"))
    ft_lr: float = hp(0.1, "learning rate of the fine-tuning, constant", above=0)
    ft_epochs: int = hp(30, f"epochs of the fine-tuning at most; it stops after {PATIENCE} without a lower loss", low=1)
    momentum: float = hp(0.9, "SGD momentum", low=0, below=1)
    weight_decay: float = hp(5e-4, "L2 added to the gradient", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvatureConfig(Config):
    """Loss curvature."""

    curvature: str = hp("final", "at the original's final weights, or as its training recorded it (mean over the epochs)",
                        choices=("final", "recorded"))
    h: float = hp(0.01, "length of the step along the sign of the gradient, pixels in [0, 1]; of final", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curvature == "recorded" and self.h != 0.01:
            raise BadInput("--h is of --curvature final; what the training recorded has its own step, leave --h away")


def recorded(job: Job, name: str, command: str = "python main_train.py") -> np.ndarray:
    """A score that the original's training recorded, float32 [N]; NaN for images it was not shown.

    Args:
        command: that records it.

    Raises:
        BadInput: nothing recorded (with the command that does it), or of another data set.
    """
    original = _original(job)
    path, stage = original.folder / "events.npz", original.record.get("stage", "train")
    if stage != "train":
        raise BadInput(f"'{name}' is recorded while an original is trained, and {original.folder} is of a {stage} run; name "
                       "the original by --checkpoint, or use ho_ret or loss_curvature, which are of any model")
    advice = (f"'{name}' is recorded while the original is trained: repeat that by {command} --force with its settings")
    if not path.is_file():
        raise BadInput(f"there is no {path}; {advice}")
    labels = job.data.images.y.cpu().numpy()
    try:
        run_of(path)
        values = read_scores(path, name, labels, job.data.splits.images_key)
    except BadInput as error:
        raise BadInput(f"{error}; {advice}") from None
    if job.run is not None:
        spent = original.record["seconds"]
        job.run.seconds["events"] = spent.get("curvature" if name == "loss_curvature" else "events", 0.0)
    return values.astype(np.float32)


def _original(job: Job) -> models.Original:
    if job.original is None:
        raise BadInput("a proxy is of an original model; name one by --checkpoint")
    return job.original


def _register(name: str, summary: str, source: str) -> None:
    def function(job: Job, cfg: Config) -> dict[str, np.ndarray]:
        return {name: recorded(job, name)}

    function.__doc__ = summary
    score(name, config=NoScoreConfig, source=source)(function)


for _name, (_summary, _source) in RECORDED.items():
    _register(_name, _summary, _source)


# --------------------------------------------------------------------------------------------- held-out retraining


def symmetric_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """1/2 [KL(p || q) + KL(q || p)] in nats, float64 [N], of the softmax of logits [N, K].

    Published code clamps both p and q at 1e-10; from log-softmax in float64 nothing has to be.
    """
    p, q = (F.log_softmax(logits.double(), 1) for logits in (p_logits, q_logits))
    return ((p.exp() - q.exp()) * (p - q)).sum(1) / 2


@score("ho_ret", config=HeldOutConfig, source=f"Carlini, Erlingsson and Papernot, arXiv:1910.13427; {PROXIES_PAPER}")
def held_out_retraining(job: Job, cfg: HeldOutConfig) -> dict[str, np.ndarray]:
    """How far the original's prediction moves when a copy of it is fine-tuned on held-out images.

    Returns:
        ho_ret float32 [N]: ``symmetric_kl`` of the original and the fine-tuned copy, both in eval mode without
        augmentation; NaN for validation images if the copy was tuned on them.
    """
    data, rt = job.data, job.rt
    if cfg.held_out == "val" and not len(data.splits.val):
        raise BadInput("--held_out val: there is no validation split (--val_fraction 0); use --held_out test, or an original "
                       "that was trained with one")
    tuned, mask = job.start()
    before = predict(tuned, whole(data), rt)[0]
    fine_tune(job, cfg, tuned, mask)
    values = symmetric_kl(before, predict(tuned, whole(data), rt)[0]).cpu().numpy().astype(np.float32)
    if cfg.held_out == "val":
        values[data.splits.val] = np.nan
    return {"ho_ret": values}


def whole(data: Data) -> Loader:
    """All training images, the validation split's included, in order and without augmentation."""
    index = torch.arange(len(data.images.y), device=data.images.home)
    return Loader(data.images, index, data.images.y, data.images.eval_batch)


def fine_tune(job: Job, cfg: HeldOutConfig, model: nn.Module, mask: dict[str, Tensor] | None = None) -> None:
    """Train the copy on the held-out images, without augmentation, until its loss has stopped falling; resumable.

    Args:
        mask: of a pruned original's weights, which stay 0.
    """
    part = job.data.loader(cfg.held_out)
    shuffle = job.rt.generator(f"order/ho_ret/{cfg.held_out}") if cfg.held_out_mode == "exact" else None
    loader = Loader(part.images, part.index, part.labels, job.data.batch_size, shuffle)
    steady = ScheduleConfig(momentum=cfg.momentum, weight_decay=cfg.weight_decay, schedule="constant")
    opt = Descent(model, steady, lr=cfg.ft_lr, epochs=cfg.ft_epochs, rt=job.rt, purpose="ho_ret", mask=mask)
    keep: dict[str, Any] = {"best": math.inf, "stale": 0}
    for epoch in resumable(cfg.ft_epochs, opt, job.rt, job.run, keep):
        loss = opt.epoch(loader, cross_entropy)
        keep["stale"] = 0 if loss < keep["best"] else keep["stale"] + 1
        keep["best"] = min(keep["best"], loss)
        if job.run is not None:
            job.run.log(epoch=epoch, loss=loss, lr=cfg.ft_lr)
        if keep["stale"] == PATIENCE:
            return


# --------------------------------------------------------------------------------------------------------- curvature


@score("loss_curvature", config=CurvatureConfig,
       source=f"Garg, Ravikumar and Roy, ICML 2024, arXiv:2307.05831; {PROXIES_PAPER}")
def loss_curvature(job: Job, cfg: CurvatureConfig) -> dict[str, np.ndarray]:
    """Curvature of the loss around each image, along the sign of its gradient."""
    if cfg.curvature == "recorded":
        return {"loss_curvature": recorded(job, "loss_curvature", "python main_train.py --record_curvature")}
    model = job.model().requires_grad_(False)
    found = [curvature(model, batch.x, batch.y, cfg.h) for batch in whole(job.data)]
    return {"loss_curvature": torch.cat(found).cpu().numpy()}


def spearman(a: np.ndarray, b: np.ndarray) -> tuple[float, int]:
    """Rank correlation over the images for which both scores [N] are finite, and their number.

    NaN where it is not defined: fewer than three such images, or a score that is the same for all of them.
    """
    from scipy.stats import spearmanr

    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, len(a)
    return float(spearmanr(a, b).statistic), len(a)
