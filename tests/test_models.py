"""Architectures against twins written apart: structure, logits, initialisation, folding."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from utils import BadInput

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
STAGES = {"vgg11_bn": "11222", "vgg13_bn": "22222", "vgg16_bn": "22333", "vgg19_bn": "22444", "vgg16_bn_lth": "22333"}
State = dict[str, Tensor]


def structure(name: str, num_classes: int = 10, *, imagenet: bool = False) -> nn.Module:
    with torch.device("meta"):
        return models.ARCHS[name].make(num_classes, imagenet=imagenet)


def perturbed(name: str, num_classes: int = 10, *, imagenet: bool = False, seed: int = 0, size: int = 32) -> Any:
    """A model in eval mode with every weight and every buffer at random, away from where initialisation puts it."""
    model = models.build_empty(name, num_classes, imagenet=imagenet, image_size=size).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if value.dim() > 1:
            bound = (6 / value[0].numel()) ** 0.5  # keeps the activations' scale from layer to layer
            value.uniform_(-bound, bound, generator=generator)
        elif key.endswith("num_batches_tracked"):
            value.random_(1, 100, generator=generator)
        elif key.endswith(("weight", "running_var", "normalize.std")):
            value.uniform_(0.5, 1.5, generator=generator)
        else:
            value.uniform_(-0.5, 0.5, generator=generator)
    return model


def images(batch: int = 2, size: int = 32, seed: int = 1) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def normalised(state: State, x: Tensor) -> Tensor:
    mean, std = state["normalize.mean"].tolist(), state["normalize.std"].tolist()
    return torch.stack([(x[:, colour] - mean[colour]) / std[colour] for colour in range(3)], 1)


def assert_near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal up to a share of the largest expected value, which must itself be worth comparing."""
    scale = float(expected.abs().max())
    assert 1e-3 < scale < 1e9
    assert float((got - expected).abs().max()) <= tolerance * scale


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride, 1)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{part}"][None, :, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def small_resnet_twin(state: State, x: Tensor) -> Tensor:
    x = norm(state, "bn1", conv(state, "conv1", normalised(state, x))).clamp(min=0)
    for block in sorted({key[:8] for key in state if key.startswith("layer")}, key=lambda b: (b[5], int(b[7:]))):
        stride = 2 if block in ("layer2.0", "layer3.0") else 1
        out = norm(state, f"{block}.bn1", conv(state, f"{block}.conv1", x, stride)).clamp(min=0)
        out = norm(state, f"{block}.bn2", conv(state, f"{block}.conv2", out))
        if stride == 2:
            wide = torch.zeros_like(out)
            wide[:, x.shape[1] // 2 : x.shape[1] // 2 + x.shape[1]] = x[:, :, ::2, ::2]
            x = wide
        x = (out + x).clamp(min=0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def vgg_twin(state: State, x: Tensor, stages: str) -> Tensor:
    x, place = normalised(state, x), 0
    for stage, depth in enumerate(stages):
        if stage:
            x, place = F.max_pool2d(x, 2, 2), place + 1
        for _ in range(int(depth)):
            x = conv(state, f"features.{place}", x)
            x, place = norm(state, f"features.{place + 1}", x).clamp(min=0), place + 3
    if "classifier.weight" in state:
        return x.mean((2, 3)) @ state["classifier.weight"].T + state["classifier.bias"]
    x = F.adaptive_avg_pool2d(x, 2).flatten(1)
    for layer in (0, 2, 4):
        x = x @ state[f"classifier.{layer}.weight"].T + state[f"classifier.{layer}.bias"]
        x = x if layer == 4 else x.clamp(min=0)
    return x


# --------------------------------------------------------------------------------------------------------- structure


@pytest.mark.parametrize(
    ("name", "num_classes", "imagenet", "parameters", "conv_weights", "convs"),
    [
        ("resnet18", 10, False, 11_173_962, 11_159_232, 20),
        ("resnet18", 100, False, 11_220_132, 11_159_232, 20),
        ("resnet18", 1000, True, 11_689_512, 11_166_912, 20),
        ("resnet50", 10, False, 23_520_842, 23_447_232, 53),
        ("resnet8s", 10, False, 75_290, 74_160, 7),
        ("resnet20s", 10, False, 269_722, 267_696, 19),
        ("resnet44s", 10, False, 658_586, 654_768, 43),
        ("resnet56s", 10, False, 853_018, 848_304, 55),
        ("vgg16_bn", 10, False, 15_311_818, 14_710_464, 13),
        ("vgg16_bn_lth", 10, False, 14_728_266, 14_710_464, 13),
    ],
)
def test_published_counts_of_parameters_and_convolution_weights(
    name: str, num_classes: int, imagenet: bool, parameters: int, conv_weights: int, convs: int
) -> None:
    model = structure(name, num_classes, imagenet=imagenet)
    weights = [module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert (sum(p.numel() for p in model.parameters()), sum(weights), len(weights)) == (parameters, conv_weights, convs)


def test_resnet18_has_124_entries_with_the_normalisation() -> None:
    state = structure("resnet18").state_dict()
    assert len(state) == 124 and {"normalize.mean", "normalize.std", "layer2.0.downsample.0.weight"} < set(state)
    assert state["normalize.mean"].shape == state["normalize.std"].shape == (3,)


@pytest.mark.parametrize("name", list(STAGES)[:4])
def test_vgg_imagenet_layout_is_torchvisions(name: str) -> None:
    import torchvision

    with torch.device("meta"):
        twin = getattr(torchvision.models, name)(init_weights=False)
    model = structure(name, 1000, imagenet=True)
    ours = {key: value.shape for key, value in model.state_dict().items() if not key.startswith("normalize.")}
    assert ours == {key: value.shape for key, value in twin.state_dict().items()}
    assert str(model.classifier) == str(twin.classifier)  # dropout too
    small = structure(name)
    assert [m.weight.shape for m in small.modules() if isinstance(m, nn.Conv2d)] == [
        m.weight.shape for m in twin.modules() if isinstance(m, nn.Conv2d)
    ]


def test_the_table_has_a_row_for_every_architecture_with_its_parameters() -> None:
    head, *rows = models.table()
    assert [row[0] for row in rows] == models.ARCHS.named() and {len(row) for row in rows} == {len(head)}
    by_name = {row[0]: row for row in rows}
    assert by_name["resnet18"][1:4] == ("11,173,962", "8", "yes")
    assert by_name["vgg16_bn_lth"][1:4] == ("14,728,266", "16", "no")


# ------------------------------------------------------------------------------------------------------------- twins


@pytest.mark.parametrize(
    ("name", "imagenet"),
    [("resnet18", False), ("resnet34", False), ("resnet50", False), ("resnet18", True)],
)
def test_resnet_logits_and_statistics_equal_torchvisions(name: str, imagenet: bool) -> None:
    import torchvision

    model, x = perturbed(name, imagenet=imagenet), images()
    twin = getattr(torchvision.models, name)(num_classes=10)
    if not imagenet:
        twin.conv1, twin.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    state = model.state_dict()
    twin.load_state_dict({key: value for key, value in state.items() if not key.startswith("normalize.")})
    with torch.no_grad():
        assert_near(model(x), twin.eval()(normalised(state, x)), 1e-5)
        assert_near(model.train()(x), twin.train()(normalised(state, x)), 1e-5)
    assert_near(model.layer4[1].bn2.running_var, twin.layer4[1].bn2.running_var, 1e-5)


@pytest.mark.parametrize(("name", "size"), [("resnet20s", 32), ("resnet20s", 10), ("resnet32s", 8)])
def test_small_resnet_logits_equal_a_functional_twin(name: str, size: int) -> None:
    model, x = perturbed(name), images(size=size)
    with torch.no_grad():
        assert_near(model(x), small_resnet_twin(model.state_dict(), x), 1e-5)


@pytest.mark.parametrize(
    ("name", "size"),
    [("vgg11_bn", 32), ("vgg11_bn", 16), ("vgg13_bn", 64), ("vgg16_bn", 32), ("vgg19_bn", 48), ("vgg16_bn_lth", 32)],
)
def test_vgg_logits_equal_a_functional_twin(name: str, size: int) -> None:
    model, x = perturbed(name), images(size=size)
    with torch.no_grad():
        assert_near(model(x), vgg_twin(model.state_dict(), x, STAGES[name]), 1e-5)


def test_vgg_imagenet_logits_equal_torchvisions() -> None:
    import torchvision

    model = perturbed("vgg11_bn", imagenet=True)
    with torch.device("meta"):
        twin = torchvision.models.vgg11_bn(num_classes=10, init_weights=False).eval()
    state, x = model.state_dict(), images(1, 64)
    twin.load_state_dict({k: v for k, v in state.items() if not k.startswith("normalize.")}, assign=True)
    with torch.no_grad():
        assert_near(model(x), twin(normalised(state, x)), 1e-5)


@pytest.mark.parametrize("pooled", [1, 2, 7])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (4, 4), (4, 6), (7, 7), (14, 14)])
def test_average_pool_equals_torchs_adaptive_one(pooled: int, size: tuple[int, int]) -> None:
    from models.layers import AveragePool

    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 3, pooled, pooled, dtype=torch.float64)
    ours, theirs = AveragePool((pooled, pooled))(x), F.adaptive_avg_pool2d(x, pooled)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    grads = [torch.autograd.grad((out * weight).sum(), x)[0] for out in (ours, theirs)]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("resnet20s", 64), ("vgg11_bn", 2048)])
