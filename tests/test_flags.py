"""No flag is taken and unused: each changes the settings, each setting is read by its stage, and what cannot act says so."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import shell
from test_cli_words import pretend_to_train
from test_settings import PAIRS, other_value

import arg_parser
import stages
from pruner.plan import Plan, PruneConfig
from unlearn import METHODS
from utils import BadInput, Config, Saved, machine

# read by arg_parser, from what was typed, before there is an object
BEFORE = {"protocol", "checkpoint", "lr", "epochs", "sparsity", "unlearn", "score"}
# stage, with its method or score -> settings that this one has no use for, and says or refuses (below, or in test_influence.py)
UNUSED = {
    "train": {"decreasing_lr", "lr_gamma"},  # of schedule step
    "forget retrain": {"decreasing_lr", "lr_gamma"},
    "forget wfisher": {"solver_steps", "solver_tolerance", "lissa_scale"},
    # what goes into a label or a generator alone is the same in a stage that draws nothing
    "random": {"bn"},  # of --rl_form sequential
    "mask": {"seed"}, "memorization es": {"seed"}, "memorization confidence": {"seed", "arch", "imagenet_arch", "num_classes",
                                                                             "mean", "normalize", "input_size"},
    "memorization loss_curvature": {"seed"},
    # the share is not of subsets that are halves, nor the limit of influence where none is asked for; nothing has scores there
    "memorization": {"fraction", "influence_above", "recipe"}, "analysis": {"scores"},
}
# always so on a CPU; of several epochs; beside --mean; of a forget set that scores cut; only stands for other flags; of what
# starts anew
EVERYWHERE = {"pretrained", "noise_seed", "deterministic", "progress", "keep_memory", "resume_every", "std", "any_scores",
              "setup", "bias_lr", "head_lr"}  # the last two of --optimizer muon
STAGES = [*stages.STAGES, *(f"forget {name}" for name in ("raw", "retrain", "FT", "wfisher", "ssd", "SCRUB")),
          *(f"memorization {name}" for name in ("confidence", "loss_curvature", "ho_ret", "es"))]
nowhere = pytest.fixture(autouse=True)(shell.nowhere)


def typed_words(stage: str, original: Path) -> list[str]:
    """A command line of the stage that is parsed."""
    of = {"forget": ["--unlearn", "FT"], "random": ["--unlearn", "RL"], "backdoor": ["--unlearn", "FT"],
          "rum": ["--unlearn", "NG"], "memorization": ["--score", "es"]}
    words = [*of.get(stage, [])]
    if "parent" in stages.STAGES[stage][1] and stage != "backdoor":
        words += ["--checkpoint", str(original)]
    if "forget" in stages.STAGES[stage][1]:
        words += ["--num_indexes_to_replace", "20"]
    return words


def spelled(flag: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no_{flag}"
    return f"--{flag}={','.join(map(str, value)) if isinstance(value, tuple) else value}"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file without a record, from which every flag may differ."""
    root = tmp_path_factory.mktemp("originals")
    folder = pretend_to_train(root, "--dataset", "digits", "--arch", "resnet8s").folder
    return (folder / "model.pt").rename(root / "bare.pt")


@pytest.mark.parametrize("stage", list(stages.STAGES))
def test_every_flag_changes_its_setting(stage: str, bare: Path) -> None:
    """And no other setting of the stage, but those that presets hang on it."""
    words = typed_words(stage, bare)
    before, tried = arg_parser.parse(stage, words), 0
    groups = {**before.settings, "run": getattr(before, "run", None)}
    idle = {*stages.idle_in({group: type(config) for group, config in groups.items()}), *stages.NO_EFFECT_IN.get(stage, {})}
    for group, config in groups.items():
        for field in dataclasses.fields(config) if isinstance(config, Config) else ():
            flag = stages.flag_of(stage, group, field.name)
            if flag in ("unlearn", "score", "checkpoint") or field.name in PAIRS or flag in idle:
                continue
            value = {"dataset": "svhn", "device": "cpu", "precision": "fp32", "rate": 0.5, "rewind_epoch": 1, "subset": "half",
                     "classes": "0-4", "plan": "all:raw", "order": ("low",), "features": ("logits",),
                     "space": ("own",)}.get(field.name, other_value(type(config), field))
            by_scores = group == "forget" and field.name in ("mem", "mem_proxy", "group_index", "scores")
            more = ["--mem=high", "--scores=here"] if by_scores else []
            try:
                after = arg_parser.parse(stage, [*words, *more, spelled(flag, value)])
            except BadInput as error:  # a check of this very flag has read it
                assert f"--{flag}" in str(error), (flag, str(error))
            else:
                assert getattr(vars(after)[group], field.name) == value, flag
            tried += 1
    assert tried >= {"analysis": 10, "calibrate": 3}.get(stage.partition("_")[0], 20)


