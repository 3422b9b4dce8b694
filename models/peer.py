"""Reading weights: strictly, and from the formats in which the published projects leave them.

Published: ``*model_SA_best.pth.tar`` and ``*checkpoint.pth.tar`` (weights under ``state_dict``) and bare state_dicts,
with ``normalize.mean/std`` among the buffers and, after pruning, ``X.weight_orig`` and ``X.weight_mask`` for a weight.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.layers import Classifier, Normalize
from models.registry import ARCHS, Arch, build_empty
from models.strangers import whose
from models.unwrap import State, shown_key, tensors
from utils import BadInput, Mask, open_regular

COUNTER = "num_batches_tracked"
NORMALIZE = ("normalize.mean", "normalize.std")
NAMED = 3  # keys that an error shows

# the published evaluations stand beside the weights as numpy scalars: they run no code, but are refused by default;
# before numpy 2 their constructor lived in numpy.core
_SCALAR = np._core.multiarray.scalar
_NUMPY_SCALARS = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(code)) for code in ("?", "i4", "i8", "f2", "f4", "f8")),
]


def load_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Copy a state_dict into the model, all of it and nothing else.

    Raises:
        BadInput: keys missing or too many, or other shapes; names up to three of them and the probable cause. The
            model is then as it was.
    """
    if not isinstance(state, Mapping):
        raise BadInput(f"a {type(state).__name__} instead of a state_dict; save model.state_dict()")
    own = model.state_dict()
    missing, unknown, reshaped = _differences(own, state)
    if not missing + unknown + reshaped:
        model.load_state_dict(state)
        return
    wrong = [f"{key} is missing" for key in missing] + [f"{shown_key(key)} is unknown to it" for key in unknown]
    wrong += [f"{key} is {_form(state[key], own[key])} instead of {_form(own[key], state[key])}" for key in reshaped]
    more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    name = getattr(model, "arch", type(model).__name__)
    if name in ARCHS and not missing + unknown and all(key.startswith(f"{ARCHS[name].head}.") for key in reshaped):
        cause = f"probably another number of classes than the model's {model.num_classes}"
    else:
        cause = whose(state, len(wrong) / len(own)) or "probably another architecture (--arch), stem, or a damaged file"
    raise BadInput(f"the weights do not fit {name}: {', '.join(wrong[:NAMED])}{more}; {cause}")


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    return missing, unknown, [key for key in own if key in state and not _alike(own[key], state[key])]


def _alike(own: Tensor, value: Any) -> bool:
    """Whether one can be copied into the other: of one shape, and both of fractions or both of whole numbers."""
    return isinstance(value, Tensor) and own.shape == value.shape and own.is_floating_point() == value.is_floating_point()


