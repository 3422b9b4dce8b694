"""Settings: each that can change the weights has its own folder, none is dead, each acts, and the defaults leave a model."""

from __future__ import annotations

import ast
import dataclasses
import typing
from typing import Any

import pytest
import torch
from conftest import TRAINED, TinyNet, equal, make_data, quiet_runtime, short_config, snapshot, tiny_net
from test_shape import SOURCES

import arg_parser
import trainer
from dataset import Data
from evaluation import tow
from memorization import SCORES
from stages import ParentConfig
from trainer import Descent, TrainConfig, cross_entropy
from unlearn import METHODS, Task, over
from unlearn.plan import PlanConfig
from utils import Config, Run, RunConfig, Runtime

# what cannot change the weights, or is in the run's identity under another name (forget set, mask, original)
OUTSIDE_THE_DIGEST = {
    "data", "download", "any_size", "num_classes", "progress", "keep_memory", "eval_batch", "threads",
    "layout", "save_dir", "force", "resume_every", "mia",
    "split_seed",
    "any_scores", "mia_mode", "mia_draws", "mia_fits", "checkpoint", "path", "num_indexes_to_replace", "forget_fraction",
    "setup", "class_to_replace", "subclass_to_replace",
    "forget_mislabelled", "forget_index", "mem", "mem_proxy", "group_index", "scores", "plan",
    "plan_label", "plan_name", "order", "shuffle", "budget", "requests", "subsets",
    "recipe", "engine", "stack", "graphs", "pool_workers", "shard", "keep_logits", "record_curvature", "rewind_pth"}
# settings that need another beside them, or a value of their own form: what they are changed from, and to
LISSA = {"solver": "lissa", "wfisher_mode": "exact"}
PAIRS = {name: (LISSA, LISSA | {name: 0.9 if name != "solver_steps" else 9})
         for name in ("damping", "step_limit", "solver_steps", "solver_tolerance", "lissa_scale")} | {
         "solver": ({"wfisher_mode": "exact"}, {"wfisher_mode": "exact", "solver": "cg"}),
         "subsets": ({"subset": "given", "subsets": "here"}, {"subset": "given", "subsets": "there"}),
         "shard": ({}, {"shard": "1/2"}), "arch": ({}, {"arch": "vit"}),
        **{name: ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, {"mean": (0.5,) * 3, "std": (0.5,) * 3, name: (0.25,) * 3})
           for name in ("mean", "std")},
         "replay_epochs": ({"replay_factors": (1.0,)}, {"replay_factors": (1.0,), "replay_epochs": (4,)}),
         "bn": ({"rl_form": "sequential"}, {"rl_form": "sequential", "bn": "eval"}),
         "influence_above": ({"influence": True}, {"influence": True, "influence_above": 0.5})}


def other_value(config: type[Config], field: dataclasses.Field) -> Any:
    """An allowed value of a setting that is not its default."""
    kind, many = arg_parser.kind_of(typing.get_type_hints(config)[field.name])
    meta, default = field.metadata, field.default
    if meta["choices"]:
        return next(word for word in meta["choices"] if word != default)
    if many:
        return {int: (1,), float: (0.25,), str: ("elsewhere",)}[kind]
    if kind is bool:
        return not default
    if issubclass(kind, str):
        return "elsewhere"
    if issubclass(kind, tuple):  # classes
        return kind((1,))
    if kind is int:
        return int(max(default or 0, meta["low"])) + 1
    return 0.5 if default is None else default / 2 or 0.03


def all_configs() -> dict[str, type[Config]]:
    """Every settings class of every stage and method."""
    found = {name: registry[name].config for registry in (METHODS, SCORES) for name in registry.names()}
    found |= {f"{name}_our": METHODS[f"{name}_our"].config for name in over.takers()}
    for stage, (_, groups) in arg_parser.STAGES.items():
        found |= {f"{stage} {group}": config for group, config in groups.items()}
    return found


def test_every_setting_that_can_change_the_weights_has_its_own_folder() -> None:
    """One value changed: another run folder, unless the setting is one of those that cannot change the weights."""
    tried = set()
    for label, config in all_configs().items():
        for field in dataclasses.fields(config) if not label.startswith(("analysis", "calibrate")) else ():
            base, other = PAIRS.get(field.name) or ({}, {field.name: other_value(config, field)})
            own = {field.name for field in dataclasses.fields(config)}
            made = [config(**{key: value for key, value in words.items() if key in own}) for words in (base, other)]
            folders = {Run(RunConfig(), "forget", "label", {"group": cfg}).folder for cfg in made}
            # the density of a plan is in the identity of its steps
            free = field.name in OUTSIDE_THE_DIGEST or config is ParentConfig or (config, field.name) == (PlanConfig, "density")
            assert len(folders) == (1 if free else 2), f"{label}: {field.name}"
            tried.add(field.name)
    assert len(tried) > 40 and tried >= OUTSIDE_THE_DIGEST


def test_no_setting_is_dead() -> None:
    """Every flag's name is read somewhere as an attribute, or by name."""
    read = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
    declared = {field.name for config in all_configs().values() for field in dataclasses.fields(config)}
    assert declared - read == set() and len(declared) > 40


