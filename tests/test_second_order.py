"""Per-example gradients against one autograd call an example, and what the methods built on their squares promise.

Fisher information and importances are those of examples, whatever the batches; the class rule is for whole classes alone;
masked weights stay. Their updates are worked out by hand in test_formulas.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyNet, equal, make_data, quiet_runtime, short_config, snapshot, tiny_net, toy_arrays
from torch import nn
from torch.nn import functional as F

import models
from dataset import Data, Images, Loader
from pruner.magnitude import apply_mask
from unlearn import METHODS, Task, persample
from unlearn.fisher import head_of, spread
from utils import Mask, Run, RunConfig, Runtime

MODES = [("wfisher", {}), ("wfisher", dict(wfisher_mode="published")), ("fisher", {}),
         ("fisher", dict(fisher_mode="published")), ("fisher_new", dict(alpha=1e-4)),
         ("fisher_new", dict(alpha=1e-4, fisher_mode="published")),
         ("ssd", dict(alpha=0.9)), ("ssd", dict(ssd_mode="published", alpha=0.5))]
NOISY = [case for case in MODES if case[0].startswith("fisher")]
BY_EXAMPLES = [(name, values) for name, values in MODES if not {"ssd_mode", "fisher_mode"} & set(values)]


class ExactNet(TinyNet):
    """TinyNet in float64, 131 parameters, with running statistics away from 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        stream = torch.Generator().manual_seed(4)
        self.double()
        with torch.no_grad():
            for p in (*self.parameters(), self.bn.running_mean):
                p.copy_(torch.randn(p.shape, generator=stream).double() * 0.5)
            self.bn.running_var.uniform_(0.5, 2.0, generator=stream)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.double())


class Scaled(nn.Module):
    """A model with a parameter of its own outside every layer; float32."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.5, -0.5, 0.7]))
        self.fc = nn.Linear(108, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1)) * self.scale


def rows_of(model: nn.Module, loader: Loader, label: int | None = None) -> torch.Tensor:
    """Gradients of -log p_y of every example, or of -log p_label, one autograd call each; [n, D]."""
    model.eval()
    found = []
    for i, y in zip(loader.index.tolist(), loader.labels.tolist(), strict=True):
        x = loader.images.x[i : i + 1].permute(0, 3, 1, 2).float() / 255
        loss = -F.log_softmax(model(x), 1)[0, y if label is None else label]
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(found)


def flat(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in values.values()])


def probabilities(model: nn.Module, loader: Loader) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.eval()(batch.x) for batch in loader]).softmax(1)


@pytest.fixture
def loader(data: Data) -> Loader:
    return data.subset(data.index("retain"))


def resized(loader: Loader, batch_size: int) -> Loader:
    return Loader(loader.images, loader.index, loader.labels, batch_size)


# -------------------------------------------------------------------------------------------------- per-example gradients


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


# --------------------------------------------------------------------------------------------- contracts of these methods


PRUNED = ("conv.weight", "fc.weight")


def applied(name: str, values: dict[str, Any], seed: int = 5, mask: Mask | None = None, **changes: Any) -> tuple[TinyNet, dict]:
    rt = quiet_runtime(seed)
    model, data = tiny_net(quiet_runtime()), make_data(rt, batch_size=8, **changes)
    if mask is not None:
        with torch.no_grad():
            for key in PRUNED:
                model.get_parameter(key).view(-1)[:2] = 0
                mask[key].view(-1)[:2] = False
    before = snapshot(model)
    METHODS[name].apply(model, data, short_config(name, **values), rt, None, mask)
    return model, before


@pytest.mark.parametrize(("name", "values"), MODES)
def test_masked_and_pruned_weights_stay(name: str, values: dict[str, Any]) -> None:
    """Bit-identical where the mask holds, exactly 0 where pruned; the rest is as without a mask, where it moves at all."""
    stream = torch.Generator().manual_seed(6)
    mask = {n: torch.rand(p.shape, generator=stream) < 0.5 for n, p in tiny_net(quiet_runtime()).named_parameters()}
    del mask["fc.bias"]  # a mask of some tensors leaves the others free
    model, before = applied(name, values, mask=mask)
    moved = 0
    for key, p in model.named_parameters():
        free = mask.get(key, torch.ones(p.shape).bool())
        assert torch.equal(p[~free], before[key][~free]), key
        moved += int((p[free] != before[key][free]).sum())
    assert all((model.get_parameter(key).view(-1)[:2] == 0).all() for key in PRUNED)
    assert moved > (5 if name == "ssd" else 50)


@pytest.mark.parametrize(("name", "values"), MODES)
def test_seed_draws_the_noise_and_the_samples(name: str, values: dict[str, Any]) -> None:
    """The Fisher methods' noise and IU's samples follow the seed; SSD and the published recursion draw nothing."""
    draws = (name, values) in NOISY or (name == "wfisher" and not values)
    values = values | (dict(fisher_samples=10) if name == "wfisher" else {})
    a, b = (snapshot(applied(name, values, seed)[0]) for seed in (5, 6))
    assert equal(a, b) != draws


@pytest.mark.parametrize(("name", "values"), MODES)
def test_images_are_taken_as_they_are(name: str, values: dict[str, Any]) -> None:
    """Augmentation in training is no part of a measurement."""
    assert equal(*(snapshot(applied(name, values, aug=aug)[0]) for aug in (False, True)))


@pytest.mark.parametrize(("name", "values"), BY_EXAMPLES)
def test_training_batches_are_no_part_of_it(name: str, values: dict[str, Any]) -> None:
    found = []
    for batch_size in (4, 30):
        rt = quiet_runtime()
        model = tiny_net(rt)
        METHODS[name].apply(model, make_data(rt, batch_size=batch_size), short_config(name, **values), rt)
        found.append(snapshot(model))
    assert equal(*found)


@pytest.mark.parametrize(("name", "values"), MODES)
def test_interrupted_method_leaves_the_model(name: str, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the midst of a pass gets out, and no weight has moved."""
    model, real, calls = tiny_net(quiet_runtime()), Images.batch, []

    def batch(self: Images, *args: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Images, "batch", batch)
    before, rt = snapshot(model), quiet_runtime()
    with pytest.raises(KeyboardInterrupt):
        METHODS[name].apply(model, make_data(rt, count=300), short_config(name, **values), rt)
    assert equal(snapshot(model), before)