class Readings:
    """Which settings are read, but by the checks of a settings class itself and by what copies it whole."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: set[tuple[type, str]] = set()

        def get(config: Any, name: str) -> Any:
            caller = sys._getframe(1).f_code
            whole = caller.co_name in ("__post_init__", "check_values", "<genexpr>", "<dictcomp>", "<listcomp>") and (
                "utils" in caller.co_filename or caller.co_name == "__post_init__")
            if not (name.startswith("_") or whole or caller.co_filename.endswith(("dataclasses.py", "copy.py"))):
                self.seen.add((type(config), name))
            return object.__getattribute__(config, name)

        patch.setattr(Config, "__getattribute__", get, raising=False)

    def unread(self, groups: dict[str, type[Config]]) -> set[str]:
        return {field.name for config in groups.values() for field in dataclasses.fields(config)
                if not any(name == field.name and issubclass(kind, config) for kind, name in self.seen)}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shell.library(tmp_path_factory)


def toy(stage: str, name: str, original: Saved, library: Path, tmp_path: Path) -> list[Any]:
    """The toy run of a stage: its words behind --save_dir."""
    own = {"train": [*shell.THREE, "--epochs", 1], "imp": [*shell.THREE, "--epochs", 2, "--rewind_epoch", 1, "--rate", 0.5],
           "synflow": [*shell.THREE, "--epochs", 1, "--rate", 0.5, "--synflow_rounds", 3],
           "backdoor": [*shell.THREE, "--epochs", 2, "--unlearn", "FT", "--unlearn_epochs", 1, "--trigger_size", 2,
                        "--trigger_margin", 1],
           "rum": ["--unlearn", "NG", "--unlearn_epochs", 1, "--shuffle"], "random": ["--unlearn", "RL", "--unlearn_epochs", 1],
           "memorization": ["--score", name or "memorization"],
           "calibrate": ["--arch", "resnet8s", "--image_size", 8, "--budget", 0.01],
           "analysis_distribution": ["--unlearn", "FT", "--tsne_points", 30]}
    words = own.get(stage, ["--unlearn", name or "FT"] if stage == "forget" else [])
    if stage == "memorization" and not name:
        words += [*shell.THREE, "--models", 6, "--pool_epochs", 1, "--engine", "serial", "--subset", "half"]
    elif "parent" in stages.STAGES[stage][1] and stage != "backdoor":
        words += ["--checkpoint", original.folder]
    if stage == "forget" and "unlearn_epochs" in {field.name for field in dataclasses.fields(METHODS[name or "FT"].config)}:
        words += ["--unlearn_epochs", 1]
    words += ["--ft_epochs", 1] if name == "ho_ret" else []
    words += shell.FORGET if "forget" in stages.STAGES[stage][1] else []
    return words


@pytest.mark.parametrize("which", STAGES)
def test_every_setting_is_read_by_its_stage(
    which: str, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a toy run, whose settings are watched from the moment that they are made."""
    stage, _, name = which.partition(" ")
    words = toy(stage, name, shell.only(library, "train"), library, tmp_path)
    groups = dict(stages.STAGES[stage][1])
    if "method" in groups or "choice" in groups:
        groups, _ = stages.chosen(stage, name or {"random": "RL", "rum": "NG", "memorization": "memorization"}.get(stage, "FT"))
    analysis = stage.startswith("analysis")
    monkeypatch.setenv(machine.PLACE, str(tmp_path / "cache"))
    readings = Readings(monkeypatch)
    apart = ["--out", tmp_path / "out"] if analysis else []
    apart += ["--html", tmp_path / "page.html"] if "html" in stages.flags_of(stage) else []
    shell.call(stages.STAGES[stage][0], *words, *apart,
               save_dir=library if analysis else tmp_path)
    idle = {*stages.idle_in(groups), *stages.NO_EFFECT_IN.get(stage, {})}
    left = readings.unread(groups) - BEFORE - UNUSED.get(which, set()) - EVERYWHERE - idle
    assert not left


