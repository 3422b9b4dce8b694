"""Plans of RUM: which method forgets which group, in which order.

A plan is a line such as ``low:raw mid:FT(unlearn_lr=0.1) high:RL(density=0.5)``, or one of the published forms by name.
Source: Zhao et al., NeurIPS 2024, arXiv:2406.01257, section 5.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np

from dataset import Data
from groups import LEVELS, ForgetConfig, refine
from unlearn.registry import METHODS, Method
from utils import BadInput, Config, Run, did_you_mean, hp, read_json, reading, shown

NAMED = {"rum": "low:raw mid:FT(unlearn_lr=0.1,unlearn_epochs=10) high:RL(unlearn_lr=0.1,unlearn_epochs=5)"}
TAKEN = ("RUM^F", "shuffle", "vanilla")  # first words of the names of other plans
SALUN_DENSITY = 0.5  # of a step by RL or salun, which in a plan is SalUn; RL_og is the one without a mask


class PlanText(str):
    """A plan on one line, with single spaces: in a script it may stand on several."""

    def __new__(cls, text: str) -> PlanText:
        return super().__new__(cls, " ".join(text.split()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig(Config):
    """Refine the forget set, then unlearn group by group."""

    # runs are told apart by the steps themselves, however they were asked for
    plan: PlanText | None = hp(None, "steps in their order, such as 'low:raw mid:FT(unlearn_lr=0.1) high:RL(density=0.5)'",
                          digest=False)
    plan_label: str | None = hp(None, "what tables and figures call the plan of --plan (default: plan 1, plan 2, ..., "
                                "explained under the table); a finished run takes the new one", digest=False)
    plan_name: str | None = hp(None, "rumf: --unlearn METHOD on each group (the default with --unlearn); rum: the published "
                               f"choice, {NAMED['rum']}; vanilla: --unlearn METHOD once on the whole set",
                               choices=("rumf", "rum", "vanilla"), digest=False)
    order: tuple[str, ...] = hp(LEVELS, "order of the groups of rumf and rum", choices=LEVELS, digest=False)
    shuffle: bool = hp(False, "random groups of the same sizes, the same for all methods (the control)", digest=False)
    budget: str = hp("equal", "vanilla trains as many epochs as the groups together (equal; three times as many where an epoch "
                     "passes over retain, as many where it passes over the forget set alone), or as one of them (single)",
                     choices=("equal", "single"), digest=False)
    density: float | None = hp(None, "share of the weights that may change in every step: a saliency mask of the step's own "
                               "group on the step's own model (RL, salun: 0.5 without the flag)", above=0, high=1, digest=False)
    mask_mode: str = hp("strict", "strict: masked weights stay bit-identical; published: only their gradient is masked",
                        choices=("strict", "published"))
    rum_retain: str = hp("staged", "what a step retains. staged: all but the groups forgotten so far, itself included; whole: "
                         "never any of the forget set; published: as the released code fixes it by the group's name",
                         choices=("staged", "whole", "published"))
    requests: str | None = hp(None, "file (.json: list of lists of training indices) of deletion requests, forgotten one after "
                              "another by the plan", digest=False)

    def __post_init__(self) -> None:
        if self.plan is not None:
            object.__setattr__(self, "plan", PlanText(self.plan))
        if self.plan_label is not None:
            object.__setattr__(self, "plan_label", " ".join(self.plan_label.split()))
        super().__post_init__()


@dataclasses.dataclass(frozen=True)
class Step:
    """One method on one group (``all``: the whole forget set), with a saliency mask where ``density`` is given."""

    group: str
    method: Method
    cfg: Config
    density: float | None = None

    def facts(self) -> dict[str, Any]:
        return {"group": self.group, "method": self.method.name, "cfg": dataclasses.asdict(self.cfg), "density": self.density}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Steps under the name that tables show."""

    name: str
    steps: tuple[Step, ...]
    cfg: PlanConfig

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "steps": [step.facts() for step in self.steps], "shuffle": self.cfg.shuffle}


