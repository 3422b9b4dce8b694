"""The page to send: it asks the network for nothing, escapes what is not ours, and is the same byte for byte."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from test_layout import dots

from report.page import Group, Made, Page, Section, picture, render
from report.table import Cell, Line, Table

NAME = 'plan <b>"low"</b> & more'


def page() -> str:
    rows = (Line((Cell("retrain"), Cell("1.000", 1.0)), "r1", anchor=True),
            Line((Cell(NAME), Cell("0.912 [0.8, 1.0]", 0.912, "r3")), "r2"))
    table = Table("ToW", ("method", "ToW"), rows, ("note: one seed",), {"ToW": "1 = like retrain"})
    figures = (picture(dots(3, 20, 3), "n = 3 & \"more\"", "f1"), picture(dots(4, 20, 3), "another", "f2"))
    single = Table("", ("run", "seed"), (Line((Cell("a"), Cell("1", 1)), "u1"),))
    groups = tuple(Group(id, name, single) for id, name in (("r1", "retrain"), ("r2", NAME), ("r3", "cell")))
    runs = (Made("u1", "runs/a", "python main_rum.py --plan 'low:raw'", (("seed", "1"),), (("original", "", "b"),)),)
    section = Section("random", "small", ("no headroom",), (table,), figures)
    return render(Page("digits", (("seeds", "3"),), (section,), groups, runs))


def test_page_asks_the_network_for_nothing_and_escapes_names() -> None:
    text = page()
    assert not [word for word in re.findall(r'(?:src|href|data|action)="([^"]*)"', text) if not word.startswith(("data:", "#"))]
    assert not re.findall(r"url\((?!#)|@import|\bfetch\(|XMLHttpRequest", text) and "default-src 'none'" in text
    assert "<b>" not in text and "plan &lt;b&gt;&#34;low&#34;&lt;/b&gt; &amp; more" in text
    assert text.count("<svg") == 2 and text.count("<script") == 1


def test_every_link_leads_to_something_and_no_id_stands_twice() -> None:
    text = page()
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert len(set(ids)) == len(ids)
    links = re.findall(r'href="#([^"]*)"', text) + re.findall(r"url\(#([^)]*)\)", text)
    assert not set(links) - set(ids) and {"r1", "r2", "r3", "u1", "runs"} - set(links) == {"runs"}


def test_figures_are_whole_svg_with_text_and_a_name_for_those_who_cannot_see() -> None:
    found = picture(dots(3, 20, 3), 'n = 3 & "more"', "f1")
    root = ElementTree.fromstring(found.svg)
    assert root.get("aria-label") == 'n = 3 & "more"' and root.get("viewBox")
    assert "".join(root.itertext()).count("retrain against retrain") == 1


@pytest.mark.parametrize("again", [0, 1])
def test_equal_content_gives_equal_bytes(again: int) -> None:
    np.random.default_rng().random(again)
    assert page() == page()
    assert not re.search(r"20\d\d-\d\d-\d\dT", page()), "the time at which it was written"
