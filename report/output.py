"""From pairs of runs to tables: means over seeds, what differs, CSV and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.statistics import Number
from report import best, contrasts
from report.contrasts import Study
from report.names import Heading, headings
from report.names import merged as merged_heading
from report.pairs import FilterConfig, gather
from report.requests import over_requests, spread
from report.rows import Row, in_order, rows
from report.table import Part, latex, markdown
from report.tables import csv_of, part_of
from utils import BadInput, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

@dataclasses.dataclass(frozen=True)
class Pivot:
    """One measure of several settings beside one another: ``cells[method][column]``, where there is one.

    collapsed: (method, column) of the cells in which runs are broken models. tuned: methods whose settings are not the same
    in all columns. told: the heading for people; heading: with the hashes, for the CSV.
    """

    heading: str
    columns: tuple[str, ...]
    cells: dict[str, dict[str, Number]]
    collapsed: frozenset[tuple[str, str]] = frozenset()
    tuned: tuple[str, ...] = ()
    told: str = ""

    @property
    def shown(self) -> Heading:
        return Heading(self.told or self.heading, self.heading if self.told else "")


class Extra(NamedTuple):
    """Tables under one file name, and figures by theirs."""

    name: str
    parts: tuple[Part, ...]
    csv: list[list[Any]]
    figures: dict[str, Figure]


def _keep(cfg: FilterConfig, table: Extra) -> list[str]:
    """Write a table and its figures; the names of the files."""
    out = io.StringIO()
    csv.writer(out).writerows(table.csv)
    write_atomic(cfg.folder / f"{table.name}.csv", lambda file: file.write(out.getvalue().encode()), "--out")
    for ending, text in _texts(table):
        write_atomic(cfg.folder / f"{table.name}.{ending}", lambda file, it=text: file.write(it.encode()), "--out")
    for name, drawing in table.figures.items():
        write_atomic(cfg.folder / f"{name}.png", lambda file, it=drawing: it.savefig(file, format="png", dpi=130), "--out")
    return [f"{table.name}.{ending}" for ending in ("csv", *dict(_texts(table)))] + [f"{name}.png" for name in table.figures]


def _texts(table: Extra) -> list[tuple[str, str]]:
    """The table for people, by the file's ending; none of one that is for other programs."""
    return [("md", markdown(table.parts)), ("tex", latex(table.parts))] if table.parts else []


def of_study(cfg: FilterConfig, study: Study, table: list[Row]) -> list[Extra]:
    """The main table with what differs below it, the comparisons, and means over requests where there are several."""
    merged = in_order(best.pick(over_requests(table), cfg.best), study.headline)
    every, table = table, in_order(best.pick(table, cfg.best), study.headline)
    told = headings_of(table)

    def compared(part: list[Row]) -> list[contrasts.Contrast]:
        return [c for there in by_setting(part).values() for c in contrasts.of_setting(there, study, cfg)]

    parts = tuple(part_of(there, told[setting], cfg, study) for setting, there in by_setting(table).items())
    found = [Extra(study.name, parts, csv_of(table), {}),
             Extra(study.pairs, (), contrasts.csv_of([*compared(table), *compared(merged)]), {})]
    if merged:
        parts = tuple(part_of(there, over(there), cfg, study) for there in by_setting(merged).values())
        found += [Extra(study.requests, parts, csv_of(merged), {}),
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


def write(cfg: FilterConfig, study: Study, draw: Callable[[list[Row], str], dict[str, Figure]],
          more: Sequence[Callable[[Any, list[Row]], Iterable[Extra]]] = ()) -> str:
    """Tables and figures of the runs that pass the filters; returns the tables for the screen.

    Args:
        draw: the figures of one setting by name, told where it has no headroom; more: what gives the tables beside the main
            one, which may be none.
    """
    found = gather(cfg)
    every = rows(found.pairs)
    table = best.pick(every, cfg.best)
    try:
        cfg.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write {cfg.folder}: {error.strerror}; choose another --out") from error
    settings = by_setting(table)
    figures: dict[str, Figure] = {}
    for part in settings.values():
        reason = contrasts.nobody_best(part, study, cfg)
        drawn = draw(part, f"{reason.partition(':')[0]}: no method is the best here" if reason else "")
        figures |= {figure if len(settings) == 1 else f"{figure}-{part[0].place.tag}": it for figure, it in drawn.items()}
    main, *rest = of_study(cfg, study, every)
    extras = [main._replace(figures=figures), *rest, *(e for make in more for e in make(cfg, table))]
    written = [file for extra in extras for file in _keep(cfg, extra)]
    texts = [markdown(extra.parts) for extra in extras if extra.parts]
    return "\n".join([*texts, *found.notes, f"{cfg.folder}: {', '.join(written)}"])
