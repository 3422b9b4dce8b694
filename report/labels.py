"""What rows are called: methods that are one computation by both names, plans by a label, settings where they differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from report.pairs import Pair
from report.variants import computation, variant_of
from utils import Saved

WRITTEN = re.compile(r"(?:^|(?<=^shuffle ))plan (.*)")  # the name of a plan that was written out, shuffled or not


def shown_names(found: Iterable[Pair]) -> dict[str, str]:
    """Variant -> what its runs are called: ``FT_l1 = FT_prune`` where both names have it; of a written plan its label.

    Variants of one computation that share a name are all called by the names of all of them; ``SCRUB`` and ``scrub`` of other
    settings by one each. To do nothing is raw by any name. Plans without a label are numbered in the order of their text,
    alike in all tables of an analysis; a label that two computations have gets that number too.
    """
    names: dict[str, dict[str, set[str]]] = {}  # computation -> variant -> names
    own: dict[str, str] = {}
    for pair in found:
        name = computation(pair.run)
        names.setdefault(name, {}).setdefault(variant_of(pair.run), set()).update(pair.names or (pair.method,))
        own[name] = label_of(pair.run) or ""
    called = _plans(names, own)
    return {variant: called.get(name) or _joined(name, there, variant) for name, there in names.items() for variant in there}


def _joined(name: str, there: Mapping[str, set[str]], variant: str) -> str:
    """The names of a variant, and of those of the same computation that share one with it, or with one that does."""
    if name == "raw":
        return name
    found: set[str] = set()
    more = there[variant]
    while more - found:
        found |= more
        more = set().union(*(own for own in there.values() if own & found))
    return " = ".join(sorted(found, key=lambda one: (one != name, one)))


def _plans(names: Iterable[str], own: Mapping[str, str]) -> dict[str, str]:
    """Computation -> what is shown of a written plan: its label, with its number where it has none or shares it."""
    shown: dict[str, str] = {}
    written = {name: plan[1] for name in names if (plan := WRITTEN.search(name))}
    texts, plain = sorted(set(written.values())), {name for name in names if name not in written}
    for name, text in written.items():
        label = own[name] or "plan"
        rivals = {other for other, theirs in written.items() if own[other] == own[name] and theirs != text}
        alone = own[name] and not rivals and label not in plain
        shown[name] = name[: len(name) - len(f"plan {text}")] + (label if alone else f"{label} {texts.index(text) + 1}")
    return shown


def label_of(run: Saved) -> str | None:
    """The label that a person gave a plan (``--plan_label``)."""
    return run.record["settings"].get("plan", {}).get("plan_label")


def labels_of(grouped: Iterable[tuple[str, str]],
              names: Mapping[str, str] = MappingProxyType({})) -> dict[tuple[str, str], str]:
    """(setting, variant) -> method's name, with the hyper-parameters that tell several variants in one setting apart.

    Args:
        names: as ``shown_names`` has them; the computation of a variant that is not there is called by its own name.
    """
    labels = {}
    keys = [(setting, variant, json.loads(variant)) for setting, variant in grouped]
    called = {variant: names.get(variant, parts[0]) for _, variant, parts in keys}
    words = {variant: set(text.split(" = ")) for variant, text in called.items()}
    family: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    for setting, variant, theirs in keys:
        family.setdefault((setting, theirs[0]), []).append((variant, theirs))
    for setting, variant, (name, cfg, density, rest) in keys:
        rivals = [theirs for v, theirs in family[setting, name] if words[v] & words[variant]]
        # originals of other seeds may have given retrain other defaults; those are in the setting
        told = [f"{k}={_short(cfg[k])}" for k in cfg if any(r[1].get(k) != cfg[k] for r in rivals)]
        if density is not None:
            told.insert(0, f"mask {density:g}")
        told += [f"{k} {rest[k]}" for k in rest if any(r[3].get(k) != rest[k] for r in rivals)]
        labels[setting, variant] = f"{called[variant]} ({', '.join(told)})" if told else called[variant]
    return labels


def _short(value: Any) -> Any:
    return "/".join(map(str, value)) if isinstance(value, list) else value
