"""The architectures by name, and the one function that builds a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from models.allcnn import AllCNN
from models.cifarnet import CifarNet
from models.layers import Classifier, Normalize
from models.libraries import PLAIN, borrowed, find
from models.resnet import BasicBlock, Bottleneck, CifarResNet, Projection, ResNet
from models.vgg import vgg_imagenet, vgg_lottery, vgg_small
from models.vit import PATCH, ViT
from models.wide import WideResNet
from utils import BadInput, Registry

CIFAR_SIZE = 32  # pixels a side
IMAGENET_MIN_SIZE = 32  # smallest image side with the ImageNet stem: five halvings in either family


@dataclass(frozen=True)
class Arch:
    """An architecture: how to make it and what it accepts.

    Attributes:
        build: (number of classes, normalising layer) -> the structure with the CIFAR stem; where ``patch`` is not 0 it takes
            ``image_size`` too.
        min_size: smallest image side in pixels, with the CIFAR stem: the product of its strides.
        docs: one line for the README.
        head: name of the module whose last linear layer has one row for each class.
        build_imagenet: the same with an ImageNet stem; None where there is none.
        patch: pixels that the images' side is a multiple of, since the network has a weight for each place of a patch; 0 where
            one network takes images of any size.
        protocol: whose defaults train it, where no other is asked for.
        library: whether it is of torchvision or timm; ``build`` then takes ``image_size``, ``input_size`` and ``checked``.
    """

    name: str
    build: Callable[..., Classifier]
    min_size: int
    docs: str
    head: str
    build_imagenet: Callable[[int, Normalize], Classifier] | None = None
    patch: int = 0
    library: bool = False
    protocol: str = ""

    @property
    def imagenet(self) -> bool:
        """Whether there is an ImageNet stem."""
        return self.build_imagenet is not None

    def takes(self, image_size: int) -> bool:
        """Whether images of this side fit, with the CIFAR stem."""
        return image_size >= self.min_size and not (self.patch and image_size % self.patch)

    def make(self, num_classes: int, normalize: Normalize | None = None, *, imagenet: bool = False,
             image_size: int | None = None, input_size: int | None = None, checked: bool = False) -> Classifier:
        """The model's structure with torch's default initialisation, for ``build`` and ``build_empty`` to go on from.

        Args:
            image_size: pixels a side, for a network that depends on it; 32 if None.
            input_size: what a library's network resizes images to. checked: see there.

        Raises:
            BadInput: fewer than 2 classes, an ImageNet stem or resized images where there are none.
        """
        if num_classes < 2:
            raise BadInput(f"{self.name} needs at least 2 classes; got {num_classes}")
        if imagenet and self.build_imagenet is None:
            having = ", ".join(name for name in ARCHS.names() if ARCHS[name].imagenet)
            raise BadInput(f"{self.name} has no ImageNet stem; these have one: {having}")
        if input_size is not None and not self.library:
            raise BadInput(f"--input_size {input_size}: {self.name} takes images as they are; it is of --arch torchvision:NAME "
                           "and timm:NAME")
        structure = self.build_imagenet if imagenet else self.build
        sized: dict[str, Any] = {"image_size": image_size or CIFAR_SIZE} if self.patch else {}
        if self.library:
            sized = {"image_size": image_size, "input_size": input_size, "checked": checked}
        model = structure(num_classes, normalize or Normalize((0.0,) * 3, (1.0,) * 3), **sized)
        model.arch, model.num_classes, model.imagenet = self.name, num_classes, imagenet
        model.image_size = sized["image_size"] if self.patch else None
        return model


class Architectures(Registry[Arch]):
    """Our own networks by name, and those of the libraries, which are looked up when they are asked for."""

    def named(self) -> list[str]:
        """Names that stand by themselves: our own, and those of the libraries that the published projects use."""
        return [*self.names(), *PLAIN]

    def __contains__(self, name: str) -> bool:
        return super().__contains__(name) or borrowed(name)

    def __getitem__(self, name: str) -> Arch:
        if not borrowed(name):
            return super().__getitem__(name)
        return Arch(name, find(name), 1, PLAIN.get(name, (0, ""))[1], "head", library=True)


ARCHS = Architectures("architecture")


def _resnet(name: str, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int]) -> None:
    make = partial(ResNet, block, depths, (64, 128, 256, 512), Projection)
    docs = "torchvision's residual network, 3x3 stem without max-pool"
    ARCHS.add(name, Arch(name, make, 8, docs, "fc", partial(make, imagenet=True)))


def _cifar_resnet(name: str, blocks: int) -> None:
    docs = f"He's residual network for CIFAR, 3 x {blocks} blocks, option A shortcuts"
    ARCHS.add(name, Arch(name, partial(CifarResNet, blocks), 4, docs, "fc"))


def _vgg(name: str, depths: Sequence[int]) -> None:
    docs = "convolutions without bias, four max-pools, head 2048-256-256"
    ARCHS.add(name, Arch(name, partial(vgg_small, depths), 16, docs, "classifier", partial(vgg_imagenet, depths)))


def _wide(name: str, depth: int, width: int) -> None:
    docs = f"wide residual network, {depth} layers, {width} times as wide"
    ARCHS.add(name, Arch(name, partial(WideResNet, depth, width), 4, docs, "fc"))


def _cifarnet(name: str, *widths: int) -> None:
    docs = f"made for speed (airbench): whitening, groups of {', '.join(map(str, widths))} channels, maximum over the map"
    ARCHS.add(name, Arch(name, partial(CifarNet, widths), 9, docs, "fc", protocol="cifar-fast"))


_resnet("resnet18", BasicBlock, (2, 2, 2, 2))
_resnet("resnet34", BasicBlock, (3, 4, 6, 3))
_resnet("resnet50", Bottleneck, (3, 4, 6, 3))
_resnet("resnet101", Bottleneck, (3, 4, 23, 3))
_resnet("resnet152", Bottleneck, (3, 8, 36, 3))
_cifar_resnet("resnet8s", 1)
_cifar_resnet("resnet20s", 3)
_cifar_resnet("resnet32s", 5)
_cifar_resnet("resnet44s", 7)
_cifar_resnet("resnet56s", 9)
_cifar_resnet("resnet110s", 18)
_vgg("vgg11_bn", (1, 1, 2, 2, 2))
_vgg("vgg13_bn", (2, 2, 2, 2, 2))
_vgg("vgg16_bn", (2, 2, 3, 3, 3))
_vgg("vgg19_bn", (2, 2, 4, 4, 4))
ARCHS.add("vgg16_bn_lth", Arch(
    "vgg16_bn_lth", partial(vgg_lottery, (2, 2, 3, 3, 3)), 16,
    "convolutions with bias, four max-pools, one linear layer", "classifier",
))
_cifarnet("cifarnet", 32, 96, 96)
_cifarnet("cifarnet_16_64", 16, 64, 64)
_cifarnet("cifarnet_64_128", 64, 128, 128)
_cifarnet("cifarnet_64_256", 64, 256, 256)
_wide("wrn_28_2", 28, 2)
_wide("wrn_40_2", 40, 2)
ARCHS.add("allcnn", Arch("allcnn", AllCNN, 9, "All-CNN-C, strided convolutions instead of pooling, with batch norm", "fc"))
ARCHS.add("vit", Arch("vit", ViT, PATCH, "vision transformer for small images: shifted patches of 4, locality attention, 4 "
                      "blocks of 512; sides a multiple of 4", "fc", patch=PATCH))


def build(
    name: str,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    imagenet: bool = False,
    image_size: int | None = None,
    input_size: int | None = None,
) -> Classifier:
    """A freshly initialised model; the initial weights come from the current global torch generator.

    Args:
        mean, std: of each of the three colours, for images in [0, 1].
        imagenet: the ImageNet stem (ResNet) or layout (VGG) instead of the one for small images.
        image_size: the side of the images in pixels, to be checked against what the architecture accepts.
        input_size: what a network of a library resizes them to; its own choice if None.

    Raises:
        BadInput: unknown name, fewer than 2 classes, no ImageNet stem, images too small, mean or std not 3 numbers.
    """
    arch = ARCHS[name]
    min_size = IMAGENET_MIN_SIZE if imagenet and arch.imagenet else arch.min_size
    small = image_size is not None and image_size < min_size
    if small or (image_size is not None and not imagenet and not arch.takes(image_size)):
        fitting = [n for n in ARCHS.names() if ARCHS[n].takes(image_size)]
        wanted = f"of at least {min_size} pixels a side" if small else f"whose side is a multiple of {arch.patch} pixels"
        advice = f"these take it: {', '.join(fitting)}" if fitting else "use larger images"
        stem = " with the ImageNet stem" if imagenet else ""
        raise BadInput(f"{name}{stem} needs images {wanted}; got {image_size}; {advice}")
    model = arch.make(num_classes, Normalize(mean, std), imagenet=imagenet, image_size=image_size, input_size=input_size)
    model.reset_parameters()
    return model


def build_empty(name: str, num_classes: int, *, imagenet: bool = False, image_size: int | None = None,
                input_size: int | None = None) -> Classifier:
    """A model with memory but no values yet, normalisation included, for ``load_state``; draws no random numbers.

    Raises:
        BadInput: unknown name, fewer than 2 classes, no ImageNet stem.
    """
    arch = ARCHS[name]
    if arch.library:  # which computes with the values of its buffers while it is made
        with torch.random.fork_rng(devices=()):
            return arch.make(num_classes, imagenet=imagenet, image_size=image_size, input_size=input_size, checked=True)
    with torch.device("meta"):
        model = arch.make(num_classes, imagenet=imagenet, image_size=image_size, input_size=input_size)
    # as to_empty does, which would first import sympy (0.4 s)
    memory = {key: torch.empty(value.shape, dtype=value.dtype) for key, value in model.state_dict().items()}
    model.load_state_dict(memory, assign=True)
    return model


def table() -> list[tuple[str, ...]]:
    """The README's rows: name, parameters at 10 classes, smallest image side, ImageNet stem, what it is."""
    rows = [("architecture", "parameters (10 classes)", "smallest image", "ImageNet stem", "structure")]
    with torch.device("meta"):  # shapes without memory
        for name in ARCHS.names():
            arch = ARCHS[name]
            count = sum(parameter.numel() for parameter in arch.make(10).parameters())
            rows.append((name, f"{count:,}", str(arch.min_size), "yes" if arch.imagenet else "no", arch.docs))
    rows += [(name, f"{count:,}", "1", "no", docs) for name, (count, docs) in PLAIN.items()]
    return rows
