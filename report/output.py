"""From pairs of runs to tables: means over seeds, what differs, CSV and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from evaluation.statistics import Number
from evaluation.style import VENUES
from report import best, contrasts, draw, folders, long
from report.contrasts import Study
from report.draw import Chart
from report.names import Heading, headings
from report.names import merged as merged_heading
from report.pairs import FilterConfig, gather
from report.requests import over_requests, spread
from report.rows import Row, in_order, rows
from report.table import Part, latex, markdown
from report.tables import csv_of, part_of
from utils import make_folder, say

CAPTIONS = "captions.md"
FIGURED = 12  # settings up to which each has figures of its own: nobody looks at more, and they take seconds each


@dataclasses.dataclass(frozen=True)
class Pivot:
    """One measure of several settings beside one another: ``cells[method][column]``, where there is one.

    collapsed: (method, column) of the cells in which runs are broken models. tuned: methods whose settings are not the same
    in all columns. told: the heading for people; heading: with the hashes, for the CSV. behind: the rows of the cells;
    runs: their ids.
    """

    heading: str
    columns: tuple[str, ...]
    cells: dict[str, dict[str, Number]]
    collapsed: frozenset[tuple[str, str]] = frozenset()
    tuned: tuple[str, ...] = ()
    told: str = ""
    behind: tuple[Row, ...] = ()
    runs: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def shown(self) -> Heading:
        return Heading(self.told or self.heading, self.heading if self.told else "")


class Written(NamedTuple):
    """The tables for the screen; whole: whether all that was asked for is in them."""

    text: str
    whole: bool


class Extra(NamedTuple):
    """Tables under one file name, and charts by theirs; no lines of a CSV, no file;
    what gives it in pieces, where it is long. notes: for the screen alone."""

    name: str
    parts: tuple[Part, ...]
    csv: list[list[Any]] | Callable[[], Iterable[bytes]]
    figures: dict[str, Chart]
    notes: tuple[str, ...] = ()


def files_of(table: Extra, venue: str) -> dict[str, folders.Content]:
    """A table and its figures as files."""
    found: dict[str, folders.Content] = {f"{table.name}.csv": table.csv if callable(table.csv) else _lines(table.csv)
                                         } if table.csv else {}
    found |= {f"{table.name}.{ending}": text.encode() for ending, text in _texts(table)}
    for name, chart in table.figures.items() if venue != draw.NONE else ():
        found |= {f"{name}.{ending}": content for ending, content in draw.files_of(chart, VENUES[venue]).items()}
    return found


def _lines(table: list[list[Any]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(table)
    return out.getvalue().encode()


def captions_of(extras: Iterable[Extra]) -> bytes:
    """Markdown: under the name of each figure what stands below it."""
    return "\n".join(f"## {name}\n\n{it.caption}\n" for extra in extras for name, it in extra.figures.items()).encode()


def _texts(table: Extra) -> list[tuple[str, str]]:
    """The table for people, by the file's ending; none of one that is for other programs."""
    return [("md", markdown(table.parts)), ("tex", latex(table.parts, table.name))] if table.parts else []


def of_study(cfg: FilterConfig, study: Study, table: list[Row]) -> list[Extra]:
    """The main table with what differs below it, the comparisons, and means over requests where there are several."""
    merged = in_order(best.pick(over_requests(table), cfg.best), study.headline)
    every, table = table, in_order(best.pick(table, cfg.best), study.headline)
    told = headings_of(table)

    def compared(part: list[Row]) -> list[contrasts.Contrast]:
        return [c for there in by_setting(part).values() for c in contrasts.of_setting(there, study, cfg)]

    def written(part: list[Row]) -> list[list[Any]]:
        return csv_of(part, {setting: contrasts.nobody_best(there, study, cfg) for setting, there in by_setting(part).items()})

    parts = tuple(part_of(there, told[setting], cfg, study) for setting, there in by_setting(table).items())
    found = [Extra(study.name, parts, written(table), {}),
             Extra(study.pairs, (), contrasts.csv_of([*compared(table), *compared(merged)]), {})]
    if merged:
        parts = tuple(part_of(there, over(there), cfg, study) for there in by_setting(merged).values())
        found += [Extra(study.requests, parts, written(merged), {}),
                  Extra(f"{study.requests}_variance", (), spread(every, merged), {})]
    return found


def by_setting(table: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in table:
        found.setdefault(row.setting, []).append(row)
    return found


def headings_of(table: list[Row]) -> dict[str, Heading]:
    """Of every setting."""
    return headings({setting: there[0].pairs for setting, there in by_setting(table).items()})


def over(part: list[Row]) -> Heading:
    """Of means over requests."""
    return merged_heading(part[0].pairs, len({pair.setting.key for pair in part[0].pairs}))


def write(cfg: FilterConfig, study: Study, charts_of: Callable[[list[Row], Heading, Any], dict[str, Chart]],
          more: Sequence[Callable[[Any, list[Row]], Iterable[Extra]]] = (),
          send: Callable[[Any, list[Row], list[str]], None] = lambda cfg, table, notes: None) -> Written:
    """Tables and figures of the runs that pass the filters, as files; none where no run has a retrain.

    Args:
        charts_of: the charts of one setting by name; more: what gives the tables beside the main one, which may be none;
        send: writes the page of ``--html`` from the rows and the notes below the tables.
    """
    page, found = cfg.page, gather(cfg)
    if not found.pairs:
        return Written("\n".join([*found.notes, "no run has its retrain, so nothing was compared or written"]), False)
    if page is not None:
        make_folder(page.parent, "--html")  # before the first file is written
    every = rows(found.pairs)
    table = best.pick(every, cfg.best)
    settings = by_setting(table)
    told, figures = headings_of(table), {}
    drawn = cfg.figures or len(settings) <= FIGURED
    for setting, part in settings.items() if drawn and cfg.venue != draw.NONE else ():
        each = charts_of(part, told[setting], cfg)
        figures |= {figure if len(settings) == 1 else f"{figure}-{part[0].place.tag}": it for figure, it in each.items()}
    main, *rest = of_study(cfg, study, every)
    runs = Extra(long.NAME, (), functools.partial(long.csv_of, every), {})
    extras = [main._replace(figures=figures), *rest, runs, *(e for make in more for e in make(cfg, table))]
    files = {name: content for extra in extras for name, content in files_of(extra, cfg.venue).items()}
    if cfg.venue != draw.NONE and any(extra.figures for extra in extras):
        files[f"{study.name}_{CAPTIONS}"] = captions_of(extras)  # those of ToW and of ToW-MIA stand in one folder
    folders.keep(cfg.folder, study.name, files)
    if page is not None:
        send(cfg, every, found.notes)
    texts = [markdown(extra.parts) for extra in extras if extra.parts]
    notes = [*found.notes, *(f"note: {reason}" for extra in extras for reason in extra.notes)]
    few = [] if drawn else [f"note: figures of single settings are drawn where there are at most {FIGURED}, and here are "
                            f"{len(settings)}; filter them, or ask for all by --figures"]
    sent = [f"{page}: all of it"] if page is not None else []
    text = "\n".join([*texts, *notes, *few, f"{cfg.folder}: {', '.join(files)}", *sent])
    return Written(text, cfg.partial or found.whole)


def end(written: Written) -> None:
    """Say what was written; the program ends with 1 where not all that was asked for is in it."""
    say(written.text)
    if not written.whole:
        sys.exit(1)
