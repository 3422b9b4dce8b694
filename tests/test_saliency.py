"""Saliency against gradients of one example at a time, the ranking against a full sort, and masks that do not fit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TinyNet, equal, make_data, quiet_runtime, snapshot
from torch import nn

from dataset import Data, Loader
from pruner.mask import both, largest
from trainer import cross_entropy
from unlearn.saliency import SaliencyConfig, find_mask, mask_in, saliency
from utils import BadInput, Mask, Run, RunConfig, Runtime

Scores = dict[str, torch.Tensor]
HERE = Path("with_0.5.pt")


def cut(data: Data, batch_size: int, part: str = "forget") -> Loader:
    index = torch.from_numpy(data.index(part))
    return Loader(data.images, index, data.images.y[index], batch_size)


def example_gradients(model: nn.Module, loader: Loader) -> list[Scores]:
    """The signed gradient of each example's own loss, in eval mode and float64."""
    twin = TinyNet().double().eval()
    twin.load_state_dict(model.state_dict())
    found = []
    for batch in loader:
        for x, y in zip(batch.x.double(), batch.y, strict=True):
            twin.zero_grad()
            F.cross_entropy(twin(x[None]), y[None]).backward()
            found.append({name: p.grad.clone() for name, p in twin.named_parameters()})
    return found


def near(found: Scores, expected: Scores) -> bool:
    """Within 1e-5 of the largest score."""
    scale = max(float(s.max()) for s in expected.values())
    return all((found[name] - expected[name]).abs().max() < 1e-5 * scale for name in expected)


@pytest.fixture
def trained(model: TinyNet, data: Data) -> TinyNet:
    """A TinyNet whose batch norm has statistics of its own, left in training mode."""
    model.train()
    for batch in data.loader("retain"):
        model(batch.x * 2)
    return model


# ------------------------------------------------------------------------------------------------------------ saliency


def test_saliency_is_the_mean_gradient_of_the_examples(trained: TinyNet, data: Data, rt: Runtime) -> None:
    """|mean of the 12 examples' gradients| in eval mode, for every parameter, whatever the batch size."""
    each = example_gradients(trained, cut(data, 5))
    expected = {n: torch.stack([g[n] for g in each]).mean(0).abs() for n, _ in trained.named_parameters()}
    for batch_size in (1, 5, 7, 12, 256):
        found = saliency(trained.train(), cut(data, batch_size))
        assert near(found, expected) and [*found] == [*expected], batch_size
    absolute_first = {n: torch.stack([g[n] for g in each]).abs().mean(0) for n in expected}
    assert not near(found, absolute_first)


def test_published_saliency_is_the_sum_of_batch_means(trained: TinyNet, data: Data, rt: Runtime) -> None:
    """With 12 examples in batches of 5, 5 and 2 the last two count for more; equal batches change the scale alone."""
    each = example_gradients(trained, cut(data, 5))
    names = [*each[0]]
    cuts = ((0, 5), (5, 10), (10, 12))
    means = [{n: torch.stack([g[n] for g in each[start:end]]).mean(0) for n in names} for start, end in cuts]
    found = saliency(trained, cut(data, 5), "published")
    assert near(found, {n: sum(mean[n] for mean in means).abs() for n in names})
    exact = saliency(trained, cut(data, 5))
    assert not near(found, {n: 3 * s for n, s in exact.items()})
    assert near(saliency(trained, cut(data, 4), "published"), {n: 3 * s for n, s in exact.items()})


