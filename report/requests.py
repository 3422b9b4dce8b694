"""Means over requests: forget sets that were drawn in the same way (``--split_seed``), each with its seeds inside."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from evaluation import statistics
from evaluation.statistics import Number
from report.labels import labels_of
from report.measures import domain_of
from report.rows import FLOOR, GAP_MEANS, Row


def over_requests(table: list[Row]) -> list[Row]:
    """Rows whose units are requests, where several forget sets were drawn in one way; a value is a request's mean over seeds.

    The interval is over requests; runs of one request are no independent samples of it.
    """
    families: dict[str, dict[str, list[Row]]] = {}
    for row in table:
        if row.place.drawn:
            families.setdefault(_label(row), {}).setdefault(row.setting, []).append(row)
    found = []
    for label, settings in families.items():
        if len(settings) > 1:
            heading = f"{label}, {len(settings)} requests"
            found += _rows(heading, [row for part in settings.values() for row in part])
    return found


def _label(row: Row) -> str:
    place = row.place
    return f"{place.model}, forget {place.drawn}{place.against}, {place.data[:6]}-{place.origin}"


def _rows(heading: str, members: list[Row]) -> list[Row]:
    by_variant: dict[str, list[Row]] = {}
    for row in members:
        if row.method != FLOOR:
            by_variant.setdefault(row.variant, []).append(row)
    called = {variant: there[0].name for variant, there in by_variant.items()}
    labels = labels_of(((heading, variant) for variant in by_variant), called)
    found = [_merged(heading, labels[heading, variant], there) for variant, there in by_variant.items()]
    floors = [row for row in members if row.method == FLOOR]
    return found + ([_floor(heading, floors)] if floors else [])


def _merged(heading: str, label: str, there: list[Row]) -> Row:
    names = [name for name in there[0].values if all(name in row.values for row in there)]
    values = {name: {row.place.key: row.numbers[name].mean for row in there} for name in names}
    numbers = {name: statistics.interval(list(each.values()), domain_of(name)) for name, each in values.items()}
    if all(GAP_MEANS in row.numbers for row in there):
        mean = math.fsum(row.numbers[GAP_MEANS].mean for row in there) / len(there)
        numbers[GAP_MEANS] = Number(mean, None, len(there))
    every = [pair for row in there for pair in row.pairs]
    return Row(heading, label, there[0].variant, every, numbers, values, there[0].images, name=there[0].name)


def _floor(heading: str, floors: list[Row]) -> Row:
    """The mean of the requests' floors, from the least to the most."""
    numbers = {}
    for name in floors[0].numbers:
        means = [row.numbers[name].mean for row in floors if name in row.numbers]
        numbers[name] = Number(math.fsum(means) / len(means), (min(means), max(means)), len(means))
    return dataclasses.replace(floors[0], setting=heading, numbers=numbers, pairs=[p for row in floors for p in row.pairs])


def spread(table: list[Row], merged: list[Row]) -> list[list[Any]]:
    """A line a method and measure: variance between requests, and within them over seeds, where every request has as many."""
    lines: list[list[Any]] = [["setting", "method", "measure", "requests", "seeds", "between_requests", "over_seeds"]]
    members: dict[tuple[str, str], list[Row]] = {}
    for row in table:
        if row.method != FLOOR:
            members.setdefault((row.setting, row.variant), []).append(row)
    for row in merged:
        if row.method == FLOOR:
            continue
        keys = dict.fromkeys(pair.setting.label for pair in row.pairs)
        inside = [own for key in keys for own in members.get((key, row.variant), ())]
        for name in row.values:
            found = statistics.nested([list(own.values[name].values()) for own in inside])
            if found.inner_variance is not None:
                lines.append([row.setting, row.method, name, len(inside), len(inside[0].values[name]), found.outer_variance,
                              found.inner_variance])
    return lines
