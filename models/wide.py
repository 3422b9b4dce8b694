"""Wide residual networks, whose blocks normalise before they convolve.

Zagoruyko and Komodakis, BMVC 2016, arXiv:1605.07146, table 1: three groups of (depth - 4) / 6 blocks B(3, 3), without
dropout. Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.layers import AveragePool, Classifier, Normalize


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class WideBlock(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, twice, beside a shortcut.

    Where the shape changes the shortcut is a 1x1 convolution, which sees the normalised input, as in the authors' code.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv(in_channels, out_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv(out_channels, out_channels, 3)
        self.relu = nn.ReLU(inplace=True)
        # last: folding puts a batch norm into the convolution that is defined right before it, here conv1 alone
        same = stride == 1 and in_channels == out_channels
        self.shortcut = None if same else _conv(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(self.relu(self.bn2(self.conv1(out)))) + x


class WideResNet(Classifier):
    """A 3x3 convolution, three groups of blocks, batch norm and ReLU, average pooling, a head."""

    channelwise = True

    def __init__(self, depth: int, width: int, num_classes: int, normalize: Normalize) -> None:
        super().__init__()
        assert depth % 6 == 4
        self.normalize = normalize
        self.stem = _conv(3, 16, 3)
        channels = 16
        for number in range(1, 4):
            out = 16 * width * 2 ** (number - 1)
            blocks = [WideBlock(channels if place == 0 else out, out, 2 if place == 0 and number > 1 else 1)
                      for place in range((depth - 4) // 6)]
            self.add_module(f"group{number}", nn.Sequential(*blocks))
            channels = out
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = AveragePool((1, 1))
        self.fc = nn.Linear(channels, num_classes)

    def features_of(self, x: Tensor) -> Tensor:
        x = self.group3(self.group2(self.group1(self.stem(self.normalize(x)))))
        return self.avgpool(self.relu(self.bn(x))).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return self.fc(features)

    def reset_parameters(self) -> None:
        """He's normal initialisation of the convolutions, by incoming connections; the rest is torch's default."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, (nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()