def make(cfg: PlanConfig, method: Method | None, own: Config | None, protocol: str) -> Plan:
    """The plan that the settings ask for.

    Args:
        method, own: of ``--unlearn`` and its flags; None where no method was named.
        protocol: whose values the steps of a written plan have where it gives none.

    Raises:
        BadInput: no plan or two, a plan that names an unknown group, method or setting, that repeats or omits a group.
    """
    named = cfg.plan_name or ("rumf" if method is not None and cfg.plan is None else None)
    if (named is None) == (cfg.plan is None):
        raise BadInput("say what to do with the groups: --unlearn METHOD (the same on each), --plan_name rum, or --plan "
                       "'low:raw mid:FT high:RL'" if cfg.plan is None else "--plan is a whole plan; leave --plan_name away")
    if (method is not None) != (named in ("rumf", "vanilla")):
        raise BadInput(f"--plan_name {named} needs --unlearn METHOD" if method is None else
                       "--unlearn names one method for all groups; the plan names its own, leave --unlearn away")
    if cfg.plan_label is not None and not cfg.plan_label:
        raise BadInput("--plan_label is empty; say what tables are to call the plan, or leave it away")
    if cfg.plan_label is not None and named is not None:
        raise BadInput("--plan_label is for the plan of --plan; other forms have names of their own, leave it away")
    if cfg.plan_label is not None and cfg.plan_label.split()[0] in (*METHODS.names(), *TAKEN):
        raise BadInput(f"--plan_label {cfg.plan_label} reads as another method; begin it with another word")
    if named is None:
        steps = parse(cfg.plan, protocol, cfg.density)
        _cover(cfg.plan, [step.group for step in steps])
        alike = {step.method.name for step in steps}
        _unused(cfg, steps, "--plan")
        own_values = f"RUM^F {min(alike)}" + (", settings per group" if dataclasses.fields(steps[0].cfg) else "")
        return Plan(_told(own_values if len(alike) == 1 and len(steps) > 1 else f"plan {_tidy(cfg.plan)}", cfg), steps, cfg)
    if named == "rum":
        by_group = {step.group: step for step in parse(NAMED["rum"], protocol, cfg.density)}
        _unused(cfg, tuple(by_group.values()), "--plan_name rum")
        return Plan(_told("RUM", cfg), tuple(by_group[group] for group in _order(cfg)), cfg)
    density = cfg.density or _usual_density(method)
    _check_density(method, density)
    if named == "vanilla":
        steps = (Step("all", method, _budget(method, own, cfg), density),)
        name = f"vanilla {method.name}"
    else:
        steps = tuple(Step(group, method, own, density) for group in _order(cfg))
        name = _told(f"RUM^F {method.name}", cfg)
    _unused(cfg, steps, f"--plan_name {named}")
    return Plan(name, steps, cfg)


def relabel(run: Run, cfg: PlanConfig) -> None:
    """A finished run takes the label that is typed now."""
    if cfg.plan_label not in (None, run.values["settings"]["plan"].get("plan_label")):
        run.rename("plan", "plan_label", cfg.plan_label)


def _unused(cfg: PlanConfig, steps: tuple[Step, ...], asked: str) -> None:
    """Refuse flags that this plan has no use for."""
    whole = steps[0].group == "all"
    if cfg.shuffle and whole:
        raise BadInput(f"--shuffle is about groups, and {asked} has none; leave one of the two away")
    if cfg.order != LEVELS and (whole or cfg.plan is not None):
        raise BadInput(f"--order is of rumf and rum; leave it away, {asked} has {'no groups' if whole else 'its own order'}")
    if cfg.budget != "equal" and asked != "--plan_name vanilla":
        raise BadInput(f"--budget is of --plan_name vanilla; leave it away with {asked}")
    if cfg.density is not None and all(step.density is None for step in steps):
        raise BadInput("--density asks for saliency masks, and no method of this plan takes one; leave it away")
    if cfg.mask_mode != "strict" and all(step.density is None for step in steps):
        raise BadInput("--mask_mode is about saliency masks, and no step has one; give --density, or leave it away")


def _order(cfg: PlanConfig) -> tuple[str, ...]:
    if sorted(cfg.order) != sorted(LEVELS):
        raise BadInput(f"--order {','.join(cfg.order)}: name low, mid and high once each")
    return cfg.order


def _told(name: str, cfg: PlanConfig) -> str:
    if cfg.shuffle:
        name = name.replace("RUM^F", "shuffle") if "RUM^F" in name else f"shuffle {name}"
    return name + ("" if cfg.order == LEVELS else f" ({', '.join(cfg.order)})")