def _form(value: Any, other: Any) -> str:
    """What tells a value apart from another one: its shape, else its type."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    alike = isinstance(other, Tensor) and other.shape == value.shape
    return str(value.dtype).removeprefix("torch.") if alike else str(list(value.shape))


def infer_num_classes(state: Mapping[str, Any], arch: str) -> int:
    """The number of classes, from the rows of the head's last linear layer.

    Raises:
        BadInput: unknown architecture, or no such layer in the state_dict.
    """
    head = ARCHS[arch].head
    layer = re.compile(rf"{re.escape(head)}(?:\.(\d+))?\.weight")
    places = {int(found[1] or 0): key for key in state if (found := layer.fullmatch(str(key)))}
    last = state[places[max(places)]] if places else None
    if not isinstance(last, Tensor) or last.dim() != 2:
        own = _names(ARCHS[arch])
        cause = whose(state, len(set(own) ^ set(state)) / len(own)) or "check --arch"
        raise BadInput(f"no {head}.weight with a row for each class, so these are not {arch}'s weights; {cause}")
    return len(last)


def load_peer(
    source: str | PathLike[str] | Mapping[str, Any],
    arch: str,
    *,
    num_classes: int | None = None,
    imagenet: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
) -> tuple[Classifier, Mask | None]:
    """A model and its pruning mask from a published checkpoint; draws no random numbers.

    Departs from the published loaders, which take whatever fits: every key must be there and none besides, except that
    a file without a single ``num_batches_tracked`` (torchvision's older ones) gets them at 0, since nothing here reads
    them. What wrappers and profilers add to the names or beside them is taken off (``unwrap.tensors``).

    Args:
        source: a file of torch.save, read with ``weights_only=True``, or what it holds: {"state_dict": ...} or the like, or
            a bare state_dict.
        num_classes: must be the file's where given.
        imagenet: whether the weights are of the ImageNet stem; found out by default, and must agree where given.
        mean, std: the normalisation of a file that has none; one in the file goes before these.
        image_size: pixels a side, for a network that depends on it; 32 if None.

    Returns:
        The model on the CPU in train mode, and of a pruned one the mask: bool of the parameter's shape for each pruned
        parameter, True = may change (the other parameters are free); None of a dense one.

    Raises:
        BadInput: the file cannot be read safely, or does not hold exactly this architecture.
    """
    content = source if isinstance(source, Mapping) else read_safely(Path(source))
    with _naming(source):
        return read_peer(content, arch, num_classes, imagenet, mean, std, image_size=image_size)[:2]


@contextlib.contextmanager
def _naming(source: str | PathLike[str] | Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        raise error if isinstance(source, Mapping) else BadInput(f"{source}: {error}") from error


def read_peer(
    content: Any,
    arch: str,
    num_classes: int | None,
    imagenet: bool | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    image_size: int | None = None,
) -> tuple[Classifier, Mask | None, bool]:
    """As ``load_peer``, of a file's content; and whether the normalisation is the file's own."""
    family = ARCHS[arch]
    state, mask = _unpruned(tensors(content, _names(family)))
    found = infer_num_classes(state, arch)
    own = any(key in state for key in NORMALIZE)
    state |= _normalisation(state, mean, std)
    stem = _has_imagenet_stem(state, family, found)
    model = build_empty(arch, found, imagenet=stem, image_size=image_size)
    if not any(key.endswith(COUNTER) for key in state):
        state |= {key: torch.zeros_like(value) for key, value in model.state_dict().items() if key.endswith(COUNTER)}
    load_state(model, state)  # first of all, for weights of another network have other classes and stems too
    if num_classes is not None and num_classes != found:
        raise BadInput(f"the weights are for {found} classes, but {num_classes} were asked for; "
                       "give the data set they were trained on")
    if imagenet is not None and imagenet != stem:
        raise BadInput(f"the weights are of the {'ImageNet' if stem else 'CIFAR'} stem; "
                       f"{'add' if stem else 'leave out'} --imagenet_arch")
    if not own and (mean is None or std is None):
        raise BadInput("the weights hold no normalize.mean and normalize.std; give the mean and std of their data set")
    return model, mask, own


def _names(arch: Arch) -> Collection[str]:
    with torch.device("meta"):
        return arch.make(2).state_dict().keys()


class Unreadable(BadInput):
    """A file that is no whole file of torch.save with plain content."""


def read_safely(path: Path) -> Any:
    """The content of a torch.save file on the CPU: tensors, plain values, numpy scalars.

    Raises:
        Unreadable: the file is missing, empty, unreadable, damaged, not torch's, or holds other pickled objects.
    """
    try:
        with open_regular(path) as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise Unreadable(f"{path} does not exist; give a checkpoint file") from error
    except OSError as error:
        raise Unreadable(f"cannot read {path}: {error.strerror}; give a checkpoint file") from error
    if empty:
        raise Unreadable(f"{path} is empty; copy it again or train anew")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on foreign pickle protocols; what fails is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types on damaged files, AssertionError and struct.error too
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        why = "is truncated, damaged or not a file of torch.save; copy it again"
        if refused is not None:
            what = "a whole pickled model, of class" if _holds_modules(path) else "a pickled"
            why = f"holds {what} {refused[1]}, which could run code when read; save its state_dict alone"
        raise Unreadable(f"{path} {why}") from error


def _holds_modules(path: Path) -> bool:
    """Whether the classes that a file names, none of which is run, are those of a network's layers."""
    try:
        return any(name.startswith("torch.nn.modules.") for name in torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError):  # torch looks into zip files alone
        return False


def _unpruned(state: State) -> tuple[State, Mask | None]:
    """Turn every ``X_orig`` and ``X_mask`` into ``X`` = their product, as torch.nn.utils.prune does in its forward."""
    dense, mask = {}, {}
    for key, value in state.items():
        name = re.sub("_(orig|mask)$", "", key)
        if name == key:
            dense[name] = value
        elif name not in mask:
            if name in state or f"{name}_orig" not in state or f"{name}_mask" not in state:
                raise BadInput(f"{shown_key(key)} should be one of a pair _orig and _mask, and {shown_key(name)} not there; "
                               "the file is damaged")
            weight, kept = state[f"{name}_orig"], state[f"{name}_mask"]
            if weight.shape != kept.shape or not bool(((kept == 0) | (kept == 1)).all()):
                raise BadInput(f"{shown_key(name)}_mask is not a 0/1 mask of its weight's shape; the file is damaged")
            mask[name] = kept.bool()
            dense[name] = torch.where(mask[name], weight, torch.zeros_like(weight))
    return dense, mask or None


def _normalisation(state: State, mean: Sequence[float] | None, std: Sequence[float] | None) -> State:
    """The file's buffers, whatever their shape, as float [3] each; the caller's, else 0 and 1, where the file has none."""
    if any(key in state for key in NORMALIZE):
        if not all(key in state for key in NORMALIZE):
            raise BadInput("only one of normalize.mean and normalize.std is there; the file is damaged")
        mean, std = (state[key].flatten().tolist() for key in NORMALIZE)
    layer = Normalize(mean or (0.0,) * 3, std or (1.0,) * 3)
    return dict(zip(NORMALIZE, (layer.mean, layer.std), strict=True))


def _has_imagenet_stem(state: State, arch: Arch, num_classes: int) -> bool:
    """Which of the two structures the weights come nearer to; the CIFAR one where that is a draw."""
    if not arch.imagenet:
        return False
    with torch.device("meta"):
        wrong = [
            sum(map(len, _differences(arch.make(num_classes, imagenet=imagenet).state_dict(), state)))
            for imagenet in (False, True)
        ]
    return wrong[1] < wrong[0]
