"""One file to send: settings, verdicts, tables that sort, figures and, for every number, its runs and their commands.

The page holds all it shows and asks the network for nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING

from report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).parent / "page.html"
WIDE = 5.0  # inches from which a figure takes the whole width of the page


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure as SVG, or as an image inside one, with its caption."""

    svg: str
    caption: str
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """What is said of one setting."""

    heading: str
    small: str = ""
    verdicts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Picture, ...] = ()


@dataclasses.dataclass(frozen=True)
class Made:
    """A run: its folder, the command that makes it, and what else the record says of it."""

    folder: str
    command: str
    facts: str = ""


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of one row; id: letters and digits that begin with r."""

    id: str
    name: str
    runs: tuple[Made, ...]


@dataclasses.dataclass(frozen=True)
class Page:
    title: str
    about: str
    sections: tuple[Section, ...]
    runs: tuple[Runs, ...] = ()


def picture(figure: Figure, caption: str) -> Picture:
    """The figure as SVG with its text as text; names of its own, so that several may stand on one page."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return Picture(text[text.index("<svg"):], caption, figure.get_size_inches()[0] > WIDE)


def photograph(png: bytes, caption: str) -> Picture:
    """An image of pixels, such as a grid of what was forgotten."""
    data = base64.b64encode(png).decode()
    return Picture(f'<img alt="" src="data:image/png;base64,{data}">', caption, True)


def render(page: Page) -> str:
    """The page as HTML; what is not ours (names of plans, folders) is escaped."""
    from jinja2 import Environment

    return Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8")).render(page=page)