def _budget(method: Method, own: Config, cfg: PlanConfig) -> Config:
    """As many passes as three groups get, so that a plan is not better by its longer training alone.

    Each group's epochs pass over all of retain, so the control gets three times as many, and with them all else that is
    counted in epochs. Epochs over the forget set alone pass over a third of it in each group: together over the whole of it.
    """
    if cfg.budget == "single":
        return own
    counts = {name: getattr(own, name) for name in method.over_retain}
    return dataclasses.replace(own, **{name: tuple(3 * e for e in count) if isinstance(count, tuple) else 3 * count
                                       for name, count in counts.items()})


STEP = re.compile(r"\s*(\w+):(\w+)(?:\(([^()]*)\))?(?=\s|$)")


def parse(text: str, protocol: str = "rum", density: float | None = None) -> tuple[Step, ...]:
    """``group:METHOD(name=value,...)`` one or more times; ``density=D`` in the brackets asks for a saliency mask."""
    steps, at = [], 0
    while text[at:].strip():
        found = STEP.match(text, at)
        if found is None:
            raise BadInput(f"--plan: cannot read {shown(text[at:].strip())}; write group:METHOD or "
                           "group:METHOD(name=value,...)")
        steps.append(_step(found[1], METHODS[found[2]], found[3] or "", protocol, density))
        at = found.end()
    return tuple(steps)


def _tidy(text: str) -> str:
    """A plan's text with single spaces between steps and none in brackets, so that spelling makes no other plan of it."""
    return " ".join(re.sub(r"\s+", "", found[0]) for found in STEP.finditer(text))


def _step(group: str, method: Method, text: str, protocol: str, density: float | None) -> Step:
    if method.fresh:
        raise BadInput(f"--plan: {method.name} starts from new weights and would undo the steps before it; name another method")
    hints, values = typing.get_type_hints(method.config), dict(method.per_protocol.get(protocol, {}))
    density, given = density or _usual_density(method), set()
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in word.partition("="))
        if not equals:
            raise BadInput(f"--plan: {shown(word)} in {group}:{method.name} is no name=value")
        if name in given:
            raise BadInput(f"--plan: {group}:{method.name} gives {name} twice")
        given.add(name)
        if name == "density":
            density = _typed(float, name, value)
        elif name in hints:
            values[name] = _typed(hints[name], name, value)
        else:
            own = ", ".join(field.name for field in dataclasses.fields(method.config)) or "none"
            raise BadInput(f"--plan: {method.name} has no setting {shown(name)}{did_you_mean(name, hints)}; it has {own}, and "
                           "density")
    if density is not None and not 0 < density <= 1:
        raise BadInput(f"--plan: density must lie in (0, 1]; got {density:g}")
    if "density" in given:
        _check_density(method, density)
    return Step(group, method, method.config(**values), density if method.masked else None)


def _usual_density(method: Method) -> float | None:
    return SALUN_DENSITY if method.name == "RL" or method.needs_mask else None


def _check_density(method: Method, density: float | None) -> None:
    if density is not None and not method.masked:
        raise BadInput(f"{method.name} takes no saliency mask; leave the density away")


def _typed(hint: Any, name: str, text: str) -> Any:
    """A setting's value from a plan's text: whole numbers, numbers, words, true or false, numbers joined by /."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    try:
        if typing.get_origin(hint) is tuple:
            return tuple(typing.get_args(hint)[0](part) for part in text.split("/"))
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        return hint(text)
    except (ValueError, KeyError):
        raise BadInput(f"--plan: {name}={shown(text)} is not of the right kind") from None


def _cover(text: str, groups: list[str]) -> None:
    """Every group once: low, mid and high, or all."""
    known = ["all"] if "all" in groups else list(LEVELS)
    for group in groups:
        if group not in (*LEVELS, "all"):
            raise BadInput(f"--plan: unknown group {shown(group)}; the groups are low, mid and high (or all)")
        if groups.count(group) > 1:
            raise BadInput(f"--plan names the group {group} twice: {shown(text, 100)}")
    left = [group for group in known if group not in groups]
    extra = [group for group in groups if group not in known]
    if left or extra:
        raise BadInput(f"--plan must name every group once; {', '.join(left + extra)} "
                       f"{'is missing' if left else 'cannot stand beside all'} in {shown(text, 100)}; group:raw leaves a group "
                       "alone")


# --------------------------------------------------------------------------------------------- groups and retain sets


def grouped(plan: Plan, data: Data) -> dict[str, np.ndarray]:
    """The plan's groups of the forget set: name -> int64, ascending, disjoint and together all of it."""
    forget = data.splits.forget
    if plan.steps[0].group == "all":
        return {"all": forget}
    if plan.cfg.shuffle:
        # a stream of the split's own, so that the partition is the same for all methods and seeds
        random = np.random.default_rng([int(data.splits.split_key, 16), 0x73687566])
        order = random.permutation(len(forget))
        return refine(order.astype(np.float64), forget, order).groups
    found = data.splits.groups
    if set(found) != set(LEVELS):
        raise BadInput("say by what to refine the forget set: --mem mix (by memorization, or by --mem_proxy NAME), or "
                       "--mem_proxy NAME or --scores FILE beside the flags that choose the set; --shuffle needs neither")
    return found


