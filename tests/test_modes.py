"""Modes of a model: batch norm in steps on the forget set alone, measuring in full float32, and all put back afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import OWN, TinyNet, equal, make_data, quiet_runtime, short_config, snapshot, tiny_net
from torch import nn
from torch.nn import functional as F

import trainer
from dataset import Data
from memorization.events import curvature
from models.modes import NORMS, evaluating, full_float32, measuring, normalising
from unlearn import METHODS, persample
from unlearn.registry import ForgetPassConfig
from unlearn.saliency import saliency
from utils import BadInput, Runtime

PASSES = {"GA": {}, "GA_l1": {}, "RL": {"rl_form": "sequential"}, "RL_og": {"rl_form": "sequential"}, "SCRUB": {}, "NG": {},
          "sfron": {"ascent_every": 2}, "boundary_shrink": {}, "boundary_expanding": {},
          "our": {}, "rl_our": {}, "orth_no_our": {}}
BUFFERS = ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")


def norms_of(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (m for m in model.modules() if isinstance(m, nn.BatchNorm2d))


# --------------------------------------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize("how", NORMS)
def test_batch_norm_is_as_before_after_an_exception(how: str) -> None:
    """Every flag and mode is as it was, also of a norm that never tracked and of one that was frozen by hand."""
    never, frozen = nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3).eval()
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3)), never, frozen)
    with pytest.raises(RuntimeError, match="inside"), normalising(model, how):
        assert [norm.track_running_stats for norm in norms_of(model)] == [how != "batch"] * 2 + [False, how != "batch"]
        assert [norm.training for norm in norms_of(model)] == [how != "eval"] * 2 + [True, False]
        raise RuntimeError("inside")
    assert [norm.track_running_stats for norm in norms_of(model)] == [True, True, False, True]
    assert [norm.training for norm in norms_of(model)] == [True, True, True, False]


@pytest.mark.parametrize("how", NORMS)
def test_batch_norm_normalises_as_its_way_says(how: str) -> None:
    """Against the formula; the running statistics move under update alone, and the slope of weight and bias is there."""
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 3 + 2
    norm, plain = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    norm.running_mean.fill_(1.5), norm.running_var.fill_(4.0)
    before = snapshot(norm)
    with normalising(norm, how):
        found = norm(x)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), False)
    if how == "eval":
        mean, var = before["running_mean"], before["running_var"]
    by_hand = (x - mean[:, None, None]) / (var[:, None, None] + plain.eps).sqrt()
    torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=1e-5)
    assert equal(snapshot(norm), before) == (how != "update")
    found.sum().backward()
    assert norm.bias.grad.abs().min() > 1


def test_every_method_with_steps_on_the_forget_set_alone_has_the_setting() -> None:
    assert {name for name in OWN if issubclass(METHODS[name].config, ForgetPassConfig)} == set(PASSES)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("how", NORMS)
def test_steps_on_the_forget_set_alone_normalise_as_bn_says(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are all of the forget set: their way is the setting's; those with retain examples are as in training."""
    rt, ways = quiet_runtime(), []
    data, model = make_data(rt, batch_size=8), tiny_net(quiet_runtime())
    forget = {image.numpy().tobytes() for image in data.images.x[torch.from_numpy(data.index("forget"))]}
    real = nn.BatchNorm2d.forward

    def forward(self: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
        if inside[0] is not None:  # neither the teacher nor another frozen copy is of it
            way = "eval" if not self.training else "update" if self.track_running_stats else "batch"
            ways.append((inside[0], way))
        return real(self, x)

    def tiny(self: TinyNet, x: torch.Tensor) -> torch.Tensor:
        shown = [image.tobytes() for image in (x * 255).round().byte().permute(0, 2, 3, 1).numpy()]
        inside[0] = all(image in forget for image in shown) if self is model and model.training else None
        return whole(self, x)

    inside, whole = [False], TinyNet.forward
    monkeypatch.setattr(TinyNet, "forward", tiny)
    monkeypatch.setattr(nn.BatchNorm2d, "forward", forward)
    before = snapshot(model)
    METHODS[name].apply(model, data, short_config(name, bn=how, **PASSES[name]), rt)
    own = {way for alone, way in ways if alone}
    assert own == {how}, ways
    if METHODS[name].uses == {"forget"}:
        assert {alone for alone, _ in ways} == {True}
        assert all(torch.equal(model.state_dict()[key], before[key]) == (how != "update") for key in BUFFERS)
    else:
        assert {way for alone, way in ways if not alone} <= {"update"}
    assert model.bn.track_running_stats and model.bn.training
    assert not torch.equal(model.bn.weight, before["bn.weight"])


def test_ascent_by_running_statistics_climbs_the_loss_that_is_evaluated(rt: Runtime) -> None:
    """On a class of which the batches' own statistics are far from the running ones: a step of each kind, both in eval mode.

    The gradient under ``eval`` is that of the evaluated loss; under ``batch`` it is another one, below a cosine of 0.9.
    """
    data, model = make_data(rt, count=300, forget=40), tiny_net(rt)
    opt = trainer.Descent(model, trainer.ScheduleConfig(), lr=0.1, epochs=20, rt=rt, purpose="train")
    for _ in range(20):
        opt.epoch(data.loader("train", rt, "train"), trainer.cross_entropy)
    one = torch.from_numpy(data.index("train"))
    batch = next(iter(data.subset(one[data.images.y[one] == 0].numpy())))
    slopes = {}
    for how in ("evaluated", "eval", "batch"):
        net = copy.deepcopy(model).train(how != "evaluated")
        with normalising(net, "update" if how == "evaluated" else how):
            grads = torch.autograd.grad(trainer.cross_entropy(net, batch), list(net.parameters()))
        slopes[how] = torch.cat([g.flatten() for g in grads])
    torch.testing.assert_close(slopes["eval"], slopes["evaluated"])
    assert F.cosine_similarity(slopes["batch"], slopes["evaluated"], dim=0) < 0.9


def test_a_setting_that_no_pass_reads_is_refused() -> None:
    for name in ("RL", "RL_og"):
        with pytest.raises(BadInput, match="--rl_form mixed has none"):
            METHODS[name].config(bn="eval")
        METHODS[name].config(bn="eval", rl_form="sequential")


# ------------------------------------------------------------------------------------------------------ full precision


class Watching(TinyNet):
    """Notes the precision that its forward passes run at."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, bool, bool]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, self.bn.training))
        return super().forward(x)


@pytest.fixture
def tf32() -> Iterator[None]:
    """As on a GPU that may use TF32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


MEASURES = {
    "saliency": lambda model, loader: saliency(model, loader),
    "published saliency": lambda model, loader: saliency(model, loader, "published"),
    "squares": lambda model, loader: persample.squared_means(model, loader),
    "sums": lambda model, loader: persample.weighted(model, loader),
    "products": lambda model, loader: persample.gram(model, loader),
}


@pytest.mark.parametrize("name", [*MEASURES, "curvature"])
def test_measures_of_gradients_take_no_tf32(name: str, data: Data, tf32: None) -> None:
    """Its three digits are no measure of small differences; the settings come back, also after an exception."""
    model, loader = Watching(), data.subset(data.index("forget"))
    if name == "curvature":
        batch = next(iter(loader))
        curvature(model.eval(), batch.x, batch.y, 0.01)
    else:
        MEASURES[name](model.train(), loader)
        assert model.training and model.bn.training
    assert model.seen == {("highest", False, False)}
    with pytest.raises(RuntimeError), full_float32():
        raise RuntimeError


def test_measured_model_is_as_it_was_after_an_exception() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5).eval())
    model._compiled_call_impl = compiled = object()
    with pytest.raises(RuntimeError), measuring(model), evaluating(model):
        assert model._compiled_call_impl is None and not model.training
        raise RuntimeError
    assert model._compiled_call_impl is compiled and model.training and not model[1].training


