"""Fisher forgetting: the class rule, the variance that weights share, the head, and the noise of masked models."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import TinyNet, make_data, quiet_runtime, snapshot, tiny_net
from looped import applied
from torch import nn

import models
from dataset import Data
from pruner.magnitude import apply_mask
from unlearn import METHODS, Task, persample
from unlearn.fisher import head_of, spread
from utils import Runtime


def without_class(data: Data, gone: int) -> Data:
    """The same data with all training examples of a class to be forgotten; ``splits.whole_classes`` is left empty."""
    y, splits = data.images.y.numpy(), data.splits
    forget = splits.train[y[splits.train] == gone]
    splits = dataclasses.replace(splits, forget=forget, retain=np.setdiff1d(splits.train, forget))
    return dataclasses.replace(data, splits=splits)


class Narrow(TinyNet):
    """Its convolution has as many rows as there are classes, by accident."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.Linear(3, 3)


@pytest.mark.parametrize("mode", ["exact", "published"])
@pytest.mark.parametrize("gone", [0, 2, None])
def test_class_rule_is_for_whole_classes(mode: str, gone: int | None, rt: Runtime, data: Data) -> None:
    """Without noise to speak of, a forgotten class's row of the head is drawn around 0; random examples reset no row.

    In the published mode, by shape, so is the accidental row of the convolution; in the exact mode it stays.
    """
    with rt.seeded("narrow"):
        model = Narrow()
    before = snapshot(model)
    data = data if gone is None else without_class(data, gone)
    task = Task(METHODS["fisher_new"], model, data, rt, None, None, "strict")
    assert task.whole_classes == ([] if gone is None else [gone])
    METHODS["fisher_new"].apply(model, data, METHODS["fisher_new"].config(alpha=1e-16, fisher_mode=mode), rt)
    for name, p in model.named_parameters():
        ruled = name.startswith("fc") or mode == "published"
        for row in range(3):
            if ruled and row == gone:
                assert 0 < float(p[row].detach().abs().max()) < 0.15, name  # 4.7 standard deviations of sqrt(1e-3)
                assert not torch.allclose(p[row], before[name][row], atol=1e-5)
            else:
                torch.testing.assert_close(p[row].detach(), before[name][row], rtol=0, atol=1e-5)


def test_spread_of_reset_rows_and_of_the_rest() -> None:
    """Variances by hand: capped at 1e3 (head 1e2), one for each output, 1e-4 where reset, ten times on head and vectors."""
    p, info = torch.ones(2, 2), torch.tensor([[1.0, 0.25], [0.0, 0.5]], dtype=torch.float64)
    mean, variance = spread(p, info, 0.1, False, [1])
    assert torch.equal(mean, p.double())
    torch.testing.assert_close(variance, torch.tensor([[0.25] * 2, [50.1] * 2], dtype=torch.float64), rtol=1e-6, atol=0)
    mean, variance = spread(p, info, 0.1, True, [0])
    assert torch.equal(mean, torch.tensor([[0.0, 0.0], [1, 1]], dtype=torch.float64))
    torch.testing.assert_close(variance, torch.tensor([[1e-3] * 2, [51.0] * 2], dtype=torch.float64), rtol=1e-6, atol=0)
    mean, variance = spread(p[0], info[0], 0.1, False, [])
    torch.testing.assert_close(variance, torch.tensor([1.0, 4.0], dtype=torch.float64), rtol=1e-6, atol=0)
    assert torch.equal(spread(p[0], info[0], 0.1, True, [])[1], variance)  # a head's bias is widened once


def test_spread_is_shared_by_free_weights_alone() -> None:
    """Two of three weights of an output are free: their mean, whatever the third; none free: no number."""
    p, info = torch.ones(2, 3, 1), torch.tensor([[1.0, 0.25, 0.0], [0.5, 0.5, 0.5]], dtype=torch.float64)[..., None]
    free = torch.tensor([[True, True, False], [False] * 3])[..., None]
    _, variance = spread(p, info, 0.1, False, [], free)
    torch.testing.assert_close(variance[0].flatten(), torch.tensor([0.25] * 3, dtype=torch.float64), rtol=1e-6, atol=0)
    assert variance[1].isnan().all()
    assert spread(p, info * torch.nan, 0.1, False, [], free)[1].isnan().all()  # a diverged model stays one


