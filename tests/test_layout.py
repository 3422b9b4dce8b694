"""Charts hold for any label: nothing outside the canvas, over other text or outside its scale, for 2 and 40 names of 5 and 120
letters, with and without intervals; and the checker itself sees each fault."""

from __future__ import annotations

import numpy as np
import pytest
from layout import faults
from matplotlib.figure import Figure

from evaluation.style import BLUE, GREEN, HUES, MARKERS, ORANGE, RED, VENUES, wrapped
from report.dots import Dots, Panel, draw_dots
from report.multiples import Cell, Line, Multiples, draw_multiples
from report.scatter import Point, Scatter, draw_scatter, front
from report.sheet import Axis, Dot, Mark

TITLE = "Tug-of-War: digits · ResNet-20 · random 130 of 1,294"
SIZES = [(2, 5, 1), (2, 120, 10), (9, 120, 10)]  # names, letters of each, seeds


def names(count: int, letters: int) -> list[str]:
    return [f"{number:02d} plan low:raw mid:RL(unlearn_lr=0.01,unlearn_epochs=3) high:RL(unlearn_lr=0.03,unlearn_epochs=3) "
            "alpha=0.0001, msteps=4 and more"[: letters - 3] for number in range(count)]


def dot(random: np.random.Generator, seeds: int) -> Dot:
    """A share; over several seeds with an interval, which may go far beyond the scale of the means."""
    mean = random.uniform(0.4, 1)
    half = 0.3 * random.random() ** 4
    return Dot(mean, *((max(0, mean - half), min(1, mean + half)) if seeds > 1 else ()), hollow=random.random() < 0.1)


def dots(count: int, letters: int, seeds: int, series: int = 1, panels: int = 1, venue: str = "plain") -> Figure:
    random, rows = np.random.default_rng(0), names(count, letters)
    kinds = ["forget", "retain", "test"][:series]
    marks = (Mark("retrain against retrain", 0.97, 0.95, 0.99), Mark("raw", 0.6, colour=RED))
    axis = Axis("ToW, 1 = like retrain", (0, 1))
    shown = [Panel(axis, {kind: {row: dot(random, seeds) for row in rows} for kind in kinds}, marks) for _ in range(panels)]
    looks = dict(zip(kinds if series > 1 else rows, zip(HUES * 5, MARKERS * 5, strict=True), strict=False))
    return draw_dots(Dots(TITLE, tuple(rows), tuple(shown), looks, f"n = {seeds}"), VENUES[venue])


def multiples(count: int, letters: int, seeds: int, venue: str = "plain") -> Figure:
    random, cells = np.random.default_rng(0), []
    for name in names(count, letters):
        found = [dot(random, seeds) for _ in range(4)]
        ends = {"low": [d.low for d in found], "high": [d.high for d in found]} if seeds > 1 else {}
        own = Line("", range(4), [d.mean for d in found], BLUE, "o", hollow=[d.hollow for d in found], **ends)
        cells.append(Cell(name, (Line("retrain", range(4), [1.0] * 4, "black", "o", "--"), own)))
    axes = Axis("weights gone"), Axis("ToW-MIA, 1 = like retrain", (0, 1))
    chart = Multiples(TITLE, tuple(cells), *axes, words=("dense", "80 %", "95 %", "99 %"))
    return draw_multiples(chart, VENUES[venue])


def margins(count: int, letters: int, seeds: int) -> Figure:
    xs = np.linspace(-10, 10, 30)
    lines = tuple(Line(label, xs, 1 / (1 + np.exp(shift - xs)), colour, dashes=dashes) for label, shift, colour, dashes in
                  (("forget", 1, ORANGE, "-"), ("test", 2, GREEN, "-"), ("forget, retrain", 3, "black", "--")))
    cells = tuple(Cell(name, lines * seeds) for name in names(min(count, 4), letters))
    return draw_multiples(Multiples(TITLE, cells, Axis("margin"), Axis("share below", (0, 1), whole=True)), VENUES["plain"])


def scatter(count: int, letters: int, seeds: int, venue: str = "plain") -> Figure:
    random, points = np.random.default_rng(0), []
    for number, name in enumerate(names(count, letters)):
        seconds = 10 ** random.uniform(-1, 2)
        spent = Dot(seconds, *((seconds / 3, seconds * 3) if seeds > 1 else ()))
        points.append(Point(name, spent, dot(random, seeds), (HUES[number % 8], MARKERS[number % 8])))
    axes = Axis("seconds, log scale", (0, np.inf), log=True), Axis("1 - ToW-MIA, 0 = like retrain", (0, 1))
    marks = (Mark("retrain against retrain", 0.03, 0.01, 0.05),)
    return draw_scatter(Scatter(TITLE, tuple(points), *axes, marks=marks, front=True), VENUES[venue])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("draw", [dots, multiples, margins, scatter])
def test_charts_hold_for_any_label(draw, size: tuple[int, int, int]) -> None:
    assert not faults(draw(*size))


