"""Contracts that every registered method keeps, and what single methods promise beyond their formula."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OWN, TRAINED, TinyNet, equal, make_data, quiet_runtime, short_config, snapshot, tiny_net
from torch import nn

import main_forget
import main_train
import models
import trainer
from dataset import Data, Images
from trainer import Descent, Diverged, ScheduleConfig
from unlearn import METHODS, Task, over
from utils import BadInput, Config, Mask, Runtime

ALL = OWN
PARTS = ("retain", "forget", "val")
SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
State = dict[str, torch.Tensor]


def apply(name: str, seed: int = 5, mask: Mask | None = None, mode: str = "strict", aug: bool = False,
          **values: Any) -> tuple[TinyNet, State]:
    """The model after a method on toy data, 42 retain and 12 forget examples in batches of 8, and its state before."""
    rt = quiet_runtime(seed)
    model = tiny_net(quiet_runtime())
    before = snapshot(model)
    data = make_data(rt, batch_size=8, aug=aug, method=name)
    METHODS[name].apply(model, data, short_config(name, **values), rt, None, mask, mode)
    return model, before


def half_masks() -> Mask:
    """About half of each tensor may change, and of batch norm's weights none."""
    stream = torch.Generator().manual_seed(9)
    mask = {n: torch.rand(p.shape, generator=stream) < 0.5 for n, p in tiny_net(quiet_runtime()).named_parameters()}
    mask["bn.weight"][:] = False
    assert all(name == "bn.weight" or 0 < part.sum() < part.numel() for name, part in mask.items())
    return mask


# ------------------------------------------------------------------------------------------- contracts of all methods


@pytest.mark.parametrize("name", METHODS.names())
def test_method_declares_itself(name: str) -> None:
    """Source with arXiv number, a sentence that says what it does, and settings that the rest can be made of."""
    method = METHODS[name]
    assert method.name == name
    assert name in ("raw", "retrain") or re.search(r"arXiv:\d{4}\.\d{5}", method.source)
    assert method.source and re.fullmatch(r"\w.+\.", method.summary) and len(method.summary) < 120
    assert issubclass(method.config, Config) and method.uses <= set(PARTS)
    fields = {field.name: field for field in dataclasses.fields(method.config)}
    assert all(field.metadata["help"] for field in fields.values())
    for values in ({}, *method.per_protocol.values()):
        assert set(values) <= set(fields)
        method.config(**values)
    assert set(method.inherits) <= set(fields)
    assert set(method.inherits.values()) <= {field.name for field in dataclasses.fields(trainer.TrainConfig)}
    assert issubclass(method.config, ScheduleConfig) == ("unlearn_epochs" in fields)


@pytest.mark.parametrize("name", [name for name in METHODS.names() if name not in OWN])
def test_another_name_is_the_very_same_method(name: str) -> None:
    """Its function, its parts of the data, its settings by name, help and bounds; nothing but the defaults is its own."""
    method = METHODS[name]
    known = METHODS[method.same_as]
    assert known.name in OWN and method.function is known.function
    assert all(getattr(method, what) == getattr(known, what) for what in ("uses", "fresh", "masked", "inherits"))
    own, theirs = ({f.name: f.metadata for f in dataclasses.fields(m.config)} for m in (method, known))
    assert own.keys() == theirs.keys() and all(own[field] == theirs[field] for field in own)


def test_labels_of_run_folders_differ_where_case_does_not_count() -> None:
    """scrub and SCRUB are two methods, and would be one folder on some machines."""
    labels = {name: METHODS[name].label for name in (*METHODS.names(), *(f"{name}_our" for name in over.takers()))}
    assert len({label.lower() for label in labels.values()}) == len(labels)
    assert {name: label for name, label in labels.items() if name in METHODS.names() and name != label} == {
        "scrub": "scrub_2", "Wfisher": "Wfisher_2", "rl_our": "rl_our_2"}
    assert all(re.fullmatch(r"\w+", label) for label in labels.values())
    assert (METHODS["SCRUB_our"].label, METHODS["scrub_our"].label) == ("SCRUB_our", "scrub_2_our")
    with pytest.raises(BadInput, match="unknown unlearning method 'Scrub'"):
        METHODS["Scrub"]


