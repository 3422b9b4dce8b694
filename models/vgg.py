"""VGG with batch normalisation: the unlearning literature's variants for small images, and torchvision's.

Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556, table 1, columns A, B, D, E. Modules bear torchvision's names.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.layers import AveragePool, Classifier, Normalize

WIDTHS = (64, 128, 256, 512, 512)  # channels of the five stages


def _features(depths: Sequence[int], *, bias: bool, last_pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for stage, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True)):
        for _ in range(depth):
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        if last_pool or stage < len(depths) - 1:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class VGG(Classifier):
    """3x3 convolutions in five stages with max-pools between them, then average pooling and a head."""

    channelwise = True

    def __init__(self, normalize: Normalize, features: nn.Sequential, pooled: int, classifier: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.features = features
        self.avgpool = AveragePool((pooled, pooled))
        self.classifier = classifier

    def features_of(self, x: Tensor) -> Tensor:
        return self.avgpool(self.features(self.normalize(x))).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(features)

    def reset_parameters(self) -> None:
        """Convolutions He's normal by outgoing connections, linear layers N(0, 0.01), biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)


def vgg_small(depths: Sequence[int], num_classes: int, normalize: Normalize) -> VGG:
    """The published variant for 32x32: convolutions without bias, four max-pools, 2x2 pooling, 2048-256-256-K."""
    head = nn.Sequential(
        nn.Linear(2048, 256), nn.ReLU(inplace=True),
        nn.Linear(256, 256), nn.ReLU(inplace=True),
        nn.Linear(256, num_classes),
    )
    return VGG(normalize, _features(depths, bias=False, last_pool=False), 2, head)


def vgg_lottery(depths: Sequence[int], num_classes: int, normalize: Normalize) -> VGG:
    """The published variant for lottery tickets: convolutions with bias, four max-pools, one linear layer 512-K."""
    return VGG(normalize, _features(depths, bias=True, last_pool=False), 1, nn.Linear(512, num_classes))


def vgg_imagenet(depths: Sequence[int], num_classes: int, normalize: Normalize) -> VGG:
    """torchvision's layout: convolutions with bias, five max-pools, 7x7 pooling, 4096-4096-K with dropout."""
    head = nn.Sequential(
        nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(4096, num_classes),
    )
    return VGG(normalize, _features(depths, bias=True, last_pool=True), 7, head)