@pytest.mark.parametrize("mode", ["exact", "published"])
def test_noise_of_a_pruned_model_by_its_own_variance(mode: str, rt: Runtime, data: Data,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the three weights that share a variance are pruned: in the published mode they lend theirs, the largest."""
    monkeypatch.setattr("unlearn.fisher._normal", lambda p, stream: torch.ones_like(p, dtype=torch.float64))
    mask = {"conv.weight": torch.zeros(4, 3, 3, 3, dtype=torch.bool)}
    mask["conv.weight"][:, 0, 1, 1] = True
    model, twin = tiny_net(rt), tiny_net(rt)
    for net in (model, twin):
        apply_mask(net, mask)
    METHODS["fisher_new"].apply(model, data, METHODS["fisher_new"].config(alpha=1e-4, fisher_mode=mode), rt, None, mask)
    batches = Task(METHODS["fisher_new"], twin, data, rt, None, None, "strict").in_order("retain", batch_size=32)
    measure = persample.squared if mode == "exact" else persample.squared_means
    info = measure(twin, batches, persample.every_label)
    if mode == "exact":  # in units of the mean over the weights that are not pruned
        left = torch.cat([part[mask[name]] if name in mask else part.flatten() for name, part in info.items()])
        info = {name: part / left.mean() for name, part in info.items()}
    own = 1e-4 * (1 / (info["conv.weight"][:, 0, 1, 1] + 1e-8)).clamp(max=1e3)
    expected = own if mode == "exact" else (own + 2 * 1e-4 * 1e3) / 3
    found = (model.conv.weight - twin.conv.weight).detach()[:, 0, 1, 1].double()
    torch.testing.assert_close(found, expected.sqrt(), rtol=1e-4, atol=1e-6)


def test_published_noise_counts_what_a_saliency_mask_holds_as_what_it_is(rt: Runtime, data: Data) -> None:
    """A weight that is held and not pruned lends its own variance to the mean, not the largest."""
    found, method = [], METHODS["fisher_new"]
    for free in (True, False):
        model = tiny_net(rt)
        mask = {"conv.weight": torch.full((4, 3, 3, 3), free)}
        mask["conv.weight"][:, 0] = True
        method.apply(model, data, method.config(alpha=1e-4, fisher_mode="published"), rt, None, mask)
        found.append(model.conv.weight.detach()[:, 0])
    assert torch.equal(*found) and not torch.equal(found[0], tiny_net(rt).conv.weight.detach()[:, 0])


@pytest.mark.parametrize("arch", ["resnet8s", "vgg11_bn"])
def test_head_is_the_last_layer(arch: str) -> None:
    with quiet_runtime().seeded(arch):
        model = models.build(arch, 16, (0.5,) * 3, (0.25,) * 3)  # resnet8s has convolutions of 16 rows
    head = head_of(model, 16)
    last = [name for name, _ in model.named_parameters()][-2:]
    assert head == set(last)


@pytest.mark.parametrize(("mode", "wide"), [("exact", {"fc.weight", "fc.bias"}), ("published", {"fc.bias", "conv.weight"})])
def test_older_fisher_widens_the_whole_head(mode: str, wide: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the noise on the head; published: on 3 x 3 kernels, whose last dimension is 3 as the classes are."""
    monkeypatch.setattr("unlearn.fisher._normal", lambda p, stream: torch.ones_like(p, dtype=torch.float64))
    # so small an alpha is capped nowhere but by the inverse's own limit
    model, before = applied("fisher", dict(fisher_mode=mode, alpha=1e-7))
    twin, data = tiny_net(quiet_runtime()), make_data(quiet_runtime(), batch_size=8)
    info = persample.squared(twin, data.subset(data.index("retain")))
    mean = torch.cat([part.flatten() for part in info.values()]).mean()
    for name, p in model.named_parameters():
        inverse = (mean / info[name]).clamp(max=100) if mode == "exact" else 1 / (info[name] + 1e-8)
        size = (1e-7 * inverse).sqrt() if mode == "exact" else (1e-7 * inverse).sqrt().clamp(max=1e-3)
        expected = size * (10 if name in wide else 1)
        torch.testing.assert_close(p.detach() - before[name], expected.float(), rtol=1e-2, atol=3e-7)
