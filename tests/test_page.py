"""The page to send: it asks the network for nothing, escapes what is not ours, and holds every number's run."""

from __future__ import annotations

import re

from test_layout import dots

from report.page import Made, Page, Runs, Section, picture, render
from report.table import Cell, Line, Table

NAME = 'plan <b>"low"</b> & more'


def page() -> str:
    rows = (Line((Cell("retrain"), Cell("1.000", 1.0)), "r1", anchor=True),
            Line((Cell(NAME), Cell("0.912 [0.8, 1.0]", 0.912)), "r2"))
    table = Table("ToW", ("method", "ToW"), rows, ("note: one seed",), {"ToW": "1 = like retrain"})
    figures = (picture(dots(3, 20, 3), "n = 3 & more"), picture(dots(4, 20, 3), "another"))
    runs = (Runs("r1", "retrain", (Made("runs/a", "python main_forget.py --unlearn retrain"),)),
            Runs("r2", NAME, (Made("runs/b", "python main_rum.py --plan 'low:raw'"),)))
    return render(Page("digits", "3 seeds", (Section("random", "small", ("no headroom",), (table,), figures),), runs))


def test_page_asks_the_network_for_nothing_and_escapes_names() -> None:
    text = page()
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', re.sub(r'xlink:href="#[^"]*"', "", text))
    assert "<b>" not in text and "plan &lt;b&gt;&#34;low&#34;&lt;/b&gt; &amp; more" in text
    assert text.count("<svg") == 2 and "<script" in text


def test_every_row_leads_to_its_runs_and_their_commands() -> None:
    text = page()
    for link in re.findall(r'<a href="#(r\d)">', text):
        assert f'<details id="{link}">' in text
    assert "python main_forget.py --unlearn retrain" in text and 'data-value="0.912"' in text
