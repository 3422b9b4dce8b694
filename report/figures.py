"""The figures of one setting, as data: every number in them is one of the CSV."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from evaluation.statistics import Number
from groups import LEVELS
from report import contrasts, looks, margins
from report.captions import caption, most_seeds, notes_of
from report.contrasts import Study, methods_of, reference_of
from report.dots import Dots, Panel
from report.draw import Chart
from report.names import Heading
from report.pairs import FilterConfig
from report.rows import FLOOR, Row
from report.scatter import Point, Scatter
from report.sheet import Axis, Dot, Mark
from report.tables import costs_scores

SHARE, PERCENT, POSITIVE = (0.0, 1.0), (0.0, 100.0), (0.0, math.inf)
# measure -> what is read of a cost, and whether it is of seconds
COSTS = {"cost": ("seconds", "seconds of the method and its mask, log scale"),
         "cost_total": ("seconds_total", "seconds of the method, its mask and scores, log scale"),
         "cost_images": ("images_read", "images read, % of retrain's, log scale")}


def tow_charts(part: list[Row], heading: Heading, cfg: FilterConfig) -> dict[str, Chart]:
    """File name -> chart of one setting."""
    note = _nobody_best(part, contrasts.TOW, cfg)
    found = {"tow": headline(part, heading, "ToW", note), "accuracy": accuracies(part, heading),
             "margins": margins.chart(part, heading)}
    if any("acc_low" in row.numbers for row in part):
        found["group_accuracy"] = by_level(part, heading)
    return _there(found | {name: cost(part, heading, "ToW", name, note) for name in _costs(part)})


def mia_charts(part: list[Row], heading: Heading, cfg: FilterConfig) -> dict[str, Chart]:
    """As ``tow_charts``, of ToW-MIA and membership inference."""
    note = _nobody_best(part, contrasts.MIA, cfg)
    found = {"tow_mia": headline(part, heading, "ToW-MIA", note), "mia": efficacy(part, heading)}
    costs = {f"{name}_mia": cost(part, heading, "ToW-MIA", name, note) for name in _costs(part) if name != "cost_images"}
    return _there(found | costs)


def _there(found: Mapping[str, Chart | None]) -> dict[str, Chart]:
    return {name: chart for name, chart in found.items() if chart is not None}


def _nobody_best(part: list[Row], study: Study, cfg: FilterConfig) -> str:
    reason = contrasts.nobody_best(part, study, cfg)
    return f"{reason.partition(':')[0]}: no method is the best here" if reason else ""


def _costs(part: Iterable[Row]) -> list[str]:
    part = list(part)
    differ = {"cost_total": costs_scores(part), "cost_images": any("images_read" in row.numbers for row in part)}
    return [name for name in COSTS if differ.get(name, True)]


# ------------------------------------------------------------------------------------------------------------ what is drawn


def dot_of(number: Number, hollow: object = False) -> Dot:
    return Dot(number.mean, *(number.ends or (None, None)), hollow=bool(hollow))


def methods(part: Iterable[Row], name: str) -> list[Row]:
    """The rows with the number, in their order: without the floor and retrain."""
    return [row for row in methods_of(list(part)) if name in row.numbers]


def row_names(rows: Sequence[Row]) -> dict[int, str]:
    """id of a row -> its name, with n where it is not that of the most seeds."""
    most = most_seeds(rows)
    return {id(row): row.told if len(row.pairs) == most else f"{row.told}, n = {len(row.pairs)}" for row in rows}


def ranked(part: Iterable[Row], name: str, note: str) -> list[Row]:
    """From the best to the worst; with a note that none is the best, in their order."""
    found = methods(part, name)
    return ordered(found if note else sorted(found, key=lambda row: -row.numbers[name].mean))


def ordered(found: Iterable[Row]) -> list[Row]:
    """raw first, collapsed ones last, the others as they stand."""
    return sorted(found, key=lambda row: (not row.is_raw, bool(row.collapsed)))


def floor_mark(part: Iterable[Row], name: str, flip: bool = False) -> list[Mark]:
    """The band of what retrains are apart, with a line at their mean; flip: of 1 - the number."""
    floor = next((row.numbers[name] for row in part if row.method == FLOOR and name in row.numbers), None)
    return [] if floor is None else [band(FLOOR, floor, flip)]


def band(label: str, number: Number, flip: bool = False, colour: str = looks.BAND, dashes: str = "-") -> Mark:
    at, (low, high) = number.mean, number.ends or (None, None)
    if flip:
        at, low, high = 1 - at, None if high is None else 1 - high, None if low is None else 1 - low
    return Mark(label, at, low, high, colour, dashes)


def raw_mark(part: Iterable[Row], name: str, flip: bool = False) -> list[Mark]:
    """A line at the mean of the original itself; none where it is broken."""
    means = [row.numbers[name].mean for row in part if row.is_raw and name in row.numbers and not row.collapsed]
    return [Mark("raw", 1 - mean if flip else mean, colour=looks.ANCHORS["raw"][0], dashes=":") for mean in means[:1]]


def _retrain_band(part: list[Row], name: str) -> list[Mark]:
    numbers = reference_of(part).numbers
    return [band("retrain", numbers[name], colour=looks.BAND, dashes="--")] if name in numbers else []


def _dots(title: str, rows: list[Row], panels: Iterable[tuple[str, str, Axis, list[Mark]]], note: str, told: str) -> Dots:
    """panels: measure, title, axis and marks of each."""
    names = row_names(rows)
    drawn = tuple(Panel(axis, {"": {names[id(row)]: dot_of(row.numbers[name], row.collapsed) for row in rows
                                    if name in row.numbers}}, tuple(marks), head) for name, head, axis, marks in panels)
    known = {names[id(row)]: looks.look_of(row.method) for row in rows}
    return Dots(title, tuple(names[id(row)] for row in rows), drawn, known, note, told)


# ------------------------------------------------------------------------------------------------------------ the figures


def headline(part: list[Row], heading: Heading, name: str, note: str = "") -> Dots | None:
    """ToW or ToW-MIA of every method, best at the top below raw; retrains among themselves as a band, raw as a line."""
    rows = ranked(part, name, note)
    if not rows:
        return None
    marks = [*floor_mark(part, name), Mark("retrain", 1.0, colour=looks.ANCHORS["retrain"][0]), *raw_mark(part, name)]
    told = caption(f"{name} of every method on {heading.text}, 1 = like retrain.", [*rows, *_floors(part)], heading.small)
    return _dots(f"{name} · {heading.text}", rows, [(name, "", Axis(f"{name}, 1 = like retrain", SHARE), marks)],
                 notes_of(rows, note), told)


def accuracies(part: list[Row], heading: Heading) -> Dots | None:
    """Forget, retain and test accuracy of every method on 0 to 100, beside retrain's band."""
    rows = ordered(methods(part, "ToW")) or methods(part, "forget")
    if not rows:
        return None
    axis = Axis("accuracy, %", PERCENT, whole=True)
    panels = [(name, name, axis, _retrain_band(part, name)) for name in ("forget", "retain", "test")]
    told = caption(f"Accuracy on the forget set, the retain set and test images, {heading.text}. Nearer to retrain (dashed, "
                   "with its own interval as a band) is better, not higher.", [*rows, reference_of(part)], heading.small)
    return _dots(f"Accuracy · {heading.text}", rows, panels, notes_of(rows, ""), told)


