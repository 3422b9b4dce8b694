"""From pairs of runs to tables: means over seeds, what differs, CSV and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation import separation
from evaluation.statistics import Number
from groups import LEVELS
from report import contrasts
from report.contrasts import Study
from report.notes import note, notes_of
from report.pairs import FilterConfig, gather
from report.requests import over_requests, spread
from report.rows import FLOOR, GAP_MEANS, MEAN_GAP, Row, rows
from utils import BadInput, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOW_COLUMNS = ("ToW", MEAN_GAP, GAP_MEANS, "forget", *(f"acc_{name}" for name in LEVELS), "retain", "val", "test",
               "disagreement_forget", "disagreement_test", "seconds", "seconds_total")
MIA_COLUMNS = ("ToW-MIA", "MIA", *(f"MIA_{name}" for name in LEVELS), "AUC_forget", "AUC_difference", *separation.LEVELS,
               "KS_forget", "MIA_correctness", "MIA_entropy", "MIA_m_entropy", "MIA_m_entropy_published", "MIA_prob", "privacy",
               "AUC_confidence", "retain", "test", "seconds", "seconds_total")


@dataclasses.dataclass(frozen=True)
class Pivot:
    """One measure of several settings beside one another: ``cells[method][column]``, where there is one.

    collapsed: (method, column) of the cells in which runs are broken models. tuned: methods whose settings are not the same
    in all columns.
    """

    heading: str
    columns: tuple[str, ...]
    cells: dict[str, dict[str, Number]]
    collapsed: frozenset[tuple[str, str]] = frozenset()
    tuned: tuple[str, ...] = ()


class Extra(NamedTuple):
    """A table beside the main one, and its figures by file name."""

    name: str
    text: str
    csv: list[list[Any]]
    figures: dict[str, Figure]


def digits_of(name: str) -> int:
    """Decimals in a table; ToW and ToW-MIA lie between 0 and 1."""
    return 3 if name.startswith("ToW") else 2


AGAINST_RETRAIN = ("ToW", "ToW-MIA", MEAN_GAP, GAP_MEANS)  # measures whose reference is retrain


def costs_scores(part: Iterable[Row]) -> bool:
    """Whether a method there needs scores, so that the seconds with and without them differ."""
    return any(row.numbers["seconds_scores"][0] > 0 for row in part if "seconds_scores" in row.numbers)


def cell(number: Number | None, digits: int = 2, floor: bool = False) -> str:
    """``mean [low, high]``, the ends to two digits of their distance; of the floor ``mean (least..most)``; n=1 shows none."""
    if number is None:
        return "-"
    mean, ends, _ = number
    if ends is None:
        return f"{mean:.{digits}f}"
    width = ends[1] - ends[0]
    if width < 0.5 * 10**-digits:
        return f"{mean:.{digits}f} ±0"
    places = digits if floor else min(digits, max(0, math.ceil(1 - math.log10(width))))
    low, high = (f"{round(end, places) + 0.0:.{places}f}" for end in ends)  # no minus before a zero
    return f"{mean:.{digits}f} ({low}..{high})" if floor else f"{mean:.{digits}f} [{low}, {high}]"


def _marked(row: Row, name: str) -> str:
    text = cell(row.numbers.get(name), digits_of(name), row.method == FLOOR)
    return f"({text})" if row.collapsed and name in AGAINST_RETRAIN and name in row.numbers else text


def markdown(table: list[Row], columns: tuple[str, ...], below: Callable[[list[Row]], list[str]] = lambda part: []) -> str:
    """A table a setting with its notes, and the lines that ``below`` gives for its rows."""
    lines = []
    for setting in dict.fromkeys(row.setting for row in table):
        part = [row for row in table if row.setting == setting]
        present = [c for c in columns if any(c in row.numbers or row.missing(c) for row in part)]
        present = [c for c in present if c != "seconds_total" or costs_scores(part)]
        body = [["method", "n", *present]]
        for row in part:
            n = max(n for _, _, n in row.numbers.values())
            mark = "*" if row.others_seeds(part) else ""
            body.append([row.told, f"{n} pair{'s'[: n - 1]}" if row.method == FLOOR else f"{n}{mark}",
                         *(_marked(row, c) for c in present)])
        lines += [setting, "", *grid(body), "", *notes_of(part, columns), *below(part)]
    return "\n".join(lines)


def grid(body: list[list[str]]) -> list[str]:
    """The lines of a Markdown table, columns of equal width; the first line is the head."""
    widths = [max(len(line[i]) for line in body) for i in range(len(body[0]))]
    text = ["| " + " | ".join(word.ljust(w) for word, w in zip(line, widths, strict=True)) + " |" for line in body]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return text


def csv_of(table: list[Row]) -> list[list[Any]]:
    """A line a row, full precision: <metric>, its ends <metric>_low and <metric>_high (of the floor: least and most of the
    pairs; empty with one seed), and <metric>_images, the standard error of one model's number from the images alone."""
    names = list(dict.fromkeys(name for row in table for name in row.numbers))
    imaged = [name for name in names if any(name in row.images for row in table)]
    heads = [x for name in names for x in (name, f"{name}_low", f"{name}_high")] + [f"{name}_images" for name in imaged]
    lines = [["setting", "method", "n", "seeds", "collapsed", *heads, "runs"]]
    for row in table:
        numbers = [row.numbers.get(name, Number(None, None, 0)) for name in names]
        values = [x for mean, ends, _ in numbers for x in (mean, *(ends or (None, None)))]
        lines.append([row.setting, row.method, max(n for *_, n in row.numbers.values()), " ".join(map(str, row.seeds)),
                      row.collapsed, *values, *(row.images.get(name) for name in imaged),
                      " ".join(str(pair.run.folder) for pair in row.pairs)])
    return lines


