"""Classifiers of torchvision and timm as our own: another head, normalisation in front, images resized on the device.

    build = find("torchvision:swin_t")
    model = build(10, normalize, image_size=32, input_size=None)   # images [B, 3, 32, 32] go in as 224 x 224

Neither library is imported before one of its networks is asked for, and nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Classifier, Normalize
from models.modes import evaluating
from utils import BadInput
from utils.settings import did_you_mean

LIBRARIES = ("torchvision", "timm")
# names of torchvision's that the published projects use without more: parameters at 10 classes, what it is
PLAIN = {
    "swin_t": (27_527_044, "torchvision's Swin transformer, images resized to 224"),
    "vit_b_16": (85_806_346, "torchvision's vision transformer, images resized to 224"),
}
INSTALL = {"timm": "pip install 'timm>=1.0'", "torchvision": "pip install torchvision"}
# values of a library that make what it returns in training logits alone
ALONE = {"aux_logits": False, "init_weights": True}
SIZES = ("image_size", "input_size", "img_size")  # how constructors call the side of the images that they are made for


class Known(NamedTuple):
    """What a library says of a network: how to make it, the side it was published with, the least, whether it is fixed."""

    make: Callable[..., nn.Module]
    side: int
    least: int
    fixed: bool


def borrowed(name: str) -> bool:
    """Whether a name is of a network of a library."""
    return name in PLAIN or name.partition(":")[0] in LIBRARIES


@functools.cache
def find(name: str) -> Callable[..., Classifier]:
    """(number of classes, normalising layer, image_size, input_size, checked) -> the network of this name.

    Raises:
        BadInput: the library is not there, or has no such classifier; names a near one.
    """
    library, _, own = name.partition(":") if name not in PLAIN else ("torchvision", "", name)
    known = {"torchvision": _of_torchvision, "timm": _of_timm}[library](own)
    return functools.partial(_build, name, known)


def _library(name: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module({"torchvision": "torchvision.models", "timm": "timm"}[name])
    except ImportError:
        raise BadInput(f"--arch {name}:NAME needs {name}, which is not installed; {INSTALL[name]}") from None


def _check(library: str, own: str, names: Iterable[str]) -> None:
    if own not in names:
        near = did_you_mean(own, names)
        raise BadInput(f"--arch {library}:{own}: {library} has no classifier of this name{near}; there are {len(list(names))}, "
                       f"such as {', '.join(list(names)[:3])}")


def _of_torchvision(own: str) -> Known:
    library = _library("torchvision")
    _check("torchvision", own, library.list_models(module=library))
    builder = library.get_model_builder(own)
    weights = library.get_model_weights(own).DEFAULT  # what it says, not the file
    side, least = weights.transforms().crop_size[0], weights.meta["min_size"][0]
    return Known(functools.partial(builder, weights=None), side, least, side == least)


def _of_timm(own: str) -> Known:
    library = _library("timm")
    _check("timm", own, library.list_models())
    told = library.get_pretrained_cfg(own)
    side = told.input_size[-1]
    least = (told.min_input_size or (3, 1, 1))[-1]

    def make(**values: Any) -> nn.Module:
        return library.create_model(own, pretrained=False, **values)

    return Known(make, side, least, bool(told.fixed_input_size))


def _build(name: str, known: Known, num_classes: int, normalize: Normalize, *, image_size: int | None = None,
           input_size: int | None = None, checked: bool = False) -> Classifier:
    """The network, with weights from the global generator as its library draws them.

    Args:
        image_size: the side of the data set's images. input_size: what they are resized to; None for the side that the
            network was published with where it takes no other or is too large for the images, else theirs.
        checked: whether its structure is known to work, as that of a checkpoint.
    """
    own = known.side if known.fixed or (image_size or known.side) < known.least else image_size or known.side
    side = input_size or own
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            network = _made(known, num_classes, side)
            model = Borrowed(network, normalize, side)
            if not checked:
                model.check()
    except BadInput as error:
        raise BadInput(f"--arch {name}: {error}") from None
    except Exception as error:  # whatever a library raises on what it cannot build, or on images that it cannot take
        told = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise BadInput(f"--arch {name} cannot be made for images of {side} pixels a side ({told:.150}); give another "
                       f"--input_size, such as {known.side}") from None
    return model


def _made(known: Known, num_classes: int, side: int) -> nn.Module:
    """The library's own network; its constructor is told of the side where it wants to know."""
    takes = _parameters(known.make)
    values = {name: value for name, value in ALONE.items() if name in takes}
    if "input_size" in takes:
        values["input_size"] = (side, side)
    elif side != known.side:
        sized = next((name for name in SIZES if name in takes), "img_size" if known.fixed and not takes else None)
        values |= {sized: side} if sized else {}
    return known.make(num_classes=num_classes, **values)


