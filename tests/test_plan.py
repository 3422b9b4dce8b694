"""Plans: the published ones by name, free ones by text, what each step retains, and streams of requests."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import OWN, TRAINED, make_data, quiet_runtime, short_config, tiny_net

from dataset import Data, Images
from groups import LEVELS, Chosen, ForgetConfig
from unlearn import METHODS, plan, rum
from unlearn.plan import PlanConfig, Step, retained
from utils import BadInput, Config


def make(method: str | None = None, own: Config | None = None, protocol: str = "rum", **settings: Any) -> plan.Plan:
    """The plan of these flags; ``own`` are those of the method."""
    entry = None if method is None else METHODS[method]
    return plan.make(PlanConfig(**settings), entry, own or (entry and entry.config()), protocol)


def told(made: plan.Plan) -> list[tuple[str, str, float | None]]:
    return [(step.group, step.method.name, step.density) for step in made.steps]


# ------------------------------------------------------------------------------------------------------ named and free


def test_published_plan_has_its_published_values() -> None:
    """Nothing on low, fine-tuning on mid, SalUn on high."""
    made = make(plan_name="rum")
    assert made.name == "RUM" and told(made) == [("low", "raw", None), ("mid", "FT", None), ("high", "RL", 0.5)]
    mid, high = made.steps[1].cfg, made.steps[2].cfg
    assert (mid.unlearn_lr, mid.unlearn_epochs) == (0.1, 10) and (high.unlearn_lr, high.unlearn_epochs) == (0.1, 5)
    assert high.rl_form == "mixed"


@pytest.mark.parametrize("order", list(itertools.permutations(LEVELS)))
def test_order_moves_the_steps_and_nothing_else(order: tuple[str, ...]) -> None:
    for settings in ({"plan_name": "rum"}, {"method": "NG"}):
        usual, made = make(**settings), make(**settings, order=order)
        assert [step.group for step in made.steps] == list(order)
        assert {step.group: step for step in made.steps} == {step.group: step for step in usual.steps}
        assert (made.name == usual.name) == (order == LEVELS) and all(level in made.name for level in order if made != usual)


@pytest.mark.parametrize("name", [name for name in OWN if not METHODS[name].fresh])
def test_a_method_on_every_group_keeps_its_flags(name: str) -> None:
    """RUM^F: typed values reach all three steps; the shuffle has the same steps under another name."""
    own = short_config(name, unlearn_lr=0.037, unlearn_epochs=7, alpha=0.61)
    made, mixed = make(name, own), make(name, own, shuffle=True)
    density = 0.5 if name == "RL" else None
    assert told(made) == [(level, name, density) for level in LEVELS] and all(step.cfg == own for step in made.steps)
    assert made.name == f"RUM^F {name}" and mixed.name == f"shuffle {name}" and mixed.steps == made.steps


@pytest.mark.parametrize("name", OWN)
def test_vanilla_passes_over_the_data_as_often_as_three_groups(name: str) -> None:
    """What is counted in epochs is three times as much where an epoch passes over retain, and as it was elsewhere."""
    own = short_config(name, unlearn_epochs=4, unlearn_lr=0.3, msteps=2, no_l1_epochs=1, warmup=1, decreasing_lr=(2, 3))
    if METHODS[name].fresh:
        return  # of no plan
    (equal,), (single,) = (make(name, own, plan_name="vanilla", budget=budget).steps for budget in ("equal", "single"))
    assert equal.group == single.group == "all" and single.cfg == own and equal.method.name == name
    counted = dict(unlearn_epochs=12, msteps=6, no_l1_epochs=3, warmup=3, decreasing_lr=(6, 9))
    if METHODS[name].phases:  # the first passes over the forget set
        counted = dict(replay_epochs=(12,))
    fields = {field.name for field in dataclasses.fields(own)}
    counted = {key: value for key, value in counted.items() if key in fields}
    forget_alone = "retain" not in METHODS[name].uses or name == "orth_no_our"
    assert equal.cfg == (own if forget_alone else dataclasses.replace(own, **counted))
    assert equal.density == (0.5 if name == "RL" else None)


def presented(method: str, cfg: Any, data: Data, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each training image is in a step of the method."""
    seen: Counter = Counter()
    real = Images.pixels
    with monkeypatch.context() as patch:
        patch.setattr(Images, "pixels", lambda self, index, augment: seen.update(index.tolist()) or real(self, index, augment))
        METHODS[method].apply(tiny_net(quiet_runtime()), data, cfg, quiet_runtime())
    return seen