def _keep(cfg: FilterConfig, table: Extra) -> list[str]:
    """Write a table and its figures; the names of the files."""
    out = io.StringIO()
    csv.writer(out).writerows(table.csv)
    write_atomic(cfg.folder / f"{table.name}.csv", lambda file: file.write(out.getvalue().encode()), "--out")
    if table.text:
        write_atomic(cfg.folder / f"{table.name}.md", lambda file: file.write(table.text.encode()), "--out")
    for name, drawing in table.figures.items():
        write_atomic(cfg.folder / f"{name}.png", lambda file, it=drawing: it.savefig(file, format="png", dpi=130), "--out")
    return [f"{table.name}.csv", *([f"{table.name}.md"] if table.text else []), *(f"{name}.png" for name in table.figures)]


def of_study(cfg: FilterConfig, study: Study, table: list[Row]) -> list[Extra]:
    """The main table with what differs below it, the comparisons, and means over requests where there are several."""
    columns = TOW_COLUMNS if study is contrasts.TOW else MIA_COLUMNS

    def below(part: list[Row]) -> list[str]:
        reason = contrasts.nobody_best(part, study, cfg)
        told = note(f"{reason}. This forget set does not tell the methods apart; none is the best.") if reason else []
        return told + contrasts.texts(part, study, cfg, grid)

    def compared(part: list[Row]) -> list[contrasts.Contrast]:
        settings = dict.fromkeys(row.setting for row in part)
        return [c for setting in settings for c in contrasts.of_setting([r for r in part if r.setting == setting], study, cfg)]

    merged = over_requests(table)
    found = [Extra(study.name, markdown(table, columns, below), csv_of(table), {}),
             Extra(study.pairs, "", contrasts.csv_of([*compared(table), *compared(merged)]), {})]
    if merged:
        found += [Extra(study.requests, markdown(merged, columns, below), csv_of(merged), {}),
                  Extra(f"{study.requests}_variance", "", spread(table, merged), {})]
    return found


def write(cfg: FilterConfig, study: Study, draw: Callable[[list[Row], str], dict[str, Figure]],
          more: Sequence[Callable[[Any, list[Row]], Iterable[Extra]]] = ()) -> str:
    """Tables and figures of the runs that pass the filters; returns the tables for the screen.

    Args:
        draw: the figures of one setting by name, told where it has no headroom; more: what gives the tables beside the main
            one, which may be none.
    """
    found = gather(cfg)
    table = rows(found.pairs)
    try:
        cfg.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write {cfg.folder}: {error.strerror}; choose another --out") from error
    settings = {row.setting: row.place.tag for row in table}
    figures: dict[str, Figure] = {}
    for setting, tag in settings.items():
        part = [row for row in table if row.setting == setting]
        reason = contrasts.nobody_best(part, study, cfg)
        drawn = draw(part, f"{reason.partition(':')[0]}: no method is the best here" if reason else "")
        figures |= {figure if len(settings) == 1 else f"{figure}-{tag}": it for figure, it in drawn.items()}
    main, *rest = of_study(cfg, study, table)
    extras = [main._replace(figures=figures), *rest, *(e for make in more for e in make(cfg, table))]
    written = [file for extra in extras for file in _keep(cfg, extra)]
    texts = [extra.text for extra in extras if extra.text]
    return "\n".join([*texts, *found.notes, f"{cfg.folder}: {', '.join(written)}"])
