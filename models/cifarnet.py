"""A small wide network made for speed on small images: whitening, three groups of two convolutions, a maximum over the map.

After airbench (Jordan, arXiv:2404.00498, section 3): the pool stands between a group's first convolution and its batch norm, so
that norm and activation run on a quarter of the pixels. Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Classifier, Normalize

WHITENED = 5000  # images that the whitening filters are of, the first of those that are trained on
EPSILON = 5e-4  # added to the eigenvalues
BLOCK = 500  # images whose patches are held at a time


class Whitening(nn.Conv2d):
    """2x2 patches along the principal directions of the images' own patches, at unit variance, and their negatives.

    The 24 filters are no parameters: nothing trains, prunes or perturbs them. Until ``fit`` has seen images they are the 12
    numbers of a patch.
    """

    def __init__(self) -> None:
        super().__init__(3, 24, 2)
        del self.weight
        filters = torch.zeros(24, 12)
        for sign, half in ((1, filters[:12]), (-1, filters[12:])):
            half.fill_diagonal_(sign)
        self.register_buffer("weight", filters.view(24, 3, 2, 2))

    def reset_parameters(self) -> None:
        """torch's default start of the bias."""
        if "weight" not in self._parameters:  # else torch's own constructor asks, before there is a bias
            nn.init.uniform_(self.bias, -(12**-0.5), 12**-0.5)

    def fit(self, x: Tensor, normalize: Normalize) -> None:
        """Take the filters from images uint8 [N, H, W, 3].

        v_i / sqrt(l_i + 5e-4), for the eigenvectors and eigenvalues of the second moments of normalised patches, no mean
        subtracted, largest first, the largest entry of each positive. Sums of whole numbers are exact in float64, so that the
        filters do not depend on the number of threads or on the order.
        """
        sums, products, count = torch.zeros(12, dtype=torch.float64), torch.zeros(12, 12, dtype=torch.float64), 0
        for block in x[:WHITENED].split(BLOCK):
            rows = F.unfold(block.cpu().permute(0, 3, 1, 2).double(), 2).transpose(1, 2).reshape(-1, 12)
            sums, products, count = sums + rows.sum(0), products + rows.T @ rows, count + len(rows)
        scale = (1 / (255 * normalize.std.cpu().double())).repeat_interleave(4)
        shift = (-normalize.mean.cpu().double() / normalize.std.cpu().double()).repeat_interleave(4)
        mean, second = sums / count * scale, products / count * scale[:, None] * scale
        second = second + mean[:, None] * shift + shift[:, None] * mean + shift[:, None] * shift
        values, vectors = torch.linalg.eigh(second)
        filters = vectors.flip(1).T / (values.flip(0).clamp_min(0)[:, None] + EPSILON).sqrt()
        filters = filters * filters.gather(1, filters.abs().argmax(1, keepdim=True)).sign()
        self.weight.copy_(torch.cat([filters, -filters]).view(24, 3, 2, 2))


class ShiftNorm(nn.BatchNorm2d):
    """Batch norm whose scale is fixed at 1, and whose running statistics are those of the last few batches."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.4)
        del self.weight
        self.register_buffer("weight", torch.ones(channels))


class Group(nn.Module):
    """Convolution, pool, norm, GELU; convolution, norm, GELU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = ShiftNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = ShiftNorm(out_channels)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.gelu(self.norm1(self.pool(self.conv1(x))))
        return self.gelu(self.norm2(self.conv2(x)))


class CifarNet(Classifier):
    """Whitening, GELU, three groups, the maximum of each channel, a head without bias whose outputs are scaled."""

    early = ("whiten.bias",)
    channelwise = True

    def __init__(self, widths: Sequence[int], num_classes: int, normalize: Normalize) -> None:
        super().__init__()
        self.normalize = normalize
        self.whiten = Whitening()
        self.gelu = nn.GELU()
        for number, (before, width) in enumerate(zip((24, *widths), widths, strict=False), 1):
            self.add_module(f"group{number}", Group(before, width))
        self.maxpool = nn.AdaptiveMaxPool2d((1, 1))
        self.fc = nn.Linear(widths[-1], num_classes, bias=False)
        self.scale = 1 / widths[-1]

    def features_of(self, x: Tensor) -> Tensor:
        x = self.gelu(self.whiten(self.normalize(x)))
        return self.maxpool(self.group3(self.group2(self.group1(x)))).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return self.fc(features) * self.scale

    def look_at(self, x: Tensor) -> None:
        self.whiten.fit(x, self.normalize)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """torch's default, then the identity as the first filters of a 3x3 convolution, and the head at unit deviation."""
        for module in list(self.modules())[1:]:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.whiten:
                nn.init.dirac_(module.weight[: module.in_channels])
        self.fc.weight /= self.fc.weight.std()
