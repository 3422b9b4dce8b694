"""Small multiples: a cell a name, with lines on the same axes in every cell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evaluation.style import Look, drawn_in, width_of, wrapped
from report.sheet import GAP, PAD, Axis, Sheet, number, scaled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL, TALL = 1.35, 0.95  # inches of a cell's axes at least, in small print


@dataclasses.dataclass(frozen=True)
class Line:
    """xs and ys with the ends of intervals where there are some (NaN: none), as lines or as a band.

    label: of the legend, "" for none.
    """

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
    band: bool = False


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
    caption: str = ""


def draw_multiples(chart: Multiples, look: Look) -> Figure:
    """The chart as a figure; all cells have the same limits."""
    with drawn_in(look):
        return _MultiplesOn(chart, look).figure()


class _MultiplesOn:
    def __init__(self, chart: Multiples, look: Look) -> None:
        self.chart, self.look, self.small = chart, look, look.size - 0.5
        self.sheet = Sheet(look, wide=len(chart.cells) > 2)
        self.up = _limits(chart.y, [(line.ys, line.low, line.high) for cell in chart.cells for line in cell.lines])
        self.ticks_up = chart.y.ticks(*self.up, TALL * look.scale, look, upright=True)
        self.left = look.line + 0.1 + max(width_of(number(y), self.small, look.family) for y in self.ticks_up or [0.0])
        room, self.gap = self.sheet.width - 2 * PAD - self.left, GAP * look.scale
        self.columns = max(1, min(len(chart.cells), int((room + self.gap) / (CELL * look.scale + self.gap))))
        self.wide = (room - self.gap * (self.columns - 1)) / self.columns
        self.names = [wrapped(cell.name, self.wide, look, self.small, lines=4) for cell in chart.cells]

    def figure(self) -> Figure:
        chart, look, sheet = self.chart, self.look, self.sheet
        self._head()
        rows = math.ceil(len(chart.cells) / self.columns)
        top, foot = max(map(len, self.names)) * look.line + 0.06, 0.07 + look.line
        # the axes are half of the figure at least
        tall = max(TALL * look.scale, 1.1 * (top + foot + (sheet.above() + look.line) / rows))
        # a label beside the rows is no longer than they are
        tall = max(tall, (width_of(chart.y.label, look.size, look.family) + 0.1) / rows - top - foot)
        step = tall + top + foot
        figure, above = sheet.open(rows * step + 1.2 * look.line + PAD)
        total = figure.get_size_inches()[1]
        across, places, words = self._across()
        for place, cell in enumerate(chart.cells):
            row, column = divmod(place, self.columns)
            x, y = PAD + self.left + column * (self.wide + self.gap), above + row * step + top
            axes = figure.add_axes((x / sheet.width, 1 - (y + tall) / total, self.wide / sheet.width, tall / total))
            scaled(axes, chart.x, chart.y, across, self.up)
            for line in cell.lines:
                _line(axes, line, self.up)
            last = place + self.columns >= len(chart.cells)
            axes.set_xticks(places, words if last else [""] * len(words))
            axes.set_yticks(self.ticks_up, [number(y) if column == 0 else "" for y in self.ticks_up])
            axes.minorticks_off()
            axes.set_title("\n".join(self.names[place]), fontsize=self.small, pad=3, linespacing=1.15)
        middle = (PAD + self.left + sheet.width - PAD) / 2
        figure.text(middle / sheet.width, (PAD + 0.02) / total, chart.x.label, ha="center", va="bottom")
        centre = 1 - (above + rows * step / 2) / total
        figure.text(PAD / sheet.width, centre, chart.y.label, rotation=90, ha="left", va="center")
        return figure

    def _head(self) -> None:
        from matplotlib.lines import Line2D

        self.sheet.tell(self.chart.title, self.look.size, "bold")
        self.sheet.tell(self.chart.note, self.small)
        for line in {line.label: line for cell in self.chart.cells for line in cell.lines if line.label}.values():
            self.sheet.key(Line2D([], [], color=line.colour, marker=line.marker, linestyle=line.dashes, linewidth=line.width),
                           line.label)

    def _across(self) -> tuple[tuple[float, float], list[float], list[str]]:
        """Limits of x, where its words stand, and the words: every second, third, ... where they would touch."""
        chart = self.chart
        if chart.words:
            limits, places, words = (-0.4, len(chart.words) - 0.6), list(map(float, range(len(chart.words)))), list(chart.words)
        else:
            limits = _limits(chart.x, [(line.xs, None, None) for cell in chart.cells for line in cell.lines])
            places = chart.x.ticks(*limits, self.wide, self.look)
            words = [number(x) for x in places]
        needed = sum(width_of(word, self.small, self.look.family) + 0.05 for word in words)
        every = max(1, math.ceil(needed / self.wide))
        return limits, places, [word if place % every == 0 else "" for place, word in enumerate(words)]


def _limits(axis: Axis, found: Sequence[tuple[Sequence[float], Sequence[float] | None, Sequence[float] | None]]
            ) -> tuple[float, float]:
    means = [value for values, _, _ in found for value in values]
    ends = [value for _, low, high in found for side in (low, high) if side is not None for value in side]
    return axis.limits(means, ends)


def _line(axes: Any, line: Line, limits: tuple[float, float]) -> None:
    axes.plot(line.xs, line.ys, color=line.colour, marker=line.marker, linestyle=line.dashes, linewidth=line.width)
    if line.band and line.low is not None and line.high is not None:
        axes.fill_between(line.xs, line.low, line.high, color=line.colour, alpha=0.2, linewidth=0)
    elif line.low is not None and line.high is not None:
        for x, low, high in zip(line.xs, line.low, line.high, strict=True):
            axes.plot([x, x], [max(low, limits[0]), min(high, limits[1])], color=line.colour, linewidth=0.9)
    hollow = [place for place, broken in enumerate(line.hollow) if broken]
    axes.plot([line.xs[p] for p in hollow], [line.ys[p] for p in hollow], line.marker or "o", color=line.colour,
              markerfacecolor="white", zorder=5, linestyle="")