@pytest.mark.parametrize("name", [name for name in TRAINED if "forget" in METHODS[name].uses])
def test_forget_set_alone_is_unlearned_where_nothing_is_retained(name: str, rt: Runtime,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase may hide retain: every epoch then passes over the forget set at least once, and over nothing else."""
    whole, read, real = make_data(rt, batch_size=5), [], Images.pixels
    gone = whole.splits.forget
    data = dataclasses.replace(whole, splits=dataclasses.replace(whole.splits, train=gone, retain=gone[:0]))
    monkeypatch.setattr(Images, "pixels", lambda self, index, crops: read.extend(index.tolist()) or real(self, index, crops))
    model = tiny_net(rt)
    before = snapshot(model)
    METHODS[name].apply(model, data, short_config(name, unlearn_epochs=3), rt)
    assert set(read) == set(gone.tolist()) and len(read) >= 3 * len(gone)
    assert (snapshot(model)["fc.weight"] - before["fc.weight"]).abs().max() > 1e-3
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


@pytest.mark.parametrize("name", ALL)
def test_same_seed_gives_same_weights(name: str) -> None:
    """Bit-identical parameters and buffers, whatever the global random state is."""
    torch.manual_seed(1)
    first, before = apply(name, aug=True)
    torch.manual_seed(2)
    np.random.seed(3)
    assert equal(snapshot(first), snapshot(apply(name, aug=True)[0]))
    assert equal(snapshot(first), before) == (name == "raw")


@pytest.mark.parametrize("name", TRAINED)
def test_other_seed_gives_other_weights(name: str) -> None:
    """The seed orders the batches: the weights differ by far more than rounding."""
    a, b = snapshot(apply(name, seed=5)[0]), snapshot(apply(name, seed=6)[0])
    assert (a["fc.weight"] - b["fc.weight"]).abs().max() > 1e-5


@pytest.mark.parametrize("name", TRAINED)
def test_zero_epochs_change_nothing(name: str) -> None:
    model, before = apply(name, unlearn_epochs=0, rewind=True)
    assert equal(snapshot(model), before)


@pytest.mark.parametrize("name", TRAINED)
def test_masked_weights_stay(name: str) -> None:
    """Bit-identical under momentum, a strong decay, an l1 penalty and several epochs; every other tensor moves."""
    mask = half_masks()
    model, before = apply(name, mask=mask, unlearn_epochs=3, momentum=0.9, weight_decay=0.1, alpha=0.01)
    for key, p in model.named_parameters():
        assert torch.equal(p[~mask[key]], before[key][~mask[key]]), key
        assert not mask[key].any() or (p[mask[key]] != before[key][mask[key]]).all(), key


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("lr", [1e30, 3e37])
def test_masked_weights_stay_when_all_others_become_infinite(name: str, lr: float) -> None:
    """A product of an infinite gradient with a mask is no number; the pruned weights of a broken model are still 0."""
    mask, rt = half_masks(), quiet_runtime(5)
    model, data = tiny_net(quiet_runtime()), make_data(rt, batch_size=8, method=name)
    before = snapshot(model)
    with contextlib.suppress(Diverged):
        METHODS[name].apply(model, data, short_config(name, **SGD, unlearn_lr=lr, unlearn_epochs=2), rt, None, mask)
    assert not all(bool(p.isfinite().all()) for p in model.parameters())
    for key, p in model.named_parameters():
        assert torch.equal(p[~mask[key]], before[key][~mask[key]]), key


@pytest.mark.parametrize("name", TRAINED)
def test_published_masks_let_masked_weights_decay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """v <- momentum v + decay w, w <- w - rate v at every step; nothing else reaches a masked weight (within 1e-6)."""
    rates, real = [], Descent._step

    def step(self: Descent, rate: float) -> None:
        rates.append(rate)
        real(self, rate)

    monkeypatch.setattr(Descent, "_step", step)
    mask = half_masks()
    momentum = 0.0 if name == "UNSIR" else 0.9  # which begins every pass without any
    model, before = apply(name, mask=mask, mode="published", optimizer="sgd", momentum=momentum, weight_decay=0.1,
                          schedule="step", decreasing_lr=(1,), replay_epochs=(0,))
    assert len(set(rates)) == 2
    for key, p in model.named_parameters():
        w, velocity = before[key].double(), torch.zeros(p.shape, dtype=torch.float64)
        for rate in rates:
            velocity = momentum * velocity + 0.1 * w
            w = w - rate * velocity
        still = ~mask[key]
        assert (p[still] - w[still]).abs().max() < 1e-6, key
        large = still & (before[key].abs() > 0.05)
        assert (p[large].abs() < 0.99 * before[key][large].abs()).all(), key
        assert not mask[key].any() or ((p - w)[mask[key]].abs() > 1e-6).any(), key


@pytest.mark.parametrize("name", ALL)
def test_global_random_state_stays(name: str) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    apply(name, aug=True, rewind=True)
    assert random.getstate() == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("name", ALL)
def test_reads_all_it_declares_and_no_other(name: str, rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image of the declared parts is read, no other of training, none of the test set; and none is changed."""
    data, read, real = make_data(rt, batch_size=8, method=name), set(), Images.pixels
    x, y = data.images.x.clone(), data.images.y.clone()

    def batch(self: Images, index: torch.Tensor, augment: Any) -> torch.Tensor:
        assert self is data.images
        read.update(index.tolist())
        return real(self, index, augment)

    monkeypatch.setattr(Images, "pixels", batch)
    method = METHODS[name]
    method.apply(tiny_net(rt), data, short_config(name, rewind=True, bt_retain_share=1.0), rt)
    of = {part: {int(i) for i in data.index(part)} for part in method.uses}
    if name == "orth_no_our":  # a retain batch beside each forget batch, as published: in 2 epochs 4 of 8 of these 42
        of["retain"] &= read
        assert 16 <= len(of["retain"]) <= 32
    assert read == set().union(*of.values())
    assert torch.equal(data.images.x, x) and torch.equal(data.images.y, y)


@pytest.mark.parametrize(("name", "part"), [(n, part) for n in ALL for part in PARTS if part not in METHODS[n].uses])
def test_undeclared_part_is_refused(name: str, part: str, rt: Runtime, data: Data) -> None:
    task = Task(METHODS[name], tiny_net(rt), data, rt, None, None, "strict")
    with pytest.raises(AttributeError, match=f"{name} did not declare that it uses '{part}'"):
        getattr(task, part)


@pytest.mark.parametrize("name", [name for name in TRAINED if "forget" in METHODS[name].uses])
@pytest.mark.parametrize("forget", [1, 3])
def test_forget_set_below_a_batch_gets_a_batch(name: str, forget: int, rt: Runtime) -> None:
    """With 1 or 3 examples at batch 16 the method acts on them: other forget labels give other weights."""
    found = []
    for flip in (False, True):
        data, model = make_data(rt, forget=forget, batch_size=16), tiny_net(rt)
        if flip:
            gone = torch.from_numpy(data.index("forget"))
            data.images.x[gone] = 255 - data.images.x[gone]
        METHODS[name].apply(model, data, short_config(name, **SGD, unlearn_epochs=1), quiet_runtime())  # Adam goes by signs
        found.append(snapshot(model))
    assert (found[0]["fc.weight"] - found[1]["fc.weight"]).abs().max() > 1e-5


@pytest.mark.parametrize("name", TRAINED)
def test_loss_that_is_no_number_is_refused(name: str, rt: Runtime) -> None:
    model = tiny_net(rt)
    with torch.no_grad():
        model.fc.bias[0] = torch.nan
    with pytest.raises(BadInput, match=r"the loss became nan in epoch 0: lower the learning rate") as raised:
        METHODS[name].apply(model, make_data(rt, method=name), short_config(name), rt)
    assert "\n" not in str(raised.value)


def test_refused_loss_names_its_epoch(rt: Runtime, data: Data) -> None:
    """Retain is 3 batches long; the model breaks in the second batch of the third epoch."""

    class Breaking(TinyNet):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x) * (torch.inf if self.calls == 8 else 1)

    with pytest.raises(BadInput, match=r"in epoch 2: lower the learning rate \(0\.05\)"):
        METHODS["FT"].apply(Breaking(), data, short_config("FT", unlearn_epochs=4), rt)


