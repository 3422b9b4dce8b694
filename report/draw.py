"""Charts become files: every kind by its own hand, in the look of a venue, as PNG and PDF."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from evaluation.style import VENUES, Look, drawn_in
from report.clouds import Clouds, draw_clouds
from report.dots import Dots, draw_dots
from report.multiples import Multiples, draw_multiples
from report.scatter import Scatter, draw_scatter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Chart = Clouds | Dots | Multiples | Scatter
NONE = "none"  # of --venue: no figures


def draw(chart: Chart, look: Look = VENUES["plain"]) -> Figure:
    """The chart as a figure."""
    if isinstance(chart, Clouds):
        return draw_clouds(chart, look)
    if isinstance(chart, Dots):
        return draw_dots(chart, look)
    return draw_multiples(chart, look) if isinstance(chart, Multiples) else draw_scatter(chart, look)


def files_of(chart: Chart, look: Look) -> dict[str, bytes]:
    """Ending -> content; the same chart gives the same bytes."""
    figure = draw(chart, look)
    with drawn_in(look):
        return {"png": _saved(figure, "png", look.dpi), "pdf": _saved(figure, "pdf", look.dpi)}


def _saved(figure: Figure, ending: str, dpi: int) -> bytes:
    out = io.BytesIO()
    when = {"CreationDate": None} if ending == "pdf" else {"Software": None}
    figure.savefig(out, format=ending, dpi=dpi, metadata=when)
    return out.getvalue()
