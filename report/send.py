"""What stands on the page to send (``--html``): both studies of every setting, their figures, what was forgotten, all runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from evaluation.accuracy import EvaluationConfig
from evaluation.style import Look, drawn_in
from report import best, bygroup, bysparsity, contrasts, draw, figures, names, published, ranks, scores
from report.behind import SEPARATE, Command, group, runs
from report.contrasts import MIA, TOW, Study
from report.draw import Chart
from report.forgotten import Album
from report.names import Heading
from report.output import FIGURED, Extra, by_setting, headings_of, of_study, over
from report.page import Facts, Page, Picture, Section, picture, render
from report.pairs import AnalysisConfig, FilterConfig
from report.requests import over_requests
from report.rows import FLOOR, Row
from report.settings import machine_of, word
from report.table import Part, Table
from report.tables import columns_of
from utils import Config, flag_words, write_atomic

STUDIES = (TOW, MIA)
PAGE = Look(4.0, 4.0, 8.0)  # fits a telephone; a wide window has three beside one another
BUDGET = 8_000_000  # bytes of figures and pictures on a page
ELSEWHERE = "Some figures are left out, so that the page stays small enough to send; all are in the folder of the analysis."
MANY = f"Figures of single settings are drawn where there are at most {FIGURED} of them; --figures draws them all."
UNKNOWN = "The original is a file without a record: its training is not known."


def write(cfg: FilterConfig, every: list[Row], notes: Iterable[str], command_of: Command) -> None:
    """Write the page; equal runs give equal bytes.

    Args:
        every: all rows, before the best are picked; command_of: the words of the command that makes a run.

    Raises:
        CannotWrite: the file cannot be written.
    """
    text = render(page_of(cfg, every, notes, command_of))
    write_atomic(cfg.page, lambda file: file.write(text.encode()), "--html")


def page_of(cfg: FilterConfig, every: list[Row], notes: Iterable[str], command_of: Command) -> Page:
    """All that the page says."""
    table, merged = best.pick(every, cfg.best), best.pick(over_requests(every), cfg.best)
    beside = _across(cfg, table)
    sections = [*_settings(cfg, every, table), *_beside(cfg, beside)]
    if left := (*notes, *(f"note: {reason}" for extra in beside for reason in extra.notes)):
        sections.append(Section("What is in no table", absent=left))
    told = {setting: heading.text for setting, heading in headings_of(table).items()}
    told |= {setting: over(part).text for setting, part in by_setting(merged).items()}
    measures = dict.fromkeys(name for study in STUDIES for name in columns_of(cfg, study))
    groups = tuple(group(row, told[row.setting], measures) for row in [*table, *merged])
    pairs = [pair for row in table for pair in row.pairs]
    return Page(title_of(table), facts_of(cfg, table), tuple(sections), groups,
                runs(pairs, Path(cfg.save_dir), command_of))


def title_of(table: list[Row]) -> str:
    networks = list(dict.fromkeys(names.network(row.place) for row in table))
    more = f" and {len(networks) - 1} more" if len(networks) > 1 else ""
    return f"Unlearning on {networks[0]}{more}, compared with retraining"


def facts_of(cfg: FilterConfig, table: list[Row]) -> Facts:
    """What was compared, and where it was made."""
    every = {pair.run.folder: pair.run for row in table for pair in row.pairs}.values()
    methods = {row.method for row in table if row.method != FLOOR and not row.is_reference}

    def all_of(name: str, cut: int | None = None) -> str:
        found = {str(run.record[name])[:cut] for run in every if run.record.get(name)}
        return SEPARATE.join(sorted(found)) or "not recorded"

    attack = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(EvaluationConfig)}
    facts = {
        "data set and network": SEPARATE.join(dict.fromkeys(names.network(row.place) for row in table)),
        "settings": str(len(by_setting(table))),
        "methods": f"{len(methods)}, beside retrain",
        "runs": str(len(every)),
        "seeds": ", ".join(map(str, sorted({run.setting("seed") for run in every}))),
        "machine": SEPARATE.join(sorted({machine_of(run.record) for run in every} - {""})) or "not recorded",
        "torch": all_of("torch"), "commit": all_of("commit", 12),
        "newest run": max(run.record["finished"] for run in every),
        "attack": ", ".join(f"{name} {word(value)}" for name, value in attack.items()),
        "made by": " ".join(["python analysis.py", *_typed(cfg)]),
    }
    return tuple(facts.items())


def _typed(cfg: Config) -> list[str]:
    """The flags that differ from their defaults, but for those that say where to write."""
    found = []
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if value != field.default and field.name not in ("html", "out", "venue", "figures"):
            found += flag_words(field.name, value)
    return found


# ------------------------------------------------------------------------------------------------------------ sections


def _settings(cfg: FilterConfig, every: list[Row], table: list[Row]) -> list[Section]:
    """A section a setting: both studies."""
    studies = [(study, of_study(cfg, study, every)) for study in STUDIES]
    sections, album, left = [], Album(cfg.pictures), BUDGET
    settings = by_setting(table)
    for place, part in enumerate(settings.values()):
        tag, reference = part[0].place.tag, contrasts.reference_of(part).pairs[0]
        there = [(study, next(one for one in extras[0].parts if one.tag == tag)) for study, extras in studies]
        heading, (grids, said) = there[0][1].heading, album.of(reference)
        taken = sum(len(shot.png) for grid in grids for shot in grid.shots)
        few = cfg.figures or len(settings) <= FIGURED
        drawn, whole = _figures(part, heading, cfg, left // (len(settings) - place) - taken, place) if few else ((), True)
        left -= taken + sum(len(figure.svg) for figure in drawn)
        parent = reference.run.record["parent"]
        trained = {**(parent.get("training") or {}), **(parent.get("setup") or {})}
        absent = [said, "" if few else MANY, "" if whole else ELSEWHERE, "" if trained else UNKNOWN]
        sections.append(Section(
            heading.text, heading.small, tuple(f"{study.headline}: {line}" for study, own in there for line in own.verdicts),
            tuple(_titled(study, table) for study, own in there for table in own.tables), drawn, grids, _brief(part, cfg),
            "How the original was trained", tuple((name, word(value)) for name, value in trained.items()),
            tuple(filter(None, absent))))
    requests = [(study, extra) for study, extras in studies for extra in extras if extra.name == study.requests]
    return sections + [_section(part, study.headline) for study, extra in requests for part in extra.parts]


def _titled(study: Study, table: Table) -> Table:
    title = f"{study.headline}: {table.title}" if table.title else f"{study.headline}, {table.head[0]}"
    return dataclasses.replace(table, title=title)


def _section(part: Part, headline: str = "", drawn: tuple[Picture, ...] = ()) -> Section:
    heading = f"{headline}: {part.heading.text}" if headline else part.heading.text
    return Section(heading, part.heading.small, part.verdicts, part.tables, drawn)


def _across(cfg: FilterConfig, table: list[Row]) -> list[Extra]:
    """The tables across settings: by group, of plans, by sparsity, ranks, published gaps, of scores."""
    made = [bygroup.tow_tables, bygroup.mia_tables, bysparsity.tow_tables, bysparsity.mia_tables, ranks.tow_tables,
            ranks.mia_tables, published.tables]
    extras: list[Extra] = [extra for make in made for extra in make(cfg, table)]
    if isinstance(cfg, AnalysisConfig):
        extras += scores.tables(cfg, table)
    return extras


def _beside(cfg: FilterConfig, extras: list[Extra]) -> list[Section]:
    sections = []
    for number, extra in enumerate(extras):
        charts = extra.figures.values() if cfg.venue != draw.NONE else ()
        drawn = [_picture(chart, f"x{number}-{place}") for place, chart in enumerate(charts)]
        for place, part in enumerate(extra.parts):
            sections.append(_section(part, drawn=tuple(drawn) if place == len(extra.parts) - 1 else ()))
    return sections


def _figures(part: list[Row], heading: Heading, cfg: FilterConfig, room: int, place: int) -> tuple[tuple[Picture, ...], bool]:
    """The figures of both studies, as many as have room; and whether these are all."""
    found = []
    charts = {**figures.tow_charts(part, heading, cfg), **figures.mia_charts(part, heading, cfg)}
    for number, chart in enumerate(charts.values() if cfg.venue != draw.NONE else ()):
        made = _picture(chart, f"f{place}-{number}")
        room -= len(made.svg)
        if room < 0:
            return tuple(found), False
        found.append(made)
    return tuple(found), True


def _picture(chart: Chart, name: str) -> Picture:
    figure = draw.draw(chart, PAGE)
    with drawn_in(PAGE):
        return picture(figure, chart.caption, name)


def _brief(part: list[Row], cfg: FilterConfig) -> str:
    found = []
    for study in STUDIES:
        reason, first = contrasts.nobody_best(part, study, cfg).partition(":")[0], contrasts.best_of(part, study.headline)
        told = reason or (f"nearest to retrain: {first.told}" if first is not None else "")
        found += [f"{study.headline}: {told}"] if told else []
    return SEPARATE.join(found)
