"""Tables across settings: a measure by group of the forget set, and RUM against its controls by the score it refines by."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterable
from typing import Any

from groups import LEVELS
from report import looks, names, pivots
from report.draw import Chart
from report.labels import labels_of
from report.notes import BROKEN
from report.output import Extra, Pivot
from report.pairs import FilterConfig
from report.rows import FLOOR, Row
from report.settings import Setting, is_plan
from report.table import Cell, Line, Part, Table
from report.tables import cell, digits_of
from report.variants import needs_scores
from sources.scores import POLARITY
from utils import digest_of

MIX = "mix"
SCORE = ("by", "file")  # what a column of ``rum`` says itself
UNSCORED = "no scores"  # the column of plans that need none, where no other plan names a score


def tow_tables(cfg: FilterConfig, table: list[Row]) -> list[Extra]:
    """tow_by_group and rum, each where there is something in it."""
    return [*_extra("tow_by_group", "ToW", "ToW by group", by_group(table, "ToW"), pivots.side_by_side),
            *_extra("rum", "ToW", "ToW of RUM and its controls", rum(table, "ToW"), pivots.controls)]


def mia_tables(cfg: FilterConfig, table: list[Row]) -> list[Extra]:
    """As ``tow_tables``, of ToW-MIA."""
    return [*_extra("tow_mia_by_group", "ToW-MIA", "ToW-MIA by group", by_group(table, "ToW-MIA"), pivots.side_by_side),
            *_extra("rum_mia", "ToW-MIA", "ToW-MIA of RUM and its controls", rum(table, "ToW-MIA"), pivots.controls)]


def _of_setting(table: list[Row]) -> list[tuple[Setting, list[Row]]]:
    """The rows of every setting, retrain's left out."""
    found: dict[str, list[Row]] = {}
    for row in table:
        rows = found.setdefault(row.setting, [])
        if not row.is_reference:
            rows.append(row)
    places = {row.setting: row.place for row in table}
    return [(places[setting], rows) for setting, rows in found.items()]


