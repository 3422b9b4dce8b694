"""Model files: our model.pt, and the published checkpoints through ``load_peer``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.peer import load_peer, load_state, read_safely
from models.registry import ARCHS, build, build_empty
from pruner.magnitude import apply_mask, prunable
from utils import SCHEMA, BadInput, Config, Mask, Run, Runtime, hp


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Which network; with --checkpoint all of this comes from its record."""

    arch: str = hp("resnet18", "architecture", choices=tuple(ARCHS.names()))
    imagenet_arch: bool = hp(False, "the ImageNet stem instead of the one for small images")
    num_classes: int | None = hp(None, "outputs; those of the data set, so it need not be given", low=2, digest=False)


def new(cfg: ModelConfig, data: Any, rt: Runtime, purpose: str, mask: Mask | None = None) -> nn.Module:
    """A freshly initialised model for a data set (``data``: Data), from the purpose's own random stream.

    Args:
        mask: of a pruned model, whose structure the new one gets.
    """
    _check_classes(cfg, data)
    source, size = data.source, data.images.x.shape[1]
    with rt.seeded(f"init/{purpose}"):
        model = build(cfg.arch, data.num_classes, source.mean, source.std, imagenet=cfg.imagenet_arch, image_size=size)
    model = model.to(rt.device, memory_format=torch.channels_last)
    apply_mask(model, mask or {})
    return model


def _check_classes(cfg: ModelConfig, data: Any) -> None:
    if cfg.num_classes not in (None, data.num_classes):
        raise BadInput(f"--num_classes {cfg.num_classes}: the data set has {data.num_classes} classes; leave the flag away")


def save(run: Run, model: nn.Module, mask: Mask | None = None) -> None:
    """Write model.pt: weights, architecture and class count, and a pruned model's mask."""
    about = {"arch": model.arch, "num_classes": model.num_classes, "imagenet": model.imagenet}
    apply_mask(model, mask or {})  # a model that diverged may have NaN there: 0 times infinity
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    kept = {} if mask is None else {"mask": {name: part.cpu() for name, part in mask.items()}}
    run.save_tensors("model.pt", {"state_dict": state, **about, **kept})


def load(path: Path, cfg: ModelConfig, data: Any, rt: Runtime) -> tuple[nn.Module, Mask | None]:
    """A checkpoint for a data set, and the mask of its pruned weights.

    Raises:
        BadInput: not a checkpoint, damaged, of another architecture or another number of classes.
    """
    _check_classes(cfg, data)
    content = read_safely(path)
    if isinstance(content, dict) and "schema" in content:
        about = {name: content.get(name) for name in ("arch", "num_classes", "imagenet")}
        wanted = {"arch": cfg.arch, "num_classes": data.num_classes, "imagenet": cfg.imagenet_arch}
        if content["schema"] != SCHEMA or "state_dict" not in content or None in about.values():
            raise BadInput(f"{path} is no model of this version (schema {content['schema']}); main_train.py writes model.pt")
        for name, mine in wanted.items():
            if about[name] != mine:
                raise BadInput(f"{path} is a model with {name} {about[name]}, not {mine}; give the --arch, --dataset "
                               "and --classes it was trained with")
        model, mask = build_empty(cfg.arch, data.num_classes, imagenet=cfg.imagenet_arch), content.get("mask")
        try:
            load_state(model, content["state_dict"])
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
        if mask is not None:
            _check_mask(path, model, mask)
    else:
        source = data.source
        model, mask = load_peer(path, cfg.arch, num_classes=data.num_classes, imagenet=cfg.imagenet_arch,
                                mean=source.mean, std=source.std)
        if mask is not None:  # a convolution that was left whole has no pair in the file, but a place in our masks
            mask = {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable(model).items()} | mask
    model = model.to(rt.device, memory_format=torch.channels_last)
    return model, None if mask is None else {name: part.to(rt.device) for name, part in mask.items()}


def _check_mask(path: Path, model: nn.Module, mask: Any) -> None:
    """Refuse a mask that lacks a convolution, names anything else than weights, or calls weights gone that are there."""
    weights = dict(model.named_parameters())
    parts = mask if isinstance(mask, dict) else {}
    wrong = sorted(set(prunable(model)) - set(parts)) or [
        name for name, part in parts.items() if not isinstance(part, Tensor) or part.dtype != torch.bool
        or name not in weights or part.shape != weights[name].shape or bool(weights[name].detach()[~part].any())]
    if wrong:
        raise BadInput(f"{path} holds a pruning mask that is not of its own weights ({len(wrong)} differ, such as {wrong[0]}); "
                       "it was put together wrongly")