def test_embed_is_what_a_hook_on_avgpool_sees_and_the_head_makes_the_logits_of_it(name: str, features: int) -> None:
    model, x, seen = perturbed(name), images(3, 16), []
    model.avgpool.register_forward_hook(lambda module, args, output: seen.append(output.flatten(1)))
    with torch.no_grad():
        embedded, logits = models.embed(model, x), model(x)
    assert embedded.shape == (3, features) and len(seen) == 2 and torch.equal(embedded, seen[0])
    head = model.fc if name.startswith("resnet") else model.classifier
    torch.testing.assert_close(head(embedded), logits)


# ------------------------------------------------------------------------------------------------------------- build


def test_convolutions_and_heads_start_as_published() -> None:
    def ratio(module: nn.Module, std: float) -> float:
        return float(module.weight.detach().std()) / std

    torch.manual_seed(5)
    resnet, small = models.build("resnet18", 10, MEAN, STD), models.build("resnet20s", 10, MEAN, STD)
    vgg, lottery = models.build("vgg11_bn", 10, MEAN, STD), models.build("vgg16_bn_lth", 10, MEAN, STD)
    fan_out, fan_in = (2 / (9 * 128)) ** 0.5, (2 / (9 * 16)) ** 0.5
    assert ratio(resnet.layer2[0].conv1, fan_out) == pytest.approx(1, abs=0.02)
    assert ratio(resnet.fc, (1 / (3 * 512)) ** 0.5) == pytest.approx(1, abs=0.05)  # torch's default, uniform
    assert ratio(small.layer2[0].conv1, fan_in) == pytest.approx(1, abs=0.05)
    assert ratio(small.fc, (2 / 64) ** 0.5) == pytest.approx(1, abs=0.12)
    assert ratio(vgg.features[4], fan_out) == pytest.approx(1, abs=0.02)
    assert ratio(lottery.features[7], fan_out) == pytest.approx(1, abs=0.02)
    assert ratio(vgg.classifier[2], 0.01) == pytest.approx(1, abs=0.02)
    assert not vgg.classifier[0].bias.any() and not lottery.features[0].bias.any() and not lottery.classifier.bias.any()
    for model in (resnet, small, vgg, lottery):
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms and all(bool((m.weight == 1).all()) and not m.bias.any() for m in norms)


