"""What a run computes: which runs may share a row, whatever their method is called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from report.settings import is_plan, name_of
from unlearn import METHODS
from utils import Saved


def computation(run: Saved) -> str:
    """The method whose computation a run is: RL without a mask is RL_og, FT_prune is FT_l1; of a plan its name."""
    name = name_of(run)
    if is_plan(run) or name not in METHODS:  # with the pruning of its own, retrain has a name of its own
        return name
    name = METHODS[name].same_as or name
    return "RL_og" if name == "RL" and not run.record.get("mask") else name


def needs_scores(run: Saved) -> bool:
    """Whether the method itself cannot do without scores: a plan refines by them, at random groups and vanilla nothing."""
    return is_plan(run) and not run.record["plan"]["shuffle"] and [s["group"] for s in run.record["plan"]["steps"]] != ["all"]


def variant_of(run: Saved) -> str:
    """The computation, its settings, mask and all else that must be equal in runs that are averaged over, as JSON."""
    record = run.record
    made = record.get("mask", {})
    cfg, density = _plan_settings(record["plan"]) if is_plan(run) else (record["settings"]["cfg"], made.get("density"))
    cfg = cfg | {name: run.setting(name) for name in ("batch_size", "aug", "aug_form")}
    rest = {name: run.setting(name) for name in ("mask_mode", "rum_retain", "precision", "device", "compile", "deterministic")}
    rest["saliency_mode"] = made.get("saliency_mode")
    if is_plan(run):
        rest["after"] = record["request"]["earlier"][:6]
    if needs_scores(run):
        rest["by"] = record["scores"].get("name")
        # proxies differ by seed
        rest["file"] = record["scores"].get("sha256", "")[:6] if rest["by"] == "memorization" else None
    return json.dumps([computation(run), cfg, density, rest])


def _plan_settings(plan: Mapping[str, Any]) -> tuple[dict[str, Any], float | None]:
    """Those of the one method that takes every step, and its mask's density; else each step's under its group's name."""
    steps = plan["steps"]
    if all((step["cfg"], step["density"]) == (steps[0]["cfg"], steps[0]["density"]) for step in steps):
        return steps[0]["cfg"], steps[0]["density"]
    return {f"{step['group']}.{name}": value for step in steps
            for name, value in {**step["cfg"], "density": step["density"]}.items()}, None