# ------------------------------------------------------------------------------------------------------------- retrain


def test_retrain_starts_from_weights_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command line: two originals have one retrain, bit for bit, and it has neither's initialisation."""
    made, real = [], models.new

    def new(cfg: Any, data: Any, rt: Runtime, purpose: str, *more: Any) -> nn.Module:
        model = real(cfg, data, rt, purpose, *more)
        made.append((purpose, snapshot(model)))
        return model

    monkeypatch.setattr(models, "new", new)
    here = ["--dataset", "digits", "--classes", "0,1", "--arch", "resnet20s", "--seed", "4", "--device", "cpu",
            "--no_progress", "--data", str(tmp_path)]
    settings = ["--unlearn", "retrain", "--unlearn_lr", "0.05", "--unlearn_epochs", "1", "--seed", "4",
                "--device", "cpu", "--no_progress", "--num_indexes_to_replace", "20"]
    found, originals = [], []
    for lr in ("0.1", "0.02"):
        main_train.main([*here, "--lr", lr, "--epochs", "1", "--save_dir", str(tmp_path / lr)])
        main_forget.main([*settings, "--save_dir", str(tmp_path / lr)])
        for stage, states in (("train", originals), ("forget", found)):
            (path,) = (tmp_path / lr / stage).glob("*/model.pt")
            states.append(torch.load(path, weights_only=True)["state_dict"])
    assert not equal(*originals)
    assert equal(*found)
    (first, original), (second, fresh) = made[:2]
    assert (first, second) == ("train", "retrain")
    drawn = [key for key, value in original.items() if value.dim() == 4 or key.startswith("fc.weight")]
    assert len(drawn) > 15 and not any(torch.equal(original[key], fresh[key]) for key in drawn)
    shared = [float(torch.corrcoef(torch.stack([original[k].flatten(), fresh[k].flatten()]))[0, 1]) for k in drawn]
    assert max(map(abs, shared)) < 0.5  # scaled or shifted copies would be near 1; the smallest tensor has 64 values


