"""The same points under several models side by side: a panel a model, a colour a class, one group before all others."""

from __future__ import annotations

import colorsys
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.style import BLACK, GREY, LIGHT, Look, drawn_in, wrapped
from report.sheet import GAP, PAD, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 4  # panels in a line, at most


@dataclasses.dataclass(frozen=True, eq=False)
class Cloud:
    """A model's name, its points float [M, 2], the class of each int64 [M], and which are before all others, bool [M]."""

    name: str
    points: np.ndarray
    labels: np.ndarray
    marked: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Clouds:
    """marked: what the marked points are. The axes of a panel are its own, and have no unit."""

    title: str
    panels: tuple[Cloud, ...]
    marked: str
    note: str = ""
    caption: str = ""


def colour_of(label: int, count: int) -> tuple[float, float, float]:
    """Of a class among so many: light, so that what is black stands before it; neighbours are of another lightness too."""
    return colorsys.hls_to_rgb(label / max(count, 1), 0.62 if label % 2 else 0.74, 0.65)


def draw_clouds(chart: Clouds, look: Look) -> Figure:
    """The chart as a figure."""
    from matplotlib.lines import Line2D

    count = 1 + max(int(panel.labels[~panel.marked].max()) for panel in chart.panels)
    with drawn_in(look):
        sheet = Sheet(look, wide=len(chart.panels) > 2)
        sheet.tell(chart.title, look.size, "bold")
        sheet.tell(chart.note, look.size - 0.5)
        sheet.key(Line2D([], [], color=BLACK, marker="o", linestyle=""), chart.marked)
        sheet.key(Line2D([], [], color=GREY, marker="o", linestyle=""), "others, a colour a class")
        across = min(ACROSS, len(chart.panels))
        down = math.ceil(len(chart.panels) / across)
        side = (sheet.width - 2 * PAD - (across - 1) * GAP) / across
        names = [wrapped(panel.name, side, look, lines=2) for panel in chart.panels]
        head = look.line * max(map(len, names)) + 0.04
        figure, above = sheet.open(down * (side + head) + (down - 1) * GAP + PAD)
        total = figure.get_size_inches()[1]
        for place, panel in enumerate(chart.panels):
            x = PAD + (place % across) * (side + GAP)
            y = above + (place // across) * (side + head + GAP)
            for row, words in enumerate(names[place]):  # by baselines, so that names beside one another stand level
                figure.text(x / sheet.width, 1 - (y + look.line * (row + 0.8)) / total, words, va="baseline", ha="left")
            axes = figure.add_axes((x / sheet.width, 1 - (y + head + side) / total, side / sheet.width, side / total))
            _draw(axes, panel, count, look)
        return figure


def _draw(axes: Any, panel: Cloud, count: int, look: Look) -> None:
    colours = np.array([colour_of(int(label), count) for label in range(count)])
    size = 1.5 * look.scale * max(1.0, (1000 / len(panel.points)) ** 0.5)
    rest = ~panel.marked
    # as pixels in a PDF too: ten thousand dots are slow to show
    dots: dict[str, Any] = {"s": size, "linewidths": 0, "rasterized": True}
    axes.scatter(*panel.points[rest].T, c=colours[panel.labels[rest]], **dots)
    axes.scatter(*panel.points[panel.marked].T, c=BLACK, **dots)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=LIGHT)