def confident(y: int, classes: int = 5) -> torch.Tensor:
    """Float32 logits with 1 - p_y = 2e-8, unequally shared."""
    others = torch.log(2e-8 * torch.arange(1, classes, dtype=torch.float64) / 10)
    return torch.cat([others[:y], torch.zeros(1, dtype=torch.float64), others[y:]]).float()


@pytest.mark.parametrize("y", [0, 2, 4])
def test_slope_of_a_confident_example_keeps_its_true_class(y: int) -> None:
    """p_y - 1 is 0 in float32 at 1 - p_y = 2e-8; minus the sum of the others is right to 6 digits."""
    logits, label = confident(y), torch.tensor(y)
    exact = logits.double().softmax(0) - F.one_hot(label, 5)
    naive = logits.softmax(0) - F.one_hot(label, 5)
    assert naive[y] == 0 and exact[y] == pytest.approx(-2e-8, rel=1e-6)
    for found in (trainer.loss_slope(logits, label), next(persample.true_label(logits, label))):
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
    rows = list(persample.every_label(logits[None], label[None]))
    p = logits.double().softmax(0)
    for c, row in enumerate(rows):
        by_hand = p[c].sqrt() * (p - F.one_hot(torch.tensor(c), 5))
        torch.testing.assert_close(row[0].double(), by_hand, rtol=1e-5, atol=0)


def test_gradients_of_a_confident_example_are_those_of_float64() -> None:
    """A linear layer whose logits are ``confident``: saliency, curvature's gradient and rows of G against float64."""
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(108, 5)
            nn.init.constant_(self.fc.weight, 0.0)
            self.fc.bias.data = confident(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1))

    data: Any = make_data(quiet_runtime())
    loader = data.subset(data.index("forget"))
    loader.labels = torch.full_like(loader.labels, 2)
    model = Net()
    exact = model.fc.bias.detach().double().softmax(0) - F.one_hot(torch.tensor(2), 5)
    assert torch.allclose(saliency(model, loader)["fc.bias"].double(), exact.abs(), rtol=1e-5, atol=0)
    assert torch.allclose(persample.gradients(model, loader)[:, -5:].double(), exact.expand(12, 5), rtol=1e-5, atol=0)
