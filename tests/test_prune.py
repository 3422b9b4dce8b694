"""Pruning by magnitude and by SynFlow: counts, rankings and scores against full sorts and explicit loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OWN, make_data, quiet_runtime, short_config, snapshot, tiny_net
from torch import nn
from torch.nn.utils import prune as torch_prune

import models
from models.layers import Normalize
from models.resnet import BasicBlock, Projection, ResNet
from pruner import magnitude, synflow
from pruner.mask import both, top
from pruner.plan import Plan, PruneConfig, SynFlowConfig
from trainer import Descent, TrainConfig, cross_entropy
from unlearn import METHODS
from utils import BadInput, Mask


def tensors(seed: int, ties: bool = False) -> dict[str, torch.Tensor]:
    """Weights of four shapes; with ties of few different values."""
    random = np.random.default_rng(seed)
    shapes = {"a": (4, 3, 3, 3), "b": (8, 4, 1, 1), "c": (2, 8, 3, 3), "d": (5,)}
    drawn = {n: random.integers(-3, 4, s) if ties else random.normal(size=s) for n, s in shapes.items()}
    return {n: torch.from_numpy(values).float() for n, values in drawn.items()}


def by_full_sort(scores: dict[str, torch.Tensor], count: int, free: Mask | None = None) -> Mask:
    """The count largest by one stable sort of everything; what is not free comes last."""
    flat = np.concatenate([s.numpy().ravel() for s in scores.values()]).astype(np.float64)
    if free is not None:
        flat[~np.concatenate([free[n].numpy().ravel() for n in scores])] = -np.inf
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind="stable")[:count]] = True
    parts = np.split(kept, np.cumsum([s.numel() for s in scores.values()])[:-1])
    return {n: torch.from_numpy(part.reshape(s.shape)) for (n, s), part in zip(scores.items(), parts, strict=True)}


def same(a: Mask, b: Mask) -> bool:
    return list(a) == list(b) and all(a[n].dtype == torch.bool and torch.equal(a[n], b[n]) for n in a)


def counted(mask: Mask) -> int:
    return sum(int(part.sum()) for part in mask.values())


# --------------------------------------------------------------------------------------------------------- magnitude


@pytest.mark.parametrize("ties", [False, True])
def test_kept_weights_equal_a_full_sort(ties: bool) -> None:
    """With ties too, and among the survivors of an earlier prune; counts are exact."""
    for seed in range(20):
        scores = magnitude.magnitudes(tensors(seed, ties))
        total = sum(s.numel() for s in scores.values())
        rate = np.random.default_rng(seed).uniform(0.02, 0.98)
        mask, kept = magnitude.keep_largest(scores, rate), total - round(rate * total)
        assert counted(mask) == kept
        assert same(mask, by_full_sort(scores, kept))
        again = magnitude.keep_largest({n: torch.rand_like(s) for n, s in scores.items()}, rate / 2, free=mask)
        assert counted(again) == kept - round(rate / 2 * kept) and not any((again[n] & ~mask[n]).any() for n in mask)


def pruned_by_torch(weights: dict[str, torch.Tensor], rates: list[float], scores: Callable[[Mask], dict[str, torch.Tensor]],
                    ) -> list[Mask]:
    """The masks after each prune of torch.nn.utils.prune over all weights together, by scores that may go by the mask."""
    holder = nn.ParameterDict({name.replace(".", "_"): nn.Parameter(w.detach().clone()) for name, w in weights.items()})
    layers = {}
    for name, weight in holder.items():
        layers[name] = nn.Module()
        layers[name].weight = weight
    names, found = list(weights), []
    for rate in rates:
        current = found[-1] if found else {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
        told = scores(current)
        ranked = {(layers[n.replace(".", "_")], "weight"): told[n] for n in names}
        torch_prune.global_unstructured(list(ranked), torch_prune.L1Unstructured, importance_scores=ranked, amount=rate)
        found.append({n: layers[n.replace(".", "_")].weight_mask.bool() for n in names})
    return found


@pytest.mark.parametrize(("rate", "rounds"), [(0.2, 13), (0.5, 5), (0.37, 6), (0.95, 1), (0.95, 2)])
def test_every_prune_takes_what_torch_takes(rate: float, rounds: int) -> None:
    """IMP as published: global_unstructured of the same amount again and again, each off the survivors of the last."""
    weights = tensors(7)
    theirs = pruned_by_torch(weights, [rate] * rounds, lambda mask: magnitude.magnitudes(weights))
    mine: Mask | None = None
    for mask in theirs:
        mine = magnitude.keep_largest(magnitude.magnitudes(weights), rate, free=mine)
        assert same(mine, mask)


@pytest.mark.parametrize(("rate", "count", "left"), [(0.5, 5, 3), (0.5, 7, 3), (0.5, 3, 1), (0.2, 8_927_386, 7_141_909)])
def test_half_a_weight_is_rounded_to_the_even_number(rate: float, count: int, left: int) -> None:
    """2.5 of five are two, 3.5 of seven are four; and IMP's second round leaves one more than 0.8^2 of all would."""
    assert magnitude.left_after(rate, count) == left


