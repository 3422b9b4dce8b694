"""What charts are made of: numbers with intervals, axes, and a page that is laid out from measured text.

So a layout holds for any label: a long one is wrapped, and the page grows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.style import GREY, Look, blank, width_of, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAD, GAP = 0.06, 0.14  # inches at the rim, and between panels
HANDLE = 0.3  # inches of a sign in the legend, in small print


@dataclasses.dataclass(frozen=True)
class Dot:
    """A number with its interval, where it has one; hollow: of a model that is broken."""

    mean: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclasses.dataclass(frozen=True)
class Mark:
    """A line across the rows, or with ``low`` and ``high`` a band."""

    label: str
    at: float | None = None
    low: float | None = None
    high: float | None = None
    colour: str = GREY
    dashes: str = "--"


@dataclasses.dataclass(frozen=True)
class Axis:
    """What an axis says and spans. domain: what the measure can be; intervals and limits keep to it."""

    label: str
    domain: tuple[float, float] = (-math.inf, math.inf)
    log: bool = False
    whole: bool = False  # all of the domain is shown

    def limits(self, means: Sequence[float], ends: Iterable[float]) -> tuple[float, float]:
        """The means decide, with some room; ends of intervals widen it to three times that at most, within the domain."""
        if self.whole:
            low, high = self.domain
            return low - 0.03 * (high - low), high + 0.03 * (high - low)
        place, back = (math.log10, lambda x: 10**x) if self.log else (float, float)
        means = [place(x) for x in means if math.isfinite(x) and (x > 0 or not self.log)] or [0.0]
        ends = [place(x) for x in ends if math.isfinite(x) and (x > 0 or not self.log)]
        low, high = min(means), max(means)
        room = max(high - low, 0.3 if self.log else 0.02 * max(1e-9, min(abs(high) or 1.0, _span(self.domain))))
        low, high = (max(min([low, *ends]), low - room) - 0.08 * room, min(max([high, *ends]), high + room) + 0.08 * room)
        if self.log:
            return back(low), back(high)
        edge = 0.03 * (high - low)
        return max(low, self.domain[0] - edge), min(high, self.domain[1] + edge)

    def ticks(self, low: float, high: float, inches: float, look: Look, upright: bool = False) -> list[float]:
        """Round numbers between the limits, as many as have room."""
        most = max(2, int(inches / (2 * look.line if upright else 0.37 * look.size / 7)))
        if not self.log:
            from matplotlib.ticker import MaxNLocator

            found = MaxNLocator(min(5, most), steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
            inside = [x for x in found if max(low, self.domain[0] - 1e-9) <= x <= min(high, self.domain[1] + 1e-9)]
            return inside
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**k for k in decades for d in digits if low <= d * 10.0**k <= high]
            if len(found) <= most:
                return found
        return found[:: math.ceil(len(found) / most)]


def _span(domain: tuple[float, float]) -> float:
    return domain[1] - domain[0] if all(map(math.isfinite, domain)) else math.inf


class Sheet:
    """A page of a known width that is filled from the top; its height is known once all is asked for."""

    def __init__(self, look: Look, wide: bool) -> None:
        self.look, self.width = look, look.wide if wide else look.width
        self.handle = HANDLE * look.scale
        self.head: list[tuple[list[str], float, str]] = []  # lines, font size, weight
        self.keys: list[Any] = []
        self.labels: list[str] = []

    def tell(self, text: str, size: float, weight: str = "normal") -> None:
        if text:
            # bold letters are wider than those that the ruler measures
            room = (self.width - 2 * PAD) / (1.1 if weight == "bold" else 1.0)
            self.head.append((wrapped(text, room, self.look, size), size, weight))

    def key(self, handle: Any, label: str) -> None:
        self.keys.append(handle)
        self.labels.append(label)

    def _legend(self) -> tuple[list[tuple[float, float, str]], float]:
        """Where each key's text goes, in inches from the left and down from the legend's top, wrapped; and its height."""
        size, room, step = self.look.size - 0.5, self.width - 2 * PAD - self.handle, 1.28 * (self.look.size - 0.5) / 72
        found, x, y, lines = [], PAD, 0.0, 0
        for label in self.labels:
            text = wrapped(label, room, self.look, size)
            wide = self.handle + max(width_of(row, size, self.look.family) for row in text) + 0.1
            if x > PAD and x + wide > self.width - PAD:
                x, y, lines = PAD, y + lines * step, 0
            found.append((x + self.handle, y, "\n".join(text)))
            x, lines = x + wide, max(lines, len(text))
        return found, y + lines * step

    def above(self) -> float:
        """Inches of the head, above the axes."""
        legend = self._legend()[1]
        return PAD + sum(1.25 * size / 72 * len(lines) for lines, size, _ in self.head) + legend + (0.06 if legend else 0.03)

    def open(self, body: float) -> tuple[Figure, float]:
        """The figure with its head, for axes and their labels of ``body`` inches; the inches above them."""
        above = self.above()
        height = above + body
        figure = blank(self.width, height)
        y = PAD
        for lines, size, weight in self.head:
            for row in lines:
                figure.text(PAD / self.width, 1 - y / height, row, fontsize=size, fontweight=weight, va="top", ha="left")
                y += 1.25 * size / 72
        size = self.look.size - 0.5
        for handle, (x, down, text) in zip(self.keys, self._legend()[0], strict=True):
            top, middle = 1 - (y + down) / height, 1 - (y + down + 0.6 * size / 72) / height
            figure.text(x / self.width, top, text, fontsize=size, va="top", ha="left", linespacing=1.15)
            _place(figure, handle, ((x - self.handle + 0.03) / self.width, (x - 0.07) / self.width), middle, size / 72 / height)
        return figure, above


def scaled(axes: Any, x: Axis, y: Axis, across: tuple[float, float], up: tuple[float, float]) -> None:
    """Scales and limits of both axes."""
    if x.log:
        axes.set_xscale("log")
    if y.log:
        axes.set_yscale("log")
    axes.set_xlim(*across)
    axes.set_ylim(*up)


def _place(figure: Figure, handle: Any, across: tuple[float, float], middle: float, height: float) -> None:
    """A key's sign before its text: a patch, a line, or a marker alone in the middle; in shares of the figure."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle

    if isinstance(handle, Patch):
        figure.add_artist(Rectangle((across[0], middle - height / 2), across[1] - across[0], height, linewidth=0,
                                    facecolor=handle.get_facecolor(), transform=figure.transFigure))
        return
    drawn = Line2D(across, (middle, middle), color=handle.get_color(), linestyle=handle.get_linestyle(),
                   linewidth=handle.get_linewidth(), transform=figure.transFigure)
    figure.add_artist(drawn)
    figure.add_artist(Line2D([sum(across) / 2], [middle], color=handle.get_color(), marker=handle.get_marker(), linestyle="",
                             transform=figure.transFigure))


def number(x: float) -> str:
    return f"{x:.10g}" if x == 0 or 1e-3 <= abs(x) < 1e5 else f"{x:.0e}".replace("e-0", "e-").replace("e+0", "e")