@pytest.mark.parametrize("name", [name for name in TRAINED if not METHODS[name].fresh and not METHODS[name].whole])
def test_plan_and_control_step_on_each_example_as_often(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three groups of 10 beside one set of 30, 60 to retain, batches of 5, by the steps that each image is in.

    An ascent's number of steps on a forget image is that of the plan, also NegGrad+'s, whose forget batches go round within
    an epoch over retain; and so is everybody's number of steps on a retain image. Methods with a whole pass over each of
    both sets keep to retain: with their msteps, their passes over the forget set are three times the plan's.
    """
    data = make_data(quiet_runtime(), count=100, forget=30, batch_size=5)
    groups = np.random.default_rng(1).permutation(data.splits.forget).reshape(3, 10)
    own = short_config(name, unlearn_epochs=4, msteps=2, rl_form="sequential", ascent_every=1, bt_retain_share=1.0)
    in_plan: Counter = Counter()
    for group, step in zip(groups, make(name, own).steps, strict=True):
        train = np.union1d(data.splits.retain, group)
        splits = dataclasses.replace(data.splits, train=train, forget=np.sort(group))
        in_plan += presented(name, step.cfg, dataclasses.replace(data, splits=splits), monkeypatch)
    (step,) = make(name, own, plan_name="vanilla").steps
    control = presented(name, step.cfg, data, monkeypatch)
    times = 3 if name in ("SCRUB", "RL", "RL_og", "RL_proximal", "amnesiac", "badteacher") else 1
    for part, factor in (("forget", times), ("retain", 1)):
        there = data.index(part)
        if (name, part) == ("orth_no_our", "retain"):  # few retain batches, of one place in the order or another
            assert sum(control[i] for i in there) == sum(in_plan[i] for i in there) > 0
            continue
        for i in there:
            assert control[i] == factor * in_plan[i], part
    assert (sum(in_plan[i] for i in data.index("forget")) > 0) == ("forget" in METHODS[name].uses)


def test_free_plan_says_group_method_and_values() -> None:
    made = make(plan="high:RL( density = 0.3, unlearn_lr=0.02,rl_labels=any)\n low:raw mid:SCRUB(rewind=true,msteps=1)")
    assert told(made) == [("high", "RL", 0.3), ("low", "raw", None), ("mid", "SCRUB", None)]
    high, _, mid = (step.cfg for step in made.steps)
    assert (high.unlearn_lr, high.rl_labels, high.unlearn_epochs) == (0.02, "any", METHODS["RL"].config().unlearn_epochs)
    assert (mid.rewind, mid.msteps) == (True, 1)
    spaced = "low:raw   mid:FT high:RL( density= 0.3 ,\tunlearn_lr =0.02 )\n"
    assert make(plan=spaced).facts() == make(plan="low:raw mid:FT high:RL(density=0.3,unlearn_lr=0.02)").facts()
    (step,) = make(plan="all:FT(decreasing_lr=3/5,lr_gamma=.2,schedule=step)").steps
    assert (step.group, step.cfg.decreasing_lr, step.cfg.lr_gamma, step.cfg.schedule) == ("all", (3, 5), 0.2, "step")


def test_density_of_the_flag_is_that_of_steps_that_give_none() -> None:
    text = "low:raw mid:NG high:FT(density=0.9)"
    assert [step.density for step in make(plan=text).steps] == [None, None, 0.9]
    assert [step.density for step in make(plan=text, density=0.2).steps] == [None, 0.2, 0.9]
    assert [step.density for step in make("NG", density=0.2).steps] == [0.2] * 3
    assert [step.density for step in make("RL", density=0.2).steps] == [0.2] * 3
    assert [step.density for step in make("RL_og").steps] == [None] * 3
    assert [step.density for step in make(plan="low:RL mid:RL_og high:RL(density=1)").steps] == [0.5, None, 1]


def test_values_that_are_not_given_are_the_protocols() -> None:
    by_protocol = {"rum": (0.1, "mixed"), "sparse": (0.013, "sequential")}
    for protocol, values in by_protocol.items():
        made = make(plan="low:RL mid:raw high:RL(unlearn_lr=0.5)", protocol=protocol)
        low, high = made.steps[0].cfg, made.steps[2].cfg
        assert (low.unlearn_lr, low.rl_form) == values and (high.unlearn_lr, high.rl_form) == (0.5, values[1])
        assert make(plan_name="rum", protocol=protocol).steps[2].cfg.unlearn_lr == 0.1


@pytest.mark.parametrize("settings, said", [
    ({"plan": "low:FT(unlearn_lr=1,unlearn_lr=2) mid:raw high:raw"}, "gives unlearn_lr twice"),
    ({"plan": "low:FT mid:raw high:raw", "order": ("high", "mid", "low")}, "its own order"),
    ({"plan": "all:FT", "shuffle": True}, "--shuffle is about groups"),
    ({"plan": "all:FT", "budget": "single"}, "--budget is of --plan_name vanilla"),
    ({"plan": "all:FT", "mask_mode": "published"}, "no step has one"),
    ({"plan": "all:raw", "density": 0.5}, "--density asks for"),
    ({"method": "FT", "plan_name": "vanilla", "order": ("high", "mid", "low")}, "has no groups"),
    ({"method": "FT", "mask_mode": "published"}, "no step has one"),
    ({"plan_name": "rum", "budget": "single"}, "--budget is of --plan_name vanilla")])
def test_flags_without_effect_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make(**settings)


def test_another_forget_set_is_shuffled_otherwise(data: Data) -> None:
    """By places in the set, so that the examples that stand there do not tell them apart; once more, the same."""
    made, places = make("NG", shuffle=True), []
    for first in (0, 1, 0):
        forget = data.splits.train[first : first + 30]
        parts = plan.grouped(made, data.forgetting(Chosen(forget, {}, {})))
        places.append({level: np.searchsorted(forget, part).tolist() for level, part in parts.items()})
        assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), forget)
    assert places[0] == places[2] and all(places[0][level] != places[1][level] for level in LEVELS)


# -------------------------------------------------------------------------------------------------------- retain sets

TRAIN = np.arange(12)
LOW, MID, HIGH = np.array([0, 5]), np.array([1, 7]), np.array([2, 9])
PARTS = {"low": LOW, "mid": MID, "high": HIGH}
KEPT = {3, 4, 6, 8, 10, 11}
# what each step retains beside KEPT, by the groups' order: staged by place, published by name
STAGED = {0: ("second", "third"), 1: ("third",), 2: ()}
PUBLISHED = {"low": ("mid", "high"), "mid": ("high",), "high": ()}


@pytest.mark.parametrize("order", list(itertools.permutations(LEVELS)))
def test_every_step_retains_what_was_decided(order: tuple[str, ...]) -> None:
    parts = [PARTS[level] for level in order]
    place = dict(zip(("first", "second", "third"), order, strict=True))
    for number, level in enumerate(order):
        expected = {"staged": [place[name] for name in STAGED[number]], "whole": [],
                    "published": PUBLISHED[level]}
        for how, beside in expected.items():
            found = retained(TRAIN, parts, number, how, order)
            assert found.tolist() == sorted(KEPT.union(*(PARTS[name].tolist() for name in beside))), (how, level)
            assert not np.isin(parts[number], found).any()


def again(order: tuple[str, ...], how: str) -> int:
    """How many examples are retained in a step after the one that forgot them."""
    parts, count, gone = [PARTS[level] for level in order], 0, np.empty(0, np.int64)
    for number, part in enumerate(parts):
        count += np.isin(gone, retained(TRAIN, parts, number, how, order)).sum()
        gone = np.union1d(gone, part)
    return int(count)


@pytest.mark.parametrize("order", list(itertools.permutations(LEVELS)))
def test_nothing_forgotten_is_trained_again_but_in_the_published_form(order: tuple[str, ...]) -> None:
    assert again(order, "staged") == again(order, "whole") == 0
    assert (again(order, "published") == 0) == (order == LEVELS)
    assert again(LEVELS[::-1], "published") == 2 + 4  # as with confidence: high again in mid; high and mid again in low


def test_a_plan_of_one_step_retains_the_rest() -> None:
    whole = np.concatenate(list(PARTS.values()))
    for how in ("staged", "whole", "published"):
        assert retained(TRAIN, [whole], 0, how, ("all",)).tolist() == sorted(KEPT)


@pytest.mark.parametrize("how", ["staged", "published", "whole"])
def test_steps_see_the_sets_of_their_plan(how: str, data: Data) -> None:
    """The data of a step: its group to forget, its retain set, and nothing of what earlier requests forgot."""
    train = data.splits.train
    done, own = train[:4], train[[5, 8, 11, 14, 17, 20]]
    parts = {"low": own[:2], "mid": own[2:4], "high": own[4:]}
    made = make("NG", order=("mid", "low", "high"), rum_retain=how)
    request = rum.Request(1, data.forgetting(Chosen(np.union1d(done, own), {}, {})), parts, done)
    for number, step in enumerate(made.steps):
        seen = rum.at_step(made, request, number).splits
        by_name = PUBLISHED[step.group]
        beside = {"staged": [("low", "high"), ("high",), ()][number], "whole": (), "published": by_name}[how]
        expected = set(train) - set(done) - set(own) | {i for name in beside for i in parts[name]}
        assert set(seen.retain) == expected and len(seen.retain) == len(expected)
        assert seen.forget.tolist() == parts[step.group].tolist() and np.array_equal(seen.val, data.splits.val)
        assert not np.isin(done, np.concatenate([seen.retain, seen.forget, seen.train])).any()


# ------------------------------------------------------------------------------------------------------------ requests


def asked(folder: Path, content: Any) -> list[np.ndarray]:
    (folder / "requests.json").write_text(json.dumps(content))
    return plan.read_requests(folder / "requests.json", np.arange(0, 40, 2))


def test_requests_are_read_in_their_order(tmp_path: Path) -> None:
    assert [index.tolist() for index in asked(tmp_path, [[8, 2, 4], [0], [38, 36]])] == [[2, 4, 8], [0], [36, 38]]


@pytest.mark.parametrize("flag, value", [("num_indexes_to_replace", 5), ("forget_fraction", 0.1), ("forget_index", "set.npy"),
                                         ("mem", "mix"), ("group_index", 3), ("class_to_replace", (0,))])
def test_requests_and_a_flag_that_chooses_a_set_are_refused(flag: str, value: Any) -> None:
    chosen = ForgetConfig(**{flag: value})
    with pytest.raises(BadInput, match=f"--requests names what to forget; leave --{flag} away"):
        plan.forget_of(PlanConfig(requests="requests.json"), chosen)
    assert plan.forget_of(PlanConfig(), chosen) is chosen
    assert plan.forget_of(PlanConfig(requests="requests.json"), ForgetConfig(scores="scores.npz")) is None


@pytest.mark.parametrize("content, said", [
    ({"a": [2]}, "list of one or more lists"), ([], "list of one or more"), ([[2], []], "list of one or more"),
    ([2, 4], "list of one or more"), ([[2], [4.0]], "request 2 holds other things"), ([[2], [True]], "request 2 holds other"),
    ([[2], ["4"]], "request 2 holds"), ([[2, 2]], "request 1 names examples twice"), ([[2, 4], [6, 4]], "request 2 names"),
    ([[2], [4, 5, 42]], "2 examples of request 2 are no training"), ([[2], [-2]], "1 examples of request 2"),
    ([[2], [10**30]], "1 examples of request 2"), ([list(range(0, 40, 2))], "whole training set"),
    ([list(range(0, 20, 2)), list(range(20, 40, 2))], "together they are the whole training set")])
def test_bad_requests_are_found_before_the_first_is_served(content: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        asked(tmp_path, content)


def test_requests_become_unions_with_what_was_forgotten_before(data: Data, tmp_path: Path) -> None:
    train = data.splits.train
    lists = [train[[9, 3]], train[[4]], train[[0, 30, 20]]]
    (tmp_path / "r.json").write_text(json.dumps([part.tolist() for part in lists]))
    made = make("NG", plan_name="vanilla", requests=str(tmp_path / "r.json"))
    found = rum.requests(made, data, ForgetConfig())
    for number, (request, own) in enumerate(zip(found, lists, strict=True)):
        before = np.sort(np.concatenate(lists[:number])) if number else np.empty(0)
        assert request.number == number and request.done.tolist() == before.tolist()
        assert request.parts["all"].tolist() == sorted(own)
        assert request.data.splits.forget.tolist() == sorted([*before, *own])
        assert rum.at_step(made, request, 0).splits.retain.tolist() == [i for i in train if i not in {*before, *own}]
    assert len({json.dumps(request.facts()) for request in found}) == 3


def test_steps_have_streams_of_their_own() -> None:
    """The first has a method's own, so that a plan of one step is that method."""
    purposes = [plan.purpose_of(request, step) for request in range(3) for step in range(3)]
    assert purposes[0] == "unlearn" and len(set(purposes)) == 9


def test_step_facts_tell_every_value() -> None:
    step = Step("low", METHODS["NG"], METHODS["NG"].config(alpha=0.4), 0.3)
    others = [dataclasses.replace(step, group="mid"), dataclasses.replace(step, density=None),
              dataclasses.replace(step, cfg=METHODS["NG"].config(alpha=0.5)), Step("low", METHODS["RL"], step.cfg, 0.3)]
    assert len({json.dumps(one.facts()) for one in [step, *others]}) == 5
