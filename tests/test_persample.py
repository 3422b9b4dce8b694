"""Gradients of single examples: squares, products and the Gram matrix against plain loops, whatever batch and memory."""

from __future__ import annotations

import pytest
import torch
from conftest import TinyNet, equal, make_data, quiet_runtime, snapshot, tiny_net, toy_arrays
from looped import ExactNet, Scaled, flat, probabilities, resized, rows_of
from torch import nn

import models
from dataset import Data, Images, Loader
from unlearn import persample


@pytest.fixture
def loader(data: Data) -> Loader:
    return data.subset(data.index("retain"))


@pytest.mark.parametrize(("batch_size", "budget"), [(1, None), (5, None), (42, 40_000), (128, 1), (128, None)])
def test_squares_are_of_examples_whatever_the_batch(batch_size: int, budget: int | None, loader: Loader) -> None:
    """The empirical diagonal against the loop, within 1e-12 in float64, for all batch sizes and chunks."""
    model = ExactNet()
    found = persample.squared(model, resized(loader, batch_size), budget=budget)
    torch.testing.assert_close(flat(found), rows_of(model, loader).square().mean(0), rtol=1e-12, atol=1e-14)
    assert list(found) == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("batch_size", [3, 128])
def test_expected_squares_are_over_all_labels(batch_size: int, loader: Loader) -> None:
    """sum_c p_c(x) (d log p_c(x))^2, mean over the examples, within 1e-12."""
    model = ExactNet()
    p = probabilities(model, loader)
    by_hand = sum((p[:, c, None] * rows_of(model, loader, c).square()).mean(0) for c in range(3))
    found = persample.squared(model, resized(loader, batch_size), persample.every_label)
    torch.testing.assert_close(flat(found), by_hand, rtol=1e-12, atol=1e-14)


def test_squares_in_float32_do_not_depend_on_the_batch(loader: Loader) -> None:
    """Within 1e-5 of the largest, relative to each tensor's."""
    model = tiny_net(quiet_runtime())
    single, all_at_once = (persample.squared(model, resized(loader, size)) for size in (1, 128))
    for name, value in single.items():
        assert float((value - all_at_once[name]).abs().max() / value.max()) < 1e-5


