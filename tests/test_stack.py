"""K models side by side are K models: values, gradients and statistics of every kind of network, in bf16 as one alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyNet, quiet_runtime
from pools import SMALL, make_setup, make_toy, quick, refusal, subsets
from torch import Tensor, nn

import models
from memorization import engines, factory
from memorization.engines import Setup, train_one, train_stack
from memorization.factory import Pool
from memorization.stack import Linears, Stack, ZeroPads, refused
from models import ARCHS, Normalize
from models.allcnn import AllCNN
from models.resnet import BasicBlock, Bottleneck, Projection, ResNet
from models.vgg import vgg_lottery, vgg_small
from models.wide import WideResNet
from utils import Runtime, RuntimeConfig

# every structure of the registry, as shallow and narrow as it goes: (classes, normalisation) -> network, and pixels a side
NETWORKS: dict[str, tuple[Callable[[int, Normalize], models.Classifier], int]] = {
    "resnet8s": (ARCHS["resnet8s"].build, 8),
    "basic blocks": (partial(ResNet, BasicBlock, (1, 2), (8, 16), Projection), 8),
    "bottlenecks": (partial(ResNet, Bottleneck, (1, 2), (4, 8), Projection), 8),
    "ImageNet stem": (partial(ResNet, BasicBlock, (1, 1), (8, 16), Projection, imagenet=True), 32),
    "vgg": (partial(vgg_small, (1, 1, 1, 1, 1)), 16),
    "vgg with biases": (partial(vgg_lottery, (1, 1, 1, 1, 1)), 16),
    "wide": (partial(WideResNet, 10, 1), 8),
    "allcnn": (AllCNN, 9),
    **{name: (ARCHS[name].build, 9) for name in ARCHS.names() if name == "cifarnet_16_64"},
}


def singles(name: str, count: int, dtype: torch.dtype) -> list[models.Classifier]:
    """Models of their own weights, normalisation and running statistics."""
    made = []
    for number in range(count):
        with quiet_runtime().seeded(f"model {number}"):
            one = NETWORKS[name][0](3, Normalize((0.3 + 0.1 * number,) * 3, (0.25,) * 3))
            one.reset_parameters()
            for value in one.to(dtype).buffers():
                if value.is_floating_point():
                    value += 0.1 * torch.rand_like(value)
        made.append(one)
    return made


def passed(net: nn.Module, x: Tensor, slope: Tensor) -> Tensor:
    logits = net(x)
    logits.backward(slope)
    return logits.detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_side_by_side_is_one_by_one(name: str) -> None:
    """float64, 1e-9 of the largest: logits of a training pass, all gradients, running statistics, then logits in eval mode, of
    images of each model's own and of images for all. What does not train does not in the stack either."""
    alone, side = singles(name, 3, torch.float64), NETWORKS[name][1]
    stack = Stack(alone)
    assert stack.wide and refused(alone[0], bf16=True) is None
    x, slope = torch.rand(3, 2, 3, side, side, dtype=torch.float64), torch.rand(2, 3, 3, dtype=torch.float64)
    found = passed(stack.train(), x, slope)
    for k, one in enumerate(alone):
        close(found[:, k], passed(one.train(), x[k], slope[:, k]))
        grads = dict(zip(stack.names, stack.parameters(), strict=True))
        for key, p in one.named_parameters():
            assert grads[key].requires_grad == p.requires_grad
            if p.requires_grad:
                close(grads[key].grad[k], p.grad)
        state = stack.states()[k]
        assert list(state) == [*dict(one.named_parameters()), *dict(one.named_buffers())]
        for key, value in one.state_dict().items():
            close(state[key].double(), value.double())
    with torch.no_grad():
        mine, shared = stack.eval()(x), stack(x[0])
        for k, one in enumerate(alone):
            close(mine[:, k], one.eval()(x[k]))
            close(shared[:, k], one(x[0]))


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-9 * max(1.0, float(expected.abs().max()))


