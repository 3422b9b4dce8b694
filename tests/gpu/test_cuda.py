"""On a CUDA device: the same numbers as on the CPU, in fp32, bf16 and compiled, within stated tolerances."""

from __future__ import annotations

import pytest
import torch
from conftest import make_data

import models
from trainer import ScheduleConfig, Sgd, cross_entropy, predict
from unlearn import METHODS
from utils import Runtime, RuntimeConfig

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
    loss = Sgd(model, ScheduleConfig(), lr=0.01, epochs=1, rt=rt).epoch(loader, cross_entropy)
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