def by_group(table: list[Row], name: str) -> list[Pivot]:
    """A measure of the plain methods with low, mid, high and mix (or chunks) side by side.

    One table for each network, original's training, score and number of examples; a mix stands beside groups of its own
    size, and beside those of a third of it, of which it is made.
    """
    found: dict[tuple[Any, ...], dict[str, list[tuple[Setting, list[Row]]]]] = {}
    places = [(place, rows) for place, rows in _of_setting(table) if place.group]
    single = {_family(place, place.size) for place, _ in places if place.group != MIX}
    for place, rows in places:
        sizes = (place.size, place.size // 3) if place.group == MIX else (place.size,)
        for family in (_family(place, size) for size in sizes):
            if family in single:
                column = place.group if family[-1] == place.size else f"{place.group} of {place.size}"
                found.setdefault(family, {}).setdefault(column, []).append((place, rows))
    pivots = []
    for (network, _, origin, score, size), columns in found.items():
        first, shown, parts = next(iter(columns.values()))[0][0], [], []
        for column in sorted(columns, key=_order):
            for place, rows in columns[column]:
                # the same group by two files of scores
                shown.append(column if len(columns[column]) == 1 else f"{column} {place.key}")
                parts.append((shown[-1], [row for row in rows if not is_plan(row.pairs[0].run)]))
        cells = fill(parts, name)
        if len(shown) > 1 and cells:  # models whose outputs are not finite have no ToW-MIA
            told = names.joined(first, f"{size:,} images by {score}")
            pivots.append(_pivot(f"{network}, forget {size} images by {score}, {origin}", shown, cells, name, told))
    return pivots


def _family(place: Setting, size: int) -> tuple[Any, ...]:
    return place.compared, place.data, place.origin, place.score, size


def _order(column: str) -> tuple[int, int]:
    """Low, mid, high, chunks by their number, mix."""
    if column in LEVELS:
        return 0, LEVELS.index(column)
    return (1, int(column.split()[1])) if column.startswith("chunk") else (2, len(column))


Cells = dict[str, dict[str, Row]]  # method, with what tells it from others in the column -> column -> row


def _settings(row: Row, aside: tuple[str, ...]) -> str:
    """The row's variant without what the columns say."""
    method, cfg, density, rest = json.loads(row.variant)
    return json.dumps([method, cfg, density, {key: value for key, value in rest.items() if key not in aside}])


def fill(parts: Iterable[tuple[str, Iterable[Row]]], name: str, aside: tuple[str, ...] = ()) -> Cells:
    """The rows that have the measure, in their columns.

    A method that is in each column once is one line, though its settings may differ from column to column, as where they
    were tuned; one that a column has several times is told apart by its settings in all of them. The share that a saliency
    mask leaves free is told of every method that has one.

    Args:
        aside: what the columns say themselves, and is no setting, unless a column has several of it (two files of scores).
    """
    there = [(column, row) for column, rows in parts for row in rows if name in row.numbers]
    known = [(column, row) for column, row in there if row.method != FLOOR]
    if len({(column, _settings(row, aside)) for column, row in known}) < len(known):
        aside = ()
    counted = collections.Counter((column, row.pairs[0].method) for column, row in known)
    several = {method for (_, method), count in counted.items() if count > 1}
    keys = {(column, row.variant): ("" if row.pairs[0].method in several else column, _settings(row, aside))
            for column, row in known}
    called = {_settings(row, aside): row.name for _, row in known}
    labels, cells = labels_of(dict.fromkeys(keys.values()), called), {}
    for column, row in there:
        cells.setdefault(FLOOR if row.method == FLOOR else labels[keys[column, row.variant]], {})[column] = row
    return cells


def pivot_of(heading: str, columns: Iterable[str], cells: Cells, name: str, aside: tuple[str, ...] = (),
             told: str = "") -> Pivot:
    """One measure of the cells, in their order; aside: see ``fill``."""
    numbers = {label: {column: row.numbers[name] for column, row in there.items() if name in row.numbers}
               for label, there in cells.items()}
    broken = frozenset((label, column) for label, there in cells.items() for column, row in there.items() if row.collapsed)
    numbers = {label: there for label, there in numbers.items() if there}
    tuned = tuple(label for label in numbers
                  if label != FLOOR and len({_settings(row, aside) for row in cells[label].values()}) > 1)
    behind = tuple(row for label in numbers for row in cells[label].values())
    runs = {label: {column: row.id for column, row in there.items()} for label, there in cells.items()}
    return Pivot(heading, tuple(columns), numbers, broken, tuned, told, behind, runs)


KINDS = ("RUM", "RUM^F", "plan", "shuffle", "vanilla")


def _pivot(heading: str, columns: Iterable[str], cells: Cells, name: str, told: str, aside: tuple[str, ...] = ()) -> Pivot:
    """The original first, plans by kind, then methods; the floor last."""
    def place(label: str) -> tuple[bool, bool, int, str]:
        kind = looks.kind_of(label)[0]
        return label == FLOOR, not label.startswith("raw"), KINDS.index(kind) if kind in KINDS else len(KINDS), label

    return pivot_of(heading, columns, {label: cells[label] for label in sorted(cells, key=place)}, name, aside, told)


def rum(table: list[Row], name: str) -> list[Pivot]:
    """A measure of plans, and of the methods in them once on the whole forget set; a column for each score.

    Settings that differ by the score that chose their forget set stand in one table. What needs no scores (shuffle,
    vanilla, the methods) is the same in every column of a forget set that was not chosen by scores.
    """
    found: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    told: dict[tuple[Any, ...], str] = {}
    for place, rows in _of_setting(table):
        plans = [row.pairs[0].run for row in rows if is_plan(row.pairs[0].run)]
        if not plans:
            continue
        inside = {step["method"] for run in plans for step in run.record["plan"]["steps"]}
        rows = [row for row in rows if row.method == FLOOR or is_plan(row.pairs[0].run) or row.pairs[0].method in inside]
        scores = sorted(set(filter(None, map(_refined_by, plans))), key=list(POLARITY).index)
        if place.group:
            family = place.compared, place.data, place.origin, f"{place.what} ({place.group})"
            columns = {place.score: rows}
        else:
            family = place.model, place.data, place.origin, place.label.split("forget ", 1)[1]
            columns = {score: [row for row in rows if _refined_by(row.pairs[0].run) in (None, score)]
                       for score in scores or [UNSCORED]}
        there = found.setdefault(family, {})
        told.setdefault(family, names.joined(place, names.forget_set(place, plans[0].record.get("train_size"))))
        for column, members in columns.items():
            there[column if column not in there else f"{column} {place.key}"] = members
    pivots = []
    for family, columns in found.items():
        network, _, origin, what = family
        cells = fill(columns.items(), name, SCORE)
        ending = "" if what.endswith(origin) else f", {origin}"
        if cells:
            pivots.append(_pivot(f"{network}, forget {what}{ending}", columns, cells, name, told[family], SCORE))
    return pivots


def _refined_by(run: Any) -> str | None:
    return run.record["scores"]["name"] if needs_scores(run) else None


# -------------------------------------------------------------------------------------------------------------- output


def _extra(stem: str, name: str, title: str, pivots: list[Pivot], draw: Callable[[Pivot, str, str], Chart]) -> list[Extra]:
    if not pivots:
        return []
    figures = {file: draw(pivot, name, title) for file, pivot in zip(files_of(stem, pivots), pivots, strict=True)}
    return [Extra(stem, tuple(part_of(pivot, name, title) for pivot in pivots), csv_of(pivots), figures)]


def files_of(stem: str, pivots: list[Pivot]) -> list[str]:
    """Names of the figures, without the ending."""
    return [stem if len(pivots) == 1 else f"{stem}-{digest_of(pivot.heading)[:6]}" for pivot in pivots]


def part_of(pivot: Pivot, name: str, title: str) -> Part:
    """A row a method, cells ``mean [low, high], n``, in brackets where models collapsed."""
    lines = []
    for method, there in pivot.cells.items():
        cells = [Cell(method)]
        for column in pivot.columns:
            number = there.get(column)
            text = cell(number, digits_of(name), method == FLOOR)
            text = f"({text})" if (method, column) in pivot.collapsed else text
            cells.append(Cell(text + (f", n={number.n}" if number else ""), number.mean if number else None,
                              pivot.runs[method][column] if number else ""))
        lines.append(Line(tuple(cells), anchor=method == FLOOR or method.split()[0] == "raw"))
    tuned = [f"The settings of {', '.join(pivot.tuned)} differ from column to column."] if pivot.tuned else []
    table = Table("mean [95 % t-interval]", ("method", *pivot.columns), tuple(lines),
                  (*tuned, *([BROKEN] if pivot.collapsed else [])))
    return Part(pivot.shown._replace(text=f"{title} · {pivot.shown.text}"), (table,), tag=digest_of(pivot.heading)[:6])


def csv_of(pivots: list[Pivot]) -> list[list[Any]]:
    """A line a method and heading, full precision: <column>, its <column>_low and _high, <column>_n; what collapsed."""
    columns = list(dict.fromkeys(column for pivot in pivots for column in pivot.columns))
    heads = [f"{column}{end}" for column in columns for end in ("", "_low", "_high", "_n")]
    lines: list[list[Any]] = [["setting", "method", *heads, "collapsed"]]
    for pivot in pivots:
        for method, there in pivot.cells.items():
            broken = ", ".join(column for column in columns if (method, column) in pivot.collapsed)
            numbers = [there.get(column, (None, None, None)) for column in columns]
            lines.append([pivot.heading, method, *(x for mean, ends, n in numbers for x in (mean, *(ends or (None, None)), n)),
                          broken])
    return lines