def test_every_network_is_of_a_tested_kind_or_refused() -> None:
    """A network that calls itself channelwise is of a class that the test above goes through."""
    kinds = {type(singles(name, 1, torch.float32)[0]) for name in NETWORKS}
    for name in ARCHS.names():
        with torch.device("meta"):
            model = ARCHS[name].make(3)
        assert type(model) in kinds if model.channelwise else refused(model, bf16=True)


def kinds_of_output(net: nn.Module, run: Any) -> dict[str, torch.dtype]:
    """Layer -> the precision of what it gives, of layers without parts of their own."""
    seen: dict[str, torch.dtype] = {}
    leaves = [(name, part) for name, part in net.named_modules() if isinstance(part, (Linears, ZeroPads)) or not any(
        part.children()) and not name.endswith(".one")]
    handles = [part.register_forward_hook(lambda part, inputs, out, name=name: seen.update({name: out.dtype}))
               for name, part in leaves]
    run()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", ["resnet8s", "basic blocks", "vgg", "wide", "allcnn"])
def test_every_layer_computes_in_the_precision_of_one_alone(name: str) -> None:
    """Under bf16 autocast on the CPU, which as on CUDA leaves a batch norm's output in bf16; under vmap it was float32."""
    alone, side = singles(name, 2, torch.float32), NETWORKS[name][1]
    stack, x = Stack(alone, bf16=True), torch.rand(2, 3, side, side)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = kinds_of_output(alone[0], lambda: alone[0](x))
        assert kinds_of_output(stack._form[0], lambda: stack(x)) == expected
    norms = {name for name, part in alone[0].named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert norms and all(expected[norm] == torch.bfloat16 for norm in norms)


def test_stack_in_bf16_is_one_by_one_in_bf16() -> None:
    """bf16 autocast on the CPU: a step of the stack is nearer to the same step alone than that is to float32."""
    steps = {}
    for precision in ("bf16", "fp32"):
        rt = Runtime(RuntimeConfig(seed=5, device="cpu", precision=precision, progress=False))
        setup = Setup(make_toy(rt), SMALL, make_setup(torch.float32).recipe, rt)
        cuts = subsets(setup, [0, 1], 16)
        start, alone = setup.new(1).state_dict(), train_one(setup, 1, cuts[1]).state_dict()
        stack = train_stack(setup, [0, 1], cuts).states()[1]
        weights = [key for key in start if key.endswith("weight")]
        steps[precision] = [torch.cat([(state[key] - start[key]).flatten() for key in weights]) for state in (alone, stack)]
    rounding = float((steps["bf16"][0] - steps["fp32"][0]).norm())
    assert float((steps["bf16"][0] - steps["bf16"][1]).norm()) < 0.5 * rounding < 0.2 * float(steps["fp32"][0].norm())


def test_network_that_only_vmap_can_stack_is_one_by_one_in_float32() -> None:
    """A network that does not call itself channelwise: mapped, and equal to 1e-5."""
    torch.manual_seed(0)
    alone = [TinyNet(), TinyNet()]
    stack, x = Stack(alone).train(), torch.rand(2, 5, 3, 6, 6)
    assert not stack.wide
    found = stack(x)
    for k, one in enumerate(alone):
        torch.testing.assert_close(found[:, k], one.train()(x[k]), rtol=1e-5, atol=1e-5)


def test_network_that_only_vmap_can_stack_is_refused_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And auto then takes one after another; a runtime that says it has a GPU."""
    refusal(lambda: Stack([TinyNet(), TinyNet()], bf16=True), "float32 alone", "--precision fp32")
    rt = Runtime(RuntimeConfig(seed=5, device="cpu", precision="bf16", progress=False))
    pool = Pool(tmp_path, quick(engine="auto"), make_toy(rt), SMALL, rt)
    monkeypatch.setattr(rt, "cuda", True)
    assert factory._suited(pool, 1) == "stack"
    monkeypatch.setattr(engines.models, "new", lambda *args, **more: TinyNet())
    assert factory._suited(pool, 1) == "serial"
    monkeypatch.setattr(rt, "bf16", False)
    assert factory._suited(pool, 1) == "stack"