def test_one_partition_serves_several_counts() -> None:
    scores = magnitude.magnitudes(tensors(3))
    for count, mask in zip((200, 7, 31), top(scores, (200, 7, 31)), strict=True):
        assert same(mask, by_full_sort(scores, count))


def test_survivors_are_ranked_among_themselves() -> None:
    """Pruned weights stay pruned whatever they score, and a tensor without an entry is free as a whole."""
    scores = tensors(8)
    free = {n: s < 0.5 for n, s in scores.items()}
    assert same(top(scores, (60,), free)[0], by_full_sort(scores, 60, free))
    part = {"a": free["a"]}
    whole = {n: part.get(n, torch.ones_like(s, dtype=torch.bool)) for n, s in scores.items()}
    assert same(top(scores, (60,), part)[0], by_full_sort(scores, 60, whole))


def test_each_layer_has_its_own_share() -> None:
    scores = magnitude.magnitudes({n: 10.0**i * t for i, (n, t) in enumerate(tensors(5).items())})
    mask, left = None, {name: s.numel() for name, s in scores.items()}
    for _ in range(2):
        mask = magnitude.keep_largest(scores, 0.55, "layerwise_conv", mask)
        for name, part in mask.items():
            left[name] -= round(0.55 * left[name])
            assert same({name: part}, by_full_sort({name: scores[name]}, left[name]))
    # ranked together, the largest tensor would take it all
    assert counted({"d": magnitude.keep_largest(scores, 0.98)["d"]}) > 0.02 * 5


def test_scope_is_every_convolution_and_no_other_weight() -> None:
    """The first one and shortcuts too; linear layers only where asked for, batch norm and biases never."""
    model = models.build("resnet18", 10, (0.5,) * 3, (0.5,) * 3)
    names = list(magnitude.prunable(model))
    assert names == [n for n, p in model.named_parameters() if p.dim() == 4] and len(names) == 20
    assert "conv1.weight" in names and "layer2.0.downsample.0.weight" in names
    assert list(magnitude.prunable(model, "global_all")) == [*names, "fc.weight"]
    assert list(magnitude.prunable(models.build("vgg16_bn_lth", 10, (0.5,) * 3, (0.5,) * 3)))[0].endswith(".weight")


def test_network_without_convolutions_is_refused() -> None:
    plan = Plan.of(PruneConfig(prune_type="lt", rate=0.5), 3, "step")
    with pytest.raises(BadInput, match="neither convolutions nor linear layers"):
        plan.check(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    with pytest.raises(BadInput, match="neither convolutions nor linear layers"):
        synflow.prune(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), 0.5, 2, (3, 2, 2), [])


