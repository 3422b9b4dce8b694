"""Ranks of methods over settings, where there are enough that stand on their own; bars join those that are not told apart.

Source: Demšar, JMLR 7 (2006), with Wilcoxon's signed-rank test and Holm's correction in place of Nemenyi's, as Benavoli,
Corani and Mangili (JMLR 17, 2016) advise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from evaluation import statistics
from report import contrasts, looks
from report.captions import caption
from report.contrasts import Study
from report.dots import Dots, Panel
from report.names import Heading
from report.output import Extra, by_setting
from report.pairs import FilterConfig
from report.rows import FLOOR, Row
from report.sheet import Axis, Dot
from report.table import Cell, Line, Part, Table

BLOCKS = 6  # with fewer no difference of two methods can be told at 5 %: the least p of five is 1/16
BROKEN = -1.0  # below every ToW

Blocks = dict[str, dict[str, float]]  # setting -> method -> its mean


class Ranking(NamedTuple):
    """Methods from the best to the worst: mean rank; p adjusted by Holm of every pair; joined: places of first and last."""

    ranks: dict[str, float]
    p: dict[tuple[str, str], float]
    joined: tuple[tuple[int, int], ...]


def tow_tables(cfg: FilterConfig, table: list[Row]) -> list[Extra]:
    """ranks, where six settings and more can be compared."""
    return _extra(cfg, contrasts.TOW, table)


def mia_tables(cfg: FilterConfig, table: list[Row]) -> list[Extra]:
    """As ``tow_tables``, by ToW-MIA."""
    return _extra(cfg, contrasts.MIA, table)


def blocks_of(table: list[Row], study: Study, cfg: FilterConfig) -> tuple[Blocks, str]:
    """The settings that can be ranked over, with the methods that are in all of them; or why there are too few.

    Settings of one network, data and forget set are one block; one without headroom, which ranks nothing, is none.
    """
    found: dict[tuple[str, str, str], tuple[str, dict[str, float]]] = {}
    flat = 0
    for setting, part in by_setting(table).items():
        place = part[0].place
        means = {row.method: BROKEN if row.collapsed else row.numbers[study.headline].mean for row in part
                 if study.headline in row.numbers and row.method != FLOOR and not row.is_reference
                 and not row.is_raw}
        key = place.network, place.data, place.key
        if key in found or not means:
            continue
        if contrasts.nobody_best(part, study, cfg):
            flat += 1
            continue
        found[key] = setting, means
    blocks = dict(found.values())
    shared = set.intersection(*(set(means) for means in blocks.values())) if blocks else set()
    left = f" ({flat} more tell no methods apart)" if flat else ""
    if len(blocks) < BLOCKS:
        return {}, (f"no ranks of methods over settings: they need {BLOCKS} that stand on their own (another network, data or "
                    f"forget set), and here are {len(blocks)}{left}")
    if len(shared) < 2:
        return {}, f"no ranks of methods over settings: {len(shared)} of the methods are in all of the {len(blocks)}{left}"
    return {name: {method: means[method] for method in means if method in shared} for name, means in blocks.items()}, ""


def ranking(blocks: Mapping[str, Mapping[str, float]], level: float = statistics.LEVEL) -> Ranking:
    """Mean ranks over the blocks, 1 the largest, and what pairs of methods are told apart at 1 - level."""
    methods = list(next(iter(blocks.values())))
    values = {method: np.array([means[method] for means in blocks.values()]) for method in methods}
    each = {method: sum(1.0 * (values[other] > own) + 0.5 * (values[other] == own) for other in methods) + 0.5
            for method, own in values.items()}
    ordered = sorted(methods, key=lambda method: (each[method].mean(), method))
    pairs = list(itertools.combinations(ordered, 2))
    adjusted = statistics.holm([signed_rank(values[a] - values[b]) for a, b in pairs])
    p = dict(zip(pairs, adjusted, strict=True))
    return Ranking({method: float(each[method].mean()) for method in ordered}, p, _joined(ordered, p, 1 - level))


def signed_rank(differences: Sequence[float]) -> float:
    """Wilcoxon's two-sided p, exact for ties too: over all signs of the ranks; differences of 0 say nothing."""
    found = np.array([d for d in differences if d])
    sizes = np.abs(found)
    # twice the mean ranks are whole numbers
    doubled = [int((sizes < size).sum() + (sizes <= size).sum() + 1) for size in sizes]
    counts = np.zeros(sum(doubled) + 1)
    counts[0] = 1
    for rank in doubled:
        counts[rank:] = counts[rank:] + counts[: len(counts) - rank].copy()
    positive = sum(rank for rank, d in zip(doubled, found, strict=True) if d > 0)
    return float(min(1.0, 2 * min(counts[: positive + 1].sum(), counts[positive:].sum()) / counts.sum()))


