"""From rows to the tables of a setting: methods beside retrain, what differs from it, what differs from the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from evaluation import separation
from evaluation.accuracy import meaning_of
from evaluation.statistics import DIFFERENT, Number
from groups import LEVELS
from report import best, contrasts
from report.contrasts import NOTHING, RETRAIN, Contrast, Study
from report.names import Heading
from report.notes import explained, notes_of
from report.pairs import FilterConfig
from report.rows import FLOOR, GAP_MEANS, MEAN_GAP, Row
from report.table import Cell, Line, Part, Table
from utils import BadInput, did_you_mean

# nine columns with the method and n
SCREEN = {"tow": ("ToW", MEAN_GAP, "forget", "retain", "test", "speed_up", "images_read"),
          "tow_mia": ("ToW-MIA", "MIA", "AUC_forget", "KS_forget", "test", "speed_up", "images_read")}
SECONDS = ("speed_up", "images_read", "seconds", "seconds_total")
EVERY = {"tow": ("ToW", MEAN_GAP, GAP_MEANS, "forget", *(f"acc_{name}" for name in LEVELS), "retain", "val", "test", "ToW_val",
                 "gap_val", "disagreement_forget", "disagreement_test", *SECONDS),
         "tow_mia": ("ToW-MIA", "MIA", *(f"MIA_{name}" for name in LEVELS), "AUC_forget", "AUC_difference", *separation.LEVELS,
                     "KS_forget", "MIA_correctness", "MIA_entropy", "MIA_m_entropy", "MIA_m_entropy_published", "MIA_prob",
                     "privacy", "AUC_confidence", "retain", "test", *SECONDS)}
UNITS = {"speed_up": "speed-up, ×", "images_read": "images read, %", "seconds": "seconds", "seconds_total": "seconds, all",
         MEAN_GAP: f"{MEAN_GAP}, points", GAP_MEANS: f"{GAP_MEANS}, points",
         **{name: f"{name}, points" for name in ("AUC_difference", "gap_val")}}
OF_RETRAIN = ("ToW", "ToW-MIA", "ToW_val", MEAN_GAP, GAP_MEANS)  # measures whose reference is retrain
DIGITS = {"speed_up": 1, "images_read": 1}


def digits_of(name: str) -> int:
    """Decimals in a table; ToW and ToW-MIA lie between 0 and 1."""
    return 3 if name.startswith("ToW") else DIGITS.get(name, 2)


def head_of(name: str) -> str:
    """A measure with its unit."""
    return UNITS.get(name, name if name.startswith("ToW") else f"{name}, %")


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


def short(number: Number | None, name: str) -> str:
    """``mean ± the longer half of the interval``, that half to two digits."""
    if number is None or number.ends is None:
        return cell(number, digits_of(name))
    half = max(number.mean - number.ends[0], number.ends[1] - number.mean)
    places = digits_of(name)
    if half < 0.5 * 10**-places:
        return f"{number.mean:.{places}f}" + ("" if name == "images_read" else " ±0")
    return f"{number.mean:.{places}f} ±{half:.{min(places, max(0, math.ceil(1 - math.log10(half))))}f}"


def columns_of(cfg: FilterConfig, study: Study) -> tuple[str, ...]:
    """The measures of ``--columns``: those that fit a screen, all, or the named ones."""
    asked = cfg.columns
    if asked is None:
        return SCREEN[study.name]
    if asked == ("all",):
        return EVERY[study.name]
    known = list(dict.fromkeys(name for names in EVERY.values() for name in names))
    for name in asked:
        if name not in known:
            raise BadInput(f"--columns {name}: no such measure{did_you_mean(name, known)}; all, or some of {', '.join(known)}")
    return asked


def costs_scores(part: Iterable[Row]) -> bool:
    """Whether a method there needs scores, so that the seconds with and without them differ."""
    return any(row.numbers["seconds_scores"][0] > 0 for row in part if "seconds_scores" in row.numbers)


def _words(row: Row, name: str) -> str:
    number, floor = row.numbers.get(name), row.method == FLOOR
    text = cell(number, digits_of(name), floor) if floor or name.startswith("ToW") else short(number, name)
    return f"({text})" if row.collapsed and name in OF_RETRAIN and number is not None else text


def main_table(part: list[Row], cfg: FilterConfig, study: Study) -> Table:
    """The rows of one setting in their order, retrain, raw and the floor first."""
    wanted = columns_of(cfg, study)
    present = [name for name in wanted if any(name in row.numbers or row.missing(name) for row in part)]
    present = [name for name in present if name != "seconds_total" or costs_scores(part)]
    lines = []
    for row in part:
        n = max(n for _, _, n in row.numbers.values())
        told = f"{n} pair{'s'[: n - 1]}" if row.method == FLOOR else f"{n}{'*' if row.others_seeds(part) else ''}"
        numbers = [(row.numbers.get(name), _words(row, name)) for name in present]
        cells = [Cell(row.told), Cell(told, n), *(Cell(text, number.mean if number else None) for number, text in numbers)]
        lines.append(Line(tuple(cells), row.id, is_anchor(row)))
    about = {head_of(name): text for name in present if (text := meaning_of(name))}
    return Table(_title(part, present), ("method", "n", *map(head_of, present)), tuple(lines),
                 (*best.said(part, cfg.best), *explained(part), *notes_of(part, tuple(present))), about)


def is_anchor(row: Row) -> bool:
    return row.is_reference or row.method == FLOOR or row.is_raw


def _title(part: list[Row], present: list[str]) -> str:
    """What the signs in the cells mean."""
    if not any(row.numbers["ToW"].n > 1 for row in part if row.method != FLOOR):
        return "one seed: no intervals"
    ends = [name for name in present if name.startswith("ToW")]
    told = [f"[ ] the 95 % t-interval of {' and '.join(ends)}"] if ends else []
    told += ["± the longer half of that of the others" if ends else "± the longer half of the 95 % t-interval"]
    if any(row.method == FLOOR and row.numbers["ToW"].ends for row in part):
        told.append("( .. ) least to most of the pairs")
    return f"mean over n {_units(part)}; {'; '.join(told)}"


def _units(part: list[Row]) -> str:
    return "requests" if len({pair.setting.key for row in part[:1] for pair in row.pairs}) > 1 else "training seeds"


# --------------------------------------------------------------------------------------------------------------- comparisons


def comparisons(part: list[Row], cfg: FilterConfig, study: Study) -> list[Table]:
    """Method - retrain, and method - best where one may be called so; none of one seed."""
    named = {row.method: row for row in contrasts.methods_of(part)}
    found = contrasts.of_setting(part, study, cfg)
    if not any(contrast.found.n > 1 for contrast in found):
        return []
    over, tests = f"1 - {study.headline}", {(c.method, c.measure, c.against): c for c in found}
    columns = [*((name, RETRAIN) for name in study.shown), (over, NOTHING)]
    columns = [column for column in columns if any((method, *column) in tests for method in named)]
    heads = [f"{name} over the floor" if against == NOTHING else head_of(name) for name, against in columns]
    lines = [Line((Cell(row.told), *(_compared(tests.get((method, *column))) for column in columns)), row.id)
             for method, row in named.items()]
    tables = [Table("", ("method - retrain", *heads), tuple(lines),
                    tuple(_legend([c for c in found if (c.measure, c.against) in columns], cfg)))]
    against = [c for c in found if c.measure == study.headline and c.against not in (RETRAIN, NOTHING)]
    if against:
        head = (f"method - best ({named[against[0].against].told})", "n", study.headline, "95 %", "p, Holm", "verdict")
        warning = (f"The best of {len(named)} methods by these same seeds: of equal ones one always looks best; confirm it on "
                   "fresh seeds.")
        tables.append(Table("", head, tuple(_beside_best(c, named[c.method]) for c in against), (warning,)))
    return tables


def _compared(contrast: Contrast | None) -> Cell:
    return Cell(contrasts.words(contrast), contrast.found.mean if contrast else None)


def _beside_best(c: Contrast, row: Row) -> Line:
    low, high = c.found.ends or (None, None)
    ends = "-" if low is None else f"[{low:+.3f}, {high:+.3f}]"
    verdict = c.verdict + (f" ({c.needed})" if c.needed else "")
    return Line((Cell(row.told), Cell(str(c.found.n), c.found.n), Cell(f"{c.found.mean:+.3f}", c.found.mean), Cell(ends, low),
                 Cell("-" if c.p_holm is None else f"{c.p_holm:.3f}", c.p_holm), Cell(verdict)), row.id)


def _legend(found: list[Contrast], cfg: FilterConfig) -> list[str]:
    """What the verdicts rest on."""
    number = len({c.method for c in found})
    told = (f"Paired t-tests at 5 %, Holm over {number} method{'s'[: number - 1]}; equivalent: within delta ({cfg.delta:g} "
            f"point{'s' if cfg.delta != 1 else ''}, ToW {cfg.delta_tow:g}) by TOST; in brackets the seeds that would decide.")
    blocked = {c.measure: c.floor for c in found if c.floor is not None and c.floor > c.delta}
    apart = ", ".join(f"{name} {floor:.2f}" for name, floor in blocked.items())
    return [told, f"Two retrains differ by more than delta ({apart}): there equivalence cannot be shown."][: 1 + bool(blocked)]


# --------------------------------------------------------------------------------------------------------------------- whole


def part_of(part: list[Row], heading: Heading, cfg: FilterConfig, study: Study) -> Part:
    """All that tables say of one setting."""
    tables = comparisons(part, cfg, study)
    return Part(heading, (main_table(part, cfg, study), *tables), tuple(verdicts(part, cfg, study)), part[0].place.tag)


def verdicts(part: list[Row], cfg: FilterConfig, study: Study) -> list[str]:
    """What the tables of a setting say, in a sentence: the best, what is told from it and what is not; or why nobody is."""
    if reason := contrasts.nobody_best(part, study, cfg):
        return [f"{reason[:1].upper()}{reason[1:]}. This forget set does not tell the methods apart; none is the best."]
    if (every := contrasts.of_setting(part, study, cfg)) and max(contrast.found.n for contrast in every) == 1:
        return ["One seed: differences cannot be judged; runs of other seeds are needed."]
    first = contrasts.best_of(part, study.headline)
    found = contrasts.with_best(part, study.headline, cfg, first)
    if first is None or not found:
        return []
    names = {row.method: row.told for row in contrasts.methods_of(part)}
    groups: dict[bool, list[str]] = {True: [], False: []}
    for contrast in found:
        groups[contrast.verdict.startswith(DIFFERENT)].append(names[contrast.method])
    told = [f"{words}: {', '.join(there)}" for words, there in (("told from it by the paired test", groups[True]),
                                                                ("not told from it", groups[False])) if there]
    number = cell(first.numbers[study.headline], 3)
    return [f"Nearest to retrain by {study.headline}: {first.told}, {number}; {'; '.join(told)}."]


def csv_of(table: list[Row], reasons: Mapping[str, str]) -> list[list[Any]]:
    """A line a row, full precision: <metric>, its ends <metric>_low and <metric>_high (of the floor: least and most of the
    pairs; empty with one seed), and <metric>_images, the standard error of one model's number from the images alone.

    Args:
        reasons: setting -> why no method there is called the best, "" where one may be.
    """
    names = list(dict.fromkeys(name for row in table for name in row.numbers))
    imaged = [name for name in names if any(name in row.images for row in table)]
    heads = [x for name in names for x in (name, f"{name}_low", f"{name}_high")] + [f"{name}_images" for name in imaged]
    lines: list[list[Any]] = []
    lines.append(["setting", "method", "picked", "n", "seeds", "collapsed", *heads, "nobody_best", "runs"])
    for row in table:
        numbers = [row.numbers.get(name, Number(None, None, 0)) for name in names]
        values = [x for mean, ends, _ in numbers for x in (mean, *(ends or (None, None)))]
        lines.append([row.setting, row.method, row.picked, max(n for *_, n in row.numbers.values()),
                      " ".join(map(str, row.seeds)), row.collapsed, *values, *(row.images.get(name) for name in imaged),
                      reasons[row.setting], " ".join(str(pair.run.folder) for pair in row.pairs)])
    return lines
