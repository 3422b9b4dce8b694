"""The page of --html in a browser: it sorts, its links open what they lead to, and nothing is cut off at any width."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pretended
import pytest
import shell
from chromium import MISSING, Chromium, program
from test_layout import dots

from report.page import Group, Made, Page, Section, picture, render
from report.table import Cell, Line, Table

pytestmark = pytest.mark.skipif(program() is None, reason=MISSING)

WIDTHS = (400, 1400)
MAIN = "section table"  # the first on a page
# what leaves the window, is cut off inside its own box, or cannot be read without scrolling sideways
FAULTS = """(() => {
  const found = [], wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) found.push(`the page is ${wide} wide, the window ${innerWidth}`);
  for (const e of document.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!box.width || !box.height || e.closest("thead") && innerWidth < 640 || e.closest("defs, script, option")) continue;
    const name = `${e.tagName} ${e.className.baseVal ?? e.className} ${e.textContent.slice(0, 30).trim()}`;
    const svg = e.closest("svg");
    if (svg && svg !== e && e.tagName !== "text") continue;
    if (box.right > innerWidth + 1 || box.left < -1) found.push(`${name}: from ${box.left} to ${box.right}`);
    if (svg && e.tagName === "text") {
      const frame = svg.getBoundingClientRect();
      if (box.right > frame.right + 2 || box.left < frame.left - 2) found.push(`${name}: leaves its figure`);
    }
    if (!svg && style.overflowX !== "visible" && e.scrollWidth > e.clientWidth + 1) found.push(`${name}: hides some of itself`);
  }
  return found;
})()"""
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def real(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of pretended runs, by analysis.py itself."""
    root = pretended.four_methods(library, tmp_path_factory.mktemp("runs"))
    shell.call("analysis.py", "--html", root / "page.html", save_dir=root)
    return root / "page.html"


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty methods with names of 120 letters, without a space in the longest; ten columns; long commands."""
    long = "plan " + "low_raw_mid_FT_" * 8
    values = [9.5, 10.2, -3.0, None, 100.0, 0.012]
    lines = []
    for row in range(40):
        numbers = [values[(row + place) % 6] for place in range(9)]
        cells = [Cell(f"{row:02d} {long}"[:120]), *(Cell("-" if x is None else f"{x:.3f} [{x - 1:.3f}, {x + 1:.3f}]", x)
                                                    for x in numbers)]
        lines.append(Line(tuple(cells), f"r{row}", row == 0))
    head = ("method", *(f"measure {place}, points" for place in range(9)))
    table = Table("ToW: mean over n seeds", head, tuple(lines), ("A note. " * 30,), {head[1]: "what it is " * 9})
    singles = Table("", ("run", "seed"), (Line((Cell("digits-" + "x" * 100), Cell("3", 3)), "u1"),))
    groups = tuple(Group(f"r{row}", f"{row} {long}", singles) for row in range(40))
    made = (Made("u1", "runs/" + "x" * 200, "python main_rum.py --plan " + "low:raw" * 60, (("data key", "f" * 90),)),)
    figures = tuple(picture(dots(rows, 120, 3), "caption " * 20, f"f{rows}") for rows in (2, 12))
    section = Section("h" * 150, "small " * 40, ("verdict " * 30,), (table, table), figures, told="How",
                      facts=(("n" * 60, "v" * 60),))
    file = tmp_path_factory.mktemp("crowded") / "page.html"
    file.write_text(render(Page("t" * 150, (("machine", "m" * 100),), (section,), groups, made)))
    return file


def column(browser: Chromium, place: int) -> list[Any]:
    """The values (or texts) of a column of the first table, as they stand."""
    return browser.run(f"[...document.querySelector('{MAIN}').tBodies[0].rows].map(r => r.cells[{place}])"
                       ".map(c => 'value' in c.dataset ? Number(c.dataset.value) : c.textContent.trim())")


def direction(browser: Chromium, place: int) -> str | None:
    return browser.run(f"document.querySelector('{MAIN}').tHead.rows[0].cells[{place}].getAttribute('aria-sort')")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["real", "crowded"])
def test_nothing_is_cut_off_and_nothing_is_fetched(
    browser: Chromium, which: str, width: int, request: pytest.FixtureRequest
) -> None:
    page = request.getfixturevalue(which)
    browser.asked.clear()
    browser.open(page, width)
    assert browser.run("innerWidth") == width
    assert browser.run(FAULTS) == []
    browser.run(OPEN_ALL)
    assert browser.run(FAULTS) == []
    assert set(browser.asked) == {page.resolve().as_uri()} and not browser.complaints


@pytest.mark.parametrize("style", ["table { width: 3000px }", "h1 { position: absolute; left: 300px; width: 2000px }",
                                   "pre { white-space: pre; overflow: hidden }", ".figures { width: 9000px }",
                                   "td { overflow: hidden; max-width: 1rem; display: block; white-space: nowrap }"])
def test_a_planted_overflow_is_found(browser: Chromium, crowded: Path, style: str) -> None:
    browser.open(crowded, 1400)
    browser.run(OPEN_ALL)
    browser.run(f"document.head.insertAdjacentHTML('beforeend', '<style>{style}</style>')")
    assert browser.run(FAULTS)


def test_paper_cuts_nothing_off(browser: Chromium, real: Path) -> None:
    browser.open(real, 720)  # an A4 page between its margins
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.run(OPEN_ALL)
    assert browser.run(FAULTS) == []
    assert browser.run("getComputedStyle(document.querySelector('figure')).breakInside") == "avoid"
    browser.call("Emulation.setEmulatedMedia", media="")


def test_ink_is_dark_on_white_whatever_the_reader_prefers(browser: Chromium, real: Path) -> None:
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.open(real, 1400)
    found = browser.run("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert found == ["rgb(26, 26, 26)", "rgb(255, 255, 255)"]


def test_a_click_on_a_head_sorts_by_number_up_down_and_back(browser: Chromium, crowded: Path) -> None:
    browser.open(crowded, 1400)
    before = column(browser, 1)
    numbers = sorted(x for x in before if x != "-")
    missing = ["-"] * before.count("-")
    assert missing and numbers != sorted(numbers, key=str), "text would sort in the same way"
    head = f"{MAIN} th:nth-child(2) button"
    browser.click(head)
    assert (column(browser, 1), direction(browser, 1)) == ([*numbers, *missing], "ascending")
    browser.click(head)
    assert (column(browser, 1), direction(browser, 1)) == ([*numbers[::-1], *missing], "descending")
    browser.click(head)
    assert (column(browser, 1), direction(browser, 1)) == (before, None)
    browser.click(head)
    browser.click(f"{MAIN} th:nth-child(1) button")
    assert column(browser, 0) == sorted(column(browser, 0))
    assert (direction(browser, 0), direction(browser, 1)) == ("ascending", None)


def test_rows_stay_whole_when_they_are_sorted(browser: Chromium, real: Path) -> None:
    browser.open(real, 1400)
    rows = f"[...document.querySelector('{MAIN}').tBodies[0].rows].map(r => r.innerHTML)"
    before = browser.run(rows)
    browser.click(f"{MAIN} th:nth-child(3) button")
    after = browser.run(rows)
    assert after != before and sorted(after) == sorted(before)
    values = column(browser, 2)
    assert values == sorted(values)


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_the_keyboard_sorts_too(browser: Chromium, real: Path, key: str) -> None:
    browser.open(real, 1400)
    browser.run(f"document.querySelector('{MAIN} th:nth-child(2) button').focus()")
    browser.press("Tab")
    assert browser.run("document.activeElement.textContent") == "ToW"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press(key)
    assert direction(browser, 2) == "ascending" and column(browser, 2) == sorted(column(browser, 2))
    browser.press(key)
    assert direction(browser, 2) == "descending" and column(browser, 2) == sorted(column(browser, 2), reverse=True)


def test_a_narrow_window_shows_cards_with_heads_and_sorts_them(browser: Chromium, real: Path) -> None:
    browser.open(real, 400)
    told = browser.run(f"getComputedStyle(document.querySelector('{MAIN} td:nth-child(3)'), '::before').content")
    assert told == '"ToW"'
    browser.run("document.querySelector('.by select').value = '2'")
    browser.click(".by button")
    assert direction(browser, 2) == "ascending" and column(browser, 2) == sorted(column(browser, 2))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_rows_link_opens_its_runs_and_theirs_their_command(browser: Chromium, real: Path, width: int) -> None:
    browser.open(real, width)
    browser.click(f"{MAIN} tbody tr:last-child a")
    name = "document.querySelector('details:target[open]')?.querySelector('summary').textContent"
    in_sight = "(top => top >= -1 && top < innerHeight)(document.querySelector('details:target').getBoundingClientRect().top)"
    browser.until(f"{name}?.startsWith('NG — digits') && {in_sight}")
    browser.click("details:target tbody tr:first-child a")
    browser.until(f"{name}?.endsWith('/forget/NG-3') && {in_sight}")
    command = browser.run("document.querySelector('details:target pre').textContent")
    assert command.startswith("python main_forget.py --unlearn NG") and "--seed 3" in command
    browser.run("document.querySelector('details:target').open = false")
    browser.click(f"a[href='{browser.run('location.hash')}']")
    browser.until("document.querySelector('details:target').open")  # though the address is the same


def test_the_contents_lead_to_every_section(browser: Chromium, real: Path) -> None:
    browser.open(real, 1400)
    links = browser.run("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
    heads = browser.run("[...document.querySelectorAll('h2')].map(h => '#' + h.id)")
    assert links == heads and len(links) >= 3


def test_what_is_not_ours_stays_text(browser: Chromium, tmp_path: Path) -> None:
    evil = "</pre><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">\"'"
    table = Table(evil, (evil, "b"), (Line((Cell(evil), Cell(evil, 1.0))),), (evil,), {evil: evil, "b": evil})
    section = Section(evil, evil, (evil,), (table,), (picture(dots(2, 5, 1), evil, "f1"),), brief=evil, told=evil,
                      facts=((evil, evil),), absent=(evil,))
    made = (Made("u1", evil, evil, ((evil, evil),), ((evil, "u1", evil),)),)
    page = Page(evil, ((evil, evil),), (section,), (Group("r1", evil, table),), made)
    (tmp_path / "p.html").write_text(render(page))
    browser.asked.clear()
    browser.open(tmp_path / "p.html", 1400)
    assert browser.run("document.title") == evil and browser.run("document.querySelector('pre').textContent") == evil
    assert browser.run("document.images.length") == 0 and browser.run("document.scripts.length") == 1
    assert len(browser.asked) == 1 and not re.search("taken", json.dumps(browser.complaints))