def test_random_scores_choose_evenly() -> None:
    """Each weight stays in a tenth of the draws, give or take; another seed draws others."""
    weights = {"a": torch.zeros(10, 10), "b": torch.zeros(50)}
    stream = torch.Generator().manual_seed(3)
    masks = [magnitude.keep_largest(magnitude.random_scores(weights, stream), 0.9) for _ in range(400)]
    shares = torch.cat([torch.stack([m[n].double() for m in masks]).mean(0).flatten() for n in weights])
    assert shares.mean() == pytest.approx(0.1) and float(shares.min()) > 0.03 and float(shares.max()) < 0.17


def test_pruned_weights_become_plus_zero() -> None:
    model = tiny_net(quiet_runtime())
    mask = {"conv.weight": model.conv.weight.detach().abs() > 0.1}
    before = snapshot(model)
    magnitude.apply_mask(model, mask)
    bits = model.conv.weight.detach().view(torch.int32)
    assert not bits[~mask["conv.weight"]].any() and torch.equal(model.conv.weight[mask["conv.weight"]],
                                                                before["conv.weight"][mask["conv.weight"]])


def test_both_masks_act_together() -> None:
    a, b = {"x": torch.tensor([True, True, False])}, {"x": torch.tensor([True, False, False]), "y": torch.tensor([True])}
    assert both(a, b)["x"].tolist() == [True, False, False] and both(a, b)["y"].tolist() == [True]


# ------------------------------------------------------------------------------------------------------------- plans


def test_published_rounds_leave_their_number_of_resnet18s_weights() -> None:
    """Counted by hand: what round(rate * survivors) leaves, round after round, of all its convolutions' weights."""
    model = models.build("resnet18", 10, (0.5,) * 3, (0.5,) * 3)
    assert sum(w.numel() for w in magnitude.prunable(model).values()) == 11_159_232
    left, by_share = 11_159_232, []
    for number in range(1, 15):
        left -= round(0.2 * left)
        by_share.append(left - round(11_159_232 * 0.8**number))
    assert left == 490_789 and sum(by_share) == 7  # seven rounds of fourteen differ from the share of all
    mask = {"w": torch.ones(11_159_232, dtype=torch.bool)}
    scores = {"w": torch.arange(11_159_232, dtype=torch.float64)}
    for _ in range(2):
        mask = magnitude.keep_largest(scores, 0.2, free=mask)
    assert counted(mask) == 7_141_909
    counts = synflow.budget(model, 1 - 0.95, 100, [])
    assert counts[-1] == 557_960 and counts[0] == 11_159_232 - round((1 - 0.05**0.01) * 11_159_232) and len(counts) == 100


def plan(epochs: int = 10, schedule: str = "step", **settings: Any) -> Plan:
    return Plan.of(PruneConfig(**({"rewind_epoch": 3} | settings)), epochs, schedule)


@pytest.mark.parametrize("times", range(2, 16))
def test_iterations_leave_the_power_of_the_share(times: int) -> None:
    """N trainings at rate 0.2 end at 0.8^(N - 1) of the weights; the same sparsity plans the same rounds."""
    made = plan(rate=0.2, pruning_times=times)
    assert made.rate == 0.2 and np.allclose(made.shares, 0.8 ** np.arange(times), rtol=0, atol=1e-12)
    assert plan(sparsity=made.settings(PruneConfig()).sparsity, pruning_times=times).facts() == made.facts()


def test_sparsity_ends_exactly_there_in_any_number_of_rounds() -> None:
    for times in (2, 3, 5, 9):
        shares = plan(sparsity=0.95, pruning_times=times).shares
        assert len(shares) == times and shares[0] == 1 and shares[-1] == 0.05
        assert np.allclose(np.diff(np.log(shares)), np.log(0.05) / (times - 1))
    assert plan(sparsity=0.95).shares == plan(rate=0.95).shares == plan().shares == (1.0, 0.05)
    assert plan(sparsity=0).shares == plan(pruning_times=1).shares == (1.0,)