def by_level(part: list[Row], heading: Heading) -> Dots | None:
    """Accuracy and MIA efficacy on the low, mid and high part of the forget set: a panel each, beside retrain's band."""
    rows = [row for row in ordered(methods(part, "ToW")) if "acc_low" in row.numbers]
    if not rows:
        return None
    kinds = {"acc": Axis("accuracy, %", PERCENT, whole=True), "MIA": Axis("called non-member, %", PERCENT, whole=True)}
    panels = [(f"{kind}_{level}", level, axis, _retrain_band(part, f"{kind}_{level}"))
              for kind, axis in kinds.items() for level in LEVELS]
    told = caption("Accuracy (above) and share that the membership attack calls non-member (below), on the low, mid and high "
                   f"part of the forget set, {heading.text}. Nearer to retrain is better.", [*rows, reference_of(part)],
                   heading.small)
    chart = _dots(f"By group of the forget set · {heading.text}", rows, panels, notes_of(rows, ""), told)
    return dataclasses.replace(chart, across=len(LEVELS))


def efficacy(part: list[Row], heading: Heading) -> Dots | None:
    """What the membership attack calls non-member, and forget against test without a threshold, beside retrain's band."""
    rows = ordered(methods(part, "MIA"))
    if not rows:
        return None
    names = {"MIA": "called non-member, %", "AUC_forget": "AUC, forget as members, %"}
    panels = [(name, name, Axis(label, PERCENT, whole=True), _retrain_band(part, name)) for name, label in names.items()
              if any(name in row.numbers for row in rows)]
    attack = rows[0].pairs[0].attack
    told = caption(f"Membership inference on {heading.text}: the share of the forget set that the attack ({attack.mia}, "
                   f"{attack.mia_mode}) calls non-member, and how well confidence tells the forget set from test images (50: "
                   "not at all). Nearer to retrain is better, not higher.", [*rows, reference_of(part)], heading.small)
    return _dots(f"Membership inference · {heading.text}", rows, panels, notes_of(rows, ""), told)


def cost(part: list[Row], heading: Heading, name: str, kind: str = "cost", note: str = "") -> Scatter | None:
    """What a method costs against its distance to retrain, with retrain itself at distance 0, and the front."""
    spent, label = COSTS[kind]
    rows = [row for row in ranked(part, name, note) if not row.is_raw and row.numbers.get(spent, Number(0, None, 0)).mean > 0]
    if not rows:
        return None
    reference, names = reference_of(part), row_names(rows)
    points = [Point(names[id(row)], dot_of(row.numbers[spent]), _distance(row.numbers[name], row.collapsed),
                    looks.look_of(row.method)) for row in rows]
    if reference.numbers.get(spent, Number(0, None, 0)).mean > 0:
        points.insert(0, Point("retrain", dot_of(reference.numbers[spent]), Dot(0.0), looks.ANCHORS["retrain"]))
    marks = (*floor_mark(part, name, flip=True), *raw_mark(part, name, flip=True))
    told = caption(f"{label[:1].upper()}{label[1:]}, against the distance to retrain, 1 - {name}, {heading.text}: lower left "
                   "is better; the grey line joins those that none beats in both.", [*rows, reference, *_floors(part)],
                   heading.small, logs=spent != "images_read")
    return Scatter(f"Cost and distance · {heading.text}", tuple(points), Axis(label, POSITIVE, log=True),
                   Axis(f"1 - {name}, 0 = like retrain", SHARE), notes_of(rows, note), marks, front=True, caption=told)


def _distance(number: Number, hollow: object) -> Dot:
    low, high = number.ends or (None, None)
    return Dot(1 - number.mean, None if high is None else 1 - high, None if low is None else 1 - low, bool(hollow))


def _floors(part: Iterable[Row]) -> list[Row]:
    return [row for row in part if row.method == FLOOR]
