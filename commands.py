"""From the typed flags to every setting of a stage, and from a record back to the command that goes on with its run."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from pathlib import Path
from typing import Any

import attack.backdoor
import models
import sources
import unlearn
from stages import CHOOSERS, FAST_SIZE, FREE, LARGE, PROTOCOL_OF, PROTOCOLS, STAGES, chosen, flag_of, planting
from utils import BadInput, Config, Mended, RunConfig, RuntimeConfig, Saved, as_kept, flag_words, program

Groups = dict[str, type[Config]]  # group -> its settings
Values = dict[str, dict[str, Any]]  # group -> setting -> value


def find_parent(stage: str, groups: Groups, typed: dict[str, Any], given: list[str]) -> models.Original | None:
    """The model that a stage starts from; None where main_backdoor.py is to train it first.

    Args:
        typed: values by flag. given: the flags as they were spelled: the published --save says where results go, and nothing
            of the original.
    """
    if stage == "backdoor":
        return attack.backdoor.find(typed.get("checkpoint"))
    values = values_of(stage, groups, typed)
    narrow = {n: v for group in ("protocol", "data", "model", "parent") for n, v in values[group].items()}
    narrow = {n: v for n, v in narrow.items() if n not in ("checkpoint", *FREE)}
    return models.find_original(typed, narrow, results_only="--save" in given)


def values_of(stage: str, groups: Groups, typed: dict[str, Any]) -> Values:
    """The typed values (by flag) in their groups, by setting."""
    names = {group: [(f.name, flag_of(stage, group, f.name)) for f in dataclasses.fields(c)] for group, c in groups.items()}
    return {group: {name: typed[flag] for name, flag in own if flag in typed} for group, own in names.items()}


def settle(stage: str, groups: Groups, typed: dict[str, Any], parent: models.Original | None) -> Values:
    """Values by group: what was typed, else the original's record's, the method's, the protocol's. The rest has its default."""
    values = values_of(stage, groups, typed)
    if "data" not in groups:
        return values
    names = {group: [f.name for f in dataclasses.fields(config)] for group, config in groups.items()}
    if parent is not None and parent.record:
        _inherit(parent, values, names, typed)
        try:  # before anything is looked up by them
            for group, config in groups.items():
                config.check_values(values[group])
        except BadInput as error:
            raise BadInput(f"{parent.folder / 'record.json'} holds a setting that no stage has written ({error}); repeat that "
                           "run with --force, or name another --checkpoint") from None
    source = sources.SOURCES[values["data"].get("dataset", "cifar10")]
    of_pools = _of_pools(groups, values, source)
    arch = values["model"].get("arch", "")
    own = models.ARCHS[arch].protocol if arch and not of_pools else ""  # a pool's models are trained by its --recipe
    protocol = values["protocol"].setdefault("protocol", own or PROTOCOL_OF.get(stage, "rum"))
    told = PROTOCOLS[protocol] | (LARGE.get(arch, {}) if protocol == own else {})
    for group in {"cfg", "plant"} & groups.keys():
        for name in told.keys() & set(names[group]) if "epochs" in names[group] else ():
            values[group].setdefault(name, told[name])
    if "unlearn" in typed:
        method = unlearn.METHODS[typed["unlearn"]]
        cfg = dataclasses.asdict(planting(values, protocol)) if "plant" in groups else parent.training or {}
        given = {ours: cfg[theirs] for ours, theirs in method.inherits.items() if theirs in cfg}
        for name, value in {**method.per_protocol.get(protocol, {}), **given}.items():
            values["cfg"].setdefault(name, tuple(value) if isinstance(value, list) else value)
    _preset(groups, values, names)
    values["data"].setdefault("aug", told["aug"] and bool(source.pad or source.flip))
    for name in {"aug_form", "batch_size"} & told.keys():
        values["data"].setdefault(name, told[name])
    return values


def _of_pools(groups: Groups, values: Values, source: Any) -> bool:
    """Whether a pool is trained: the network where none was typed, and the recipe of one that is made for speed."""
    if not hasattr(groups.get("cfg"), "part_of"):
        return False
    if not {"arch", "imagenet_arch"} & values["model"].keys() and source.size == FAST_SIZE:
        values["model"]["arch"] = "cifarnet"
    arch = values["model"].get("arch", "")
    if arch and models.ARCHS[arch].protocol:
        values["cfg"].setdefault("recipe", models.ARCHS[arch].protocol)
    return True


def _inherit(parent: models.Original, values: Values, names: dict[str, list[str]], typed: dict[str, Any]) -> None:
    """Data set, architecture and protocol come from the original's record; a typed flag that differs is an error."""
    if "val_seed" not in parent.record["settings"].get("data", {}):
        raise Mended(f"{parent.folder} was made by an earlier version of this suite, whose record does not tell the "
                     "validation split from the choice of the forget set; run its command again", parent, again=False)
    for group in ("protocol", "data", "model", "parent", *(["plant"] if "plant" in names else [])):
        for name in names[group]:
            theirs = parent.setting(name)
            mine = typed.get(name, theirs)
            if as_kept(mine) != theirs and name not in ("protocol", "checkpoint", *FREE):
                raise BadInput(_differs(name, mine, theirs, parent.folder))
            values[group][name] = mine
    if "seed" not in typed:
        values["rt"]["seed"] = parent.setting("seed")