@pytest.mark.parametrize(("stage", "words", "told"), [
    ("train", "--decreasing_lr 3,5", "--decreasing_lr has no effect: it is of --schedule step, and this is cosine"),
    ("train", "--bias_lr 3", "--bias_lr has no effect: it is of --optimizer muon, and this is sgd"),
    ("train", "--early_epochs 3", "--early_epochs has no effect: resnet18 has no whitening layer"),
    ("train", "--no_aug --aug_form alternate", "--aug_form has no effect: nothing is augmented"),
    ("train", "--lr_gamma 0.2 --schedule constant", "--lr_gamma has no effect: it is of --schedule step, and this is constant"),
    ("forget", "--unlearn ssd --compile default {SOME}", "--compile has no effect: nothing is trained here"),
    ("forget", "--unlearn raw --no_aug {SOME}", "--no_aug has no effect: nothing is trained here"),
    ("forget", "--unlearn wfisher --aug {SOME}", "--aug has no effect: nothing is trained here"),
    ("mask", "--resume_every 3 {SOME}", "--resume_every has no effect: nothing is trained here"),
    ("memorization", "--score es --compile=default --checkpoint {bare}", "--compile has no effect: nothing is trained here"),
    ("forget", "--unlearn FT --any_scores {SOME}", "--any_scores has no effect: no scores cut this forget set"),
    ("forget", "--unlearn FT --forget_index i.txt --split_seed 3", "--split_seed has no effect: --forget_index names"),
])
def test_a_flag_that_cannot_act_says_so(
    stage: str, words: str, told: str, bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = f"--checkpoint {bare} --dataset digits " if stage in ("mask", "forget") else ""
    arg_parser.parse(stage, (checkpoint + words).format(bare=bare, SOME=" ".join(shell.FORGET)).split())
    assert f"notice: {told}" in capsys.readouterr().out


@pytest.mark.parametrize(("stage", "words"), [
    ("train", "--decreasing_lr 3,5 --schedule step --compile default --aug --dataset cifar10 --resume_every 3"),
    ("forget", "--unlearn FT --compile default --no_aug {SOME} --split_seed 3"), ("memorization", "--compile default --no_aug"),
    ("memorization", "--score ho_ret --compile default --checkpoint {bare}"), ("backdoor", "--unlearn ssd --compile default"),
    ("rum", "--unlearn ssd --compile default {SOME}"), ("analysis", "--no_aug")])
def test_a_flag_that_acts_is_silent(stage: str, words: str, bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = f"--checkpoint {bare} " if stage in ("forget", "rum") else ""
    arg_parser.parse(stage, (checkpoint + words).format(bare=bare, SOME=" ".join(shell.FORGET)).split())
    assert "no effect" not in capsys.readouterr().out


@pytest.mark.parametrize("own", [dict(random_prune=True), dict(prune_scope="layerwise_conv"), dict(rewind_schedule="published"),
                                 dict(rewind_pth="some.pt", prune_type="rewind_lt")])
def test_what_is_about_pruning_is_refused_where_nothing_is_pruned(own: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=f"--sparsity 0 prunes nothing, so that --{next(iter(own))} has no effect"):
        Plan.of(PruneConfig(sparsity=0.0, **own), 5, "step")


def test_a_dense_training_may_name_the_epoch_to_go_back_to() -> None:
    assert Plan.of(PruneConfig(sparsity=0.0, rewind_epoch=2), 5, "cosine").snapshot() == 2