@pytest.mark.parametrize("name", TRAINED)
def test_every_setting_of_a_method_acts(name: str) -> None:
    """One value changed: other weights or other statistics, for each setting that the method declares."""
    config = METHODS[name].config
    base = dict(unlearn_lr=0.05, unlearn_epochs=3, schedule="step", decreasing_lr=(2,), lr_gamma=0.5, alpha=0.02,
                msteps=2, momentum=0.9, weight_decay=0.01, rl_form="sequential", optimizer="sgd",
                ascent_every=2, epsilon=0.0, orth_weight=0.7)
    other = dict(optimizer="adamw", ascent_every=1, epsilon=0.9, unsir_per_class=3, repair_batch=5,
                 rl_form="mixed", our_form="class", our_layers=("conv", "fc"),
                 unlearn_lr=0.02, unlearn_epochs=2, schedule="cosine", decreasing_lr=(1,), msteps=1, warmup=2)

    def weights(**change: Any) -> dict[str, torch.Tensor]:
        rt = quiet_runtime()
        model = tiny_net(rt)
        data, cfg = make_data(rt, count=30, forget=6, batch_size=8, method=name), short_config(name, **(base | change))
        METHODS[name].apply(model, data, cfg, rt)
        return snapshot(model)

    start, of_muon = weights(), weights(optimizer="muon") if name in ("FT", "SCRUB") else None
    for field in dataclasses.fields(config):
        # rewind may well choose the last epoch, test_methods.py has its tests; there is no augmentation here, test_over.py's do
        if field.name in ("bias_lr", "head_lr"):  # read by the one loop alone, so that two methods stand for all
            assert of_muon is None or not equal(weights(optimizer="muon", **{field.name: 5.0}), of_muon), field.name
        elif field.name not in ("rewind", "replay_plain_epochs", "early_epochs"):  # test_cifarnet.py has the last one's
            value = other.get(field.name, other_value(config, field))
            assert value != base.get(field.name, field.default)
            assert not equal(weights(**{field.name: value}), start), field.name


@pytest.mark.parametrize("name", TRAINED)
def test_warm_up_of_a_method_ends_at_its_own_rate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass of every method warms up, to --unlearn_lr and never above."""
    rates: list[tuple[int, float]] = []
    monkeypatch.setattr(Descent, "_step", lambda self, rate: rates.append((self.at, rate)))
    rt = quiet_runtime()
    cfg = short_config(name, unlearn_lr=0.013, repair_lr=0.013, unlearn_epochs=4, warmup=2, schedule="constant",
                       replay_epochs=(0,))
    METHODS[name].apply(tiny_net(rt), make_data(rt, batch_size=8, method=name), cfg, rt)
    warm = [rate for at, rate in rates if at < 2]
    assert max(rate for _, rate in rates) == pytest.approx(0.013) == warm[-1]
    assert 0 < warm[0] < 0.004 and {round(rate, 9) for at, rate in rates if at >= 2} == {0.013}


@pytest.fixture(scope="module")
def learned() -> tuple[TinyNet, Data, Runtime]:
    """A TinyNet that has learned the toy data."""
    rt = quiet_runtime()
    data, model = make_data(rt, count=400, forget=40, batch_size=64), tiny_net(rt)
    opt = Descent(model, TrainConfig(), lr=0.1, epochs=15, rt=rt, purpose="train")
    for opt.at in range(15):
        opt.epoch(data.loader("train", rt, "train"), cross_entropy)
    return model, data, rt


@pytest.mark.parametrize("protocol", ["rum", "sparse"])
@pytest.mark.parametrize("name", [name for name in TRAINED if not METHODS[name].fresh])
def test_defaults_leave_a_model_that_works(name: str, protocol: str, learned: tuple[TinyNet, Data, Runtime]) -> None:
    """With no flag typed, accuracy on retain stays within 6 points of the original's (an l1 weight of 0.2 costs 13).

    But for FT_prune_bi's rate: of the toy's 108 weights 0.95 leaves 5, which nothing can learn with; and for UNSIR, whose noise
    is made for thousands of images to repair by.
    """
    original, data, rt = learned
    model = tiny_net(rt)
    model.load_state_dict(original.state_dict())
    fewer = {"FT_prune_bi": dict(rate=0.3), "UNSIR": dict(noise_copies=1, noise_images=4, repair_lr=0.01)}.get(name, {})
    fewer |= dict(our_layers=("conv", "bn", "fc")) if hasattr(METHODS[name].config, "our_layers") else {}
    cfg = METHODS[name].config(**METHODS[name].per_protocol.get(protocol, {}), **fewer)
    if METHODS[name].whole:
        data = make_data(rt, count=400, batch_size=64, method=name)
    METHODS[name].apply(model, data, cfg, quiet_runtime())
    before, after = (tow.accuracy(*trainer.predict(net, data.loader("retain"), rt)) for net in (original, model))
    assert before > 0.6 and after > before - 0.06


def test_l1_sparse_shrinks_weights_and_counts_the_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """27 of the 108 convolution weights lie below 1e-4, and the linear layer's zeros do not count."""
    rows, sizes = [], []
    monkeypatch.setattr(Task, "log", lambda task, **row: rows.append(row))
    for alpha, epochs in ((0.0, 0), (0.0, 3), (0.05, 3)):
        rt = quiet_runtime()
        model = tiny_net(rt)
        with torch.no_grad():
            model.conv.weight.view(-1)[27:].add_(0.01 * model.conv.weight.view(-1)[27:].sign())  # none is small by chance
            model.conv.weight.view(-1)[:27] = 9e-5
            model.fc.weight.zero_()
        cfg = short_config("FT_prune", alpha=alpha, unlearn_epochs=epochs, unlearn_lr=0.01)
        METHODS["FT_prune"].apply(model, make_data(rt), cfg, rt)
        sizes.append(float(model.conv.weight.detach().abs().mean()))
    assert rows[0] == {"share_of_conv_weights_below_1e_4": 0.25} and sizes[2] < 0.9 * sizes[1]
