"""What each stage's command line is made of: the settings of every main, published spellings, defaults by protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import dataset
import groups
import models
import trainer
import unlearn
from attack.backdoor import PlantConfig, TrojanConfig
from calibration import CalibrateConfig
from evaluation.accuracy import EvaluationConfig
from memorization import SCORES
from pruner.mask import SaliencyMaskConfig
from pruner.plan import PruneConfig, SynFlowConfig
from report.distribution import DistributionConfig
from report.pairs import AnalysisConfig, FilterConfig
from setups import SetupConfig
from unlearn.plan import PlanConfig
from unlearn.saliency import CleanseMaskConfig, SaliencyConfig
from utils import BadInput, Config, Registry, RunConfig, RuntimeConfig, hp, say, shown

# spelling of the published projects -> ours
ALIASES = {"mask": "checkpoint", "model_path": "checkpoint", "save": "save_dir", "mask_path": "path", "data_dir": "data"}
# ours, by the stage that has another name for it
ALIASES_IN = {"memorization": {"mem_proxy": "score"}}
# published flags that have no effect here, with the reason
NO_EFFECT = {
    "num_workers": "images are on the device, there are no workers",
    "workers": "images are on the device, there are no workers",
    "print_freq": "progress is shown once an epoch",
}
# by one of which a method or score says that it trains
EPOCHS = ("epochs", "unlearn_epochs", "replay_epochs", "pool_epochs", "ft_epochs")
SWITCHES = ("aug", "no_aug", "sequential")  # of the flags without effect, those that take no value
_CHOSEN_LATER = {"split_seed": "the forget set is chosen in a later stage; --val_seed owns the validation split"}
NO_EFFECT_IN = {"train": _CHOSEN_LATER, "imp": _CHOSEN_LATER, "memorization": _CHOSEN_LATER,
                "mask": {"unlearn_epochs": "a saliency mask is one pass over the forget set",
                         "aug": "saliency is measured on the images as they are",
                         "no_aug": "saliency is measured on the images as they are",
                         "compile": "a saliency mask is one pass over the forget set"},
                "rum": {"sequential": "a plan always goes on from the model of the step before"},
                "synflow": {**_CHOSEN_LATER,
                            "prune_type": "SynFlow prunes before training, so there is nothing to rewind to",
                            "rewind_epoch": "SynFlow prunes before training, so there is nothing to rewind to",
                            "pruning_times": "SynFlow's one training follows its rounds (--synflow_rounds)"}}
FREE = ("data", "download", "any_size", "batch_size", "aug", "num_classes")  # may differ from the original's
PROTOCOLS = {  # what a typed flag overrides; later stages take the protocol from the checkpoint's record
    "rum": {"epochs": 30, "schedule": "cosine", "aug": False},
    "sparse": {"epochs": 182, "schedule": "step", "aug": True},
    "cifar-fast": {"epochs": 8, "lr": 0.12, "schedule": "linear", "optimizer": "muon", "momentum": 0.6, "weight_decay": 1e-3,
                   "early_epochs": 3, "label_smoothing": 0.2, "batch_size": 500, "aug": True, "aug_form": "alternate"},
}
# a network's own batches, and what goes with their size
LARGE = {"cifarnet_64_256": {"batch_size": 2000, "lr": 0.24, "bias_lr": 106.0, "head_lr": 1340.0, "weight_decay": 4e-3}}
PROTOCOL_OF = {"imp": "sparse", "synflow": "sparse", "backdoor": "sparse"}  # elsewhere rum, or the original's
FAST_SIZE = 32  # pixels a side of the images whose pools are of the network made for speed


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolConfig(Config):
    """Whose experiment's defaults hold."""

    protocol: str = hp("rum", "defaults: rum (30 epochs, cosine, no augmentation), sparse (182 epochs, steps at 91 and 136, "
                       "augmentation) or cifar-fast (8 epochs of muon, of a cifarnet without the flag)",
                       choices=tuple(PROTOCOLS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParentConfig(Config):
    """The original model; without --checkpoint, the one finished run under --save_dir that matches."""

    checkpoint: str | None = hp(None, "model.pt, run folder, or a folder of run folders where one matches", digest=False)
    lr: float | None = hp(None, "narrow the search to originals trained at this rate", above=0, digest=False)
    epochs: int | None = hp(None, "narrow the search to originals trained for so many epochs", low=1, digest=False)
    sparsity: float | None = hp(None, "narrow the search to originals pruned to this share; 0: main_imp.py's dense ones", low=0,
                                below=1, digest=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordConfig(Config):
    """What is recorded of the training examples on the way; learning events always are."""

    record_curvature: bool = hp(False, "record the loss curvature too: two more passes a step", digest=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig(Config):
    """The method."""

    unlearn: str | None = hp(None, "unlearning method; --list names them")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(Config):
    """What is measured of every training example."""

    score: str = hp("memorization", "memorization from a pool of models, a proxy of it, or entanglement (es); --mem_proxy "
                    "is another name", choices=tuple(SCORES.names()))
    scores: str | None = hp(None, "file of memorization scores (.npz) to compare a proxy with; without it, found by its record",
                            digest=False)


BASE = {"setup": SetupConfig, "protocol": ProtocolConfig, "data": dataset.DataConfig, "model": models.ModelConfig}
TAIL = {"rt": RuntimeConfig, "run": RunConfig}
ON_ORIGINAL = {**BASE, "parent": ParentConfig, "forget": groups.ForgetConfig}
UNLEARN = {**ON_ORIGINAL, "method": MethodConfig, "mask": SaliencyMaskConfig, "evaluation": EvaluationConfig, **TAIL}
STAGES: dict[str, tuple[str, dict[str, type[Config]]]] = {
    "train": ("main_train.py", {**BASE, "cfg": trainer.TrainConfig, "record": RecordConfig, **TAIL}),
    "imp": ("main_imp.py", {**BASE, "cfg": trainer.TrainConfig, "prune": PruneConfig, **TAIL}),
    "synflow": ("main_synflow.py", {**BASE, "cfg": trainer.TrainConfig, "prune": SynFlowConfig, **TAIL}),
    "mask": ("generate_mask.py", {**ON_ORIGINAL, "cfg": SaliencyConfig, **TAIL}),
    "forget": ("main_forget.py", UNLEARN),
    "random": ("main_random.py", UNLEARN),
    "rum": ("main_rum.py", {**ON_ORIGINAL, "plan": PlanConfig, "method": MethodConfig, "evaluation": EvaluationConfig, **TAIL}),
    "backdoor": ("main_backdoor.py", {**BASE, "parent": TrojanConfig, "plant": PlantConfig, "method": MethodConfig,
                                       "mask": CleanseMaskConfig, **TAIL}),
    "memorization": ("main_memorization.py", {**BASE, "parent": ParentConfig, "choice": ScoreConfig, **TAIL}),
    "calibrate": ("main_calibrate.py", {"cfg": CalibrateConfig}),
    "analysis": ("analysis.py", {"setup": SetupConfig, "cfg": AnalysisConfig}),
    "analysis_mia": ("analysis_mia.py", {"setup": SetupConfig, "cfg": FilterConfig}),
    "analysis_distribution": ("analysis_distribution.py", {"setup": SetupConfig, "cfg": DistributionConfig}),
}
# (stage, group, setting) -> its flag there, where its own name means another group's setting
FLAGS = {("backdoor", "cfg", "rate"): "unlearn_rate"}
# group of settings whose one flag chooses an entry of a registry -> that flag, and the registry
CHOOSERS: dict[str, tuple[str, Registry[Any]]] = {"method": ("unlearn", unlearn.METHODS), "choice": ("score", SCORES)}


def flag_of(stage: str, group: str, setting: str) -> str:
    """The flag of a setting: its name, but for FLAGS."""
    return FLAGS.get((stage, group, setting), setting)


def planting(values: dict[str, dict[str, Any]], protocol: str) -> trainer.TrainConfig:
    """The training of the poisoned model."""
    return PlantConfig(**values["plant"]).training(PROTOCOLS[protocol]["schedule"])


def allowed(stage: str) -> list[str]:
    """The methods or scores that a stage takes."""
    if stage == "memorization":
        return SCORES.names()
    return [name for name in unlearn.METHODS.names() if _takes(stage, unlearn.METHODS[name])]


def _takes(stage: str, entry: Any) -> bool:
    fits = {"random": lambda method: method.random_labels, "rum": lambda method: not method.fresh}
    return fits.get(stage, lambda entry: True)(entry)


def listing(stage: str) -> str:
    """The methods or scores of a stage, for --list."""
    if stage == "memorization":
        return "\n".join(f"{name}: {SCORES[name].summary}\n  [{SCORES[name].source}]" for name in SCORES.names())
    return unlearn.method_list(allowed(stage))


def entry_of(stage: str, group: str, name: str) -> Any:
    """The registry's entry, refused where the stage does not take it."""
    found = CHOOSERS[group][1][name]
    if not _takes(stage, found):
        raise BadInput(f"{STAGES[stage][0]} takes {', '.join(allowed(stage))}; run main_forget.py --unlearn {name}")
    return found


def chosen(stage: str, name: str | None) -> tuple[dict[str, type[Config]], Any]:
    """The groups of settings of a stage with this method or score (None where none is chosen), and its registry's entry."""
    found = dict(STAGES[stage][1])
    group = next((group for group in CHOOSERS if group in found), None)
    if group is None or name is None:
        return found, None
    entry = entry_of(stage, group, name)
    found["cfg"] = entry.config
    if not getattr(entry, "original", True):
        del found["parent"]
    return found, entry


def flags_of(stage: str) -> set[str]:
    """The flags of a stage itself; those of its methods or scores aside."""
    groups = STAGES[stage][1].items()
    return {flag_of(stage, group, field.name) for group, config in groups for field in dataclasses.fields(config)}


# ------------------------------------------------------------------------------------------ the words of a command line


def spelled(stage: str, argv: Sequence[str]) -> list[str]:
    """Our spelling of the flags: - as _, published aliases (announced), and flags without effect left out (announced)."""
    out: list[str] = []
    aliases = {} if stage.startswith("analysis") else {**ALIASES, **ALIASES_IN.get(stage, {})}
    for token in argv:
        name, equals, value = token[2:].partition("=")
        name = name.replace("-", "_")
        if token.startswith("--") and name in aliases:
            say(f"notice: --{name} is taken as --{aliases[name]}")
            name = aliases[name]
        out.append(f"--{name}{equals}{value}" if token.startswith("--") else token)
    return without(out, {**NO_EFFECT, **NO_EFFECT_IN.get(stage, {})})


def without(argv: Sequence[str], reasons: Mapping[str, str]) -> list[str]:
    """The words without some flags and their values, each of which is announced with its reason."""
    out: list[str] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        name, equals, _ = token[2:].partition("=")
        if not token.startswith("--") or name not in reasons:
            out.append(token)
            continue
        if not equals and name not in SWITCHES and tokens and not tokens[0].startswith("--"):
            tokens.pop(0)
        say(f"notice: --{name} has no effect: {reasons[name]}")
    return out


def idle_in(groups: Mapping[str, type[Config]]) -> dict[str, str]:
    """Flags that a stage has, but that its method or score has no use for, with the reason."""
    own = [field.name for group in ("cfg", "plant") if group in groups for field in dataclasses.fields(groups[group])]
    if "rt" not in groups or "plan" in groups or set(own) & set(EPOCHS):
        return {}
    return {name: "nothing is trained here" for name in ("aug", "no_aug", "compile", "resume_every")}


def idle_beside(configs: Mapping[str, Config], typed: Mapping[str, Any]) -> dict[str, str]:
    """Typed flags that other settings leave without effect, with the reason."""
    found: dict[str, str] = {}
    for config in configs.values():
        if getattr(config, "schedule", "step") != "step":
            found |= dict.fromkeys(("decreasing_lr", "lr_gamma"), f"it is of --schedule step, and this is {config.schedule}")
        used = getattr(config, "optimizer", "")
        if used in ("adam", "adamw"):
            found["momentum"] = f"it is of --optimizer sgd and muon, and this is {used}"
        if used not in ("", "muon"):
            found |= dict.fromkeys(("bias_lr", "head_lr"), f"it is of --optimizer muon, and this is {used}")
    if "model" in configs and configs["model"].arch in models.ARCHS and not models.ARCHS[configs["model"].arch].protocol:
        found["early_epochs"] = f"{configs['model'].arch} has no whitening layer"
    if "data" in configs and not configs["data"].aug:
        found["aug_form"] = "nothing is augmented"
    if "data" in configs and not configs["data"].label_noise:
        found["noise_seed"] = "all labels stay as they are without --label_noise"
    forget = configs.get("forget")
    if forget is not None and forget.forget_index is not None:
        found["split_seed"] = "--forget_index names the whole forget set"
    if forget is not None and forget.score is None:
        found["any_scores"] = "no scores cut this forget set"
    return {name: why for name, why in found.items() if name in typed}


def peek(argv: Sequence[str], name: str) -> str | None:
    """The value of a flag, before the others are known; the last one counts, as in argparse."""
    found = None
    for token, following in zip(argv, [*argv[1:], ""], strict=True):
        if token.partition("=")[0] == f"--{name}":
            found = token.partition("=")[2] if "=" in token else following
    return found


def joined(argv: Sequence[str], forms: Mapping[str, tuple[type, bool]]) -> list[str]:
    """The same words with each value joined to its flag, so that -1e-3 is a number to argparse and not a flag.

    Args:
        forms: flag -> (type of an item, whether it takes a list).

    Raises:
        BadInput: words behind a value or a switch, where no flag can take them.
    """
    out: list[str] = []
    tokens = list(argv)
    while tokens:
        word = tokens.pop(0)
        name, equals, value = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        kind, many = forms.get(name.removeprefix("no_") if name not in forms else name, (None, False))
        if kind is None:
            out.append(word)
            continue
        switch, rest = kind is bool, []
        while tokens and not tokens[0].startswith("--") and tokens[0] != "-h":
            rest.append(tokens.pop(0))
        if rest and not switch and not equals:
            equals, value = "=", rest.pop(0)
        _check_words(name, value if equals else None, rest, switch, many)
        out.append(f"--{name}{equals}{value}")
    return out


def _check_words(name: str, value: str | None, rest: list[str], switch: bool, many: bool) -> None:
    if switch and (value is not None or rest):
        raise BadInput(f"--{name} is a switch and takes no value; leave {shown(value if value is not None else rest[0])} away, "
                       f"or write --{name.removeprefix('no_') if name.startswith('no_') else f'no_{name}'} for the opposite")
    if value == "--":
        raise BadInput(f"--{name} needs a value; got '--'")
    if rest and many:
        whole = ",".join([value.strip(","), *(word.strip(",") for word in rest)])
        raise BadInput(f"--{name} takes its list in one word, with commas: {whole}")
    if rest:
        raise BadInput(f"--{name} takes one value, {shown(value)}; what is {shown(rest[0])} for? Quote a value with spaces")