def _differs(name: str, mine: Any, theirs: Any, folder: Path) -> str:
    """That a typed setting is not the original's, in words."""
    typed, them = (",".join(map(str, x)) if isinstance(x, (tuple, list)) else x for x in (mine, theirs))
    kind = {"ood_classes": "class", "ood_subclass": "sub-class"}.get(name)
    seen = sorted(set(mine) - set(theirs or ())) if kind else []
    if seen:
        return (f"--{name} {typed}: the original in {folder} was trained on {kind} {seen[0]}, which is then not out of "
                f"distribution; name another --checkpoint, or train one: python main_train.py --{name} {typed}")
    return f"--{name} {typed}: the original in {folder} has {them}; leave the flag away or name another --checkpoint"


def _preset(groups: Groups, values: Values, names: dict[str, list[str]]) -> None:
    """What a setting such as --recipe implies for settings that were not typed."""
    for group, config in groups.items():
        for switch, table in getattr(config, "PRESETS", {}).items():
            default = next(field.default for field in dataclasses.fields(config) if field.name == switch)
            for name, value in table[values[group].get(switch, default)].items():
                values[next(g for g in groups if name in names[g])].setdefault(name, value)


# ----------------------------------------------------------------------------------------------- the other way round


def command_of(run: Saved) -> list[str]:
    """The command that repeats a run, or goes on with it: of its record's settings only those that it would not have anyway.

    Returns:
        Words from ``python`` on; parsed, they give the record's settings. None of a run that is part of another.
    """
    record, recorded = run.record, run.record["settings"]
    stage = "backdoor" if record["stage"] == "trojan" else record["stage"]
    if stage not in STAGES:
        return []
    typed = {flag: recorded[group][flag] for group, (flag, _) in CHOOSERS.items() if recorded.get(group, {}).get(flag)}
    typed |= {"unlearn": "raw"} if record["stage"] == "trojan" else {}  # the poisoned model alone
    groups, _ = chosen(stage, next(iter(typed.values()), None))
    parent = None
    if "parent" in record and "parent" in groups:
        typed["checkpoint"] = models.whereabouts(record["parent"], run.folder.parent.parent)
        parent = find_parent(stage, groups, typed, [])
    for names in (_switches(groups), None):  # what others hang on comes first
        typed |= _differing(stage, groups, typed, parent, recorded, names)
    place = run.folder.parent.parent
    typed |= {"save_dir": str(place)} if place != Path(RunConfig().save_dir) else {}
    return [*program(STAGES[stage][0]), *(word for flag, value in typed.items() for word in flag_words(flag, value))]


def told(error: BadInput) -> str:
    """The error's message, with the whole command where a run's mends it."""
    if not isinstance(error, Mended):
        return str(error)
    try:
        words = command_of(error.run)
    except BadInput:  # its original is gone, or its record is of a method that there is no more
        words = []
    return f"{error}: {shlex.join([*words, *(['--force'] if error.again else [])])}" if words else str(error)


def _switches(groups: Groups) -> set[str]:
    """Settings that decide what others are where these are not typed."""
    return {"protocol", "dataset"} | {name for config in groups.values() for name in getattr(config, "PRESETS", {})}


def _differing(stage: str, groups: Groups, typed: dict[str, Any], parent: models.Original | None, recorded: Values,
               names: set[str] | None) -> dict[str, Any]:
    """By flag, the recorded settings (of these names, or all) that the typed ones do not lead to."""
    found = {}
    settled = settle(stage, groups, typed, parent)
    for group, config in groups.items():
        made = config(**settled[group])
        if isinstance(made, RuntimeConfig):
            with contextlib.suppress(BadInput):  # another machine's device
                made = made.unmeasured()
        for field in dataclasses.fields(config):
            value, ours = recorded.get(group, {}).get(field.name), getattr(made, field.name)
            asked = names is None or field.name in names
            if value is None or not asked or (group == "prune" and field.name in _spare(recorded[group])):
                continue
            if value != as_kept(ours):
                found[flag_of(stage, group, field.name)] = value
    return found


def _spare(prune: dict[str, Any]) -> tuple[str, ...]:
    """The words for the amount of pruning that follow from the other ones; all of them are in a record."""
    return ("sparsity",) if prune.get("pruning_times") and prune["rate"] is not None else ("rate",)