def test_the_longest_names_hold_in_the_largest_figures() -> None:
    assert not faults(dots(40, 120, 10)) and not faults(scatter(40, 120, 10))


def test_many_cells_hold() -> None:
    assert not faults(multiples(40, 5, 1))


@pytest.mark.parametrize("size", [(2, 120, 10), (12, 30, 1)], ids=str)
def test_several_series_and_panels_hold_too(size: tuple[int, int, int]) -> None:
    assert not faults(dots(*size, series=3, panels=3))


@pytest.mark.parametrize("venue", VENUES)
def test_every_venue_holds_and_has_its_width(venue: str) -> None:
    for draw in (dots, multiples, scatter):
        figure = draw(4, 60, 3, venue=venue)
        assert not faults(figure)
        assert figure.get_size_inches()[0] in (VENUES[venue].width, VENUES[venue].wide)


def test_the_checker_sees_every_fault() -> None:
    figure = Figure((3, 2))
    axes = figure.add_axes((0.1, 0.1, 0.3, 0.3))
    axes.plot([0, 1], [0, 1])
    axes.set_xlim(0, 0.5)
    axes.text(0.2, 0.5, "words over words")
    axes.text(0.2, 0.5, "words over words too")
    figure.text(0.95, 0.5, "words that leave the canvas")
    told = "\n".join(faults(figure))
    assert all(fault in told for fault in ("outside the canvas", "over one another", "of the width", "of the height",
                                           "a line leaves the axes"))


def test_wrapped_text_keeps_its_letters() -> None:
    text = names(1, 120)[0]
    lines = wrapped(text, 1.0, VENUES["plain"])
    assert len(lines) > 4 and "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrapped(text, 1.0, VENUES["plain"], lines=2)[1].endswith("…")


def test_front_is_of_those_that_none_beats() -> None:
    assert front([(1, 5), (2, 3), (4, 1), (4, 4), (2, 3), (5, 1)]) == [0, 1, 4, 2]


def test_dots_lie_where_their_numbers_are() -> None:
    rows = ("NG", "FT")
    panel = Panel(Axis("ToW", (0, 1)), {"": {"NG": Dot(0.9, 0.8, 0.95), "FT": Dot(0.7)}}, (Mark("floor", 0.97, 0.95, 0.99),))
    axes = draw_dots(Dots("", rows, (panel,), dict.fromkeys(rows, (BLUE, "o"))), VENUES["plain"]).axes[0]
    drawn = [(line.get_xdata(), line.get_ydata()) for line in axes.lines if line.get_marker() == "o"]
    assert [(list(x), list(y)) for x, y in drawn] == [([0.9], [0.0]), ([0.7], [1.0])]
    assert [0.8, 0.95] in [list(line.get_xdata()) for line in axes.lines]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["NG", "FT"]


def test_intervals_that_go_on_outside_end_in_an_arrow() -> None:
    """In both directions of a scatter plot; one inside has none."""
    points = (Point("wide", Dot(1.0, 1e-4, 1e4), Dot(0.5, 0.0, 1.0), (BLUE, "o")),
              Point("near", Dot(2.0, 1.9, 2.1), Dot(0.5, 0.49, 0.51), (RED, "s")))
    axes = draw_scatter(Scatter("", points, Axis("s", (0, np.inf), log=True), Axis("d", (0, 1))), VENUES["plain"]).axes[0]
    drawn = [(line.get_color(), line.get_marker()) for line in axes.lines if len(line.get_xdata())]
    assert {marker for colour, marker in drawn if colour == BLUE} > set("<>^v")
    assert not {marker for colour, marker in drawn if colour == RED} & set("<>^v")


def test_no_front_goes_through_a_broken_model_and_the_diagonal_is_of_equal_scales() -> None:
    points = tuple(Point(name, Dot(x), Dot(y, hollow=broken), (BLUE, "o")) for name, x, y, broken in
                   (("a", 1.0, 0.5, False), ("b", 0.5, 0.1, True), ("c", 2.0, 0.3, False)))
    axes = draw_scatter(Scatter("", points, Axis("x"), Axis("y"), front=True, diagonal=True), VENUES["plain"]).axes[0]
    assert [[1.0, 2.0], [0.5, 0.3]] in [[list(line.get_xdata()), list(line.get_ydata())] for line in axes.lines]
    assert axes.get_xlim() == axes.get_ylim()


def test_panels_of_one_axis_have_one_scale() -> None:
    axis, rows = Axis("ToW", (0, 1)), ("a",)
    panels = (Panel(axis, {"": {"a": Dot(0.2)}}), Panel(axis, {"": {"a": Dot(0.9)}}), Panel(Axis("%"), {"": {"a": Dot(50.0)}}))
    one, two, other = draw_dots(Dots("", rows, panels, {"a": (BLUE, "o")}), VENUES["plain"]).axes
    assert one.get_xlim() == two.get_xlim() != other.get_xlim()
    assert one.get_xlim()[0] < 0.2 and one.get_xlim()[1] > 0.9
