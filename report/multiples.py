"""Small multiples: a cell a name, with lines on the same axes in every cell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evaluation.style import Look, drawn_in, width_of, wrapped
from report.sheet import GAP, PAD, Axis, Sheet, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 1.35  # inches of a cell's axes at least
TALL = 0.95


@dataclasses.dataclass(frozen=True)
class Line:
    """xs and ys with the ends of intervals where there are some (NaN: none); label: of the legend, "" for none."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    marker: str = ""
    dashes: str = "-"
    width: float = 1.2
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    hollow: Sequence[bool] = ()


@dataclasses.dataclass(frozen=True)
class Cell:
    """One of the multiples."""

    name: str
    lines: tuple[Line, ...]


@dataclasses.dataclass(frozen=True)
class Multiples:
    """words: what stands at the places 0, 1, 2, ... of the x axis, where it counts nothing."""

    title: str
    cells: tuple[Cell, ...]
    x: Axis
    y: Axis
    note: str = ""
    words: tuple[str, ...] = ()


def draw_multiples(chart: Multiples, look: Look) -> Figure:
    """The chart as a figure; all cells have the same limits."""
    with drawn_in(look):
        return _draw(chart, look)


def _draw(chart: Multiples, look: Look) -> Figure:
    from matplotlib.lines import Line2D

    sheet, small = Sheet(look, wide=len(chart.cells) > 2), look.size - 0.5
    sheet.tell(chart.title, look.size, "bold")
    sheet.tell(chart.note, small)
    for line in {line.label: line for cell in chart.cells for line in cell.lines if line.label}.values():
        sheet.key(Line2D([], [], color=line.colour, marker=line.marker, linestyle=line.dashes, linewidth=line.width),
                  line.label)
    low_y, high_y = _limits(chart.y, [(line.ys, line.low, line.high) for cell in chart.cells for line in cell.lines])
    ticks_y = chart.y.ticks(low_y, high_y, TALL, look, upright=True)
    left = look.line + 0.1 + max(width_of(number(y), small, look.family) for y in ticks_y or [0.0])
    room = sheet.width - 2 * PAD - left
    across = max(1, min(len(chart.cells), int((room + GAP) / (CELL + GAP))))
    down, wide = math.ceil(len(chart.cells) / across), (room - GAP * (across - 1)) / across
    names = [wrapped(cell.name, wide, look, small, lines=4) for cell in chart.cells]
    top, foot = max(map(len, names)) * look.line + 0.06, 0.07 + look.line
    head = sheet.above()
    tall = max(TALL, 1.1 * (top + foot + (head + look.line) / down))  # the axes are half of the figure at least
    figure, above = sheet.open(down * (tall + top + foot) + 1.2 * look.line + PAD)
    total = figure.get_size_inches()[1]
    if chart.words:
        low_x, high_x = -0.4, len(chart.words) - 0.6
        ticks_x = list(map(float, range(len(chart.words))))
    else:
        low_x, high_x = _limits(chart.x, [(line.xs, None, None) for cell in chart.cells for line in cell.lines])
        ticks_x = chart.x.ticks(low_x, high_x, wide, look)
    words = [*chart.words] or [number(x) for x in ticks_x]
    crowded = sum(width_of(word, small, look.family) + 0.05 for word in words) > wide
    if crowded:  # every second, third, ... place is named
        every = math.ceil(sum(width_of(word, small, look.family) + 0.05 for word in words) / wide)
        words = [word if place % every == 0 else "" for place, word in enumerate(words)]
    for place, cell in enumerate(chart.cells):
        row, column = divmod(place, across)
        x, y = PAD + left + column * (wide + GAP), above + row * (tall + top + foot) + top
        axes = figure.add_axes((x / sheet.width, 1 - (y + tall) / total, wide / sheet.width, tall / total))
        for at, scale in ((axes.set_xscale, chart.x), (axes.set_yscale, chart.y)):
            if scale.log:
                at("log")
        axes.set_xlim(low_x, high_x)
        axes.set_ylim(low_y, high_y)
        for line in cell.lines:
            _line(axes, line, (low_y, high_y))
        last = place + across >= len(chart.cells)
        axes.set_xticks(ticks_x, words if last else [""] * len(words))
        axes.set_yticks(ticks_y, [number(y) for y in ticks_y] if column == 0 else [""] * len(ticks_y))
        axes.minorticks_off()
        axes.set_title("\n".join(names[place]), fontsize=small, pad=3, linespacing=1.15)
    figure.text((PAD + left + room / 2) / sheet.width, (PAD + 0.02) / total, chart.x.label, ha="center", va="bottom")
    middle = above + (down * (tall + top + foot)) / 2
    figure.text(PAD / sheet.width, 1 - middle / total, chart.y.label, rotation=90, ha="left", va="center")
    return figure


def _limits(axis: Axis, found: Sequence[tuple[Sequence[float], Sequence[float] | None, Sequence[float] | None]]
            ) -> tuple[float, float]:
    means = [value for values, _, _ in found for value in values]
    ends = [value for _, low, high in found for side in (low, high) if side is not None for value in side]
    return axis.limits(means, ends)


def _line(axes: Any, line: Line, limits: tuple[float, float]) -> None:
    axes.plot(line.xs, line.ys, color=line.colour, marker=line.marker, linestyle=line.dashes, linewidth=line.width,
              markersize=3.5)
    if line.low is not None and line.high is not None:
        for x, low, high in zip(line.xs, line.low, line.high, strict=True):
            axes.plot([x, x], [max(low, limits[0]), min(high, limits[1])], color=line.colour, linewidth=0.9)
    hollow = [place for place, broken in enumerate(line.hollow) if broken]
    axes.plot([line.xs[p] for p in hollow], [line.ys[p] for p in hollow], line.marker or "o", color=line.colour, markersize=3.5,
              markerfacecolor="white", zorder=5, linestyle="")
