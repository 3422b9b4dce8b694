"""Two measures against one another: a point a name, with its interval both ways, and the front of those that none beats."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evaluation.style import GREY, LIGHT, Look, drawn_in, width_of, wrapped
from report.sheet import PAD, Axis, Dot, Mark, Sheet, number, scaled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Point:
    """A name's place; colour and marker."""

    name: str
    x: Dot
    y: Dot
    look: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Scatter:
    """Numbered points with their names below; less of both measures is better.

    front: whether the points that no other one beats are joined, hollow ones left out. diagonal: whether the line of equal
    numbers is drawn, on equal scales. marks: bands and lines of y.
    """

    title: str
    points: tuple[Point, ...]
    x: Axis
    y: Axis
    note: str = ""
    marks: tuple[Mark, ...] = ()
    front: bool = False
    diagonal: bool = False
    caption: str = ""


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points that no other one beats, by ascending x: none has less of one and not more of the other."""
    found = [i for i, (x, y) in enumerate(points)
             if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)]
    return sorted(found, key=lambda i: (points[i][0], -points[i][1]))


def draw_scatter(chart: Scatter, look: Look) -> Figure:
    """The chart as a figure; points are numbered, and the numbers' names stand under the axes."""
    with drawn_in(look):
        return _ScatterOn(chart, look).figure()


class _ScatterOn:
    def __init__(self, chart: Scatter, look: Look) -> None:
        self.chart, self.look, self.small = chart, look, look.size - 0.5
        self.sheet = Sheet(look, wide=len(chart.points) > 12)
        self.key, self.key_height = _key(chart, look, self.sheet.width)
        self.across = chart.x.limits([p.x.mean for p in chart.points], _ends([p.x for p in chart.points]))
        marked = [x for mark in chart.marks for x in (mark.at, mark.low, mark.high) if x is not None]
        self.up = chart.y.limits([*(p.y.mean for p in chart.points), *marked], _ends([p.y for p in chart.points]))
        if chart.diagonal:
            self.across = self.up = min(self.across[0], self.up[0]), max(self.across[1], self.up[1])

    def figure(self) -> Figure:
        chart, look, sheet = self.chart, self.look, self.sheet
        self._head()
        foot = 2 * look.line + 0.12 + self.key_height + PAD
        tall = max(1.9 if sheet.width == look.width else 3.0, 1.1 * (foot + sheet.above()),
                   width_of(chart.y.label, look.size, look.family) + 0.1)
        figure, above = sheet.open(tall + foot)
        total = figure.get_size_inches()[1]
        up = chart.y.ticks(*self.up, tall, look, upright=True)
        left = PAD + look.line + 0.1 + max(width_of(number(y), self.small, look.family) for y in up or [0.0])
        place = (left / sheet.width, 1 - (above + tall) / total, (sheet.width - left - PAD - 0.06) / sheet.width, tall / total)
        axes = figure.add_axes(place)
        scaled(axes, chart.x, chart.y, self.across, self.up)
        across = chart.x.ticks(*self.across, sheet.width - left, look)
        axes.set_xticks(across, [number(x) for x in across])
        axes.set_yticks(up, [number(y) for y in up])
        axes.minorticks_off()
        axes.set_xlabel(chart.x.label, labelpad=2)
        figure.text(PAD / sheet.width, 1 - (above + tall / 2) / total, chart.y.label, rotation=90, ha="left", va="center")
        self._inside(axes)
        _number_points(figure, axes, chart.points, look)
        self._names(figure, total)
        return figure

    def _head(self) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        self.sheet.tell(self.chart.title, self.look.size, "bold")
        self.sheet.tell(self.chart.note, self.small)
        for mark in self.chart.marks:
            self.sheet.key(Patch(facecolor=mark.colour, alpha=0.25) if mark.low is not None else
                           Line2D([], [], color=mark.colour, linestyle=mark.dashes), mark.label)
        if self.chart.front:
            self.sheet.key(Line2D([], [], color=GREY, linewidth=0.8), "none has less of both")
        if self.chart.diagonal:
            self.sheet.key(Line2D([], [], color=GREY, linestyle=":", linewidth=0.8), "equal")

    def _inside(self, axes: Any) -> None:
        low, high = self.up
        for mark in self.chart.marks:
            if mark.low is not None:
                axes.axhspan(max(mark.low, low), min(mark.high, high), facecolor=mark.colour, alpha=0.25, linewidth=0, zorder=0)
            if mark.at is not None:
                axes.axhline(mark.at, color=mark.colour, linestyle=mark.dashes, linewidth=0.9, zorder=1)
        if self.chart.front:
            whole = [point for point in self.chart.points if not point.y.hollow]
            best = [whole[i] for i in front([(p.x.mean, p.y.mean) for p in whole])]
            axes.plot([p.x.mean for p in best], [p.y.mean for p in best], color=GREY, linewidth=0.8, zorder=1)
        if self.chart.diagonal:
            axes.plot(self.across, self.up, color=GREY, linestyle=":", linewidth=0.8, zorder=1)
        for point in self.chart.points:
            _point(axes, point, self.across, self.up)

    def _names(self, figure: Figure, total: float) -> None:
        """The key under the axes: sign, number and name of every point."""
        from matplotlib.lines import Line2D

        for x, y, text, place in self.key:
            top, (colour, marker) = (self.key_height + PAD - y) / total, self.chart.points[place].look
            figure.text(x / self.sheet.width, top, text, fontsize=self.small, va="top", ha="left", linespacing=1.15)
            figure.add_artist(Line2D([(x - 0.08) / self.sheet.width], [top - 0.5 * self.look.line / total], marker=marker,
                                     color=colour, linestyle="", transform=figure.transFigure))


