"""Residual networks: torchvision's for ImageNet with a CIFAR stem, and He's small ones for CIFAR.

He, Zhang, Ren and Sun, CVPR 2016, arXiv:1512.03385: section 4.1 (ImageNet) and 4.2 (CIFAR, option A shortcuts).
Modules bear torchvision's names, so its state_dicts load. Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import AveragePool, Classifier, Normalize


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class ZeroPad(nn.Module):
    """Option A: every second pixel, and channels of zeros, half in front and half behind; no parameters.

    [B, C, H, W] becomes [B, ``out_channels``, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.front = stride, (out_channels - in_channels) // 2
        self.back = out_channels - in_channels - self.front

    def forward(self, x: Tensor) -> Tensor:
        # windows of one pixel: slicing gives the same in the forward, but two zero-filled copies in the backward
        return F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, self.front, self.back))


class Projection(nn.Sequential):
    """Option B: a strided 1x1 convolution and batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the stride is on the 3x3, as in torchvision ("v1.5")."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv(planes, planes * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(Classifier):
    """Stages of residual blocks; each after the first halves the sides of the map.

    Args:
        depths: blocks in each stage. widths: channels of each stage, before a bottleneck's expansion.
        shortcut: what bridges a change of shape.
        imagenet: 7x7 stride 2 and max-pool as the stem instead of 3x3 stride 1.
    """

    channelwise = True

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        shortcut: type[Projection] | type[ZeroPad],
        num_classes: int,
        normalize: Normalize,
        *,
        imagenet: bool = False,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.conv1 = _conv(3, widths[0], 7, 2) if imagenet else _conv(3, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if imagenet else nn.Identity()
        self.stages = [f"layer{number}" for number in range(1, len(depths) + 1)]
        channels = widths[0]
        for stage, depth, planes in zip(self.stages, depths, widths, strict=True):
            blocks = []
            for place in range(depth):
                stride = 2 if place == 0 and stage != "layer1" else 1
                out = planes * block.expansion
                bridge = shortcut(channels, out, stride) if stride > 1 or channels != out else None
                blocks.append(block(channels, planes, stride, bridge))
                channels = out
            self.add_module(stage, nn.Sequential(*blocks))
        self.avgpool = AveragePool((1, 1))
        self.fc = nn.Linear(channels, num_classes)

    def features_of(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.normalize(x)))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.avgpool(x).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return self.fc(features)

    def reset_parameters(self) -> None:
        """He's normal initialisation of the convolutions, by outgoing connections; the rest is torch's default."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()


class CifarResNet(ResNet):
    """He's networks for 32x32 images, of 6n + 2 layers: three stages of n basic blocks, option A shortcuts."""

    def __init__(self, blocks: int, num_classes: int, normalize: Normalize) -> None:
        super().__init__(BasicBlock, (blocks,) * 3, (16, 32, 64), ZeroPad, num_classes, normalize)

    def reset_parameters(self) -> None:
        """He's normal initialisation of convolutions and head, by incoming connections; the rest is torch's default."""
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
