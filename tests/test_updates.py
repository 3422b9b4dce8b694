"""SGD, Adam and AdamW against torch.optim in float64, masked and not, and the penalties against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import OWN, TinyNet, make_data, quiet_runtime, short_config, snapshot, tiny_net
from torch import Tensor, nn
from torch.nn import functional as F

from dataset import Batch
from trainer import Descent, ScheduleConfig
from unlearn import METHODS
from updates import UPDATES
from utils import Mask

TORCH: dict[str, Any] = {"sgd": lambda p, decay: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=decay),
                         "adam": lambda p, decay: torch.optim.Adam(p, lr=0.05, weight_decay=decay),
                         "adamw": lambda p, decay: torch.optim.AdamW(p, lr=0.05, weight_decay=decay)}
STEPS = 7


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.x.double()), batch.y)


def net() -> TinyNet:
    return tiny_net(quiet_runtime()).double()


def batches() -> list[Batch]:
    rt = quiet_runtime()
    return (list(make_data(rt).loader("retain", rt, "test")) * STEPS)[:STEPS]


def descend(model: nn.Module, name: str, decay: float, mask: Mask | None = None, mode: str = "strict",
            **more: float) -> Descent:
    cfg = ScheduleConfig(optimizer=name, weight_decay=decay, schedule="constant")
    opt = Descent(model, cfg, lr=0.05, epochs=1, rt=quiet_runtime(), purpose="test", mask=mask, mask_mode=mode, **more)
    opt.epoch(batches(), loss)
    return opt


def masks() -> Mask:
    stream = torch.Generator().manual_seed(2)
    return {name: torch.rand(p.shape, generator=stream) < 0.5 for name, p in net().named_parameters()}


def furthest(a: nn.Module, b: nn.Module) -> float:
    return max(float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def by_torch(name: str, decay: float, mask: Mask | None = None, penalty: Any = None) -> TinyNet:
    """torch.optim's weights; a mask is put on the gradients before each step, as the published code has it."""
    model = net().train()
    opt = TORCH[name](model.parameters(), decay)
    for batch in batches():
        opt.zero_grad()
        value = loss(model, batch)
        (value if penalty is None else value + penalty(model)).backward()
        for key, p in model.named_parameters():
            p.grad = p.grad if mask is None else p.grad * mask[key]
        opt.step()
    return model


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", sorted(TORCH))
def test_every_update_is_that_of_torch(name: str, decay: float) -> None:
    """After seven steps in float64, within 1e-12; the weights are far from where they started."""
    ours = net()
    descend(ours, name, decay)
    assert furthest(ours, by_torch(name, decay)) < 1e-12 and furthest(ours, net()) > 0.01


@pytest.mark.parametrize("name", sorted(TORCH))
def test_free_weights_beside_masked_ones_are_those_of_torch(name: str) -> None:
    """Without decay, torch's optimiser on masked gradients moves what the mask leaves free, and nothing else."""
    ours, mask = net(), masks()
    descend(ours, name, 0.0, mask)
    assert furthest(ours, by_torch(name, 0.0, mask)) < 1e-12 and furthest(ours, net()) > 0.01


@pytest.mark.parametrize("name", sorted(UPDATES))
def test_masked_weights_and_their_moments_stay(name: str) -> None:
    """Bit-identical, under decay and both penalties; every free one moves."""
    ours, mask = net(), masks()
    before = snapshot(ours)
    opt = descend(ours, name, 0.1, mask, l1=0.01, l2=0.02)
    for (key, p), *moments in zip(ours.named_parameters(), *opt.update.moments, strict=True):
        assert torch.equal(p[~mask[key]], before[key][~mask[key]]) and (p[mask[key]] != before[key][mask[key]]).all()
        assert all(not moment[~mask[key]].any() and moment[mask[key]].all() for moment in moments)


@pytest.mark.parametrize("name", sorted(TORCH))
def test_published_masks_are_on_the_gradients_alone(name: str) -> None:
    ours, mask = net(), masks()
    descend(ours, name, 0.1, mask, "published")
    assert furthest(ours, by_torch(name, 0.1, mask)) < 1e-12
    moved = {key: (p - q)[~mask[key]].any() for (key, p), q in zip(ours.named_parameters(), net().parameters(), strict=True)}
    assert moved["conv.weight"] and moved["fc.weight"]  # they decay


@pytest.mark.parametrize("name", sorted(TORCH))
@pytest.mark.parametrize(("l1", "l2"), [(0.03, 0.0), (0.0, 0.2), (0.03, 0.2)])
def test_penalties_are_those_of_autograd_over_all_parameters(name: str, l1: float, l2: float) -> None:
    """Batch norm and biases are in both; the second is by the distance from the weights at the start."""
    start, ours = net(), net()
    descend(ours, name, 0.0, l1=l1, l2=l2)

    def penalty(model: nn.Module) -> Tensor:
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        return sum(l1 * p.abs().sum() + l2 * (p - q.detach()).square().sum() for p, q in pairs)

    assert furthest(ours, by_torch(name, 0.0, penalty=penalty)) < 1e-10
    assert furthest(ours, by_torch(name, 0.0)) > 1e-3


PENALISED = [name for name in OWN if hasattr(METHODS[name].config, "l2")]


def test_every_method_that_steps_on_a_loss_takes_both_penalties() -> None:
    steps = [name for name in OWN if hasattr(METHODS[name].config, "unlearn_lr")]
    assert [name for name in steps if name not in PENALISED] == ["retrain"]  # which has its original's alpha


@pytest.mark.parametrize("name", PENALISED)
@pytest.mark.parametrize("what", ["l1", "l2", "adam", "adamw"])
def test_the_penalties_and_the_optimiser_reach_every_method(name: str, what: str) -> None:
    """The l1 norm, or the distance from the start, is smaller than without the penalty; Adam leads elsewhere."""
    def run(**values: Any) -> tuple[float, float, dict[str, Tensor]]:
        rt, model = quiet_runtime(), tiny_net(quiet_runtime())
        start = snapshot(model)
        shared = {"momentum": 0.0, "weight_decay": 0.0, "unlearn_lr": 0.02, "unlearn_epochs": 4, "rate": 0.05,
                  "replay_epochs": (0,)}
        cfg = short_config(name, **shared | values)
        METHODS[name].apply(model, make_data(rt, method=name), cfg, rt)
        params = {key: p.detach().double() for key, p in model.named_parameters()}
        return (sum(float(p.abs().sum()) for p in params.values()),
                sum(float((p - start[key]).square().sum()) for key, p in params.items()), params)

    optimizer = {"optimizer": what} if what.startswith("adam") else {"optimizer": "sgd"}
    plain, other = run(optimizer="sgd"), run(**optimizer | ({what: 2.0} if what in ("l1", "l2") else {}))
    if what == "l1":
        assert other[0] < 0.9 * plain[0]
    elif what == "l2":
        assert other[1] < 0.9 * plain[1]
    else:
        assert any((other[2][key] - p).abs().max() > 1e-3 for key, p in plain[2].items())