def test_only_retrain_is_fresh() -> None:
    assert [name for name in ALL if METHODS[name].fresh] == ["retrain"]


# ------------------------------------------------------------------------------------------------------- random labels


@pytest.mark.parametrize("rl_form", ["mixed", "sequential"])
@pytest.mark.parametrize("rl_labels", ["wrong", "any"])
def test_salun_without_a_mask_is_random_label(rl_form: str, rl_labels: str) -> None:
    values = dict(rl_form=rl_form, rl_labels=rl_labels, aug=True)
    assert equal(snapshot(apply("RL", **values)[0]), snapshot(apply("RL_og", **values)[0]))


def test_salun_with_a_mask_is_not_random_label() -> None:
    assert not equal(snapshot(apply("RL", mask=half_masks())[0]), snapshot(apply("RL_og")[0]))


# --------------------------------------------------------------------------------------------------------------- SCRUB


@pytest.mark.parametrize("rewind", [False, True])
def test_teacher_stays(rewind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit-identical to the original, in eval mode, in no optimiser; and it is the student that moves."""
    teachers, optimisers, copy, sgd = [], [], Task.frozen_copy, Task.descent
    monkeypatch.setattr(Task, "frozen_copy", lambda task: teachers.append(copy(task)) or teachers[-1])
    monkeypatch.setattr(Task, "descent", lambda task, cfg: optimisers.append(sgd(task, cfg)) or optimisers[-1])
    model, before = apply("SCRUB", rewind=rewind)
    (teacher,), (optimiser,) = teachers, optimisers
    assert equal(snapshot(teacher), before) and not equal(snapshot(model), before)
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert {id(p) for p in optimiser.params} == {id(p) for p in model.parameters()}


def test_the_bad_teacher_is_of_random_weights_and_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """In eval mode, in no optimiser, other weights than the original's, by the seed; and its batch norm has seen nothing."""
    made, real = [], Task.fresh_copy
    monkeypatch.setattr(Task, "fresh_copy", lambda task, purpose: made.append(real(task, purpose)) or made[-1])
    _, before = apply("badteacher")
    apply("badteacher")
    apply("badteacher", seed=6)
    first, again, other = map(snapshot, made)
    assert equal(first, again) and not torch.equal(first["conv.weight"], other["conv.weight"])
    assert all(not torch.equal(first[key], before[key]) for key in ("conv.weight", "fc.weight", "fc.bias"))
    assert not first["bn.running_mean"].any() and (first["bn.running_var"] == 1).all()
    assert not any(module.training for module in made[0].modules())
    assert not any(p.requires_grad or p.grad is not None for p in made[0].parameters())


def scrub_epochs(monkeypatch: pytest.MonkeyPatch, data: Data, seed: int = 5,
                 **values: Any) -> tuple[State, list[State], dict[str, Any]]:
    """SCRUB's final state, its state after each epoch, and the last row it logged."""
    states, rows, real = [], [], Task.log

    def log(task: Task, **row: Any) -> None:
        rows.append(row)
        if "epoch" in row:
            states.append(snapshot(task.model))

    monkeypatch.setattr(Task, "log", log)
    rt = quiet_runtime(seed)
    model = tiny_net(rt)
    METHODS["SCRUB"].apply(model, data, short_config("SCRUB", unlearn_epochs=6, unlearn_lr=0.3, **values), rt)
    monkeypatch.setattr(Task, "log", real)
    return snapshot(model), states, rows[-1]


def plain_error(state: State, data: Data, part: str) -> float:
    """Error rate of a state in eval mode, on whole images at once."""
    model = TinyNet().eval()
    model.load_state_dict(state)
    index = torch.from_numpy(data.index(part))
    with torch.no_grad():
        found = model(data.images.x[index].permute(0, 3, 1, 2).float() / 255).argmax(1)
    return float((found != data.images.y[index]).float().mean())


def weighted_error(state: dict[str, torch.Tensor], data: Data) -> float:
    """Error on validation images, each class weighing as much as it does in the forget set, by a plain loop."""
    forget, val = (data.images.y[torch.from_numpy(data.index(part))] for part in ("forget", "val"))
    model = tiny_net(quiet_runtime(0))
    model.load_state_dict(state)
    with torch.no_grad():
        wrong = model.eval()(data.images.batch(torch.from_numpy(data.index("val")), None)).argmax(1) != val
    shares = [(float((forget == c).float().mean()), float(wrong[val == c].float().mean())) for c in range(3)]
    return sum(share * error for share, error in shares)


def test_rewind_goes_to_the_epoch_nearest_to_the_validation_error(rt: Runtime,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six epochs, the one whose forget error is nearest to the last one's validation error; it varies over seeds."""
    data, chosen, apart = make_data(rt, count=300, forget=80, batch_size=64), [], 0
    for seed in range(10):
        final, states, row = scrub_epochs(monkeypatch, data, seed, rewind=True, msteps=3)
        target = weighted_error(states[-1], data)
        gaps = [abs(plain_error(state, data, "forget") - target) for state in states]
        assert row == {"rewound_to": row["rewound_to"], "validation_error": pytest.approx(target)}
        assert gaps[row["rewound_to"]] == pytest.approx(min(gaps), abs=1e-6)
        apart += max(gaps) > min(gaps) + 0.05
        assert equal(final, states[row["rewound_to"]])
        chosen.append(row["rewound_to"])
    assert len(set(chosen)) > 2 and apart > 5, chosen


def test_without_rewind_the_last_epoch_stays(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    final, states, row = scrub_epochs(monkeypatch, data)
    assert equal(final, states[-1]) and row["epoch"] == 5


def test_rewind_changes_nothing_of_the_training(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the errors leaves batches and weights of every epoch as they are without it."""
    _, with_rewind, _ = scrub_epochs(monkeypatch, data, rewind=True)
    _, without, _ = scrub_epochs(monkeypatch, data)
    assert all(equal(a, b) for a, b in zip(with_rewind, without, strict=True))


def test_rewind_measures_errors_without_augmentation(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over two epochs the forget set is read twice as it is, and the validation split once."""
    real, plain = Images.pixels, []

    def batch(self: Images, index: torch.Tensor, augment: Any) -> torch.Tensor:
        plain.extend(index.tolist() if augment is None else [])
        return real(self, index, augment)

    monkeypatch.setattr(Images, "pixels", batch)
    data = make_data(rt, aug=True)
    METHODS["SCRUB"].apply(tiny_net(rt), data, short_config("SCRUB", rewind=True), rt)
    assert sorted(plain) == sorted([*data.index("forget"), *data.index("forget"), *data.index("val")])


def test_rewind_without_validation_examples_is_refused(rt: Runtime, data: Data) -> None:
    """After --val_fraction 0 there is nothing to rewind to; that is said before any epoch is spent."""
    model, data = tiny_net(rt), dataclasses.replace(data, splits=dataclasses.replace(data.splits, val=np.empty(0, int)))
    before = snapshot(model)
    with pytest.raises(BadInput, match="rewind"):
        METHODS["SCRUB"].apply(model, data, short_config("SCRUB", rewind=True), rt)
    assert equal(snapshot(model), before)