@pytest.mark.parametrize("batch_size", [1, 8, 16])
def test_squared_means_are_of_batches(batch_size: int, loader: Loader) -> None:
    """Means over batches, as the loader cuts them, of squared batch means."""
    model = ExactNet()
    grads, p = rows_of(model, loader), probabilities(model, loader)
    by_class = [rows_of(model, loader, c) for c in range(3)]
    batches = resized(loader, batch_size)
    cuts = [slice(*cut) for cut in batches._cuts()]
    expected = torch.stack([grads[cut].mean(0) ** 2 for cut in cuts]).mean(0)
    torch.testing.assert_close(flat(persample.squared_means(model, batches)), expected, rtol=1e-12, atol=1e-14)
    expected = torch.stack([sum(p[cut, c].mean() * by_class[c][cut].mean(0) ** 2 for c in range(3)) for cut in cuts])
    found = persample.squared_means(model, batches, persample.every_label)
    torch.testing.assert_close(flat(found), expected.mean(0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("net", [ExactNet, Scaled])
@pytest.mark.parametrize("budget", [1, 20_000, None])
def test_products_and_gram_matrix(net: type[nn.Module], budget: int | None, loader: Loader) -> None:
    """G, G v, G^T u and G G^T against the loop's rows; blocks of the Gram matrix of 1, some and all examples."""
    torch.manual_seed(0)
    model, loader = net(), resized(loader, 8)
    rows, tolerance = rows_of(model, loader).double(), 1e-12 if net is ExactNet else 1e-5
    vectors = [torch.randn(rows.shape[1], dtype=torch.float64) for _ in range(3)]
    u = torch.randn(loader.size, dtype=torch.float64)
    pairs = [(persample.gradients(model, loader, budget), rows), (persample.gram(model, loader, budget), rows @ rows.T),
             (persample.along(model, loader, vectors), rows @ torch.stack(vectors, 1)),
             (persample.weighted(model, loader, u), rows.T @ u), (persample.weighted(model, loader), rows.sum(0))]
    for found, expected in pairs:
        assert float((found.double() - expected).abs().max() / expected.abs().max()) < tolerance


def plain_vgg() -> nn.Module:
    """In-place activations after convolutions with biases and after linear layers, and a layer that is used twice."""
    twice = nn.Linear(16, 16)
    front = [nn.Conv2d(3, 4, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(36, 16)]
    middle = [nn.ReLU(inplace=True), twice, nn.ReLU(inplace=True), twice, nn.LayerNorm(16), nn.ReLU(inplace=True)]
    return nn.Sequential(*front, *middle, nn.Linear(16, 3))


@pytest.mark.parametrize("arch", ["resnet8s", "vgg"])
def test_layers_that_overwrite_their_input(arch: str) -> None:
    """Networks with in-place activations and sums, in float64: G and G v by layers against the loop's rows."""
    rt = quiet_runtime()
    with rt.seeded(arch):
        model = plain_vgg() if arch == "vgg" else models.build(arch, 3, (0.5,) * 3, (0.25,) * 3)
    model.double()
    images = Images(*toy_arrays(3, 1, size=32), make_data(rt).source, rt)
    model.register_forward_pre_hook(lambda module, args: (args[0].double(),))
    loader = Loader(images, torch.arange(3), images.y, 2)
    rows = rows_of(model, loader)
    v = torch.randn(rows.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert persample._linear_layers(model)
    torch.testing.assert_close(persample.along(model, loader, [v])[:, 0], rows @ v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(persample.gradients(model, loader), rows, rtol=1e-9, atol=1e-9)


def test_parameters_outside_layers_are_found() -> None:
    """Layers used twice, tied or subclassed are no reason for a wrong product: those models go by rows."""
    tied = nn.Sequential(nn.Flatten(), nn.Linear(108, 108), nn.Linear(108, 108), nn.Linear(108, 3))
    assert len(persample._linear_layers(tied)) == 3
    tied[2].weight = tied[1].weight
    assert not persample._linear_layers(tied) and not persample._linear_layers(Scaled())
    assert len(persample._linear_layers(TinyNet())) == 3


def test_memory_of_others_is_no_part_of_a_deterministic_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks follow from the budget, and the sums' last bits from the chunks."""
    for free, forced, expected in ((60, False, 30), (20, False, 10), (60, True, 20), (20, True, 20)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 80))
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda forced=forced: forced)
        assert persample._budget(torch.device("cuda")) == expected


def test_model_is_measured_in_eval_mode_and_left_as_it_was(loader: Loader) -> None:
    """Running statistics stay, and so do the modes of all modules, dropout's too."""
    model = nn.Sequential(tiny_net(quiet_runtime()), nn.Dropout(0.5)).train()
    model[0].bn.eval()
    before, quiet = snapshot(model), nn.Sequential(tiny_net(quiet_runtime())).eval()
    found, expected = persample.squared(model, loader), persample.squared(quiet, loader)
    assert equal(found, expected) and equal(snapshot(model), before)
    assert model[1].training and model[0].training and not model[0].bn.training


def test_compiled_model_is_measured_uncompiled(loader: Loader) -> None:
    """In a plan under --compile an earlier step compiled it; hooks and vmap within a compiler are slow, or fail."""
    model, plain = ExactNet(), ExactNet()
    model._compiled_call_impl = compiled = lambda *args: pytest.fail("went through the compiler")
    v = torch.ones(131, dtype=torch.float64)
    for measure in (persample.squared, persample.squared_means, persample.weighted, persample.gradients, persample.gram,
                    lambda model, loader: persample.along(model, loader, [v])):
        found, expected = measure(model, loader), measure(plain, loader)
        assert equal(*(value if isinstance(value, dict) else {"": value} for value in (found, expected)))
        assert model._compiled_call_impl is compiled