def _joined(ordered: Sequence[str], p: Mapping[tuple[str, str], float], alpha: float) -> tuple[tuple[int, int], ...]:
    """The longest rows of neighbours of which no pair is told apart."""
    def alike(first: int, last: int) -> bool:
        return all(p[pair] >= alpha for pair in itertools.combinations(ordered[first : last + 1], 2))

    longest = [(first, max(last for last in range(first, len(ordered)) if alike(first, last))) for first in range(len(ordered))]
    return tuple((a, b) for a, b in longest if b > a and not any(c < a and b <= d for c, d in longest))


# ------------------------------------------------------------------------------------------------------------ output


def chart(found: Ranking, blocks: Blocks, rows: Sequence[Row], name: str) -> Dots:
    """A row a method, the best at the top; bars at the right join those that are not told apart."""
    axis = Axis(f"mean rank by {name}, 1 = best", (1, len(found.ranks)), whole=True)
    panel = Panel(axis, {"": {method: Dot(mean) for method, mean in found.ranks.items()}}, bars=found.joined)
    least = len(found.p) * 2 / 2 ** len(blocks)
    weak = f" So few settings cannot tell two of so many methods apart (least p {least:.2g})." if least > 0.05 else ""
    told = caption(f"Mean rank by {name} over {len(blocks)} settings, each a block. A bar joins methods of which no two are "
                   "told apart (Wilcoxon's signed-rank test, exact, Holm over all pairs, 5 %). Settings of one network may "
                   f"share their originals.{weak}", rows, intervals="")
    return Dots(f"Ranks over {len(blocks)} settings", tuple(found.ranks), (panel,),
                {method: looks.look_of(method) for method in found.ranks}, caption=told)


def _extra(cfg: FilterConfig, study: Study, table: list[Row]) -> list[Extra]:
    blocks, reason = blocks_of(table, study, cfg)
    name = "ranks" if study is contrasts.TOW else "ranks_mia"
    if reason:
        return [Extra(name, (), [], {}, (reason,))] if len(by_setting(table)) > 1 else []
    found = ranking(blocks)
    rows = [row for row in table if row.setting in blocks and row.method in found.ranks]
    drawn = chart(found, blocks, rows, study.headline)
    return [Extra(name, (_part(found, blocks, study.headline),), csv_of(found, blocks), {name: drawn})]


def _part(found: Ranking, blocks: Blocks, name: str) -> Part:
    lines = []
    for method, mean in found.ranks.items():
        alike = [other for other in found.ranks if other != method and _p(found, method, other) >= 1 - statistics.LEVEL]
        lines.append(Line((Cell(method), Cell(f"{mean:.2f}", mean), Cell(", ".join(alike) or "-"))))
    title = f"Mean rank by {name} over {len(blocks)} settings; Wilcoxon's signed-rank test, Holm over all pairs"
    return Part(Heading(f"Ranks over {len(blocks)} settings", ""), (Table(title, ("method", "mean rank", "not told apart from"),
                                                                         tuple(lines)),))


def _p(found: Ranking, a: str, b: str) -> float:
    return found.p[(a, b) if (a, b) in found.p else (b, a)]


def csv_of(found: Ranking, blocks: Blocks) -> list[list[Any]]:
    """A line a method: mean rank, number of settings, p (Holm) against each other method, its mean in each setting."""
    methods: Iterable[str] = list(found.ranks)
    lines: list[list[Any]] = [["method", "mean_rank", "settings", *(f"p_{other}" for other in methods), *blocks]]
    for method, mean in found.ranks.items():
        ps = [None if other == method else _p(found, method, other) for other in methods]
        own = [math.nan if means[method] == BROKEN else means[method] for means in blocks.values()]
        lines.append([method, mean, len(blocks), *ps, *own])
    return lines
