"""What every architecture shares: the normalising first layer, the split into features and head, and folding.

Shapes: B images, 3 colours, H x W pixels, F features, K classes.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from utils import BadInput


class Normalize(nn.Module):
    """Subtract the mean and divide by the standard deviation of each colour.

    Both are buffers (``normalize.mean``, ``normalize.std``, float [3]), so that a checkpoint carries its own
    normalisation and attacks work on pixels in [0, 1].

    Raises:
        BadInput: not 3 finite numbers each, or a deviation that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean, std = [float(value) for value in mean], [float(value) for value in std]
        if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
            raise BadInput(f"mean and std are one number for each of 3 colours, std above 0; got {mean} and {std}")
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean[:, None, None]) / self.std[:, None, None]


class AveragePool(nn.AdaptiveAvgPool2d):
    """torch's adaptive average pooling, by plain windows where they tile the map evenly.

    The adaptive kernel's gradient is not deterministic on CUDA (but for 1 x 1, which torch takes as a mean), so torch refuses
    it where determinism was asked for: the pooling of rows and that of columns are then matrices. A map that has the wanted
    size already needs no kernel at all.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.output_size
        if x.shape[-2:] == (height, width):
            return x
        if (height, width) == (1, 1):
            return super().forward(x)
        if x.shape[-2] % height == 0 and x.shape[-1] % width == 0:
            return F.avg_pool2d(x, (x.shape[-2] // height, x.shape[-1] // width))
        if not torch.are_deterministic_algorithms_enabled():
            return super().forward(x)
        return _means(x.shape[-2], height, x) @ x @ _means(x.shape[-1], width, x).T


def _means(size: int, bins: int, like: Tensor) -> Tensor:
    """[bins, size], whose row i averages the places floor(i size / bins) to ceil((i + 1) size / bins), as torch cuts them."""
    place, start = torch.arange(size, device=like.device), torch.arange(bins, device=like.device)[:, None] * size
    within = ((place >= start // bins) & (place < (start + size + bins - 1) // bins)).to(like.dtype)
    return within / within.sum(1, keepdim=True)


class Classifier(nn.Module):
    """Images to logits in two halves: ``features_of``, and ``classify``, which is the head.

    Attributes:
        arch, num_classes, imagenet, image_size, input_size: how ``build`` made it; what a checkpoint must say to make it again.
            The last two are None where the network is the same for images of any size, and where it does not resize them.
        foldable: whether a batch norm that is defined behind a convolution follows it.
        channelwise: whether all that the network's own code does to channels between its layers (sums, activations, pools,
            flattening) it does to each alike, so that layers K times as wide are K networks.
        early: names of parameters that train in the first epochs only, where a training says so (``--early_epochs``).
    """

    arch: str
    num_classes: int
    imagenet: bool
    image_size: int | None = None
    input_size: int | None = None
    foldable = True
    channelwise = False
    early: tuple[str, ...] = ()
    normalize: Normalize

    def features_of(self, x: Tensor) -> Tensor:
        """float [B, F], what the head is given (of a convolutional network the output of ``avgpool``), of images float
        [B, 3, H, W] in [0, 1]."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Logits float [B, K] of features float [B, F]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits, of the head in float32 also where the rest is in bf16: three digits would tie the largest of them, in what
        is recorded of a training as in a loss. It costs nothing."""
        features = self.features_of(x)
        with torch.autocast(features.device.type, enabled=False):
            return self.classify(features.to(torch.promote_types(features.dtype, torch.float32)))

    def reset_parameters(self) -> None:
        """Initialise every layer from the global torch generator, as the architecture's source states."""
        raise NotImplementedError

    def look_at(self, x: Tensor) -> None:
        """Take from the images that the model is about to be trained on (uint8 [N, H, W, 3]) what is fixed by them."""


def embed(model: Classifier, x: Tensor) -> Tensor:
    """Features float [B, F], what the head is given, of images float [B, 3, H, W] in [0, 1].

    Gradients, train or eval mode, and autocast are the caller's.
    """
    return model.features_of(x)


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose batch normalisations are folded into the convolutions before them.

    Logits equal those of the model in eval mode up to rounding, in fewer passes over the activations. Holds for models
    that define a BatchNorm2d directly after a convolution only where it follows that, as all of ours do (a test goes through
    the registry); one that stands elsewhere, such as before its convolution, is kept. The copy's parameters need no gradient;
    the model is not touched.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for parent, conv, norm in list(_conv_norm_pairs(folded)):
        setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
        setattr(parent, norm, nn.Identity())
    return folded


def _conv_norm_pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    for parent in model.modules() if getattr(model, "foldable", True) else ():
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                assert conv.out_channels == norm.num_features
                yield parent, conv_name, norm_name
