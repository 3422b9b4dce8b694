"""One file to send: settings, verdicts, tables that sort, figures and, for every number, its runs and their commands.

The page holds all it shows and asks the network for nothing. Equal content gives equal bytes.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from report.table import Table

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).parent / "page.html"
WIDE = 5.0  # inches from which a figure takes the whole width of the page

Facts = tuple[tuple[str, str], ...]  # name and value, as they are read


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure as SVG, with its caption."""

    svg: str
    caption: str
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Shot:
    """One image of the data set: PNG in base64, what it shows, its index."""

    png: str
    label: str
    index: int


@dataclasses.dataclass(frozen=True)
class Shots:
    """Images side by side."""

    title: str
    shots: tuple[Shot, ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """What is said of one setting.

    brief: the verdicts in a few words, for the contents; told: what the facts are of; absent: sentences about what could not
    be shown.
    """

    heading: str
    small: str = ""
    verdicts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Picture, ...] = ()
    grids: tuple[Shots, ...] = ()
    brief: str = ""
    told: str = ""
    facts: Facts = ()
    absent: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Made:
    """A run: its folder, the command that makes it, or why there is none, what its record says, what it was made from.

    id: letters and digits; parents: what each is, its id on this page ("" where it has none) and its folder.
    """

    id: str
    folder: str
    command: str
    facts: Facts = ()
    parents: tuple[tuple[str, str, str], ...] = ()
    absent: str = ""


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs of one row of a table, and their own numbers; id: letters and digits."""

    id: str
    name: str
    table: Table


@dataclasses.dataclass(frozen=True)
class Page:
    """groups: what the rows of tables lead to; runs: what these lead to."""

    title: str
    facts: Facts
    sections: tuple[Section, ...]
    groups: tuple[Group, ...] = ()
    runs: tuple[Made, ...] = ()


def picture(figure: Figure, caption: str, name: str) -> Picture:
    """The figure as SVG with its text as text.

    Args:
        name: letters and digits that no other figure on the page has; the ids inside begin with it.
    """
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lethe"}):
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = out.getvalue()
    text = re.sub(r'(?<=[ "])(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg"):])
    label = html.escape(caption, quote=True)
    return Picture(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1), caption,
                   figure.get_size_inches()[0] > WIDE)


def shot(image: np.ndarray, label: str, index: int) -> Shot:
    """An image of the data set, uint8 [H, W, 3], pixel by pixel."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "png", optimize=True)
    return Shot(base64.b64encode(out.getvalue()).decode(), label, index)


def render(page: Page) -> str:
    """The page as HTML; what is not ours (names of plans, folders) is escaped."""
    from jinja2 import Environment

    text = TEMPLATE.read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True).from_string(text).render(page=page)
