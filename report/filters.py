"""The filters of an analysis (FilterConfig) one after another: which runs each leaves, and what is said where none is left."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable
from typing import Any

from report.settings import is_plan, name_of
from utils import Saved, flag_words

OF_ANY = ("dataset", "ood_classes", "ood_subclass", "arch", "seed")  # those that a retrain has to pass too
MANY = ("unlearn", "seed")  # those that name several values, of which a run has to have one
FILTERS = ("dataset", "ood_classes", "ood_subclass", "arch", "num_indexes_to_replace", "forget_fraction", "class_to_replace",
           "subclass_to_replace", "mem", "mem_proxy", "group_index", "aug", "unlearn", "seed")
SHOWN = 20  # values that are listed


def facts(run: Saved, name: str) -> dict[Any, None]:
    """What a run answers to under a filter; the first is what it is called."""
    if name == "unlearn":  # a plan by its name, its method, its kind and its label
        called = name_of(run)
        more = [called.split()[0], run.record["settings"].get("plan", {}).get("plan_label")] if is_plan(run) else []
        return dict.fromkeys([called, run.setting("unlearn"), *more])
    if name == "mem_proxy":  # what the scores were stands in the record of a finished run alone
        return {run.record["scores"].get("name") if "scores" in run.record else run.setting("mem_proxy"): None}
    value = run.setting(name)
    return {tuple(value) if isinstance(value, list) else value: None}


def asked(cfg: Any) -> dict[str, tuple[Any, ...]]:
    """By filter, the values one of which a run must have; filters that are not set are not among them."""
    given = {name: getattr(cfg, name) for name in FILTERS if getattr(cfg, name) is not None}
    return {name: value if name in MANY else (value,) for name, value in given.items()}


def passes(run: Saved, cfg: Any) -> bool:
    """Whether a run passes the filters; a retrain, those that are for any run: by the others it is found through its run."""
    return passes_all(run, cfg, OF_ANY if name_of(run) == "retrain" else FILTERS)


def passes_all(run: Saved, cfg: Any, names: Iterable[str] = FILTERS) -> bool:
    return all(any(value in values for value in facts(run, name)) for name, values in asked(cfg).items() if name in names)


def without(cfg: Any, name: str) -> Any:
    """The filters but for one."""
    return dataclasses.replace(cfg, **{name: None})


def emptied(runs: list[Saved], cfg: Any) -> str:
    """How many runs each filter left, up to the one that left none, and the values that there were for that one."""
    words, left = [f"{_count(runs)} there"], runs
    for name, values in asked(cfg).items():
        before, left = left, [run for run in left if any(value in values for value in facts(run, name))]
        flag = shlex.join(flag_words(name, getattr(cfg, name)))
        words.append(f"{flag}: {len(left)} of {_count(before)}")
        if not left:
            here = sorted({next(iter(facts(run, name))) for run in before} - {None}, key=_order)
            words.append(f"{name} here: {_listed(here)}")
            break
    return "; ".join(words)


def _count(runs: list[Saved]) -> str:
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}"


def _order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


def _listed(values: Iterable[Any]) -> str:
    told = [",".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values]
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return ", ".join(told[:SHOWN]) + more if told else "none"
