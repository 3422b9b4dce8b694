"""A small model in float64 and plain loops over its examples, for the tests of what is built on per-example gradients."""

from __future__ import annotations

from typing import Any

import torch
from conftest import TinyNet, make_data, quiet_runtime, short_config, snapshot, tiny_net
from torch import nn
from torch.nn import functional as F

from dataset import Loader
from unlearn import METHODS
from utils import Mask

PRUNED = ("conv.weight", "fc.weight")  # where a masked model of ``applied`` has zeros that stay


class ExactNet(TinyNet):
    """TinyNet in float64, 131 parameters, with running statistics away from 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        stream = torch.Generator().manual_seed(4)
        self.double()
        with torch.no_grad():
            for p in (*self.parameters(), self.bn.running_mean):
                p.copy_(torch.randn(p.shape, generator=stream).double() * 0.5)
            self.bn.running_var.uniform_(0.5, 2.0, generator=stream)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.double())


class Scaled(nn.Module):
    """A model with a parameter of its own outside every layer; float32."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.5, -0.5, 0.7]))
        self.fc = nn.Linear(108, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1)) * self.scale


def rows_of(model: nn.Module, loader: Loader, label: int | None = None) -> torch.Tensor:
    """Gradients of -log p_y of every example, or of -log p_label, one autograd call each; [n, D]."""
    model.eval()
    found = []
    for i, y in zip(loader.index.tolist(), loader.labels.tolist(), strict=True):
        x = loader.images.x[i : i + 1].permute(0, 3, 1, 2).float() / 255
        loss = -F.log_softmax(model(x), 1)[0, y if label is None else label]
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(found)


def flat(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in values.values()])


def probabilities(model: nn.Module, loader: Loader) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.eval()(batch.x) for batch in loader]).softmax(1)


def resized(loader: Loader, batch_size: int) -> Loader:
    return Loader(loader.images, loader.index, loader.labels, batch_size)


def applied(name: str, values: dict[str, Any], seed: int = 5, mask: Mask | None = None, **changes: Any) -> tuple[TinyNet, dict]:
    rt = quiet_runtime(seed)
    model, data = tiny_net(quiet_runtime()), make_data(rt, batch_size=8, **changes)
    if mask is not None:
        with torch.no_grad():
            for key in PRUNED:
                model.get_parameter(key).view(-1)[:2] = 0
                mask[key].view(-1)[:2] = False
    before = snapshot(model)
    METHODS[name].apply(model, data, short_config(name, **values), rt, None, mask)
    return model, before
