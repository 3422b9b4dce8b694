"""What rows are called: methods that are one computation by both names, plans by a label, settings where they differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from report.pairs import Pair, is_plan, name_of
from unlearn import METHODS
from utils import Saved

WRITTEN = re.compile(r"(?:^|(?<=^shuffle ))plan (.*)")  # the name of a plan that was written out, shuffled or not


def computation(run: Saved) -> str:
    """The method whose computation a run is: RL without a mask is RL_og, FT_prune is FT_l1; of a plan its name."""
    name = name_of(run)
    if is_plan(run) or name not in METHODS:  # with the pruning of its own, retrain has a name of its own
        return name
    return "RL_og" if name == "RL" and not run.record.get("mask") else METHODS[name].same_as or name


def shown_names(found: Iterable[Pair]) -> dict[str, str]:
    """What runs are called that are one computation: ``FT_l1 = FT_prune`` where both are there; a written plan's label.

    Plans without a label of their own are numbered in the order of their text, alike in all tables of an analysis.
    """
    runs = [pair.run for pair in found]
    names: dict[str, list[str]] = {}
    for run in runs:
        there = names.setdefault(computation(run), [])
        if name_of(run) not in there:
            there.append(name_of(run))
    shown = {name: " = ".join(sorted(there, key=lambda one: (one != name, one))) for name, there in names.items()}
    written = {name: WRITTEN.search(name)[1] for name in names if WRITTEN.search(name)}
    texts = sorted(set(written.values()))
    own = {name_of(run): run.record["settings"].get("plan", {}).get("plan_label") for run in runs if name_of(run) in written}
    taken: dict[str, set[str]] = {}
    for name, label in own.items():
        taken.setdefault(label, set()).add(written[name])
    for name, text in written.items():
        number = texts.index(text) + 1
        label = own[name] if own[name] and len(taken[own[name]]) == 1 else f"{own[name]} {number}" if own[name] else f"{number}"
        shown[name] = name[: len(name) - len(text)] + label
    return shown


def one_of_each_seed(members: list[Pair]) -> list[Pair]:
    """Of runs that are one computation under several names, one for each seed; of one name all."""
    first = {}
    for pair in members:
        first.setdefault(pair.seed, name_of(pair.run))
    return [pair for pair in members if name_of(pair.run) == first[pair.seed]]


def labels_of(grouped: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(setting, variant) -> method's name, with the hyper-parameters that tell several variants in one setting apart."""
    labels = {}
    keys = [(setting, variant, json.loads(variant)) for setting, variant in grouped]
    for setting, variant, (name, cfg, density, rest) in keys:
        rivals = [theirs for s, _, theirs in keys if s == setting and theirs[0] == name]
        # originals of other seeds may have given retrain other defaults; those are in the setting
        told = [f"{k}={_short(cfg[k])}" for k in cfg if any(r[1].get(k) != cfg[k] for r in rivals)]
        if density is not None:
            told.insert(0, f"mask {density:g}")
        told += [f"{k} {rest[k]}" for k in rest if any(r[3].get(k) != rest[k] for r in rivals)]
        labels[setting, variant] = f"{name} ({', '.join(told)})" if told else name
    return labels


def _short(value: Any) -> Any:
    return "/".join(map(str, value)) if isinstance(value, list) else value
