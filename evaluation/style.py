"""One look for every figure: the widths and fonts of venues, colours that hold for any vision and in grey, wrapped text.

Sizes are in inches, font sizes in points. Nothing here changes matplotlib's global state outside a ``with`` block.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

# Okabe and Ito's palette: told apart with any colour vision
BLUE, ORANGE, GREEN, RED, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
BROWN, OLIVE, GREY, LIGHT, BLACK = "#7A5230", "#8A8A00", "#777777", "#DDDDDD", "#000000"
HUES = (BLUE, ORANGE, GREEN, RED, PINK, SKY, BROWN, OLIVE)
MARKERS = "osD^vP*X"  # told apart in grey


PDF_FONTS = 42  # outlines as they are: publishers refuse the other kind


@dataclasses.dataclass(frozen=True)
class Look:
    """A venue's figures: one column wide, the whole text wide, font size and family, dots an inch of a picture."""

    width: float
    wide: float
    size: float
    family: str = "sans-serif"
    dpi: int = 220

    @property
    def line(self) -> float:
        """Height of a line of text."""
        return 1.25 * self.size / 72

    @property
    def scale(self) -> float:
        """How much larger the font is than in a paper's column."""
        return max(1.0, self.size / 8)

    def settings(self) -> dict[str, Any]:
        """For ``matplotlib.rc_context``."""
        return {"font.size": self.size, "font.family": self.family, "mathtext.default": "regular", "axes.linewidth": 0.6,
                "axes.titlesize": self.size, "axes.labelsize": self.size, "xtick.labelsize": self.size - 0.5,
                "ytick.labelsize": self.size - 0.5, "legend.fontsize": self.size - 0.5, "xtick.major.width": 0.6,
                "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5, "xtick.minor.size": 1.5,
                "lines.linewidth": 0.16 * self.size, "lines.markersize": 0.56 * self.size,
                "text.parse_math": False, "axes.spines.top": False,
                "axes.spines.right": False, "pdf.fonttype": PDF_FONTS, "svg.fonttype": "none", "svg.hashsalt": "lethe"}


# column and text width of the venues' style files of 2024 and 2025; plain fits a column and is legible on a screen
VENUES = {"plain": Look(3.3, 6.8, 7.5), "icml": Look(3.25, 6.75, 7.5, "serif"), "neurips": Look(5.5, 5.5, 8, "serif"),
          "cvpr": Look(3.25, 6.875, 7.5, "serif"), "slides": Look(8.0, 12.0, 15, dpi=120)}
SCREEN = Look(7.0, 12.0, 9, dpi=130)  # of figures that a run writes into its own folder


def blank(width: float, height: float) -> Figure:
    """An empty figure of the object interface: no global state, no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


@contextlib.contextmanager
def drawn_in(look: Look, **more: Any) -> Iterator[None]:
    """What is drawn inside the block has the venue's look; more: other settings of matplotlib."""
    import matplotlib

    with matplotlib.rc_context(look.settings() | more):
        yield


def styled(draw: Callable[..., T]) -> Callable[..., T]:
    """What draws a figure for the screen, in the fonts and lines of all others; formulas and powers are set as such."""
    @functools.wraps(draw)
    def wrapper(*args: Any, **more: Any) -> T:
        with drawn_in(SCREEN, **{"text.parse_math": True}):
            return draw(*args, **more)

    return wrapper


@functools.cache
def _ruler() -> Any:
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, 180)


def width_of(text: str, size: float, family: str = "sans-serif") -> float:
    """Width of one line of text in inches, with a little room: pictures of few dots round letters up."""
    return 1.05 * size * (sum(_width(word, family) for word in text.split(" ")) + _width(" ", family) * text.count(" "))


@functools.lru_cache(maxsize=4096)
def _width(word: str, family: str) -> float:
    """Of a word in inches at a font size of one point."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family=family, size=20)
    return _ruler().get_text_width_height_descent(word, font, False)[0] / 3600 if word else 0.0


def wrapped(text: str, width: float, look: Look, size: float | None = None, lines: int = 99) -> list[str]:
    """The text in lines no wider than ``width``; words that are too long are cut, an ellipsis ends what is left out."""
    size, found, row = size or look.size, [], ""

    def fits(words: str) -> bool:
        return width_of(words, size, look.family) <= width

    for word in text.split():
        if row and fits(f"{row} {word}"):
            row = f"{row} {word}"
            continue
        if row:
            found.append(row)
        while not fits(word) and len(word) > 1:
            cut = next((n for n in range(len(word) - 1, 1, -1) if fits(word[:n])), 1)
            # after a comma or the like, where there is one in the second half
            cut = next((n for n in range(cut, cut // 2, -1) if word[n - 1] in ",;/-_=("), cut)
            found.append(word[:cut])
            word = word[cut:]
        row = word
    found.append(row)
    if len(found) > lines:
        last = found[lines - 1]
        while last and not fits(last + "…"):
            last = last[:-1]
        found = [*found[: lines - 1], last + "…"]
    return found