def _parameters(make: Callable[..., nn.Module]) -> set[str]:
    """Names that a constructor of torchvision takes, those of the class behind it too; none of timm's, which tells nothing."""
    if not isinstance(make, functools.partial):
        return set()
    found = set(inspect.signature(make.func).parameters)
    module = inspect.getmodule(inspect.unwrap(make.func))
    kind = {"vit": "VisionTransformer", "max": "MaxVit", "goo": "GoogLeNet", "inc": "Inception3"}.get(make.func.__name__[:3])
    return found | (set(inspect.signature(getattr(module, kind)).parameters) if kind else set())


class ConvHead(nn.Module):
    """A head that convolves a map and averages: it takes the map flattened, float [B, C * side * side]."""

    def __init__(self, layers: nn.Sequential, channels: int) -> None:
        super().__init__()
        self.layers, self.channels = layers, channels

    def forward(self, features: Tensor) -> Tensor:
        side = round((features.shape[1] / self.channels) ** 0.5)
        return self.layers(features.unflatten(1, (self.channels, side, side))).flatten(1)


class Borrowed(Classifier):
    """A network of a library between our normalisation and its own last layer, whose input is the features.

    Attributes:
        input_size: side in pixels that images are resized to (bilinear; antialiased where they get smaller).
        head_name: the head's name in the library, which its weights bear in files of the library.
    """

    foldable = False  # where batch norm stands in a library's network its module order does not tell

    def __init__(self, network: nn.Module, normalize: Normalize, input_size: int) -> None:
        super().__init__()
        self.normalize, self.network, self.input_size = normalize, network, input_size
        layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
        self.head_name, self.head = layers[-1]
        if isinstance(self.head, nn.Conv2d):  # SqueezeNet: the layers around it are the head
            channels = self.head.in_channels
            self.head_name = self.head_name.rpartition(".")[0]
            layers = network.get_submodule(self.head_name)
            if not isinstance(layers, nn.Sequential):
                raise BadInput("its classifier is no linear layer at its end, which is not among what is read here")
            self.head = ConvHead(layers, channels)
        network.set_submodule(self.head_name, nn.Identity())

    def resized(self, x: Tensor) -> Tensor:
        size = (self.input_size, self.input_size)
        if x.shape[-2:] == size:
            return x
        return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=x.shape[-1] > self.input_size)

    def features_of(self, x: Tensor) -> Tensor:
        return self.network(self.resized(self.normalize(x)))

    def classify(self, features: Tensor) -> Tensor:
        return self.head(features)

    def reset_parameters(self) -> None:
        """The library has drawn them when it made the network."""

    @torch.no_grad()
    def check(self) -> None:
        """Refuse a network whose logits are not those of its head on what comes before it."""
        x = torch.linspace(-2, 2, 2 * 3 * self.input_size**2).sin().view(2, 3, self.input_size, self.input_size)
        with evaluating(self):
            self.network.set_submodule(self.head_name, self.head.layers if isinstance(self.head, ConvHead) else self.head)
            whole = self.network(x)
            self.network.set_submodule(self.head_name, nn.Identity())
            try:
                alike = torch.allclose(self.head(self.network(x)), whole, 1e-3, 1e-4)
            except (RuntimeError, TypeError, AttributeError):  # of shapes that do not meet, or of what is no tensor
                alike = False
        if not alike:
            raise BadInput("its logits are not those of one layer at its end, so that it cannot get another head here")

    def adopted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by the names of this model, from those by the library's."""
        found = {}
        for name, value in state.items():
            ours = name.startswith(("network.", "head.layers.", "normalize.")) or name in ("head.weight", "head.bias")
            inner = name.removeprefix(f"{self.head_name}.")
            if inner != name and (not ours or self.head_name == "head"):
                found[f"head.{'layers.' if isinstance(self.head, ConvHead) else ''}{inner}"] = value
            else:
                found[name if ours else f"network.{name}"] = value
        return found
