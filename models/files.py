"""Model files: our model.pt, and the published checkpoints through ``peer``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.adopt import adopt, start_from
from models.cifarnet import WHITENED as LOOKED_AT
from models.layers import Normalize
from models.libraries import borrowed, find
from models.peer import load_state, read_peer, read_safely
from models.registry import ARCHS, build, build_empty
from models.unwrap import tensors
from pruner.magnitude import apply_mask, prunable
from utils import SCHEMA, BadInput, Config, Mask, Run, Runtime, hp, shown
from utils.settings import did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Which network; with --checkpoint all of this comes from its record."""

    arch: str = hp("resnet18", f"architecture: {', '.join(ARCHS.named())}, or torchvision:NAME or timm:NAME for any classifier "
                   "of these libraries")
    imagenet_arch: bool = hp(False, "the ImageNet stem instead of the one for small images")
    num_classes: int | None = hp(None, "outputs; those of the data set, so it need not be given", low=2, digest=False)
    input_size: int | None = hp(None, "pixels a side that images are resized to for a network of torchvision or timm (default: "
                                "the side it was published with, or the images' own for one that takes any)", low=1, high=4096)
    pretrained: str | None = hp(None, "file with weights to start from; a head for another number of classes is left out")
    normalize: str = hp("dataset", "what the first layer does with pixels in [0, 1] where the file does not tell: the data "
                        "set's mean and std, or none", choices=("dataset", "none"))
    mean: tuple[float, ...] | None = hp(None, "of the three colours, in place of the data set's", low=0, high=1)
    std: tuple[float, ...] | None = hp(None, "of the three colours, in place of the data set's", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [values for values in (self.mean, self.std) if values is not None]
        if any(len(values) != 3 for values in given) or len(given) == 1:
            raise BadInput("--mean and --std are three numbers each, one for a colour, with commas: --mean 0.5,0.5,0.5 --std "
                           "0.25,0.25,0.25")
        if given and self.normalize == "none":
            raise BadInput("--normalize none takes the images as they are; leave --mean and --std away")

    @classmethod
    def check_values(cls, values: Mapping[str, Any]) -> None:
        super().check_values(values)
        arch = values.get("arch")
        if arch is not None and not isinstance(arch, str):
            raise BadInput(f"--arch takes a name; got {shown(arch)}")
        if arch is None or arch in ARCHS.named():
            return
        if not borrowed(arch):
            raise BadInput(f"--arch must be one of {', '.join(ARCHS.named())}, or torchvision:NAME or timm:NAME; got "
                           f"{shown(arch)}{did_you_mean(arch, ARCHS.named())}")
        find(arch)

    @property
    def label(self) -> str:
        """The architecture's name as a part of a folder's."""
        return self.arch.replace(":", "_")

    def statistics(self, source: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the colours: those that were typed, else the data set's (``source``: Source)."""
        if self.normalize == "none":
            return (0.0,) * 3, (1.0,) * 3
        return (self.mean, self.std) if self.mean is not None and self.std is not None else (source.mean, source.std)

    @property
    def typed(self) -> bool:
        """Whether another normalisation than the data set's was asked for."""
        return self.mean is not None or self.normalize == "none"


def new(cfg: ModelConfig, data: Any, rt: Runtime, purpose: str, mask: Mask | None = None,
        like: nn.Module | None = None, seen: np.ndarray | None = None) -> nn.Module:
    """A freshly initialised model for a data set (``data``: Data), from the purpose's own random stream.

    Args:
        mask: of a pruned model, whose structure the new one gets.
        like: a model whose normalisation it gets, instead of that of the settings.
        seen: int64 [n], the training images that it will be given; those to retain if None. It looks at no other.
    """
    _check_classes(cfg, data)
    mean, std = cfg.statistics(data.source) if like is None else _normalisation(like)
    with rt.seeded(f"init/{purpose}"):
        model = build(cfg.arch, data.num_classes, mean, std, imagenet=cfg.imagenet_arch, image_size=data.images.x.shape[1],
                      input_size=cfg.input_size)
    images = data.images
    model.look_at(images.x[torch.from_numpy(data.splits.retain if seen is None else seen)[:LOOKED_AT].to(images.home)])
    if cfg.pretrained is not None:
        start_from(model, Path(cfg.pretrained))
    model = model.to(rt.device, memory_format=rt.layout)
    apply_mask(model, mask or {})
    return model


def _side(cfg: ModelConfig, data: Any) -> int | None:
    """Pixels a side of the data set's images, for a network that depends on it."""
    return data.images.x.shape[1] if ARCHS[cfg.arch].patch else None


def _normalisation(model: nn.Module) -> tuple[list[float], list[float]]:
    return model.normalize.mean.tolist(), model.normalize.std.tolist()


def _check_classes(cfg: ModelConfig, data: Any) -> None:
    if cfg.num_classes not in (None, data.num_classes):
        raise BadInput(f"--num_classes {cfg.num_classes}: {_outputs_of(data)}; leave the flag away")


def _outputs_of(data: Any) -> str:
    """How many outputs a model of a data set has, in words."""
    if (gone := len(data.outputs) - data.num_classes) == 0:
        return f"the data set has {data.num_classes} classes"
    return f"of the {len(data.outputs)} classes of the data set {data.num_classes} are left beside {gone} of --ood_classes"


def misfit(found: int, data: Any) -> BadInput:
    """That the outputs of a model do not fit the classes of a data set (``data``: Data)."""
    return BadInput(f"a model of {found} outputs, but {_outputs_of(data)}; give the --dataset, --classes and --ood_classes "
                    "that it was trained with")


def save(run: Run, model: nn.Module, mask: Mask | None = None) -> None:
    """Write model.pt: weights, architecture and class count, and a pruned model's mask, whose weights must be 0 already."""
    params = dict(model.named_parameters())
    moved = [name for name, part in (mask or {}).items() if bool(params[name].detach()[~part.to(params[name].device)].any())]
    assert not moved, f"pruned weights are not 0 in {', '.join(moved)}: what was evaluated is not what would be saved"
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    kept = {} if mask is None else {"mask": {name: part.cpu() for name, part in mask.items()}}
    run.save_tensors("model.pt", {"state_dict": state, **about(model), **kept})


def about(model: nn.Module) -> dict[str, Any]:
    """What a file says of the structure of its model."""
    sizes = {name: getattr(model, name, None) for name in ("image_size", "input_size")}
    return {"arch": model.arch, "num_classes": model.num_classes, "imagenet": model.imagenet,
            **{name: size for name, size in sizes.items() if size is not None}}


class Loaded(NamedTuple):
    """A model of a file, the mask of its pruned weights, and whether its normalisation is the file's own."""

    model: nn.Module
    mask: Mask | None
    own: bool


def load(path: Path, cfg: ModelConfig, data: Any, rt: Runtime) -> tuple[nn.Module, Mask | None]:
    """A checkpoint for a data set, and the mask of its pruned weights.

    Raises:
        BadInput: not a checkpoint, damaged, of another architecture or another number of classes.
    """
    return load_file(path, cfg, data, rt)[:2]


def load_file(path: Path, cfg: ModelConfig, data: Any, rt: Runtime) -> Loaded:
    """As ``load``, with what a record says of the file."""
    _check_classes(cfg, data)
    content = read_safely(path)
    try:
        model, mask, own = (_ours if isinstance(content, dict) and "schema" in content else _theirs)(content, cfg, data)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    mean, std = cfg.statistics(data.source)
    if own and cfg.typed and not np.allclose(_normalisation(model), (mean, std), atol=1e-4):
        theirs = ", ".join(f"--{name} {','.join(f'{x:.4g}' for x in values)}"
                           for name, values in zip(("mean", "std"), _normalisation(model), strict=True))
        raise BadInput(f"{path} has a normalisation of its own ({theirs}); leave --mean, --std and --normalize away")
    model = model.to(rt.device, memory_format=rt.layout)
    return Loaded(model, None if mask is None else {name: part.to(rt.device) for name, part in mask.items()}, own)


def _ours(content: dict[str, Any], cfg: ModelConfig, data: Any) -> Loaded:
    """The model of a model.pt of this suite."""
    wanted = {"arch": cfg.arch, "num_classes": data.num_classes, "imagenet": cfg.imagenet_arch}
    size, resized = _side(cfg, data), content.get("input_size")
    wanted |= {} if size is None else {"image_size": size}
    wanted |= {} if cfg.input_size is None else {"input_size": cfg.input_size}
    told = {name: content.get(name) for name in wanted}
    if content["schema"] != SCHEMA or "state_dict" not in content or None in told.values():
        raise BadInput(f"no model of this version (schema {content['schema']}); main_train.py writes model.pt")
    for name, mine in wanted.items():
        if told[name] != mine and name == "num_classes" and isinstance(told[name], int):
            raise misfit(told[name], data)
        if told[name] != mine:
            raise BadInput(f"a model with {name} {told[name]}, not {mine}; give the --arch, --dataset and --classes it was "
                           "trained with")
    model = build_empty(cfg.arch, data.num_classes, imagenet=cfg.imagenet_arch, image_size=size, input_size=resized)
    mask = content.get("mask")
    load_state(model, tensors(content["state_dict"], model.state_dict().keys()))
    if mask is not None:
        _check_mask(model, mask)
    return Loaded(model, mask, own=True)


def _theirs(content: Any, cfg: ModelConfig, data: Any) -> Loaded:
    """The model of somebody else's file."""
    if ARCHS[cfg.arch].library:
        model = build_empty(cfg.arch, data.num_classes, image_size=data.images.x.shape[1], input_size=cfg.input_size)
        model.normalize = Normalize(*cfg.statistics(data.source))
        return Loaded(model, None, adopt(model, content))
    model, mask, own = read_peer(content, cfg.arch, None, cfg.imagenet_arch, *cfg.statistics(data.source),
                                 image_size=_side(cfg, data))
    if model.num_classes != data.num_classes:
        raise misfit(model.num_classes, data)
    if mask is not None:  # a convolution that was left whole has no pair in the file, but a place in our masks
        mask = {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable(model).items()} | mask
    return Loaded(model, mask, own)


def _check_mask(model: nn.Module, mask: Any) -> None:
    """Refuse a mask that lacks a convolution, names anything else than weights, or calls weights gone that are there."""
    weights = dict(model.named_parameters())
    parts = mask if isinstance(mask, dict) else {}
    wrong = sorted(set(prunable(model)) - set(parts)) or [
        name for name, part in parts.items() if not _is_mask(part) or name not in weights or part.shape != weights[name].shape
        or bool(weights[name].detach()[~part].any())]
    if wrong:
        raise BadInput(f"it holds a pruning mask that is not of its own weights ({len(wrong)} differ, such as {wrong[0]}); "
                       "it was put together wrongly")


def _is_mask(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype == torch.bool and not part.is_meta and part.layout == torch.strided