@pytest.mark.parametrize("mode", ["exact", "published"])
def test_saliency_moves_nothing(mode: str, trained: TinyNet, data: Data, rt: Runtime) -> None:
    """Weights and running statistics stay bit-identical, no gradient is left behind, no global stream is drawn from."""
    before, states = snapshot(trained), (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    saliency(trained, data.loader("forget"), mode)
    assert equal(snapshot(trained), before)
    assert all(p.grad is None and p.requires_grad for p in trained.parameters())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_saliency_is_of_the_forget_loss(trained: TinyNet, data: Data, rt: Runtime) -> None:
    """A step down the gradient on the most salient tenth lowers the forget loss more than one on the least salient."""

    def after(mask: Mask) -> float:
        model = TinyNet().eval()
        model.load_state_dict(before)
        (batch,) = cut(data, 256)
        grads = torch.autograd.grad(cross_entropy(model, batch), list(model.parameters()))
        with torch.no_grad():
            for (name, p), grad in zip(model.named_parameters(), grads, strict=True):
                p -= 0.01 * grad * mask[name]
            return float(cross_entropy(model, batch))

    before, scores = snapshot(trained), saliency(trained, cut(data, 256))
    top = largest(scores, (0.1, 0.9))
    nothing = {name: torch.zeros_like(part) for name, part in top[0.1].items()}
    gain = [after(nothing) - after(mask) for mask in (top[0.1], {n: ~part for n, part in top[0.9].items()})]
    assert gain[0] > 10 * gain[1] >= 0


def test_model_whose_gradient_is_no_number_is_refused(trained: TinyNet, data: Data, rt: Runtime) -> None:
    with torch.no_grad():
        trained.fc.bias[0] = torch.nan
    with pytest.raises((BadInput, AssertionError)):
        largest(saliency(trained, data.loader("forget")), (0.5,))


# ------------------------------------------------------------------------------------------------------------- ranking


def random_scores(seed: int, ties: bool) -> Scores:
    stream = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (4, 3, 3, 3), "bn.weight": (4,), "bn.bias": (4,), "fc.weight": (3, 4), "fc.bias": (3,)}
    scores = {name: torch.rand(shape, generator=stream) for name, shape in shapes.items()}
    return {name: (s * 8).floor() if ties else s for name, s in scores.items()}


DENSITIES = (0.5, 0.008, 0.1, 0.3, 0.29, 0.9, 1.0)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_largest_is_a_full_sort(seed: int, ties: bool) -> None:
    """For each density the first int(density n) of a stable descending sort over all tensors together, in shape."""
    scores = random_scores(seed, ties)
    flat = torch.cat([s.flatten() for s in scores.values()])
    order = flat.sort(descending=True, stable=True).indices
    masks = largest(scores, DENSITIES)
    assert set(masks) == set(DENSITIES)
    for density, mask in masks.items():
        count = int(density * 131)
        expected = torch.zeros(131, dtype=torch.bool)
        expected[order[:count]] = True
        assert torch.equal(torch.cat([part.flatten() for part in mask.values()]), expected), density
        assert [*mask] == [*scores]
        assert all(part.dtype == torch.bool and part.shape == scores[name].shape for name, part in mask.items())


@pytest.mark.parametrize("ties", [False, True])
def test_kept_scores_are_the_larger_ones(ties: bool) -> None:
    """No dropped score exceeds a kept one (a published ranking keeps the least salient weights)."""
    scores = random_scores(3, ties)
    for mask in largest(scores, (0.1, 0.5, 0.9)).values():
        kept = torch.cat([scores[name][part] for name, part in mask.items()])
        dropped = torch.cat([scores[name][~part] for name, part in mask.items()])
        assert kept.min() >= dropped.max() and kept.mean() > dropped.mean()


def test_masks_of_one_ranking_are_nested_and_the_same_as_alone() -> None:
    """Equal scores too: 131 ones, where only the order of the tensors decides."""
    for scores in (random_scores(4, True), {name: torch.ones_like(s) for name, s in random_scores(4, True).items()}):
        masks = largest(scores, DENSITIES)
        ascending = sorted(DENSITIES)
        for small, large in zip(ascending, ascending[1:], strict=False):
            assert all((masks[large][name] | ~masks[small][name]).all() for name in scores)
        for density in DENSITIES:
            assert equal(largest(scores, (density,))[density], masks[density])


def test_ranking_is_over_all_tensors_together() -> None:
    """A tensor of small scores keeps nothing, though half of the weights are kept."""
    mask = largest({"a": torch.full((2, 3), 0.1), "b": torch.tensor([1.0, 3, 2, 4, 6, 5])}, (0.5,))[0.5]
    assert not mask["a"].any() and mask["b"].all()
    masks = largest({"a": torch.tensor([5.0, 1.0]), "b": torch.tensor([5.0, 5.0])}, (0.5,))
    assert masks[0.5]["a"].tolist() == [True, False] and masks[0.5]["b"].tolist() == [True, False]


# ------------------------------------------------------------------------------------------------------- reading masks


def test_own_and_published_masks_are_read(model: TinyNet) -> None:
    """bool, and the published 0/1 in int64 or float32, in any order of names."""
    scores = {name: p.detach().abs() for name, p in model.named_parameters()}
    mask = largest(scores, (0.5,))[0.5]
    for kind in (torch.bool, torch.int64, torch.float32):
        content = {name: mask[name].to(kind) for name in reversed(mask)}
        found = mask_in(content, model, HERE)
        assert equal(found, mask) and all(part.dtype == torch.bool for part in found.values())


