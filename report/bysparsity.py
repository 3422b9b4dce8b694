"""Sparsity before unlearning: every method beside itself on originals that were pruned more and less, the dense one first."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from report import bygroup, names, pivots
from report.bygroup import Cells, files_of, fill, pivot_of
from report.notes import BROKEN
from report.output import Extra, Pivot
from report.pairs import FilterConfig
from report.rows import FLOOR, GAP_MEANS, MEAN_GAP, Row
from report.settings import named, network_of, pruned_share, way_of
from report.table import Cell, Line, Part, Table
from report.tables import OF_RETRAIN, cell, digits_of, head_of
from utils import digest_of


class Study(NamedTuple):
    """What the files of a name show: measures in the tables, the first of them side by side too; those of the figure."""

    stem: str
    measures: tuple[str, ...]
    drawn: tuple[str, ...]


TOW = Study("sparsity", ("ToW", "UA", "RA", "TA", "MIA", MEAN_GAP, GAP_MEANS, "seconds"), ("ToW", "UA", "seconds"))
MIA = Study("sparsity_mia", ("ToW-MIA", "MIA", "AUC_forget", "KS_forget", "MIA_entropy", "MIA_m_entropy", "AUC_confidence",
                             "privacy", "seconds"),
            ("ToW-MIA", "MIA", "seconds"))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One network, training and forget set with originals of several sparsities.

    shares: column -> share of the prunable weights that is gone; cells: retrain, raw, methods, floor -> column -> row.
    """

    heading: str
    shares: dict[str, float]
    cells: Cells
    told: str = ""

    def pivot(self, name: str) -> Pivot:
        """The methods by the sparsities, one measure; without those that it says nothing of."""
        rows = {label: next(iter(there.values())) for label, there in self.cells.items()}
        idle = {label for label, row in rows.items() if label != FLOOR and (
            row.is_reference if name in OF_RETRAIN else name == "seconds" and row.is_raw)}
        cells = {label: there for label, there in self.cells.items() if label not in idle}
        return pivot_of(self.heading, self.shares, cells, name, told=self.told)


def tow_tables(cfg: FilterConfig, table: list[Row]) -> list[Extra]:
    """sparsity.csv, .md and .png, where originals of several sparsities are among the runs."""
    return _extra(TOW, table)


def mia_tables(cfg: FilterConfig, table: list[Row]) -> list[Extra]:
    """As ``tow_tables``, of ToW-MIA and membership inference."""
    return _extra(MIA, table)


def _extra(study: Study, table: list[Row]) -> list[Extra]:
    found = sweeps(table)
    if not found:
        return []
    files = files_of(study.stem, [sweep.pivot(study.measures[0]) for sweep in found])
    figures = {f"{file}_{name.replace('-', '_').lower()}": pivots.curves(pivot, name)
               for file, sweep in zip(files, found, strict=True) for name in study.drawn if (pivot := sweep.pivot(name)).cells}
    return [Extra(study.stem, tuple(part_of(sweep, study) for sweep in found), csv_of(found, study), figures)]


def part_of(sweep: Sweep, study: Study) -> Part:
    """A row a method and sparsity with all measures, then the first measure with the sparsities side by side.

    What collapsed stands in brackets.
    """
    lines = []
    for method, there in sweep.cells.items():
        for column, row in there.items():
            numbers = [row.numbers.get(name) for name in study.measures]
            words = [cell(row.numbers.get(name), digits_of(name), method == FLOOR) for name in study.measures]
            words = [f"({word})" for word in words] if row.collapsed else words
            n = max(n for *_, n in row.numbers.values())
            cells = [Cell(text, number.mean if number else None) for text, number in zip(words, numbers, strict=True)]
            lines.append(Line((Cell(method), Cell(column, sweep.shares[column]), Cell(str(n), n), *cells), row.id))
    broken = any(row.collapsed for there in sweep.cells.values() for row in there.values())
    table = Table("mean [95 % t-interval]",
                  ("method", "sparsity", "n", *map(head_of, study.measures)), tuple(lines), (BROKEN,) if broken else ())
    name, pivot = study.measures[0], sweep.pivot(study.measures[0])
    beside = bygroup.part_of(pivot, name, "").tables if pivot.cells else ()
    beside = tuple(dataclasses.replace(own, title=f"{name} by sparsity: {own.title}") for own in beside)
    heading = pivot.shown._replace(text=f"Forgetting and speed by sparsity · {pivot.shown.text}")
    return Part(heading, (table, *beside), tag=digest_of(sweep.heading)[:6])


def sweeps(table: list[Row]) -> list[Sweep]:
    """The families of originals of which there are several sparsities; a dense one stands in each that it belongs to."""
    families: dict[tuple[Any, ...], dict[str, list[tuple[float, list[Row]]]]] = {}
    for setting in dict.fromkeys(row.setting for row in table):
        rows = [row for row in table if row.setting == setting]
        run = rows[0].pairs[0].run
        training = run.record["parent"].get("training")
        if training is None:  # a published file has no record that says how it was pruned
            continue
        pruning = training.get("pruning") or {}
        rest = [{name: value for name, value in training.items() if name != "pruning"}, run.record["parent"].get("setup")]
        network = named(run)
        family = rows[0].place._replace(network=network, origin=digest_of([*rest, network_of(run)])[:4])
        families.setdefault(family, {}).setdefault(way_of(pruning), []).append((pruned_share(pruning), rows))
    found = []
    for family, ways in families.items():
        dense = ways.pop("", [])
        for way, members in ways.items():
            parts = sorted([*dense, *members], key=lambda part: part[0])
            if len({share for share, _ in parts}) > 1:
                size = parts[0][1][0].pairs[0].run.record.get("train_size")
                told = names.joined(family, f"pruned by {way}", names.forget_set(family, size))
                found.append(_sweep(family.label.replace(", ", f", pruned by {way}, ", 1), parts, told))
    return found


def _sweep(heading: str, parts: list[tuple[float, list[Row]]], told: str = "") -> Sweep:
    shares: dict[str, float] = {}
    columns = []
    for share, rows in parts:
        column = f"{100 * share:.4g} %"
        if column in shares:  # pruned to the same share in other steps
            column = f"{column} {rows[0].place.origin}"
        shares[column] = share
        columns.append((column, rows))
    cells = fill(columns, "ToW")

    def place(label: str) -> tuple[bool, bool, bool, str]:
        first = next(iter(cells[label].values()))
        return label == FLOOR, not first.is_reference, not first.is_raw, label

    return Sweep(heading, shares, {label: cells[label] for label in sorted(cells, key=place)}, told)


def csv_of(found: list[Sweep], study: Study) -> list[list[Any]]:
    """A line a heading, method and sparsity, full precision: n, how many collapsed, <measure> and the ends of its interval."""
    numbers = [x for name in study.measures for x in (name, f"{name}_low", f"{name}_high")]
    lines: list[list[Any]] = [["setting", "method", "sparsity", "n", "collapsed", *numbers]]
    for sweep in found:
        for method, there in sweep.cells.items():
            for column, row in there.items():
                numbers = [row.numbers.get(name, (None, None, 0)) for name in study.measures]
                lines.append([sweep.heading, method, sweep.shares[column], max(n for *_, n in row.numbers.values()),
                              row.collapsed, *(x for mean, ends, _ in numbers for x in (mean, *(ends or (None, None))))])
    return lines
