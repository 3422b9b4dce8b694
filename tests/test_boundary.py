"""Boundary methods and UNSIR beyond their formulas: the extra neuron in every network, the step in pixels, noise of classes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import shell
import torch
from conftest import TinyNet, equal, make_data, quiet_runtime, short_config, snapshot, tiny_net
from test_formulas import COMMON, OnePixel, Orders, one_pixel_data, rate, softmax
from torch import nn
from torch.nn import functional as F

import models
from dataset import Batch
from groups import Chosen
from unlearn import METHODS, Task
from unlearn.boundary import expanded, last_linear, nearest_wrong
from unlearn.unsir import learned_noise, pixels
from utils import BadInput, Runtime, Saved

EXPANDING, UNSIR = METHODS["boundary_expanding"], METHODS["UNSIR"]


class Regression(nn.Module):
    """Softmax regression on an image of one pixel, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3).double()
        random = np.random.default_rng(3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.from_numpy(random.normal(size=p.shape)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1).double())


@pytest.mark.parametrize("case", [{}, dict(l2=0.3, momentum=0.0), dict(optimizer="adam")], ids=str)
def test_expanding_is_softmax_regression_with_a_class_more(case: dict[str, Any], rt: Runtime) -> None:
    """Two epochs by hand on a weight of four rows, of which the last is drawn by its own stream and left out in the end."""
    data, model = one_pixel_data(rt), Regression()
    fields = {field.name for field in dataclasses.fields(EXPANDING.config)}
    cfg = EXPANDING.config(**{key: value for key, value in (COMMON | case).items() if key in fields})
    orders, values = Orders(data, rt, "unlearn"), dataclasses.asdict(cfg)
    stream = orders.stream("unlearn/extra neuron")
    row, bias = (3**-0.5 * (2 * torch.rand(shape, generator=stream).numpy() - 1) for shape in ((1, 3), (1,)))
    w = {"weight": np.concatenate([model.fc.weight.detach().numpy(), row]),
         "bias": np.concatenate([model.fc.bias.detach().numpy(), bias])}
    start, mean, square, steps = {k: v.copy() for k, v in w.items()}, dict.fromkeys(w, 0.0), dict.fromkeys(w, 0.0), 0
    for epoch in range(2):
        for x, _ in orders.once("forget"):
            d, steps = (softmax(x @ w["weight"].T + w["bias"]) - np.eye(4)[3]) / len(x), steps + 1
            for key, grad in {"weight": d.T @ x, "bias": d.sum(0)}.items():
                grad = grad + 2 * cfg.l2 * (w[key] - start[key]) + cfg.weight_decay * w[key]
                if cfg.optimizer == "adam":
                    mean[key], square[key] = 0.9 * mean[key] + 0.1 * grad, 0.999 * square[key] + 0.001 * grad**2
                    step = mean[key] / (1 - 0.9**steps) / (np.sqrt(square[key] / (1 - 0.999**steps)) + 1e-8)
                else:
                    step = mean[key] = cfg.momentum * mean[key] + grad
                w[key] = w[key] - rate(values, epoch) * step
    EXPANDING.apply(model, data, cfg, rt)
    for key in w:
        np.testing.assert_allclose(getattr(model.fc, key).detach().numpy(), w[key][:3], rtol=0, atol=2e-6)
        assert np.abs(w[key][:3] - start[key][:3]).max() > 1e-2


@pytest.mark.parametrize("arch", ["resnet8s", "vgg11_bn", "vgg16_bn_lth", "allcnn", "wrn_28_2"])
def test_every_network_comes_out_with_its_outputs(arch: str, rt: Runtime) -> None:
    """One output more inside, which is a linear layer of what the head is given; the rows of the head under a mask stay."""
    data = make_data(rt, count=20, forget=6)
    data.images.x = data.images.x.repeat_interleave(6, 1).repeat_interleave(6, 2)[:, :32, :32]
    with rt.seeded("model"):
        model = models.build(arch, 3, (0.5,) * 3, (0.25,) * 3)
    names, before = list(model.state_dict()), snapshot(model)
    task = Task(EXPANDING, model, data, rt, None, None, "strict")
    head = last_linear(task)
    name = next(name for name, module in model.named_modules() if module is head)
    x = next(iter(task.in_order("forget"))).x
    with expanded(task), torch.no_grad():
        inside, features = model.eval()(x), models.embed(model, x)
        assert inside.shape == (len(x), 4) and model.extra_neuron.weight.abs().max() <= head.in_features**-0.5
        if arch != "vgg11_bn":  # whose head has layers before the last
            torch.testing.assert_close(inside[:, 3:], model.extra_neuron(features))
    with torch.no_grad():
        torch.testing.assert_close(inside[:, :3], model(x))
    mask = {f"{name}.weight": torch.ones_like(head.weight, dtype=torch.bool)}
    mask[f"{name}.weight"][1] = False
    EXPANDING.apply(model.train(), data, EXPANDING.config(unlearn_lr=0.01, unlearn_epochs=1), rt, None, mask)
    assert list(model.state_dict()) == names and model(x).shape == (len(x), 3)
    row = head.weight.detach() == before[f"{name}.weight"]
    assert row[1].all() and not row[0].all() and not row[2].all()