def retained(train: np.ndarray, parts: list[np.ndarray], number: int, how: str,
             levels: tuple[str, ...] = LEVELS) -> np.ndarray:
    """What step ``number`` (from 0) retains of the training examples: int64, ascending.

    ``staged``: groups still to come stay in retain, those forgotten so far, this one included, are out. ``whole``: no group
    is ever in retain. ``published``: what the released scripts fix by a group's name, whatever the order of the steps: all
    but the groups up to and including its own, counted from the least memorized. Their driver runs proxies such as
    confidence from the most memorized on, which is ``--order high,mid,low`` here, and so trains on what it has forgotten.

    Args:
        parts: the groups in the order of the steps; ``levels``: their names.
    """
    gone = parts if how == "whole" else parts[: number + 1]
    if how == "published" and len(parts) > 1:
        ranks = [LEVELS.index(level) for level in levels]
        gone = [part for part, rank in zip(parts, ranks, strict=True) if rank <= ranks[number]]
    return np.setdiff1d(train, np.concatenate(gone))


def forget_of(cfg: PlanConfig, forget: ForgetConfig) -> ForgetConfig | None:
    """The flags that choose the forget set; None where ``--requests`` does."""
    if cfg.requests is None:
        return forget
    names = ("num_indexes_to_replace", "forget_fraction", "subclass_to_replace", "forget_index", "mem", "group_index")
    chosen = [f"--{name}" for name in names if getattr(forget, name) is not None]
    chosen += ["--class_to_replace"] * (forget.class_to_replace != (-1,))
    chosen += ["--forget_mislabelled"] * forget.forget_mislabelled
    if chosen:
        raise BadInput(f"--requests names what to forget; leave {', '.join(chosen)} away")
    return None


def read_requests(path: Path, train: np.ndarray) -> list[np.ndarray]:
    """The deletion requests of a file, each int64 ascending; disjoint, of ``train``, but not all of it (else BadInput)."""
    with reading(f"cannot read --requests {path}", "it is a .json list of lists of training indices"):
        content = read_json(path)
    if not isinstance(content, list) or not content or not all(isinstance(r, list) and r for r in content):
        raise BadInput(f"--requests {path}: need a list of one or more lists of training indices")
    seen, found = np.empty(0, np.int64), []
    for number, request in enumerate(content, 1):
        if not all(type(i) is int for i in request):  # true and false are whole numbers to isinstance
            raise BadInput(f"--requests {path}: request {number} holds other things than whole numbers")
        outside = len(set(request).difference(train.tolist()))
        if outside:
            raise BadInput(f"--requests {path}: {outside} examples of request {number} are no training examples")
        index = np.unique(np.asarray(request, np.int64))
        if len(index) < len(request) or len(np.intersect1d(index, seen)):
            raise BadInput(f"--requests {path}: request {number} names examples twice, or that an earlier one names")
        seen = np.union1d(seen, index)
        found.append(index)
    if len(seen) == len(train):
        raise BadInput(f"--requests {path}: together they are the whole training set ({len(train)} examples); forget fewer")
    return found


def purpose_of(request: int, step: int) -> str:
    """The random streams of a step; the first one's are those of a method run by itself, so that a plan of one is that."""
    return "unlearn" if (request, step) == (0, 0) else f"unlearn/{request}.{step}"
