"""Orthogonal unlearning: its loss against explicit pairs, both phases by torch.optim, its layers, forms and ablations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyNet, equal, make_data, quiet_runtime, snapshot, tiny_net
from scipy.spatial.distance import cosine
from test_over import by_hand
from torch import Tensor, nn
from torch.nn import functional as F

import models
from dataset import Data
from models.deep import deep_layers
from models.modes import normalising
from unlearn import METHODS, Task, our
from unlearn.label import draw_labels
from utils import BadInput, Runtime

LAYERS = ("conv", "bn", "fc")
RATE = 0.01


def cfg(name: str = "our", **values: Any) -> Any:
    made = METHODS[name].config
    base = {"unlearn_lr": RATE, "unlearn_epochs": 2, "our_layers": LAYERS, "replay_epochs": (0,), "replay_factors": (1.0,)}
    return made(**{key: value for key, value in (base | values).items() if hasattr(made, key)})


def apply(name: str = "our", data: Data | None = None, **values: Any) -> TinyNet:
    rt, model = quiet_runtime(), tiny_net(quiet_runtime())
    METHODS[name].apply(model, toy(rt) if data is None else data, cfg(name, **values), rt)
    return model


def toy(rt: Runtime) -> Data:
    return make_data(rt, batch_size=8)


def one_class(rt: Runtime) -> Data:
    """Six examples of one class to be forgotten, of which others stay."""
    data = toy(rt)
    index = data.index("train")[data.images.y.numpy()[data.index("train")] == 1][:6]
    splits = data.splits
    object.__setattr__(splits, "forget", index)
    object.__setattr__(splits, "retain", np.setdiff1d(splits.train, index))
    return data


def layers(net: TinyNet, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the three layers give, without a hook; the last are the logits."""
    conv = net.conv(x)
    bn = net.bn(conv)
    return conv, bn, net.fc(torch.relu(bn).mean((2, 3)))


def pairs(features: Tensor) -> Tensor:
    """Mean squared cosine over all ordered pairs of different examples, pair by pair."""
    flat = features.flatten(1)
    found = [F.cosine_similarity(flat[i], flat[j], dim=0) ** 2 for i, j in itertools.permutations(range(len(flat)), 2)]
    return torch.stack(found).mean()


def same(ours: nn.Module, theirs: nn.Module, tolerance: float = 1e-5) -> bool:
    return all((a - b).abs().max() < tolerance for a, b in zip(snapshot(ours).values(), snapshot(theirs).values(), strict=True))


# ------------------------------------------------------------------------------------------------------------- the loss


