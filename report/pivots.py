"""Figures across settings, as data: groups side by side, RUM beside its controls, curves over sparsity."""

from __future__ import annotations

from collections.abc import Sequence

from report import looks
from report.captions import caption
from report.dots import Dots, Panel
from report.figures import PERCENT, POSITIVE, SHARE, band, dot_of
from report.multiples import Cell, Line, Multiples
from report.output import Pivot
from report.rows import FLOOR
from report.sheet import Axis, Dot, Mark

HOLLOW = "hollow: collapsed"
SECONDS = "seconds of the method and its mask, log scale"


def axis_of(name: str) -> Axis:
    """Of a measure, by its name."""
    if name == "seconds":
        return Axis(SECONDS, POSITIVE, log=True)
    return Axis(f"{name}, 1 = like retrain", SHARE) if name.startswith("ToW") else Axis(f"{name}, %", PERCENT)


def _dot(pivot: Pivot, method: str, column: str) -> Dot:
    return dot_of(pivot.cells[method][column], (method, column) in pivot.collapsed)


def _marks(pivot: Pivot, column: str) -> tuple[Mark, ...]:
    """What retrains are apart, and the original itself."""
    floor, raw = (pivot.cells.get(name, {}).get(column) for name in (FLOOR, "raw"))
    broken = ("raw", column) in pivot.collapsed
    return (*([band(FLOOR, floor)] if floor else []),
            *([Mark("raw", raw.mean, colour=looks.ANCHORS["raw"][0], dashes=":")] if raw and not broken else []))


def _caption(what: str, pivot: Pivot) -> str:
    return caption(f"{what}; {pivot.shown.text}.", pivot.behind, pivot.shown.small, logs="econds" in what)


def side_by_side(pivot: Pivot, name: str, title: str) -> Dots:
    """A panel a column (low, mid, high, mix), a row a method; the same axis in all."""
    rows = tuple(method for method in pivot.cells if method != FLOOR)
    panels = tuple(Panel(axis_of(name), {"": {row: _dot(pivot, row, column) for row in rows if column in pivot.cells[row]}},
                         _marks(pivot, column), column) for column in pivot.columns)
    return Dots(f"{title} · {pivot.shown.text}", rows, panels, {row: looks.look_of(row) for row in rows},
                HOLLOW if pivot.collapsed else "", _caption(f"{name} of the same methods on each forget set", pivot))


def controls(pivot: Pivot, name: str, title: str) -> Dots:
    """A panel a score; a row a method, a dot for each way to use it: RUM^F, shuffle, vanilla, alone."""
    ways = {label: looks.kind_of(label) for label in pivot.cells if label not in (FLOOR, "raw")}
    rows = tuple(dict.fromkeys(base for _, base in ways.values()))
    kinds = [kind for kind in looks.KINDS if kind in {kind for kind, _ in ways.values()}]
    panels = []
    for column in pivot.columns:
        dots = {kind: {base: _dot(pivot, label, column) for label, (own, base) in ways.items()
                       if own == kind and column in pivot.cells[label]} for kind in kinds}
        panels.append(Panel(axis_of(name), dots, _marks(pivot, column), f"by {column}" if " " not in column else column))
    known = {base: looks.look_of(base) for base in rows} if len(kinds) == 1 else {kind: looks.KINDS[kind] for kind in kinds}
    return Dots(f"{title} · {pivot.shown.text}", rows, tuple(panels), known, HOLLOW if pivot.collapsed else "",
                _caption(f"{name} of methods alone, and refined by the groups that each score makes (RUM^F), by groups at "
                         "random (shuffle) and with none (vanilla)", pivot))


def curves(pivot: Pivot, name: str) -> Multiples:
    """A cell a method: a measure against the original's sparsity, beside retrain's, and retrains among themselves."""
    there = [method for method in ("retrain", FLOOR) if method in pivot.cells]
    own = [method for method in pivot.cells if method not in there] or there
    cells = tuple(Cell(method, tuple(_curve(pivot, line) for line in dict.fromkeys([*there, method]))) for method in own)
    return Multiples(f"{name} by sparsity · {pivot.shown.text}", cells, Axis("prunable weights gone before unlearning"),
                     axis_of(name), HOLLOW if pivot.collapsed else "", pivot.columns,
                     _caption(f"{name if name != 'seconds' else SECONDS} against the share of the prunable weights that the "
                              "original lacks; the sparsities stand at equal distances", pivot))


def _curve(pivot: Pivot, method: str) -> Line:
    cells = pivot.cells[method]
    at = [place for place, column in enumerate(pivot.columns) if column in cells]
    dots = [_dot(pivot, method, pivot.columns[place]) for place in at]
    colour, marker = looks.look_of(method)
    anchor = method in ("retrain", FLOOR)
    return Line(method if anchor else "", at, [dot.mean for dot in dots], colour, marker,
                dashes="--" if anchor else "-", low=_ends([dot.low for dot in dots]), high=_ends([dot.high for dot in dots]),
                hollow=[dot.hollow for dot in dots])


def _ends(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
