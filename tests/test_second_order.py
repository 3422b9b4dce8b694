"""Methods without training (wfisher, fisher, fisher_new, ssd): masks, seeds, images as they are, interruption, the log; ssd."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import equal, make_data, quiet_runtime, short_config, snapshot, tiny_net
from looped import PRUNED, applied
from torch import nn

import dataset
import models
from dataset import Data, Images
from groups import ForgetConfig
from trainer import Descent, TrainConfig, cross_entropy, predict
from unlearn import METHODS, Task
from utils import Run, RunConfig, Runtime

MODES = [("wfisher", {}), ("wfisher", dict(wfisher_mode="published")), ("fisher", {}),
         ("fisher", dict(fisher_mode="published")), ("fisher_new", dict(alpha=1e-4)),
         ("fisher_new", dict(alpha=1e-4, fisher_mode="published")),
         ("ssd", dict(alpha=0.9)), ("ssd", dict(ssd_mode="published", alpha=0.5))]
NOISY = [case for case in MODES if case[0].startswith("fisher")]
BY_EXAMPLES = [(name, values) for name, values in MODES if not {"ssd_mode", "fisher_mode"} & set(values)]


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
    model, real, calls = tiny_net(quiet_runtime()), Images.pixels, []

    def batch(self: Images, *args: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Images, "pixels", batch)
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


@pytest.mark.parametrize(("name", "values", "told"), [("fisher", {}, "noise_norm"), ("wfisher", dict(alpha=3.0), "step_norm")])
def test_norm_in_the_log_is_that_of_the_change(name: str, values: dict[str, Any], told: str, rt: Runtime, data: Data,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(Task, "log_whole", lambda task, **row: rows.append(row))
    model = tiny_net(rt)
    before = snapshot(model)
    METHODS[name].apply(model, data, METHODS[name].config(**values), rt)
    change = torch.cat([(p.detach().double() - before[key].double()).flatten() for key, p in model.named_parameters()])
    assert rows[0][told] == pytest.approx(float(change.norm()), rel=1e-2) and change.any()


# -------------------------------------------------------------------------------------------------------------- defaults


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, dict[str, Data]]:
    """A ResNet-8 that fits three digits, and requests of a random tenth and of one digit."""
    rt = quiet_runtime()
    cfg = dataset.DataConfig(dataset="digits", classes="0-2", batch_size=64)
    asked = {"random": ForgetConfig(forget_fraction=0.1), "class": ForgetConfig(class_to_replace=(1,))}
    requests = {name: dataset.load(cfg, rt, forget) for name, forget in asked.items()}
    data = requests["random"]
    model = models.new(models.ModelConfig(arch="resnet8s"), data, rt, "train")
    opt = Descent(model, TrainConfig(), lr=0.1, epochs=10, rt=rt, purpose="train")
    for opt.at in range(10):
        opt.epoch(data.loader("train", rt, "train"), cross_entropy)
    return model, requests


@pytest.mark.parametrize("name", ["wfisher", "fisher", "fisher_new", "ssd"])
@pytest.mark.parametrize("request_of", ["random", "class"])
def test_defaults_act(name: str, request_of: str, trained: tuple[nn.Module, dict[str, Data]]) -> None:
    """On a model that fits its images: outputs on the forget set move by more than a tenth of a logit, and retain stays.

    A class loses more of its probability than retain by all that know it, which noise by what retain needs does not.
    """
    original, requests = trained
    data, model, rt = requests[request_of], copy.deepcopy(original), quiet_runtime()
    METHODS[name].apply(model, data, METHODS[name].config(), rt)
    lost = {}
    for part in ("forget", "retain"):
        (before, y), (after, _) = (predict(net, data.loader(part), rt) for net in (original, model))
        p = [logits.softmax(1).gather(1, y[:, None]).mean() for logits in (before, after)]
        lost[part] = float(p[0] - p[1])
        assert float((after - before).abs().mean()) > (0.1 if part == "forget" else 0)
    assert float((after.argmax(1) == y).double().mean()) > 0.9
    if request_of == "class" and name != "fisher":
        assert lost["forget"] > 1e-4 + 5 * lost["retain"]


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