@pytest.mark.parametrize(("name", "values"), MODES)
def test_log_of_a_repeated_run_is_one_row(name: str, values: dict[str, Any], tmp_path: Path, rt: Runtime, data: Data) -> None:
    """A run that was killed after its method, while it was evaluated, does not log twice."""
    cfg = short_config(name, **values)
    for _ in range(2):
        run = Run(RunConfig(save_dir=str(tmp_path)), "forget", name, {"cfg": cfg})
        run.folder.mkdir(parents=True, exist_ok=True)
        METHODS[name].apply(tiny_net(rt), data, cfg, rt, run)
        assert len((run.folder / "log.jsonl").read_text().splitlines()) == 1


# ----------------------------------------------------------------------------------------------------- Fisher forgetting


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
    own = 1e-4 * (1 / (measure(twin, batches, persample.every_label)["conv.weight"][:, 0, 1, 1] + 1e-8)).clamp(max=1e3)
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


def test_older_fisher_widens_the_whole_head(rt: Runtime, data: Data) -> None:
    """Ten times the noise, from one stream, on the head's weight in the exact mode, and on its bias in both."""
    moves = {}
    for mode in ("exact", "published"):
        model, before = applied("fisher", dict(fisher_mode=mode))
        moves[mode] = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    for name, ratio in (("fc.weight", 10), ("fc.bias", 1), ("conv.weight", 1), ("bn.bias", 1)):
        scale = 1 if name != "conv.weight" else 10  # 3 x 3 kernels: their last dimension is 3, as the classes are
        torch.testing.assert_close(moves["exact"][name] * scale, moves["published"][name] * ratio, rtol=1e-2, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------------- SSD


def test_dampening_that_finds_nothing_says_so(capsys: pytest.CaptureFixture, rt: Runtime, data: Data) -> None:
    """A forget set of 12 of 54 examples holds 12/54 of the importance to all, so alpha 4.5 and above choose nothing."""
    for alpha, quiet in ((4.51, False), (1.2, True)):
        model = tiny_net(rt)
        before = snapshot(model)
        METHODS["ssd"].apply(model, data, METHODS["ssd"].config(alpha=alpha), rt)
        assert equal(snapshot(model), before) != quiet
        assert ("notice: ssd dampened nothing" in capsys.readouterr().out) != quiet


def test_dampening_leaves_weights_that_are_held_or_without_importance(rt: Runtime, data: Data,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that is always off has no gradient, 0 of 0; the share that is told is of the weights that moved."""
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(Task, "log_whole", lambda task, **row: rows.append(row))
    model, mask = tiny_net(rt), {"fc.weight": torch.zeros(3, 4, dtype=torch.bool)}
    with torch.no_grad():
        model.bn.weight[0], model.bn.bias[:] = 0, torch.tensor([-1.0, 0.1, 0.1, 0.1])
    before = snapshot(model)
    METHODS["ssd"].apply(model, data, METHODS["ssd"].config(alpha=1.0), rt, None, mask)
    moved = {name: p.detach() != before[name] for name, p in model.named_parameters()}
    assert all(p.isfinite().all() for p in model.parameters())
    assert not (moved["fc.weight"].any() or moved["conv.weight"][0].any() or moved["bn.weight"][0] or moved["bn.bias"][0])
    count, total = (sum(int(part.sum()) for part in parts) for parts in (moved.values(), map(torch.ones_like, moved.values())))
    assert count > 3 and rows[0]["dampened_share"] == count / total


def test_dampening_only_shrinks(rt: Runtime, data: Data) -> None:
    """No weight grows or changes its sign, whatever lambda; a small one leaves less."""
    sizes = []
    for factor in (0.1, 1.0, 50.0):
        model, before = applied("ssd", dict(alpha=0.9, ssd_lambda=factor))
        for name, p in model.named_parameters():
            assert (p.detach().abs() <= before[name].abs()).all() and (p.detach() * before[name] >= 0).all()
        sizes.append(sum(float(p.detach().abs().sum()) for p in model.parameters()))
    assert sizes[0] < sizes[1] < sizes[2]
