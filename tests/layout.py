"""What is wrong with a figure's layout: text outside the canvas or over other text, axes too small, points outside the axes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def faults(figure: Figure, slack: float = 1.0) -> list[str]:
    """One line a fault; ``slack``: pixels that rounding may take."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    boxes = [(text, box) for text, box in _texts(figure, canvas)]
    found = []
    for text, box in boxes:
        if box.x0 < -slack or box.y0 < -slack or box.x1 > width + slack or box.y1 > height + slack:
            found.append(f"outside the canvas: {text[:40]!r}")
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        if min(a.x1, b.x1) - max(a.x0, b.x0) > slack and min(a.y1, b.y1) - max(a.y0, b.y0) > slack:
            found.append(f"over one another: {one[:40]!r} and {other[:40]!r}")
    places = [axes.get_position() for axes in figure.axes]
    across = max(p.x1 for p in places) - min(p.x0 for p in places)
    up = sum(max(p.height for p in row) for row in _rows(places))
    for share, what in ((across, "width"), (up, "height")):
        if share < 0.5:
            found.append(f"axes take {100 * share:.0f} % of the {what}")
    return found + list(_outside(figure))


def _texts(figure: Figure, canvas: FigureCanvasAgg) -> Iterator[tuple[str, object]]:
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(canvas.get_renderer())
            if box.width and box.height:
                yield text.get_text(), box


def _rows(places: list) -> list[list]:
    rows: dict[float, list] = {}
    for place in places:
        rows.setdefault(round(place.y0, 4), []).append(place)
    return list(rows.values())


def _outside(figure: Figure) -> Iterator[str]:
    for axes in figure.axes:
        (x0, x1), (y0, y1) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
        for line in axes.lines:
            if line.get_transform() != axes.transData:
                continue
            x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
            dx, dy = 1e-9 * (abs(x0) + abs(x1)), 1e-9 * (abs(y0) + abs(y1))
            with np.errstate(invalid="ignore"):
                if ((x < x0 - dx) | (x > x1 + dx) | (y < y0 - dy) | (y > y1 + dy)).any():
                    yield f"a line leaves the axes: {line.get_label()}"