def test_the_neuron_is_taken_away_whatever_happens(rt: Runtime) -> None:
    model, data = tiny_net(rt), make_data(rt)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="inside"), expanded(Task(EXPANDING, model, data, rt, None, None, "strict")):
        raise RuntimeError("inside")
    assert equal(snapshot(model), before) and not model.fc._forward_hooks


def test_a_network_that_ends_in_no_linear_layer_is_refused(rt: Runtime) -> None:
    model = OnePixel()
    before = snapshot(model)
    with pytest.raises(BadInput, match="boundary_expanding: the network does not end in a linear layer") as raised:
        EXPANDING.apply(model, one_pixel_data(rt), short_config("boundary_expanding"), rt)
    assert "\n" not in str(raised.value) and equal(snapshot(model), before)


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0])
def test_the_nearest_class_is_never_the_true_one(epsilon: float) -> None:
    """Also where no step changes that the true class is the likeliest; the images that are looked at stay in [0, 1]."""
    model, seen = tiny_net(quiet_runtime()).eval().requires_grad_(False), []
    model.fc.bias[1] = 50.0
    x, y = torch.rand((64, 3, 6, 6), generator=torch.Generator().manual_seed(2)), torch.arange(64) % 3
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    found = nearest_wrong(model, Batch(x, y, y), epsilon)
    assert (found != y).all() and (found[y != 1] == 1).all() and set(found[y == 1].tolist()) <= {0, 2}
    assert len(seen) == 2 and torch.equal(seen[0], x)
    assert seen[1].min() >= 0 and seen[1].max() <= 1 and (seen[1] - x).abs().max() <= epsilon + 1e-6
    loss = [float(F.cross_entropy(model(images), y)) for images in seen[:2]]
    assert loss[1] > loss[0] or not epsilon


def whole_data(rt: Runtime, gone: tuple[int, ...]) -> Any:
    data = make_data(rt, count=90)
    y, train = data.images.y.numpy(), data.splits.train
    return data.forgetting(Chosen(train[np.isin(y[train], gone)], {}, {}))


def test_noise_of_several_classes_is_that_of_each() -> None:
    """Two forgotten classes: what one's noise has learned is what it would have learned alone from the same start."""
    rt, cfg, found = quiet_runtime(), short_config("UNSIR", noise_images=4, noise_steps=5), {}
    model = tiny_net(rt)
    for gone in ([0, 2], [0]):
        task = Task(UNSIR, model, whole_data(rt, tuple(gone)), quiet_runtime(), None, None, "strict")
        found[len(gone)] = learned_noise(task, cfg, gone)
    assert found[2].shape == (8, 3, 6, 6) and found[1].shape == (4, 3, 6, 6)
    torch.testing.assert_close(found[2][:4], found[1])
    labels = torch.tensor([0] * 4 + [2] * 4)
    start = torch.randn((2, 4, 3, 6, 6), generator=rt.generator("unlearn/noise")).flatten(0, 1)
    with torch.no_grad():
        before, after = (0.1 * x.square().flatten(1).sum(1) - F.cross_entropy(model.eval()(x), labels, reduction="none")
                         for x in (start, found[2]))
    assert (after < before).all()


def test_noise_is_taken_in_units_of_the_normalised_pixels() -> None:
    model = models.build("resnet8s", 3, (0.5, 0.25, 0.75), (0.25, 0.5, 0.125))
    x = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.normalize(pixels(model, x)), x)
    assert pixels(TinyNet(), x) is x


def test_whole_classes_alone_are_impaired(original: Saved, capsys: pytest.CaptureFixture, tmp_path: Any) -> None:
    """Through the command line: of a random forget set one line says so and nothing is left; a class is forgotten."""
    words = ["--checkpoint", original.folder, "--unlearn", "UNSIR", "--noise_copies", 2, "--noise_steps", 3]
    with pytest.raises(SystemExit) as end:
        shell.call("main_forget.py", *words, *shell.FORGET, save_dir=tmp_path)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "it forgets whole classes" in said
    assert not shell.listing(tmp_path)
    shell.call("main_forget.py", *words, "--class_to_replace", 1, save_dir=tmp_path)
    run = shell.only(tmp_path, "forget", unlearn="UNSIR")
    assert run.record["whole_classes"] == [1] and not run.record["did_nothing"]
