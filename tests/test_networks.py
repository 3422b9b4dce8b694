"""Wide ResNets, All-CNN-C, deep ResNets: parameters to the number, logits against twins, layers by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import TinyNet, make_data, quiet_runtime
from test_models import assert_near, conv, images, norm, normalised, perturbed, structure
from torch import Tensor, nn

import models
from models.deep import deep_layers, outputs_of
from utils import BadInput


def count(name: str, classes: int = 10) -> int:
    return sum(p.numel() for p in structure(name, classes).parameters())


def wide_count(depth: int, width: int, classes: int) -> int:
    """From the paper's table 1: 3x3 convolutions without bias, two numbers for each channel that is normalised."""
    total, channels = 3 * 16 * 9, 16
    for group in (16 * width, 32 * width, 64 * width):
        for block in range((depth - 4) // 6):
            total += 2 * channels + 9 * channels * group + 2 * group + 9 * group * group
            total += channels * group if block == 0 else 0  # the shortcut
            channels = group
    return total + 2 * channels + (channels + 1) * classes


@pytest.mark.parametrize(("name", "depth", "published"), [("wrn_28_2", 28, 1_467_610), ("wrn_40_2", 40, 2_243_546)])
def test_wide_resnets_have_the_papers_parameters(name: str, depth: int, published: int) -> None:
    assert count(name) == wide_count(depth, 2, 10) == published
    assert count(name, 94) == wide_count(depth, 2, 94)


def test_all_cnn_has_its_parameters() -> None:
    convolutions = 9 * (3 * 96 + 2 * 96 * 96 + 96 * 192 + 3 * 192 * 192) + 192 * 192
    assert count("allcnn") == convolutions + 2 * (3 * 96 + 5 * 192) + 193 * 10 == 1_370_986


@pytest.mark.parametrize("name", ["resnet101", "resnet152"])
def test_deep_resnets_have_torchvisions_tensors(name: str) -> None:
    import torchvision

    with torch.device("meta"):
        twin = getattr(torchvision.models, name)(num_classes=10)
    ours = models.ARCHS[name]
    with torch.device("meta"):
        model = ours.make(10, imagenet=True)
    shapes = {key: value.shape for key, value in model.state_dict().items() if not key.startswith("normalize.")}
    assert shapes == {key: value.shape for key, value in twin.state_dict().items()}
    assert count(name) == sum(p.numel() for p in twin.parameters()) - 64 * 3 * (49 - 9)


def wide_twin(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    x = conv(state, "stem", normalised(state, x))
    for group in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"group{group}.{block}", 2 if group > 1 and block == 0 else 1
            active = norm(state, f"{name}.bn1", x).clamp(min=0)
            out = norm(state, f"{name}.bn2", conv(state, f"{name}.conv1", active, stride)).clamp(min=0)
            out = conv(state, f"{name}.conv2", out)
            bridge = state.get(f"{name}.shortcut.weight")
            x = out + (x if bridge is None else F.conv2d(active, bridge, None, stride))
    return norm(state, "bn", x).clamp(min=0).mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("size", [16, 8])
def test_wide_resnet_logits_equal_a_functional_twin(size: int) -> None:
    model, x = perturbed("wrn_28_2"), images(size=size)
    with torch.no_grad():
        assert_near(model(x), wide_twin(model.state_dict(), x, 4), 1e-5)


@pytest.mark.parametrize("size", [32, 9])
def test_all_cnn_logits_equal_a_functional_twin(size: int) -> None:
    model, x = perturbed("allcnn"), images(size=size)
    state = model.state_dict()
    with torch.no_grad():
        out = normalised(state, x)
        for place in range(8):
            weight, stride = state[f"features.{3 * place}.weight"], 2 if place in (2, 5) else 1
            out = F.conv2d(out, weight, None, stride, 1 if place < 6 else 0)
            out = norm(state, f"features.{3 * place + 1}", out).clamp(min=0)
        assert out.shape[-1] == {32: 6, 9: 1}[size]
        assert_near(model(x), out.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"], 1e-5)


# ------------------------------------------------------------------------------------------------------- layers by name


@pytest.mark.parametrize(("name", "expected"), [
    ("resnet18", ("layer2.1", "layer3.1", "layer4.1")), ("resnet50", ("layer2.3", "layer3.5", "layer4.2")),
    ("resnet20s", ("layer1.2", "layer2.2", "layer3.2")), ("wrn_28_2", ("group1.3", "group2.3", "group3.3")),
    ("vgg11_bn", ("features.13", "features.20", "features.27")), ("vgg16_bn", ("features.22", "features.32", "features.42")),
    ("vit", ("blocks.0.feed.1", "blocks.3.attention.qkv", "norm"))])
def test_deep_layers_of_the_published_networks(name: str, expected: tuple[str, ...]) -> None:
    assert deep_layers(structure(name)) == expected


@pytest.mark.parametrize("name", models.ARCHS.names())
def test_every_network_has_three_deep_layers_each_with_an_output(name: str) -> None:
    model = structure(name)
    found, there = deep_layers(model), dict(model.named_modules())
    assert len(set(found)) == 3 and all(layer in there for layer in found)
    order = list(there)
    assert sorted(found, key=order.index) == list(found)


def test_outputs_are_those_of_the_modules_even_where_the_next_layer_overwrites_them() -> None:
    """A convolution block of a VGG ends in a ReLU in place, a residual block's output is overwritten by none."""
    model, x = perturbed("vgg11_bn"), images(2, 16)
    names = ("features.1", "features.27")  # a batch norm, whose output the ReLU overwrites
    with outputs_of(model, names) as seen:
        model(x)
    expected = model.normalize(x)
    for place, layer in enumerate(model.features):
        expected = layer(expected.clone())
        if f"features.{place}" in names:
            assert torch.equal(seen[f"features.{place}"], expected)
    assert bool((seen["features.1"] < 0).any())


def test_outputs_carry_gradients_and_their_hooks_are_gone_afterwards() -> None:
    model = TinyNet()
    with pytest.raises(KeyError), outputs_of(model, ("conv", "bn", "conv")) as seen:
        model(torch.rand(2, 3, 6, 6))
        (gradient,) = torch.autograd.grad(seen["conv"].square().sum(), model.conv.weight)
        assert bool(gradient.any()) and set(seen) == {"conv", "bn"}
        raise KeyError
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("names", "words"), [
    (("bm",), ("'bm'", "did you mean 'bn'", "conv, bn, fc")), (("conv", ""), ("no layer ''",))])
def test_a_layer_that_does_not_exist_is_bad_input(names: tuple[str, ...], words: tuple[str, ...]) -> None:
    model = TinyNet()
    with pytest.raises(BadInput) as caught, outputs_of(model, names):
        pass
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
    assert not any(module._forward_hooks for module in model.modules())


def test_too_shallow_a_network_has_no_deep_layers() -> None:
    with pytest.raises(BadInput, match="1 layers before its head"):
        deep_layers(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)))


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("make", [lambda: perturbed("vit", 3, size=8), lambda: perturbed("wrn_28_2", 3)], ids=["vit", "wide"])
def test_squared_gradients_of_single_examples_equal_a_loop(make: Callable[[], nn.Module]) -> None:
    from unlearn.persample import squared

    model, data = make(), make_data(quiet_runtime(), count=20, forget=3)
    data.images.x = F.pad(data.images.x.permute(0, 3, 1, 2), (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()  # 8 x 8
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    found, expected = squared(model, data.loader("forget")), {}
    for batch in data.subset(data.index("forget")):
        for x, y in zip(batch.x, batch.y, strict=True):
            loss = F.cross_entropy(model(x[None]), y[None])
            for (name, _), g in zip(model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
                expected[name] = expected.get(name, 0) + g.double().square() / 3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4 * float(value.max()))
