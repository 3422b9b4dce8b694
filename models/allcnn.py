"""All-CNN-C: strided convolutions in the place of pooling.

Springenberg, Dosovitskiy, Brox and Riedmiller, ICLR workshop 2015, arXiv:1412.6806, table 1, as the unlearning literature
has it (Golatkar et al., CVPR 2020, arXiv:1911.04933): with batch norm and without dropout, where the paper has dropout and
no batch norm, and with a linear head on the averaged 192 channels instead of a 1x1 convolution before the average.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.layers import AveragePool, Classifier, Normalize

# channels, kernel, stride, padding; the paper's last 3x3 has no padding: 8 x 8 becomes 6 x 6, and small images stay 1 x 1
LAYERS = ((96, 3, 1, 1), (96, 3, 1, 1), (96, 3, 2, 1), (192, 3, 1, 1), (192, 3, 1, 1), (192, 3, 2, 1), (192, 3, 1, 0),
          (192, 1, 1, 0))


class AllCNN(Classifier):
    """Eight convolutions, each with batch norm and ReLU, then average pooling and a head."""

    channelwise = True

    def __init__(self, num_classes: int, normalize: Normalize) -> None:
        super().__init__()
        self.normalize = normalize
        layers: list[nn.Module] = []
        channels = 3
        for out, kernel, stride, padding in LAYERS:
            conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
            layers += [conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            channels = out
        self.features = nn.Sequential(*layers)
        self.avgpool = AveragePool((1, 1))
        self.fc = nn.Linear(channels, num_classes)

    def features_of(self, x: Tensor) -> Tensor:
        return self.avgpool(self.features(self.normalize(x))).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return self.fc(features)

    def reset_parameters(self) -> None:
        """torch's default for every layer, as in the unlearning literature's code."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()
