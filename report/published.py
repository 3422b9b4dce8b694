"""A published table beside the same runs here: which rows correspond, how far they differ, and the figure of their gaps.

The table is that of Jia et al., NeurIPS 2023, arXiv:2304.04934 (CIFAR-10, ResNet-18, ten trials; dense and 95 % OMP, one
class and a random tenth). Its MIA is the support-vector attack: ``--mia svc --mia_mode published``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from report import looks
from report.captions import caption
from report.output import Extra
from report.pairs import FilterConfig
from report.rows import FLOOR, Row
from report.scatter import Point, Scatter
from report.settings import named, pruned_share, way_of
from report.sheet import Axis, Dot

TABLE = Path(__file__).resolve().parent.parent / "benchmarks" / "published" / "model_sparsity.csv"
PAPER = "Jia et al., NeurIPS 2023"
MEASURES = ("UA", "RA", "TA", "MIA")
NETWORK, PRUNING, LIMIT = "cifar10 resnet18", "OMP ", 2.0
SPREAD = 0.01  # of a cell that is printed without one, or with 0: its last digit
SETS = {"class 0 (4500 images)": "class", "4500 images": "random"}


class Cell(NamedTuple):
    """One measure of one method, ours and theirs, in %."""

    where: str
    measure: str
    ours: float
    theirs: float
    spread: float

    @property
    def deviations(self) -> float:
        return (self.ours - self.theirs) / self.spread

    @property
    def apart(self) -> bool:
        return abs(self.deviations) > LIMIT

    def __str__(self) -> str:
        return f"{self.ours:.2f} / {self.theirs:.2f} ±{self.spread:.2f}{' !' if self.apart else ''}"


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def published() -> dict[tuple[str, str, float], dict[str, str]]:
    """(class or random, method, sparsity) -> the row of the published table; nothing where the file is not at hand."""
    if not TABLE.exists():
        return {}
    return {(row["forget"], row["method"], float(row["sparsity"])): row for row in rows_of(TABLE)}


def kind_of(network: str, pruning: str, forget: str) -> str | None:
    """class or random, where a setting is the table's; pruning: how originals were pruned, "" of dense ones."""
    same = network.split(" trained with ")[0] == NETWORK and (not pruning or pruning.startswith(PRUNING))
    return SETS.get(forget) if same else None


def beside(table: list[dict[str, str]]) -> dict[str, dict[str, list[Cell]]]:
    """Of the lines of sparsity.csv: class or random -> method with sparsity and number of seeds -> cells, for what both
    tables have; collapsed is said."""
    theirs, found = published(), {}
    for row in table:
        words = row["setting"].split(", ")  # network, pruning, forget set, what else tells it from others
        if len(words) != 4 or not words[1].startswith("pruned by ") or not words[2].startswith("forget "):
            continue
        pruning, forget = words[1].removeprefix("pruned by "), words[2].removeprefix("forget ").split(" against ")[0]
        kind = kind_of(words[0], pruning, forget)
        there = theirs.get((kind, row["method"].split(" (")[0], float(row["sparsity"])))
        if there is None:
            continue
        name = f"{row['method']}, {100 * float(row['sparsity']):g} %, n={row['n']}"
        name += f", {row['collapsed']} collapsed" if int(row["collapsed"]) else ""
        if name in found.get(kind, {}):  # another recipe, or other images
            name += f", {words[1]}, {words[3]}"
        where = f"{kind}, {name}"
        found.setdefault(kind, {})[name] = [
            Cell(where, key, float(row[key]), float(there[key]), max(SPREAD, float(there[f"{key}_sd"] or 0)))
            for key in MEASURES if row[key]]
    return found


# ------------------------------------------------------------------------------------------------------------ the figure


class Gap(NamedTuple):
    """Mean |difference| to retrain over the measures, in points, of means over seeds: published, and here."""

    kind: str
    sparsity: float
    row: Row
    theirs: float
    ours: float
    measures: tuple[str, ...]


def gaps(table: Iterable[Row]) -> list[Gap]:
    """Of all rows whose setting and method the published table has; MIA counts where the attack is the published one."""
    theirs, found, table = published(), [], list(table)
    references = {row.setting: row for row in table if row.is_reference}
    for row in table:
        place, training = row.place, row.pairs[0].run.record["parent"].get("training")
        if row.method == FLOOR or row.is_reference or training is None or place.group or place.request or place.reference:
            continue
        if "of class" in place.drawn:
            continue
        pruning = training.get("pruning") or {}
        network = named(row.pairs[0].run)
        kind, share = kind_of(network, way_of(pruning), place.what), round(pruned_share(pruning), 4)
        base = theirs.get((kind, "retrain", share))
        names = [there for name in row.pairs[0].method.split(" = ") if (there := theirs.get((kind, name, share)))]
        reference = references.get(row.setting)
        if base is None or not names or reference is None:
            continue
        attack = row.pairs[0].attack
        used = MEASURES if (attack.mia, attack.mia_mode) == ("svc", "published") else MEASURES[:3]
        used = tuple(name for name in used if name in row.numbers and name in reference.numbers)
        ours = [row.numbers[name].mean - reference.numbers[name].mean for name in used]
        published_gap = [float(names[0][name]) - float(base[name]) for name in used]
        found.append(Gap(kind, share, row, _mean(published_gap), _mean(ours), used))
    return found


def _mean(differences: Iterable[float]) -> float:
    found = [abs(d) for d in differences]
    return math.fsum(found) / len(found)


def tables(cfg: FilterConfig, table: list[Row]) -> list[Extra]:
    """published_gap, where runs here correspond to the published table."""
    found = gaps(table)
    if not found:
        return []
    head = ["setting", "method", "forget", "sparsity", "n", "measures", "published_gap", "gap"]
    lines = [[gap.row.setting, gap.row.method, gap.kind, gap.sparsity, len(gap.row.pairs), " ".join(gap.measures), gap.theirs,
              gap.ours] for gap in found]
    return [Extra("published_gap", (), [head, *lines], {"published_gap": chart(found)})]


def chart(found: list[Gap]) -> Scatter:
    """A point a method, forget set and sparsity; on the diagonal where the gap to retrain is the published one."""
    points = tuple(Point(_told(gap), Dot(gap.theirs), Dot(gap.ours, hollow=bool(gap.row.collapsed)),
                         looks.look_of(gap.row.method)) for gap in found)
    measures = sorted({gap.measures for gap in found})
    told = caption(f"Gap to retrain, the mean |difference| of {' or '.join(', '.join(names) for names in measures)} in points, "
                   f"of means over seeds: published ({PAPER}, ten trials) and here.", [gap.row for gap in found], intervals="")
    axes = (Axis(f"gap to retrain, {where}, points", (0.0, 100.0)) for where in ("published", "here"))
    return Scatter("Gap to retrain, published and here", points, *axes, diagonal=True, caption=told,
                   note="hollow: collapsed" if any(gap.row.collapsed for gap in found) else "")


def _told(gap: Gap) -> str:
    return f"{gap.row.method}, {'class 0' if gap.kind == 'class' else 'random'}, {100 * gap.sparsity:g} %"
