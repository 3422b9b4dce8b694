"""The methods that move weights between steps: FT_prune_bi's prunes and masks, and SalUn-soft's soft threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from conftest import equal, make_data, quiet_runtime, short_config, snapshot, tiny_net
from torch import nn

from pruner.mask import both
from trainer import Descent
from unlearn import METHODS, Task
from unlearn.label import soft_threshold
from utils import BadInput, Mask, find_runs

# ------------------------------------------------------------------------------------------------- pruning in turns


def alternate(mask: Mask | None = None, model: nn.Module | None = None, **values: Any) -> tuple[nn.Module, Mask | None]:
    rt = quiet_runtime()
    model = model or tiny_net(rt)
    cfg = short_config("FT_prune_bi", **values)
    return model, METHODS["FT_prune_bi"].apply(model, make_data(rt, batch_size=8), cfg, rt, None, mask)


@pytest.mark.parametrize(("epochs", "rate"), [(10, 0.95), (9, 0.5), (1, 0.75), (2, 0.9)])
def test_prunes_reach_the_rate_by_equal_shares(epochs: int, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 108 weights, before the epochs 0, 2, ...; each prune takes the smallest of what is left, and only those."""
    zeros, weights, real = [], [], Task.prune

    def prune(task: Task, mask: Mask) -> None:
        weights.append(task.model.conv.weight.detach().clone())
        real(task, mask)
        zeros.append(task.model.conv.weight.detach() == 0)

    monkeypatch.setattr(Task, "prune", prune)
    model, mask = alternate(unlearn_epochs=epochs, rate=rate)
    prunes = -(-epochs // 2)
    left = 108
    for epoch in range(epochs):
        left -= 0 if epoch % 2 else round((1 - (1 - rate) ** (1 / prunes)) * left)
        assert int(zeros[epoch].sum()) == 108 - left
        gone = weights[epoch].abs()[zeros[epoch]]
        assert gone.max() <= weights[epoch].abs()[~zeros[epoch]].min()
        assert epoch == 0 or (zeros[epoch] | ~zeros[epoch - 1]).all()
        assert epoch % 2 == 0 or torch.equal(zeros[epoch], zeros[epoch - 1])
    assert torch.equal(mask["conv.weight"], ~zeros[-1]) and torch.equal(model.conv.weight == 0, zeros[-1])
    assert set(mask) == {"conv.weight"} and abs(left - 108 * (1 - rate)) < 2


def test_pruned_weights_have_no_momentum_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly 0 after every step of every epoch, under momentum and decay; the others keep their velocity."""
    seen, real = [], Descent._step

    def step(self: Descent, rate: float) -> None:
        real(self, rate)
        seen.append((self.params[0] == 0, self.update.moments[0][0].clone()))

    monkeypatch.setattr(Descent, "_step", step)
    alternate(unlearn_epochs=6, rate=0.8, momentum=0.95, weight_decay=0.1)
    for zero, velocity in seen:
        assert not velocity[zero].any() and velocity[~zero].any()
    assert len({int(zero.sum()) for zero, _ in seen}) == 3


def test_what_a_mask_holds_is_not_pruned() -> None:
    """Under a saliency mask the rate is of the weights that may change, and the others stay bit-identical."""
    held = torch.rand(tiny_net(quiet_runtime()).conv.weight.shape, generator=torch.Generator().manual_seed(3)) < 0.4
    before = snapshot(tiny_net(quiet_runtime()))["conv.weight"]
    model, mask = alternate({"conv.weight": ~held}, rate=0.6)
    assert torch.equal(model.conv.weight[held], before[held]) and mask["conv.weight"][held].all()
    assert int((model.conv.weight == 0).sum()) == int((~held).sum()) - round(0.4 * int((~held).sum()))


def test_a_pruned_model_is_pruned_further() -> None:
    """The rate is of the weights that are left, and the checkpoint's mask holds both prunes."""
    model = tiny_net(quiet_runtime())
    old = {"conv.weight": model.conv.weight.detach().abs() > model.conv.weight.detach().abs().median()}
    with torch.no_grad():
        model.conv.weight.mul_(old["conv.weight"])
    model, mask = alternate(old, model, rate=0.5)
    whole = both(old, mask)["conv.weight"]
    assert int(old["conv.weight"].sum()) == 54 and int(whole.sum()) == 27
    assert torch.equal(model.conv.weight != 0, whole)


def test_other_methods_return_no_mask(tmp_path: Path) -> None:
    rt = quiet_runtime()
    assert METHODS["FT"].apply(tiny_net(rt), make_data(rt), short_config("FT"), rt) is None


@pytest.mark.parametrize(("rate", "told"), [(0.9999, "--rate leaves no weight of the convolutions"),
                                            (0.97, "leaves no weight in 1.weight")])
def test_a_rate_that_leaves_nothing_is_refused(rate: float, told: str) -> None:
    """Of a network whose second convolution has by far the smaller weights."""
    layers = nn.Sequential(nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                           nn.Linear(2, 3))
    with torch.no_grad():
        layers[1].weight.mul_(1e-6)
    with pytest.raises(BadInput, match=told):
        alternate(model=layers, rate=rate, unlearn_epochs=1)


def test_the_mask_is_in_the_checkpoint_and_holds_in_later_stages(tmp_path: Path) -> None:
    """From the shell: 5 prunes in 10 epochs to 95 %, saved as a pruned model; fine-tuning and a plan keep the zeros."""
    original = shell.train(tmp_path, 1, "--epochs", 2)
    shell.forget(original, tmp_path, "FT_prune_bi", *shell.FORGET, "--unlearn_epochs", 10, "--unlearn_lr", 0.05)
    run = shell.only(tmp_path, "forget")
    mask = torch.load(run.folder / "model.pt", weights_only=True)["mask"]
    total, left = sum(part.numel() for part in mask.values()), sum(int(part.sum()) for part in mask.values())
    assert left == round(0.05 * total) and total == 74_160
    pruned = {name for name, value in shell.weights(run).items() if name in mask and torch.equal(value == 0, ~mask[name])}
    assert pruned == set(mask)
    for number, words in enumerate((["FT"], ["FT_prune_bi", "--rate", 0.5])):
        shell.forget(run, tmp_path / str(number), *words, *shell.FORGET)
    steps = ["--plan", "all:FT_prune_bi(rate=0.5,unlearn_epochs=1)", "--checkpoint", run.folder, *shell.FORGET]
    shell.call("main_rum.py", *steps, save_dir=tmp_path / "2")
    for number, rate in enumerate((0, 0.5, 0.5)):
        (later,) = find_runs(tmp_path / str(number), ("forget", "rum"))
        content = torch.load(later.folder / "model.pt", weights_only=True)
        assert sum(int(part.sum()) for part in content["mask"].values()) == left - round(rate * left)
        for name, part in content["mask"].items():
            assert not (part & ~mask[name]).any() and not content["state_dict"][name][~part].any()


# --------------------------------------------------------------------------------------------------- soft threshold


@pytest.mark.parametrize("rank", [0, 1, 17, 60])
def test_soft_threshold_equals_a_loop(rank: int) -> None:
    """Over three tensors in float64, with a fifth of the weights held: sorted by hand, one weight at a time."""
    random = np.random.default_rng(rank)
    shapes = (4, 5), (30,), (2, 3, 3, 2)
    start, now = ([random.normal(size=shape) for shape in shapes] for _ in range(2))
    free = random.random(86) < 0.8
    flat = [np.concatenate([part.ravel() for part in parts]) for parts in (start, now)]
    gaps = sorted(abs(b - a) for a, b, may in zip(*flat, free, strict=True) if may)
    expected = flat[1].copy()
    for i in range(86):
        gap, t = flat[1][i] - flat[0][i], gaps[rank - 1]
        if free[i] and rank:
            expected[i] = flat[0][i] if abs(gap) <= t else flat[0][i] + (1 if gap > 0 else -1) * (abs(gap) - t)
    params = tuple(nn.Parameter(torch.from_numpy(part.copy())) for part in now)
    soft_threshold(params, [torch.from_numpy(part) for part in start], torch.from_numpy(free), rank)
    found = np.concatenate([p.detach().numpy().ravel() for p in params])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    assert (found[~free] == flat[1][~free]).all()
    assert (found[free] == flat[0][free]).sum() == rank


def test_soft_threshold_is_the_same_by_a_sort_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cuda in (False, True):
        monkeypatch.setattr(torch.Tensor, "is_cuda", cuda, raising=False)
        model = tiny_net(quiet_runtime())
        anchor = [torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(model.parameters())]
        count = sum(p.numel() for p in model.parameters())
        soft_threshold(tuple(model.parameters()), anchor, torch.ones(count, dtype=torch.bool), count // 3)
        found.append(snapshot(model))
    assert equal(*found)


def near(model: nn.Module, before: dict[str, torch.Tensor]) -> int:
    return sum(int((p == before[name]).sum()) for name, p in model.named_parameters())


@pytest.mark.parametrize("held", [0, 50])
@pytest.mark.parametrize("mode", ["exact", "published"])
def test_weights_return_to_their_anchor(mode: str, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many stand on the anchor after each step: exact falls with every step, published once an epoch, about anew.

    Where a mask holds weights, the share is of the others.
    """
    counts, state, real = [], {}, Descent._step
    rt, mask = quiet_runtime(), {"conv.weight": (torch.arange(108) >= held).view(4, 3, 3, 3)}
    model, data = tiny_net(rt), make_data(rt, batch_size=8)
    steps = []

    def threshold(*args: Any) -> None:
        soft_threshold(*args)
        counts.append(near(model, state) - held)

    def step(self: Descent, rate: float) -> None:
        if not steps or (mode == "published" and len(steps) % 7 == 0):
            state.update(snapshot(model))
        steps.append(rate)
        real(self, rate)

    monkeypatch.setattr(Descent, "_step", step)
    monkeypatch.setattr("unlearn.label.soft_threshold", threshold)
    cfg = short_config("RL_proximal", mask_ratio=0.8, rl_proximal_mode=mode)
    METHODS["RL_proximal"].apply(model, data, cfg, rt, None, mask)
    total, size = 14, sum(p.numel() for p in model.parameters()) - held
    at = [i + 1 if mode == "exact" else 7 * (i // 7) + 1 for i in range(14)]
    assert len(counts) == len(steps) == total
    for count, step_number in zip(counts, at, strict=True):
        assert abs(count - int(0.8 * (total - step_number) / total * size)) <= 1  # another weight may stand there by chance