REFUSED = {
    "both amounts": (dict(rate=0.5, sparsity=0.5), "--rate and --sparsity"),
    "one training": (dict(rate=0.5, pruning_times=1), "--pruning_times 1 trains once"),
    "one training to a sparsity": (dict(sparsity=0.5, pruning_times=1), "--pruning_times 1 trains once"),
    "rounds that prune nothing": (dict(sparsity=0, pruning_times=3), "--sparsity 0 prunes nothing"),
    "no rewind epoch": (dict(rewind_epoch=0), "rewind_lt needs --rewind_epoch"),
    "rewind epoch at the end": (dict(rewind_epoch=10), "beyond the 10 epochs"),
    "rewind epoch of another type": (dict(prune_type="pt"), "--prune_type pt rewinds to weights of its own"),
    "rewind file missing": (dict(rewind_pth="nowhere.pt"), "nowhere.pt: No such file"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_plans_that_cannot_be_are_refused(wrong: str) -> None:
    settings, words = REFUSED[wrong]
    with pytest.raises(BadInput, match=words):
        plan(**settings)


def test_published_schedule_needs_one_that_can_go_on() -> None:
    assert plan(rewind_schedule="published").rewind_schedule == "published"
    with pytest.raises(BadInput, match="past the end of --schedule cosine"):
        plan(schedule="cosine", rewind_schedule="published")


@pytest.mark.parametrize("settings", [dict(rate=1e-9), dict(sparsity=0.99999), dict(rate=0.99, prune_scope="layerwise_conv"),
                                      dict(sparsity=1e-5, pruning_times=9)])
def test_shares_that_a_network_cannot_have_are_refused(settings: dict[str, Any]) -> None:
    """TinyNet has 108 convolution weights."""
    plan(rate=0.5).check(tiny_net(quiet_runtime()))
    with pytest.raises(BadInput, match="prunes all or nothing"):
        plan(**settings).check(nn.Sequential(tiny_net(quiet_runtime()), nn.Conv2d(3, 1, 1)))


# ----------------------------------------------------------------------------------------------------------- SynFlow


class Small(nn.Module):
    """Every kind of layer that the scores go through, with signs everywhere; one 1x1 shortcut."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.normalize = Normalize((0.4, 0.5, 0.3), (0.2, 0.3, 0.25))
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.block = BasicBlock(6, 4, 2, Projection(6, 4, 2))
        self.fc = nn.Linear(4, 3)
        self.arch = "small"
        stream = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in self.state_dict().items():
                if value.is_floating_point() and not name.startswith("normalize"):
                    value.copy_(torch.randn(value.shape, generator=stream) + (2 if "running_var" in name else 0))
                    if "running_var" in name:
                        value.abs_().add_(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(self.normalize(x))))
        return self.fc(self.block(x).mean((2, 3)))


def synflow_twin(model: nn.Module, share: float, rounds: int, size: int) -> Mask:
    """Signs away in place, one score by a loop over the weights, a full sort a round: float64, straightforward."""
    net = Small(0).double().eval()
    net.load_state_dict({k: v.double().abs() if v.is_floating_point() else v for k, v in model.state_dict().items()})
    weights = {n: p for n, p in net.named_parameters() if p.dim() == 4}
    mask = {n: torch.ones_like(p, dtype=torch.bool) for n, p in weights.items()}
    left = sum(p.numel() for p in weights.values())
    for _ in range(rounds):
        net.zero_grad()
        net(torch.ones(1, 3, size, size, dtype=torch.float64)).sum().backward()
        scores = {n: torch.tensor([abs(w * g) for w, g in zip(p.flatten().tolist(), p.grad.flatten().tolist(), strict=True)],
                                  dtype=torch.float64).reshape(p.shape) for n, p in weights.items()}
        left -= round((1 - share ** (1 / rounds)) * left)
        mask = by_full_sort(scores, left, mask)
        for name, p in weights.items():
            p.data[~mask[name]] = 0
    return mask


@pytest.mark.parametrize("seed", range(3))
def test_synflow_equals_its_twin(seed: int) -> None:
    model = Small(seed)
    ours, twin = synflow.prune(model, 0.3, 7, (3, 6, 6), []), synflow_twin(model, 0.3, 7, 6)
    assert same(ours, twin) and abs(counted(ours) - 0.3 * sum(p.numel() for p in ours.values())) < 4
    # one round ranks otherwise
    assert not same(ours, synflow.prune(model, 0.3, 1, (3, 6, 6), []))


def test_every_round_of_synflow_takes_what_torch_takes() -> None:
    """As published: global_unstructured by the scores of what is left, at the rate 1 - (1 - rate)^(1 / rounds)."""
    model, rounds = Small(6), 9
    first = magnitude.prunable(synflow.absolute(model))

    def scores(mask: Mask) -> dict[str, torch.Tensor]:
        net = synflow.absolute(model)
        magnitude.apply_mask(net, mask)
        return synflow.scores(net, (3, 6, 6))

    theirs = pruned_by_torch(first, [1 - 0.3 ** (1 / rounds)] * rounds, scores)
    assert same(synflow.prune(model, 0.3, rounds, (3, 6, 6), []), theirs[-1])
    assert synflow.budget(model, 0.3, rounds, []) == [counted(mask) for mask in theirs]


def test_a_score_is_what_the_sum_of_outputs_loses() -> None:
    """R is linear in each weight, so |w dR/dw| is the difference that the weight's removal makes."""
    net = synflow.absolute(Small(4))
    found, x = synflow.scores(net, (3, 6, 6)), torch.ones(1, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        whole = float(net(x).sum())
        for name, weight in magnitude.prunable(net).items():
            for place in ((0, 0, 0, 0), (1, 2, 0, 0)):
                kept = float(weight[place])
                weight[place] = 0
                assert float(found[name][place]) == pytest.approx(whole - float(net(x).sum()), rel=1e-9)
                weight[place] = kept


def test_scoring_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it ends in an exception; train mode and gradients too."""
    model = Small(5).train()
    before = snapshot(model)
    synflow.prune(model, 0.5, 3, (3, 6, 6), [])
    monkeypatch.setattr(torch.autograd, "grad", None)
    with pytest.raises(TypeError):
        synflow.prune(model, 0.5, 3, (3, 6, 6), [])
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_deep_network_overflows_in_float32_and_not_here() -> None:
    model = models.build("resnet110s", 10, (0.5,) * 3, (0.5,) * 3)
    net = synflow.absolute(model)
    single = net.float()(torch.ones(1, 3, 8, 8)).sum()
    assert not torch.isfinite(single)
    found = synflow.scores(synflow.absolute(model), (3, 8, 8))
    assert all(torch.isfinite(score).all() for score in found.values())
    assert float(max(score.max() for score in found.values())) > 1e40


def test_spared_shortcuts_stay_whole_and_count(capsys: pytest.CaptureFixture[str]) -> None:
    """Without the flag a layer can lose every weight, which is said by name."""
    model = ResNet(BasicBlock, (1, 1), (16, 32), Projection, 3, Normalize((0.5,) * 3, (0.5,) * 3))
    model.arch = "two stages"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.reset_parameters()
    name = "layer2.0.downsample.0.weight"
    model.get_parameter(name).data.mul_(1e-6)  # so that it is the first to go
    assert synflow.shortcuts(model) == [name]
    total = sum(w.numel() for w in magnitude.prunable(model).values())
    bare = SynFlowConfig(sparsity=0.95, synflow_rounds=20).settings().mask(model, (3, 8, 8))
    assert magnitude.gone(bare) == [name] and f"notice: SynFlow left no weight in {name}" in capsys.readouterr().out
    kept = SynFlowConfig(sparsity=0.95, synflow_rounds=20, keep_shortcuts=True).settings().mask(model, (3, 8, 8))
    assert kept[name].all() and not magnitude.gone(kept) and "left no" not in capsys.readouterr().out
    assert counted(kept) == counted(bare) and abs(counted(bare) - 0.05 * total) < 10
    SynFlowConfig(keep_shortcuts=True).settings().mask(tiny_named(), (3, 8, 8))
    assert "--keep_shortcuts has no effect" in capsys.readouterr().out
    with pytest.raises(BadInput, match="weights on shortcuts are more than"):
        SynFlowConfig(sparsity=0.99, keep_shortcuts=True).settings().mask(model, (3, 8, 8))


def tiny_named() -> nn.Module:
    return tiny_net(quiet_runtime())


def test_synflow_amounts_that_cannot_be_are_refused() -> None:
    for share in (1e-9, 1 - 1e-9):
        with pytest.raises(BadInput, match="choose a --rate or --sparsity between"):
            synflow.prune(Small(1), share, 3, (3, 6, 6), [])
    with pytest.raises(BadInput, match="--rate and --sparsity"):
        SynFlowConfig(rate=0.5, sparsity=0.5).settings()


def test_a_network_that_synflow_cuts_through_is_refused() -> None:
    """Two weights in three layers without a shortcut: no image reaches the outputs, and no training would."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 2))
    total = sum(w.numel() for w in magnitude.prunable(model).values())
    assert counted(synflow.prune(model, 60 / total, 20, (3, 6, 6), [])) == 61
    with pytest.raises(BadInput, match=r"no path from the image to the outputs, and no weight in .*weight; prune less"):
        synflow.prune(model, 2 / total, 20, (3, 6, 6), [])


# ---------------------------------------------------------------------------------- exactly zero through whatever follows


def pruned_tiny(seed: int = 5) -> tuple[nn.Module, Mask]:
    model = tiny_net(quiet_runtime(seed))
    mask = magnitude.keep_largest(magnitude.magnitudes(magnitude.prunable(model)), 0.6)
    magnitude.apply_mask(model, mask)
    return model, mask


def assert_plus_zero(model: nn.Module, mask: Mask) -> None:
    """Every bit of a pruned weight is 0, and those that stay are not."""
    params = dict(model.named_parameters())
    for name, part in mask.items():
        assert not params[name].detach().view(torch.int32)[~part].any(), name
        assert (params[name][part] != 0).all(), name


def test_training_leaves_pruned_weights_at_plus_zero() -> None:
    """With decay, momentum and the l1 penalty."""
    rt = quiet_runtime()
    model, mask = pruned_tiny()
    before = snapshot(model)
    opt = Descent(model, TrainConfig(weight_decay=0.1, momentum=0.9), lr=0.1, epochs=3, rt=rt, purpose="train", mask=mask)
    for opt.at in range(3):
        opt.epoch(make_data(rt).loader("train", rt, "train"), cross_entropy)
    assert_plus_zero(model, mask)
    assert all((p != before[n]).all() for n, p in model.named_parameters() if n not in mask)


@pytest.mark.parametrize("name", OWN)
def test_every_method_leaves_pruned_weights_at_plus_zero(name: str) -> None:
    model, mask = pruned_tiny()
    fields = {field.name for field in dataclasses.fields(METHODS[name].config)}
    values = {"momentum": 0.9, "weight_decay": 0.1}
    rt = quiet_runtime()
    cfg = short_config(name, **{k: v for k, v in values.items() if k in fields})
    METHODS[name].apply(model, make_data(rt, batch_size=8, method=name), cfg, rt, None, mask)
    params = dict(model.named_parameters())
    assert not params["conv.weight"].detach().view(torch.int32)[~mask["conv.weight"]].any()
