"""Whose weights these are, if not those that were asked for: told in the error, so that it names the true cause."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.registry import ARCHS

STRANGE = 0.1  # share of unfitting names from which on a file is of another network
PASSED_OVER = re.compile(r"(^|\.)(num_batches_tracked)$|^normalize\.")
# names that the networks of others have and ours have not; the first that fits is told
FAMILIES = (
    (r"blocks\.\d+\.attn\.qkv\.weight", "a vision transformer of timm"),
    (r"encoder\.layers\.encoder_layer_\d+\.", "a vision transformer of torchvision"),
    (r"layers?\.\d+\.blocks\.\d+\.attn\.", "a Swin transformer"),
    (r"features\.denseblock\d+\.", "a DenseNet of torchvision"),
    (r"layer1\.0\.shortcut\.|(^|\.)layer\d\.\d+\.shortcut\.\d", "a ResNet with `shortcut` and `linear` in its names, as in "
                                                              "pytorch-cifar"),
    (r"block1\.layer\.0\.", "a wide ResNet of another layout"),
    (r"to_patch_embedding\.|transformer\.layers\.\d+\.\d+\.", "a vision transformer of another layout"),
    (r"layer1\.0\.conv\d\.weight", "a ResNet of torchvision's form, of another depth or width"),
    (r"features\.0\.weight", "a network of torchvision's VGG form, of another depth or head"),
)


def whose(state: Mapping[str, Tensor], wrong: float) -> str | None:
    """In words, what the tensors are: a mask, an architecture of ours (with the flags that read it), or a known stranger.

    Args:
        wrong: share of the names that do not fit; where it is small, something is wrong with the file and not with its kind.
    """
    values = [value for name, value in state.items() if not PASSED_OVER.search(str(name))]
    if values and all(isinstance(value, Tensor) and bool(((value == 0) | (value == 1)).all()) for value in values):
        return "every value is 0 or 1, so it is a mask: give that by --path, and the weights of the model by --checkpoint"
    for name in ARCHS.names():
        for imagenet in (False, True) if ARCHS[name].imagenet else (False,):
            if _fits(state, name, imagenet):
                flags = f"--arch {name}{' --imagenet_arch' if imagenet else ''}"
                of = f"torchvision's {name}" if imagenet else name
                return f"they are the weights of {of}; give {flags}"
    if wrong < STRANGE:
        return None
    found = next((family for pattern, family in FAMILIES if any(re.search(pattern, name) for name in state)), None)
    return None if found is None else f"they look like {found}; --arch torchvision:NAME or timm:NAME may be its name"


def _fits(state: Mapping[str, Tensor], name: str, imagenet: bool) -> bool:
    """Whether names and shapes are the architecture's, for whatever number of classes."""
    arch = ARCHS[name]
    head = re.compile(rf"{re.escape(arch.head)}(\.\d+)?\.(weight|bias)")
    theirs = {key: value for key, value in state.items() if not PASSED_OVER.search(key)}
    own = _own(name, imagenet)
    last = max((key for key in own if head.fullmatch(key)), key=lambda key: _place(key, head), default="")
    free = {last.rpartition(".")[0] + end for end in (".weight", ".bias")}  # a row for each class
    return own.keys() == theirs.keys() and all(own[key].shape[key in free :] == theirs[key].shape[key in free :] for key in own)


@functools.cache
def _own(name: str, imagenet: bool) -> dict[str, Tensor]:
    """The architecture's tensors for two classes, without values."""
    with torch.device("meta"):
        state = ARCHS[name].make(2, imagenet=imagenet).state_dict()
    return {key: value for key, value in state.items() if not PASSED_OVER.search(key)}


def _place(key: str, head: re.Pattern[str]) -> int:
    return int((head.fullmatch(key)[1] or ".0")[1:])