def test_masks_are_read_out_of_what_others_wrap_them_in(model: TinyNet) -> None:
    """By the reader of checkpoints: DataParallel's names, a dict around it, a profiler's counts."""
    mask = largest({name: p.detach().abs() for name, p in model.named_parameters()}, (0.5,))[0.5]
    parallel = {f"module.{name}": part.float() for name, part in mask.items()}
    for content in (parallel, {"state_dict": mask, "epoch": 3}, {"mask": parallel}, {"model": parallel, "acc": 1.0},
                    {**mask, "total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1)},
                    {f"_orig_mod.model.{name}": part.long() for name, part in mask.items()}):
        assert equal(mask_in(content, model, HERE), mask)


def spoilt(content: dict[str, Any], how: str) -> Any:
    if how == "list":
        return [*content.values()]
    if how == "checkpoint":
        return {"state_dict": {**TinyNet().state_dict()}, "epoch": 3}
    if how == "sparse":
        content["fc.weight"] = content["fc.weight"].float().to_sparse()
    elif how == "missing":
        del content["bn.bias"]
    elif how == "extra":
        content["head.weight"] = torch.ones(3)
    elif how == "shape":
        content["conv.weight"] = content["conv.weight"].flatten()
    elif how == "classes":
        content["fc.weight"], content["fc.bias"] = torch.ones(10, 4), torch.ones(10)
    else:
        content["fc.weight"] = content["fc.weight"].float()
        content["fc.weight"][1, 2] = {"soft": 0.5, "two": 2, "negative": -1, "nan": torch.nan}[how]
    return content


@pytest.mark.parametrize(("how", "says"), [
    ("list", "is no saliency mask"), ("checkpoint", "the weights of a model and no mask; give it by --checkpoint"),
    ("sparse", "fc.weight is a sparse tensor"),
    ("missing", "another model .1 parameters differ, such as bn.bias"), ("extra", "such as head.weight"),
    ("shape", "such as conv.weight"), ("classes", "2 parameters differ, such as fc"),
    ("soft", "other than 0 and 1"), ("two", "other than 0 and 1"), ("negative", "other than 0 and 1"),
    ("nan", "other than 0 and 1")])
def test_mask_that_does_not_fit_is_refused(how: str, says: str, model: TinyNet) -> None:
    content = spoilt({name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters()}, how)
    with pytest.raises(BadInput, match=says) as raised:
        mask_in(content, model, HERE)
    assert str(raised.value).startswith(str(HERE)) and "\n" not in str(raised.value)
    assert "generate_mask.py" in str(raised.value)


def test_both_masks_at_once() -> None:
    """True only where both are; without an entry a parameter is free; None is no mask; neither argument changes."""
    a = {"x": torch.tensor([True, True, False, False]), "only a": torch.tensor([False])}
    b = {"x": torch.tensor([True, False, True, False]), "only b": torch.tensor([True, False])}
    found, held = both(a, b), (a["x"].clone(), b["x"].clone())
    assert found["x"].tolist() == [True, False, False, False]
    assert found["only a"].tolist() == [False] and found["only b"].tolist() == [True, False] and len(found) == 3
    assert both(a, None) is a and both(None, b) is b and both(None, None) is None
    assert torch.equal(a["x"], held[0]) and torch.equal(b["x"], held[1])


# ------------------------------------------------------------------------------------------------------- finding masks


MINE = "5a"  # sha256 of the model that unlearns, as records hold it


def mask_run(root: Path, model: nn.Module, split_key: str, *densities: float, original: str = MINE) -> Path:
    """A finished mask run as generate_mask.py leaves it."""
    scores = {name: p.detach().abs() for name, p in model.named_parameters()}
    identity = {"parent": {"path": f"runs/train/{original}/model.pt", "sha256": original}, "split_key": split_key}
    settings = {"cfg": SaliencyConfig(density=densities)}
    with Run(RunConfig(save_dir=str(root)), "mask", "toy", settings, **identity) as run:
        for density, mask in largest(scores, densities).items():
            run.save_bare(f"with_{density:g}.pt", mask)
        run.seconds["mask"] = 3.5
    return run.folder


def test_mask_is_found_by_file_run_or_folder_of_runs(model: TinyNet, data: Data, tmp_path: Path) -> None:
    """The one of this forget set and this model, with its hash, its share of free weights, and the seconds it cost."""
    mask_run(tmp_path, model, "another split", 0.5)
    mask_run(tmp_path, model, "toy-split", 0.25, original="another model")
    folder = mask_run(tmp_path, model, "toy-split", 0.5)
    found = [find_mask(str(path), model, data, MINE) for path in (folder / "with_0.5.pt", folder, tmp_path)]
    expected = largest({name: p.detach().abs() for name, p in model.named_parameters()}, (0.5,))[0.5]
    for mask, facts, cost in found:
        assert equal(mask, expected) and cost == (3.5, 0) and facts == found[0][1]
    assert facts["density"] == round(int(0.5 * 131) / 131, 4) and len(facts["sha256"]) == 64
    bare = tmp_path / "with_0.5.pt"
    torch.save({name: part.long() for name, part in expected.items()}, bare)
    mask, facts, cost = find_mask(str(bare), model, data, MINE)
    assert equal(mask, expected) and cost == (0, 0)


def test_mask_that_is_not_the_one_is_refused(model: TinyNet, data: Data, tmp_path: Path) -> None:
    """Another forget set's, another model's, several, none: one line each that names the path."""
    other = mask_run(tmp_path / "other", model, "another split", 0.5)
    theirs = mask_run(tmp_path / "theirs", model, "toy-split", 0.5, original="another model")
    several = mask_run(tmp_path / "several", model, "toy-split", 0.1, 0.5)
    mask_run(tmp_path / "twice", model, "toy-split", 0.1)
    mask_run(tmp_path / "twice", model, "toy-split", 0.2)
    (tmp_path / "empty").mkdir()
    for path, says in ((other, "another forget set .split_key another split, not toy-split"),
                       (other / "with_0.5.pt", "another forget set"), (theirs / "with_0.5.pt", "another model"),
                       (several, "name one of its masks: with_0.1.pt, with_0.5.pt"),
                       (tmp_path / "twice", "2 of 2 mask runs"), (tmp_path / "other", "0 of 1 mask runs"),
                       (tmp_path / "theirs", "0 of 1 mask runs"), (tmp_path / "empty", "0 of 0 mask runs"),
                       (tmp_path / "nothing.pt", "does not exist")):
        with pytest.raises(BadInput, match=says) as raised:
            find_mask(str(path), model, data, MINE)
        assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_model_instead_of_a_mask_is_refused(model: TinyNet, data: Data, tmp_path: Path) -> None:
    """--path runs/train/RUN/model.pt is an easy slip, since the published flag for a checkpoint is --mask."""
    with Run(RunConfig(save_dir=str(tmp_path)), "train", "toy", {}) as run:
        run.save_tensors("model.pt", {"state_dict": model.state_dict()})
    with pytest.raises(BadInput, match="is of a train run"):
        find_mask(str(run.folder / "model.pt"), model, data, MINE)


def test_saliency_does_not_depend_on_the_seed(trained: TinyNet) -> None:
    """The evaluation loader is in order and draws nothing: another seed, the same mask."""
    found = []
    for seed in (1, 2):
        rt = quiet_runtime(seed)
        found.append(saliency(trained, make_data(rt).loader("forget")))
    assert equal(*found)


def test_density_that_leaves_no_weight_is_refused() -> None:
    with pytest.raises(BadInput, match="--density 0.001 leaves none of the 131 weights free"):
        largest(random_scores(5, False), (0.5, 0.001))


def test_pruned_weights_are_neither_counted_nor_chosen() -> None:
    """The density is a share of what a pruned model has left, whatever scores its pruned weights get."""
    scores = random_scores(6, False)
    free = {name: torch.rand(s.shape, generator=torch.Generator().manual_seed(1)) < 0.5 for name, s in scores.items()}
    high = {name: torch.where(free[name], s, s + 100) for name, s in scores.items()}
    (mask,) = largest(high, (0.3,), free).values()
    left = sum(int(part.sum()) for part in free.values())
    assert sum(int(part.sum()) for part in mask.values()) == int(0.3 * left)
    assert not any(bool((mask[name] & ~free[name]).any()) for name in mask)
    kept = torch.cat([s[mask[name]] for name, s in scores.items()])
    dropped = torch.cat([s[free[name] & ~mask[name]] for name, s in scores.items()])
    assert kept.min() >= dropped.max()
