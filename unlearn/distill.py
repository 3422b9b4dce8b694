"""Methods that learn from the original model as a teacher: SCRUB, and the bad teacher beside the good one."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset import Batch, Loader
from unlearn.presets import ADAM, REMINISCENCE, AdamConfig, also, preset
from unlearn.registry import ForgetPassConfig, Task, register
from utils import hp


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScrubConfig(ForgetPassConfig):
    """SCRUB; the RUM paper's beta and gamma are not published, these defaults are ours."""

    unlearn_lr: float = hp(5e-3, "learning rate", above=0)
    unlearn_epochs: int = hp(5, "epochs", low=0)
    msteps: int = hp(4, "epochs, from the first, that begin with a pass away from the teacher on the forget set", low=0)
    kd_T: float = hp(4.0, "temperature of the distillation", above=0)
    beta: float = hp(0.1, "weight of the distillation on the retain set", low=0)
    gamma: float = hp(1.0, "weight of the cross-entropy on the retain set", low=0)
    rewind: bool = hp(False, "SCRUB+R: go back to the epoch whose forget error is nearest to the last model's error on "
                      "validation images of the forget set's classes, in its proportions")


@register("SCRUB", config=ScrubConfig, uses="retain forget val",
          source="Kurmanji et al., NeurIPS 2023, arXiv:2302.09880, eq. 3 and section 3.2",
          departs="exactly msteps passes away from the teacher (the published `epoch <= msteps` makes one more); "
                  "the teacher is in no optimiser; the passes over the forget set do not move batch norm's running statistics "
                  "(--bn update: as published)")
def scrub(task: Task, cfg: ScrubConfig) -> None:
    """Leave the teacher on the forget set and stay with it on the retain set, in turns."""
    if cfg.rewind and bool(((task.class_shares("forget") > 0) & (task.class_shares("val") == 0)).any()):
        task.refuse("--rewind compares with validation images of the forgotten classes; train with a larger --val_fraction")
    teacher = task.frozen_copy()

    def away(model: nn.Module, batch: Batch) -> Tensor:
        return -distillation(model(batch.x), teacher(batch.x), cfg.kd_T)

    def stay(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.x)
        kept = distillation(logits, teacher(batch.x), cfg.kd_T)
        return cfg.gamma * F.cross_entropy(logits.float(), batch.y) + cfg.beta * kept

    opt, keep = task.descent(cfg), {}
    for epoch in task.epochs(cfg, opt, keep):
        row = {"forget_loss": opt.epoch(task.forget, away, bn=cfg.bn)} if epoch < cfg.msteps else {}
        task.log(epoch=epoch, **row, loss=opt.epoch(task.retain, stay), lr=opt.rate(1))
        if cfg.rewind:
            keep[str(epoch)] = {"model": copy.deepcopy(task.model.state_dict()), "error": task.error("forget")}
    if cfg.rewind and keep:
        target = task.error("val", task.class_shares("forget"))
        best = min(keep, key=lambda epoch: abs(keep[epoch]["error"] - target))
        task.model.load_state_dict(keep[best]["model"])
        task.log(rewound_to=int(best), validation_error=target)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadTeacherConfig(AdamConfig):
    """The bad teacher."""

    unlearn_lr: float = hp(1e-4, "learning rate", above=0)
    unlearn_epochs: int = hp(3, "epochs over the forget set and a share of retain", low=0)
    bt_retain_share: float = hp(0.3, "share of the retain set that is trained on, drawn once", low=0, high=1)
    bt_mode: str = hp("exact", "exact: the divergence is a mean over examples; published: over examples and classes, so that "
                      "it shrinks with their number", choices=("exact", "published"))


@register("badteacher", config=BadTeacherConfig, uses="retain forget",
          source=f"{REMINISCENCE}; Chundawat et al., AAAI 2023, arXiv:2205.08096",
          departs="the divergence is summed over the classes (--bt_mode published: their mean, which steps of SGD feel and "
                  "Adam's hardly do)")
def bad_teacher(task: Task, cfg: BadTeacherConfig) -> None:
    """Learn the forget set from a model of random weights, and a share of retain from the original (bad teacher)."""
    good, bad = task.frozen_copy(), task.fresh_copy("bad teacher")
    scale = 1 / task.num_classes if cfg.bt_mode == "published" else 1.0

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        taught = torch.where(batch.y[:, None] == BAD, bad(batch.x), good(batch.x))
        return scale * distillation(model(batch.x), taught, 1.0)

    opt = task.descent(cfg)
    batches = _marked(task.forget, BAD) + _marked(task.share("retain", cfg.bt_retain_share, "share"), GOOD)
    for epoch in task.epochs(cfg, opt):
        task.log(epoch=epoch, loss=opt.epoch(batches, loss), lr=opt.rate(1))


GOOD, BAD = 0, 1  # in place of labels, which no teacher needs


def _marked(loader: Loader, teacher: int) -> Loader:
    return loader.relabelled(torch.full_like(loader.labels, teacher))


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softened outputs, mean over the batch; logits float [B, K]."""
    student, teacher = student.float() / temperature, teacher.float() / temperature
    kl = F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher, 1), reduction="batchmean", log_target=True)
    return temperature**2 * kl


# the Reminiscence project's names
also("scrub", "SCRUB", config=preset(ScrubConfig, "AdamScrubConfig", **ADAM | {"weight_decay": 5e-4}, unlearn_lr=1e-4,
                                     unlearn_epochs=9, msteps=2, decreasing_lr=(3, 5, 9)))
also("blindspot", "badteacher")