def test_the_loss_of_a_layer_is_the_mean_squared_cosine_of_explicit_pairs() -> None:
    """scipy's cosines, and the published Gram matrix less the identity; a scale of one example's features changes nothing."""
    features = torch.randn(7, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    flat = features.flatten(1).numpy()
    explicit = np.mean([(1 - cosine(flat[i], flat[j])) ** 2 for i, j in itertools.permutations(range(7), 2)])
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    published = ((unit @ unit.T - np.eye(7)) ** 2).sum() / (7 * 6)
    assert float(our.between(features)) == pytest.approx(explicit, rel=1e-12) == pytest.approx(published, rel=1e-12)
    assert float(our.between(features * torch.arange(1, 8).view(7, 1, 1, 1))) == pytest.approx(explicit, rel=1e-12)


def test_the_loss_is_zero_for_orthogonal_features_and_one_for_parallel_ones() -> None:
    parallel = torch.tensor([[1.0, 2], [-2, -4], [0.5, 1]])
    assert float(our.between(torch.eye(5))) == 0 and float(our.between(parallel)) == pytest.approx(1)
    assert float(our.between(torch.ones(1, 4))) == 0 and not our.between(torch.zeros(3, 4)).isnan()
    assert float(our.to_first(parallel, 3 * parallel)) == pytest.approx(1)
    assert float(our.to_first(torch.eye(2), torch.eye(2).flip(0))) == 0


def test_the_slope_of_the_loss_is_that_of_the_pairs() -> None:
    a = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    b = a.detach().clone().requires_grad_()
    our.between(a).backward()
    pairs(b).backward()
    assert torch.allclose(a.grad, b.grad, rtol=1e-10, atol=1e-14) and a.grad.abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------- phases by hand


def first_phase(loss: Callable[[TinyNet, TinyNet, Any, Tensor], Tensor], data: Data, rt: Runtime, anew: bool) -> TinyNet:
    """Two epochs of torch's Adam over the forget set; labels drawn once, or anew in each."""
    model, first = tiny_net(quiet_runtime()), tiny_net(quiet_runtime()).eval()
    loader, stream = data.loader("forget", rt, "unlearn"), rt.generator("unlearn/labels")
    opt = torch.optim.Adam(model.parameters(), lr=RATE)
    model.train()
    drawn = None
    for _ in range(2):
        if drawn is None or anew:
            drawn = draw_labels(loader.labels, 3, "wrong", stream)
        assert (drawn != loader.labels).all()
        with normalising(model, "batch"):
            for batch in loader.relabelled(drawn):
                opt.zero_grad()
                loss(model, first, batch, batch.y).backward()
                opt.step()
    return model


def class_loss(model: TinyNet, first: TinyNet, batch: Any, y: Tensor) -> Tensor:
    found = layers(model, batch.x)
    return 2.0 * sum(map(pairs, found)) + F.cross_entropy(found[-1], y)


def sample_loss(model: TinyNet, first: TinyNet, batch: Any, y: Tensor) -> Tensor:
    found = layers(model, batch.x)
    with torch.no_grad():
        before = layers(first, batch.x)
    cosines = [F.cosine_similarity(f.flatten(1), g.flatten(1)).square().mean() for f, g in zip(found, before, strict=True)]
    return sum(cosines) + 0.1 * F.cross_entropy(found[-1], y)


@pytest.mark.parametrize("name", ["our", "orthogonality"])
@pytest.mark.parametrize("form", ["class", "sample"])
def test_the_first_phase_is_that_by_hand(name: str, form: str) -> None:
    rt = quiet_runtime()
    theirs = first_phase({"class": class_loss, "sample": sample_loss}[form], toy(rt), rt, anew=form == "sample")
    ours = apply(name, our_form=form)
    assert same(ours, theirs) and not same(ours, tiny_net(quiet_runtime()), 0.01)


@pytest.mark.parametrize("name", ["our", "rl_our"])
def test_the_second_phase_is_the_replay_in_three_parts(name: str) -> None:
    parts = {"replay_epochs": (2, 1, 1), "replay_factors": (1.0, 0.5, 0.2), "replay_l1": (0.02, 0.01, 0.0), "replay_lr": 0.05}
    theirs = apply(name)
    by_hand(theirs, cfg(name, **parts))
    assert same(apply(name, **parts), theirs)
    defaults = METHODS[name].config()
    assert (defaults.replay_epochs, defaults.replay_factors, defaults.replay_l1) == ((3, 2, 1), (1.0, 0.5, 0.2), (5e-5,))


def test_without_the_orthogonality_loss_only_the_labels_are_left() -> None:
    rt = quiet_runtime()
    theirs = first_phase(lambda model, first, batch, y: F.cross_entropy(model(batch.x), y), toy(rt), rt, anew=False)
    assert same(apply("rl_our", our_form="class"), theirs)
    assert equal(snapshot(apply("rl_our", our_form="class")), snapshot(apply("our", our_form="class", orth_weight=0.0)))


def test_the_ablation_in_one_phase_is_that_by_hand() -> None:
    """A retain batch beside every forget batch, all terms at 0.8, the penalty too."""
    rt = quiet_runtime()
    data, theirs = toy(rt), tiny_net(quiet_runtime())
    forget, retain = data.loader("forget", rt, "unlearn"), data.loader("retain", rt, "unlearn")
    drawn = draw_labels(forget.labels, 3, "wrong", rt.generator("unlearn/labels"))
    opt = torch.optim.Adam(theirs.parameters(), lr=RATE)
    theirs.train()
    for _ in range(2):
        keeps: Iterator[Any] = iter(retain)
        for drop in forget.relabelled(drawn):
            keep = next(keeps)
            opt.zero_grad()
            with normalising(theirs, "batch"):
                away = class_loss(theirs, theirs, drop, drop.y)
            penalty = sum(p.abs().sum() for p in theirs.parameters())
            (0.8 * (away + F.cross_entropy(theirs(keep.x), keep.y) + 0.03 * penalty)).backward()
            opt.step()
    assert same(apply("orth_no_our", our_form="class", l1=0.03), theirs)


# ------------------------------------------------------------------------------------------------------ forms and layers


def test_the_form_follows_from_what_is_forgotten() -> None:
    """One class, or whole classes: class; a mixed draw: sample."""
    def form(data: Data) -> str:
        task = Task(METHODS["our"], tiny_net(quiet_runtime()), data, quiet_runtime(), None, None, "strict")
        return our._form(task)

    rt = quiet_runtime()
    y = toy(rt).images.y.numpy()
    whole = toy(rt)
    gone = whole.index("train")[np.isin(y[whole.index("train")], (0, 2))]
    object.__setattr__(whole.splits, "forget", gone)
    object.__setattr__(whole.splits, "retain", np.setdiff1d(whole.splits.train, gone))
    assert (form(toy(rt)), form(one_class(rt)), form(whole)) == ("sample", "class", "class")
    assert equal(snapshot(apply(data=one_class(rt))), snapshot(apply(data=one_class(rt), our_form="class")))
    assert equal(snapshot(apply(data=toy(rt))), snapshot(apply(data=toy(rt), our_form="sample")))
    assert not equal(snapshot(apply(data=toy(rt))), snapshot(apply(data=toy(rt), our_form="class")))


def test_three_distinct_layers_are_taken_and_as_published_the_second_twice() -> None:
    model = models.build("resnet8s", 3, (0.5,) * 3, (0.25,) * 3)
    task = Task(METHODS["our"], model, toy(quiet_runtime()), quiet_runtime(), None, None, "strict")
    first, second, third = deep_layers(model)
    assert len({first, second, third}) == 3
    assert our.layers_of(task, METHODS["our"].config()) == [first, second, third]
    assert our.layers_of(task, METHODS["our"].config(our_layers=("published",))) == [first, second, second]
    with pytest.raises(BadInput, match="distinct and published stand alone"):
        our.layers_of(task, METHODS["our"].config(our_layers=("published", "fc")))


def test_each_layer_acts_and_the_second_counts_twice_as_published() -> None:
    """Of a layer that is named twice, the loss counts twice: the weights are those of a hand that adds it twice."""
    rt = quiet_runtime()

    def loss(model: TinyNet, first: TinyNet, batch: Any, y: Tensor) -> Tensor:
        conv, bn, logits = layers(model, batch.x)
        return 2.0 * (pairs(conv) + 2 * pairs(bn)) + F.cross_entropy(logits, y)

    theirs = first_phase(loss, toy(rt), rt, anew=False)
    assert same(apply(our_form="class", our_layers=("conv", "bn", "bn")), theirs)
    assert not same(apply(our_form="class"), theirs)


def test_a_layer_that_does_not_exist_is_told_in_one_line() -> None:
    with pytest.raises(BadInput, match="no layer 'convv'") as raised:
        apply(our_layers=("convv",))
    assert "conv" in str(raised.value).partition("convv")[2] and "\n" not in str(raised.value)


def test_forgotten_features_become_orthogonal_where_random_labels_alone_leave_them_together() -> None:
    """On a class of its own: the mean squared cosine of the deepest features falls further than under rl_our."""
    def cosines(name: str) -> float:
        data = one_class(quiet_runtime())
        model = apply(name, data=data, unlearn_epochs=30).eval()
        with torch.no_grad():
            return float(pairs(layers(model, next(iter(data.loader("forget"))).x)[1]))

    assert cosines("our") < 0.7 * cosines("rl_our")
