"""On a CUDA device: the same numbers as on the CPU, in fp32, bf16 and compiled, within stated tolerances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_data
from torch import nn

import models
from dataset import Data
from memorization.engines import Recipe, Setup, serial, stacked
from models import ModelConfig
from pruner import synflow
from pruner.magnitude import keep_largest, prunable
from trainer import Descent, ScheduleConfig, cross_entropy, predict
from unlearn import METHODS, persample
from unlearn.registry import NoConfig
from utils import Mask, Runtime, RuntimeConfig

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def after_two_steps(**settings: str | bool) -> tuple[float, torch.Tensor]:
    """Mean loss of two steps of resnet20s on 6x6 images from one initialisation, and the logits after them."""
    rt = Runtime(RuntimeConfig(seed=5, progress=False, **settings))
    data = make_data(rt, count=40, forget=4, batch_size=18)
    with Runtime(RuntimeConfig(seed=5, device="cpu", progress=False)).seeded("model"):
        model = models.build("resnet20s", 3, (0.5,) * 3, (0.25,) * 3)
    model = model.to(rt.device, memory_format=torch.channels_last)
    loader = data.loader("train")
    loader.batch_size = 18
    loss = Descent(model, ScheduleConfig(), lr=0.01, epochs=1, rt=rt, purpose="train").epoch(loader, cross_entropy)
    return loss, predict(model, data.loader("test"), rt)[0].cpu()


@pytest.mark.parametrize("settings, tolerance", [({"precision": "fp32"}, 2e-2), ({"precision": "bf16"}, 0.15),
                                                 ({"precision": "fp32", "compile": "default"}, 2e-2)])
def test_device_agrees_with_the_cpu(settings: dict[str, str], tolerance: float) -> None:
    loss, logits = after_two_steps(device="cuda", **settings)
    expected, reference = after_two_steps(device="cpu", precision="fp32")
    assert loss == pytest.approx(expected, rel=tolerance)
    assert (logits - reference).abs().max() <= tolerance * reference.abs().max()


def test_deterministic_runs_are_bit_identical() -> None:
    first, second = (after_two_steps(device="cuda", deterministic=True, precision="fp32")[1] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_runs_on_the_device(name: str) -> None:
    rt = Runtime(RuntimeConfig(seed=5, device="cuda", progress=False))
    data = make_data(rt)
    model = models.build("resnet20s", 3, (0.5,) * 3, (0.25,) * 3).to(rt.device, memory_format=torch.channels_last)
    METHODS[name].apply(model, data, METHODS[name].config(), rt)
    assert all(torch.isfinite(p).all() and p.is_cuda for p in model.parameters())


# --------------------------------------------------------------------------------- pruning and second-order methods


def on(device: str, **settings: str | bool) -> tuple[Runtime, Data, nn.Module]:
    """The same small data and model on a device, in full precision."""
    rt = Runtime(RuntimeConfig(seed=5, device=device, precision="fp32", progress=False, **settings))
    with Runtime(RuntimeConfig(seed=5, device="cpu", progress=False)).seeded("model"):
        model = models.build("resnet20s", 3, (0.5,) * 3, (0.25,) * 3)
    return rt, make_data(rt), model.to(rt.device, memory_format=torch.channels_last)


def third(model: nn.Module) -> Mask:
    """A mask under which about a third of every convolution's weights may change, the same on every device."""
    stream = torch.Generator().manual_seed(3)
    return {name: (torch.rand(weight.shape, generator=stream) < 0.33).to(weight.device)
            for name, weight in prunable(model).items()}


@pytest.mark.parametrize("method, values", [("wfisher", {"solver": "woodbury"}), ("wfisher", {"solver": "cg"}),
                                            ("wfisher", {"wfisher_mode": "published"}), ("ssd", {"alpha": 1.5})])
def test_steps_without_noise_agree_with_the_cpus(method: str, values: dict[str, Any]) -> None:
    """Within 1 % of the step's length; drawn samples are all of retain, so that both devices take the same."""
    steps = []
    for device in ("cpu", DEVICE):
        rt, data, model = on(device)
        before = [p.detach().clone() for p in model.parameters()]
        METHODS[method].apply(model, data, METHODS[method].config(**values), rt)
        steps.append(torch.cat([(p.detach() - b).flatten().cpu() for p, b in zip(model.parameters(), before, strict=True)]))
    assert float((steps[0] - steps[1]).norm()) <= 0.01 * float(steps[0].norm()) and float(steps[0].norm()) > 0


@pytest.mark.parametrize("measure", [persample.squared, persample.squared_means])
def test_fisher_diagonals_agree_with_the_cpus(measure: Callable[..., persample.Values]) -> None:
    found = []
    for device in ("cpu", DEVICE):
        _, data, model = on(device)
        found.append(measure(model, data.loader("retain"), persample.every_label))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name].cpu(), value, rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("deterministic", [False, True])
def test_masks_are_those_of_the_cpu(deterministic: bool) -> None:
    """By magnitude with many ties, and by SynFlow, whose float64 scores may differ in their last digits."""
    found = []
    for device in ("cpu", DEVICE):
        rt, _, model = on(device, deterministic=deterministic)
        scores = {name: (weight.detach().abs() * 20).round() for name, weight in prunable(model).items()}
        found.append((keep_largest(scores, 0.8), synflow.prune(model, 0.1, 20, (3, 6, 6), [])))
    for name in found[0][0]:
        assert torch.equal(found[0][0][name], found[1][0][name].cpu())
    differ = sum(int((found[0][1][name] != found[1][1][name].cpu()).sum()) for name in found[0][1])
    assert differ <= 20  # of 268,000


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", [name for name in METHODS.names() if METHODS[name].config is not NoConfig])
def test_held_weights_stay_on_the_device(name: str, deterministic: bool) -> None:
    """Bit for bit, whichever way the mask came: from the device, or from the host as a plan's step measures it."""
    for home in ("cpu", DEVICE):
        rt, data, model = on(DEVICE, deterministic=deterministic)
        mask = {key: part.to(home) for key, part in third(model).items()}
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        # ssd's default dampens nothing where the forget set is so large a share
        cfg = METHODS[name].config(**({"alpha": 1.0} if name == "ssd" else {}))
        METHODS[name].apply(model, data, cfg, rt, None, mask)
        now = dict(model.named_parameters())
        for key, part in mask.items():
            held = ~part.to(rt.device)
            assert torch.equal(now[key][held], before[key][held])
        assert any(not torch.equal(now[key], before[key]) for key in mask)


# ---------------------------------------------------------------------------------------------------- pools of models


@pytest.mark.parametrize("graphs", [False, True])
def test_stack_agrees_with_one_after_another(graphs: bool) -> None:
    """Logits of four models on half of the images each after two epochs, within 1 % of their size: deterministic, since TF32's
    rounding alone could be as much."""
    rt, data, _ = on(DEVICE, deterministic=True)
    recipe = Recipe(pool_epochs=2, pool_lr=0.01, pool_batch=8)
    setup = Setup(data, ModelConfig(arch="resnet8s"), recipe, rt)
    cuts = [np.sort(np.random.default_rng(number).permutation(len(data.images.y))[:16]) for number in range(4)]
    alone = {one.number: one.logits["train"] for one in serial(setup, cuts.__getitem__, range(4))}
    for one in stacked(setup, cuts.__getitem__, range(4), 4, graphs):
        difference = (one.logits["train"] - alone[one.number]).abs().max()
        assert float(difference) <= 0.01 * float(alone[one.number].abs().max())
