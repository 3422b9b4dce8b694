"""Methods that learn from the original model as a teacher: SCRUB."""

from __future__ import annotations

import copy
import dataclasses

from torch import Tensor, nn
from torch.nn import functional as F

from dataset import Batch
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


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softened outputs, mean over the batch; logits float [B, K]."""
    student, teacher = student.float() / temperature, teacher.float() / temperature
    kl = F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher, 1), reduction="batchmean", log_target=True)
    return temperature**2 * kl
