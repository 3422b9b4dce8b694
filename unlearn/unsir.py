"""UNSIR: impair with noise that stands for the forgotten classes, then repair.

Tarun et al., IEEE TNNLS 2023, arXiv:2111.08947.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset import Batch, Loader
from models.modes import full_float32
from trainer import ScheduleConfig, cross_entropy
from unlearn.presets import REMINISCENCE, AdamConfig
from unlearn.registry import Task, register
from updates import Adam, leave
from utils import hp


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnsirConfig(AdamConfig):
    """UNSIR."""

    unlearn_lr: float = hp(1e-3, "learning rate of the pass that impairs", above=0)
    unlearn_epochs: int = hp(1, "rounds, each a pass that impairs and one that repairs, each with a fresh optimiser", low=0)
    repair_lr: float = hp(1e-4, "learning rate of the pass that repairs", above=0)
    noise_images: int = hp(32, "images of noise for each forgotten class", low=1)
    noise_copies: int = hp(80, "times that each of them is in a pass that impairs", low=1)
    noise_steps: int = hp(35, "steps of Adam that the noise is learned by", low=0)
    noise_lr: float = hp(0.1, "their learning rate, in normalised pixels", above=0)
    noise_decay: float = hp(0.1, "weight of the noise's squared norm, mean over images", low=0)
    unsir_per_class: int = hp(500, "retain images of each class in both passes, at most; drawn once", low=1)
    impair_batch: int = hp(32, "examples in a step that impairs", low=1)
    repair_batch: int = hp(128, "examples in a step that repairs", low=1)


@register("UNSIR", config=UnsirConfig, uses="retain", whole=True, source=f"{REMINISCENCE}; Tarun et al., TNNLS 2023, "
          "arXiv:2111.08947, algorithm 1",
          departs="for several forgotten classes each gets noise of its own, as much as one; the noise is learned on the "
                  "model in eval mode; as published it is not held to the range of pixels")
def unsir(task: Task, cfg: UnsirConfig) -> None:
    """Impair by noise in the place of the forgotten classes beside some retain images, then repair by these (UNSIR)."""
    kept, gone = _some_of_each(task, cfg), task.whole_classes
    keep = {"noise": learned_noise(task, cfg, gone)}
    opt = task.descent(cfg)
    for epoch in task.epochs(cfg, opt, keep):
        opt.restart()
        opt.lr = cfg.unlearn_lr
        impair_loss = opt.epoch(Noisy(kept, keep["noise"], gone, cfg), cross_entropy)
        opt.restart()
        opt.lr = cfg.repair_lr
        task.log(epoch=epoch, impair_loss=impair_loss, loss=opt.epoch(kept, cross_entropy), lr=opt.rate(1))


def _some_of_each(task: Task, cfg: UnsirConfig) -> Loader:
    """Up to --unsir_per_class retain images of each class, for the pass that repairs."""
    retain, stream = task.retain, task.generator("retain")
    order = torch.randperm(retain.size, generator=stream).to(retain.labels.device)
    of_class = [order[retain.labels[order] == c][: cfg.unsir_per_class] for c in range(task.num_classes)]
    at = torch.cat(of_class).sort().values
    return Loader(retain.images, retain.index[at], retain.labels[at], cfg.repair_batch, retain.shuffle, retain.augment)


def learned_noise(task: Task, cfg: UnsirConfig, gone: list[int]) -> Tensor:
    """Images [noise_images * classes, C, H, W] that the model takes least for their class, those of the first class first.

    Minimises -CE(noise, class) + noise_decay * mean ||noise||^2 from N(0, 1), in pixels as the model normalises them.
    """
    model, images, stream = task.frozen_copy(), task.retain.images, task.generator("noise")
    shape = (len(gone), cfg.noise_images, images.x.shape[3], *images.x.shape[1:3])
    noise = torch.randn(shape, generator=stream).to(images.device)
    labels = torch.tensor(gone, device=images.device).repeat_interleave(cfg.noise_images)
    update = Adam([noise], ScheduleConfig(weight_decay=0.0))
    with full_float32():
        for _ in range(cfg.noise_steps):
            noise.requires_grad_()
            # a class's noise is as if it were alone: means over its own images
            losses = F.cross_entropy(model(pixels(model, noise.flatten(0, 1))).float(), labels, reduction="none")
            loss = (cfg.noise_decay * noise.square().flatten(2).sum(2) - losses.view(shape[:2])).mean(1).sum()
            (slope,) = torch.autograd.grad(loss, noise)
            noise.requires_grad_(False)
            update.step([slope], cfg.noise_lr, leave)
    return pixels(model, noise.flatten(0, 1))


def pixels(model: nn.Module, x: Tensor) -> Tensor:
    """What the model's first layer normalises to x."""
    first = getattr(model, "normalize", None)
    return x if first is None else x * first.std[:, None, None] + first.mean[:, None, None]


class Noisy(Loader):
    """Some examples and copies of noise, shuffled together: what the model is impaired by."""

    def __init__(self, kept: Loader, noise: Tensor, gone: list[int], cfg: UnsirConfig) -> None:
        labels = torch.tensor(gone, device=kept.labels.device).repeat_interleave(cfg.noise_images).repeat(cfg.noise_copies)
        stand_in = kept.index[:1].expand(len(labels))  # of the data set there is no image
        super().__init__(kept.images, torch.cat([kept.index, stand_in]), torch.cat([kept.labels, labels]), cfg.impair_batch,
                         kept.shuffle, kept.augment)
        self.noise, self.kept = noise, kept.size

    def _finished(self, batch: Batch, at: Tensor) -> Batch:
        x = super()._finished(batch, at).x
        noise = self.noise[(at - self.kept).clamp_min(0) % len(self.noise)]
        return batch._replace(x=torch.where((at >= self.kept)[:, None, None, None], noise, x))
