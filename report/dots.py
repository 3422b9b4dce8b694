"""Dot plots: a row a name, a dot with its interval for each series, in one or more panels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.style import BLACK, LIGHT, Look, drawn_in, width_of, wrapped
from report.sheet import GAP, PAD, Axis, Dot, Mark, Sheet, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BESIDE = 0.34  # the column of labels beside the axes takes this share of the width at most
PANEL = 1.2  # inches of a panel's axes at least
LABEL_LINES = 3  # more of them beside a row, and all labels stand above their rows

Looks = Mapping[str, tuple[str, str]]  # row or series -> colour and marker


@dataclasses.dataclass(frozen=True)
class Panel:
    """dots: series -> row -> number; bars: places of the first and last of rows that a bar at the right joins."""

    axis: Axis
    dots: Mapping[str, Mapping[str, Dot]]
    marks: tuple[Mark, ...] = ()
    title: str = ""
    bars: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Dots:
    """Rows with a dot for each series, in one or more panels; those with the same axis have the same limits.

    looks: of the rows where there is one series, else of the series. note: said under the title, in smaller print.
    across: panels side by side at most.
    """

    title: str
    rows: tuple[str, ...]
    panels: tuple[Panel, ...]
    looks: Looks
    note: str = ""
    caption: str = ""
    across: int = 4

    @property
    def series(self) -> list[str]:
        return list(dict.fromkeys(name for panel in self.panels for name in panel.dots))


def draw_dots(chart: Dots, look: Look) -> Figure:
    """The chart as a figure."""
    with drawn_in(look):
        return _DotsOn(chart, look).figure()


class _DotsOn:
    def __init__(self, chart: Dots, look: Look) -> None:
        self.chart, self.look = chart, look
        self.sheet = Sheet(look, wide=len(chart.panels) > 1)
        self.small = look.size - 0.5
        self.series = chart.series
        self.one = len(self.series) == 1
        self.places = {row: place for place, row in enumerate(chart.rows)}
        self.limits = {axis: _limits(axis, [panel for panel in chart.panels if panel.axis == axis])
                       for axis in dict.fromkeys(panel.axis for panel in chart.panels)}

    def figure(self) -> Figure:
        chart, look, sheet = self.chart, self.look, self.sheet
        sheet.tell(chart.title, look.size, "bold")
        sheet.tell(chart.note, self.small)
        self._keys()
        room = sheet.width - 2 * PAD
        names = {row: wrapped(row, BESIDE * room, look, self.small) for row in chart.rows}
        beside = max(map(len, names.values())) <= LABEL_LINES
        if not beside:
            names = {row: wrapped(row, room - 0.1, look, self.small) for row in chart.rows}
        lines = max(map(len, names.values()))
        step = 0.13 + 0.075 * (len(self.series) - 1)
        height = max(step + 0.06, lines * look.line + 0.05) if beside else step + lines * look.line + 0.06
        widest = max(width_of(line, self.small, look.family) for name in names.values() for line in name)
        column = widest + 0.06 if beside else 0.1
        across = max(1, min(len(chart.panels), chart.across, int((room - column + GAP) / (PANEL * look.scale + GAP))))
        down = math.ceil(len(chart.panels) / across)
        titled = any(panel.title for panel in chart.panels)
        wide = (room - column - GAP * (across - 1)) / across
        labels = [wrapped(panel.axis.label, wide, look, look.size) for panel in chart.panels]
        foot = 0.06 + look.line + max(map(len, labels)) * look.line + 0.04
        top = (look.line if titled else 0.0) + 0.02
        tall = len(chart.rows) * height
        tall = max(tall, 1.1 * ((foot + top) + sheet.above() / down))  # the axes are half of the figure at least
        figure, above = sheet.open(down * (tall + foot + top) + PAD)
        total = figure.get_size_inches()[1]
        for place, panel in enumerate(chart.panels):
            x = PAD + column + (place % across) * (wide + GAP)
            y = above + (place // across) * (tall + foot + top) + top
            axes = figure.add_axes((x / sheet.width, 1 - (y + tall) / total, wide / sheet.width, tall / total))
            first = place % across == 0
            self._panel(axes, panel, names if first and beside else None, wide, tall / len(chart.rows), 0 if beside else lines,
                        labels[place])
            if first and not beside:
                for at, row in enumerate(chart.rows):  # across all panels, above the dots of the row
                    figure.text((x + 0.04) / sheet.width, 1 - (y + at * tall / len(chart.rows) + 0.03) / total,
                                "\n".join(names[row]), va="top", ha="left", fontsize=self.small, linespacing=1.15,
                                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})
        return figure

    def _keys(self) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        if not self.one:
            for name in self.series:
                colour, marker = self.chart.looks[name]
                self.sheet.key(Line2D([], [], color=colour, marker=marker, linestyle=""), name)
        if any(panel.bars for panel in self.chart.panels):
            self.sheet.key(Line2D([], [], color=BLACK, linewidth=2.2), "not told apart")
        for mark in {mark.label: mark for panel in self.chart.panels for mark in panel.marks}.values():
            band = mark.low is not None
            self.sheet.key(Patch(facecolor=mark.colour, alpha=0.25) if band else
                           Line2D([], [], color=mark.colour, linestyle=mark.dashes), mark.label)

    def _panel(self, axes: Any, panel: Panel, names: Mapping[str, list[str]] | None, wide: float, height: float, above: int,
               label: list[str]) -> None:
        """names: of the rows, beside the axes; above: lines of text that stand above the dots of a row instead."""
        chart, look = self.chart, self.look
        low, high = self.limits[panel.axis]
        inside = low, high
        if panel.bars:
            high += 0.07 * (high - low) * (len(panel.bars) + 0.5)
        if panel.axis.log:
            axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(len(chart.rows) - 0.5, -0.5)
        for mark in panel.marks:
            if mark.low is not None:
                axes.axvspan(max(mark.low, low), min(mark.high, high), facecolor=mark.colour, alpha=0.25, linewidth=0, zorder=0)
            if mark.at is not None:
                axes.axvline(mark.at, color=mark.colour, linestyle=mark.dashes, linewidth=0.9, zorder=1)
        for between in range(1, len(chart.rows)):
            axes.axhline(between - 0.5, color=LIGHT, linewidth=0.5, zorder=0)
        shift = 0.5 * above * look.line / height
        spread = min(0.6, 0.075 * len(self.series) / height)
        for place, name in enumerate(self.series):
            off = 0.0 if self.one else spread * ((place + 0.5) / len(self.series) - 0.5)
            for row, dot in panel.dots.get(name, {}).items():
                colour, marker = chart.looks[row if self.one else name]
                _dot(axes, dot, self.places[row] + off + shift, colour, marker, (low, high))
        for place, (first, last) in enumerate(panel.bars):
            at = inside[1] + 0.07 * (inside[1] - inside[0]) * (place + 0.5)
            axes.plot([at, at], [first - 0.2 + shift, last + 0.2 + shift], color=BLACK, linewidth=2.2, solid_capstyle="butt")
        ticks = panel.axis.ticks(low, high, wide, look)
        axes.set_xticks(ticks, [number(x) for x in ticks])
        axes.minorticks_off()
        axes.set_xlabel("\n".join(label), labelpad=2)
        if panel.title:
            axes.set_title(panel.title, fontsize=look.size, pad=3)
        axes.tick_params(axis="y", length=0)
        if names is not None:
            axes.set_yticks(range(len(chart.rows)), ["\n".join(names[row]) for row in chart.rows])
        else:
            axes.set_yticks([])


def _limits(axis: Axis, panels: Sequence[Panel]) -> tuple[float, float]:
    known = [dot for panel in panels for dots in panel.dots.values() for dot in dots.values()]
    marks = [mark for panel in panels for mark in panel.marks]
    means = [dot.mean for dot in known] + [x for mark in marks for x in (mark.at, mark.low, mark.high) if x is not None]
    return axis.limits(means, [x for dot in known for x in (dot.low, dot.high) if x is not None])


def _dot(axes: Any, dot: Dot, y: float, colour: str, marker: str, limits: tuple[float, float]) -> None:
    """A dot and its interval; an arrow at the rim where the interval goes on outside."""
    low, high = limits
    if dot.low is not None and dot.high is not None:
        axes.plot([max(dot.low, low), min(dot.high, high)], [y, y], color=colour, zorder=3,
                  solid_capstyle="butt")
        for beyond, at, arrow in ((dot.low < low, low, "<"), (dot.high > high, high, ">")):
            if beyond:
                axes.plot([at], [y], marker=arrow, color=colour, markersize=3, zorder=3, clip_on=False)
    axes.plot([dot.mean], [y], marker=marker, color=colour, markerfacecolor="white" if dot.hollow else colour, zorder=4,
              linestyle="", clip_on=False)