def _ends(dots: Sequence[Dot]) -> list[float]:
    return [x for dot in dots for x in (dot.low, dot.high) if x is not None]


def _key(chart: Scatter, look: Look, width: float) -> tuple[list[tuple[float, float, str, int]], float]:
    """Where the names go, in inches from the left and down from the top of the key, and the key's height."""
    small, room = look.size - 0.5, width - 2 * PAD
    texts = [f"{place} {point.name}" for place, point in enumerate(chart.points, 1)]
    widest = min(room - 0.14, max(width_of(text, small, look.family) for text in texts))
    columns = max(1, min(len(texts), int(room / (widest + 0.24))))
    lines = [wrapped(text, room / columns - 0.2, look, small, lines=2) for text in texts]
    per, found, height = math.ceil(len(texts) / columns), [], 0.0
    for column in range(columns):
        y = 0.0
        for place in range(column * per, min(len(texts), (column + 1) * per)):
            found.append((PAD + 0.14 + column * room / columns, y, "\n".join(lines[place]), place))
            y += len(lines[place]) * look.line
        height = max(height, y)
    return found, height


def _point(axes: Any, point: Point, across: tuple[float, float], up: tuple[float, float]) -> None:
    colour, marker = point.look
    thin: dict[str, Any] = {"color": colour, "linewidth": 0.7, "alpha": 0.7, "zorder": 2}
    rim: dict[str, Any] = {"color": colour, "markersize": 3, "zorder": 3, "clip_on": False}
    if point.x.low is not None and point.x.high is not None:
        axes.plot([max(point.x.low, across[0]), min(point.x.high, across[1])], [point.y.mean] * 2, **thin)
        for beyond, at, arrow in ((point.x.low < across[0], across[0], "<"), (point.x.high > across[1], across[1], ">")):
            axes.plot([at] * beyond, [point.y.mean] * beyond, marker=arrow, **rim)
    if point.y.low is not None and point.y.high is not None:
        axes.plot([point.x.mean] * 2, [max(point.y.low, up[0]), min(point.y.high, up[1])], **thin)
        for beyond, at, arrow in ((point.y.low < up[0], up[0], "v"), (point.y.high > up[1], up[1], "^")):
            axes.plot([point.x.mean] * beyond, [at] * beyond, marker=arrow, **rim)
    axes.plot([point.x.mean], [point.y.mean], marker=marker, color=colour, zorder=4, linestyle="", clip_on=False,
              markerfacecolor="white" if point.y.hollow else colour)


def _number_points(figure: Figure, axes: Any, points: Sequence[Point], look: Look) -> None:
    """Each point's number at the nearest free place around it, with a line to it where that is far."""
    size, inches = look.size - 1, figure.get_size_inches()
    box = axes.get_position()
    x0, y0, x1, y1 = (v * inches[i % 2] for i, v in enumerate((box.x0, box.y0, box.x1, box.y1)))
    places = [axes.transData.transform((p.x.mean, p.y.mean)) / figure.dpi for p in points]
    taken: list[tuple[float, float, float, float]] = [(x - 0.035, y - 0.035, x + 0.035, y + 0.035) for x, y in places]
    for place, (x, y) in enumerate(places):
        text = str(place + 1)
        w, h = width_of(text, size, look.family) + 0.01, 0.78 * size / 72 + 0.02
        for radius, turn in ((0.035 + 0.045 * (k // 16) ** 1.15, 2 * math.pi * (k % 16) / 16 + 0.8) for k in range(16 * 60)):
            cx, cy = x + (radius + w / 2 + 0.01) * math.cos(turn), y + (radius + h / 2 + 0.01) * math.sin(turn)
            mine = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            inside = x0 < mine[0] and mine[2] < x1 and y0 < mine[1] and mine[3] < y1
            if inside and not any(a < mine[2] and mine[0] < c and b < mine[3] and mine[1] < d for a, b, c, d in taken):
                break
        taken.append(mine)
        if math.hypot(cx - x, cy - y) > 0.2:
            axes.annotate("", (x / inches[0], y / inches[1]), (cx / inches[0], cy / inches[1]), xycoords="figure fraction",
                          textcoords="figure fraction", zorder=1,
                          arrowprops={"arrowstyle": "-", "color": LIGHT, "linewidth": 0.6})
        figure.text(cx / inches[0], cy / inches[1], text, fontsize=size, ha="center", va="center")