def test_initial_weights_come_from_the_global_generator() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in models.build("resnet20s", 10, MEAN, STD).parameters()])

    assert torch.equal(weights(6), weights(6)) and not torch.equal(weights(6), weights(7))


def test_a_built_model_says_what_it_is_and_carries_its_normalisation() -> None:
    model = models.build("resnet20s", 7, MEAN, STD)
    assert (model.arch, model.num_classes, model.imagenet) == ("resnet20s", 7, False)
    assert model.normalize.mean.tolist() == pytest.approx(MEAN) and model.normalize.std.tolist() == pytest.approx(STD)


def bad_input(function: Callable[[], Any], *words: str) -> str:
    with pytest.raises(BadInput) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400, message
    assert all(word in message for word in words), message
    return message


def test_what_cannot_be_built_is_bad_input() -> None:
    build = models.build
    bad_input(lambda: build("resnet19", 10, MEAN, STD), "resnet19", "resnet18")
    bad_input(lambda: build("resnet18", 1, MEAN, STD), "at least 2 classes", "1")
    bad_input(lambda: build("vgg16_bn", 10, MEAN, STD, image_size=15), "16 pixels", "15", "resnet20s")
    bad_input(lambda: build("vgg11_bn", 10, MEAN, STD, imagenet=True, image_size=31), "32 pixels", "31")
    bad_input(lambda: build("resnet20s", 10, MEAN, STD, imagenet=True), "ImageNet stem", "resnet18", "vgg19_bn")
    bad_input(lambda: build("vgg16_bn_lth", 10, MEAN, STD, imagenet=True, image_size=64), "ImageNet stem", "resnet50")
    bad_input(lambda: build("resnet20s", 10, MEAN, (0.2, 0.2, 0.0)), "std above 0")
    bad_input(lambda: build("resnet20s", 10, (0.5,), STD), "3 colours")
    build("resnet20s", 10, MEAN, STD, image_size=8)


@pytest.mark.parametrize("name", models.ARCHS.names())
def test_every_architecture_takes_its_smallest_image(name: str) -> None:
    size = models.ARCHS[name].min_size
    model = models.build_empty(name, 3, image_size=size).eval()
    assert model(images(1, size)).shape == (1, 3)


def test_importing_models_imports_neither_torchvision_nor_dynamo() -> None:
    code = ("import sys, models; m = models.build('resnet20s', 10, (.5,) * 3, (.5,) * 3); models.fold_batchnorm(m); "
            "models.table(); models.load_peer(m.state_dict(), 'resnet20s'); "
            "print([n for n in ('torchvision', 'torch._dynamo', 'sympy', 'matplotlib') if n in sys.modules])")
    root = pathlib.Path(models.__file__).parent.parent
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# -------------------------------------------------------------------------------------------------------------- fold


@pytest.mark.parametrize(("name", "imagenet"), [(n, False) for n in models.ARCHS.names()] + [("resnet18", True)])
def test_folding_leaves_no_batchnorm_behind_a_convolution_and_the_same_logits(name: str, imagenet: bool) -> None:
    """Those of a wide ResNet that stand before their convolution are kept: one in a block, and the one before the head; those
    of a cifarnet that stand behind a pool too."""
    size = 32 if imagenet else models.ARCHS[name].min_size
    model = perturbed(name, imagenet=imagenet, size=size).to(memory_format=torch.channels_last).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = images(size=size)
    folded = models.fold_batchnorm(model)
    left = [own for own, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    blocks, pooled = {"wrn_28_2": 12, "wrn_40_2": 18}.get(name, 0), 3 if name.startswith("cifarnet") else 0
    assert len(left) == (blocks + 1 if blocks else pooled)
    assert all(own == "bn" or own.endswith((".bn1", ".norm1")) for own in left)
    convs = [module for module in folded.modules() if isinstance(module, nn.Conv2d)]
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convs)
    assert sum(c.bias is not None for c in convs) == (blocks or len(convs) - pooled)
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not folded.training and (folded.arch, folded.num_classes) == (name, 10)
    with torch.no_grad():
        model.eval()
        assert_near(folded(x), model(x), 1e-4)
        if name in ("resnet18", "resnet20s", "vgg11_bn", "vgg16_bn_lth"):
            assert_near(models.fold_batchnorm(model.double())(x.double()), model(x.double()), 1e-10)
