"""--merge: the runs.csv of several machines as one, and its means."""

from __future__ import annotations

import collections
import csv
import io
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evaluation import statistics
from report import folders, long, names
from report.labels import labels_of
from report.measures import domain_of
from report.names import Heading
from report.output import Written
from report.table import Cell, Part, Table, latex, markdown
from report.table import Line as Row
from report.tables import cell, digits_of, head_of
from utils import BadInput, open_regular, reading, shown

SHOWN = ("ToW", "ToW-MIA", "Avg. gap", "forget", "retain", "test", "MIA", "seconds")
SAME_RUN = ("digest", "seed", "split_key", "data_key", "tag", "group", "score", "request", "original")
SAME_SETTING = ("dataset", "arch", "data_key", "tag", "group", "score", "request")
WHOLE, NUMBERS = ("seed", "forget_size"), ("value",)
ANCHORS = ("retrain", "raw")
NUMBERED = re.compile(r"plan \d+$")
Line = dict[str, str]


def write(cfg: Any) -> Written:
    """Join the files of ``--merge``; runs.csv and the means over seeds, in --out or SAVE_DIR/analysis/merged.

    Of runs that stand in several files the lines of the one that finished last are taken.

    Raises:
        BadInput: a file that cannot be read, has other columns, or a line that is none of ours (with its number); filters.
    """
    if told := folders.name_of(cfg) or ("--html" if cfg.html else ""):
        raise BadInput(f"--merge joins whole files and takes no filter or other setting of an analysis; leave {told} away")
    parts = [read(Path(file)) for file in cfg.merge]
    lines, twice = joined(line for part in parts for line in part)
    out = io.StringIO()
    csv.writer(out).writerows([long.COLUMNS, *(line.values() for line in lines)])
    parts = parts_of(lines)
    text = markdown(parts)
    folder = Path(cfg.out) if cfg.out else Path(cfg.save_dir) / "analysis" / "merged"
    files = {f"{long.NAME}.csv": out.getvalue().encode(), "merged.md": text.encode(),
             "merged.tex": latex(parts, "merged").encode()}
    folders.keep(folder, "merged", files)
    told = [f"{twice} run{'s'[: twice - 1]} stood there more than once: what finished last was taken"] if twice else []
    more = "\n".join([*told, ""])
    return Written(f"{text}\n{more}{folder}: {', '.join(files)}", True)


def read(path: Path) -> list[Line]:
    """The lines of a runs.csv, as texts."""
    with reading(f"--merge {path}", "analysis.py writes runs.csv beside its tables"), open_regular(path) as file:
        try:
            text = file.read().decode()
        except UnicodeDecodeError:
            raise BadInput(f"--merge {path} is no text; analysis.py writes runs.csv beside its tables") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: list[Line] = []
    try:
        head = next(lines, [])
        if tuple(head) != long.COLUMNS:
            odd = [name for name in [*head, *long.COLUMNS] if (name in head) != (name in long.COLUMNS)]
            raise BadInput(f"--merge {path}, line 1: other columns than this version's runs.csv "
                           f"({shown(odd[0]) if odd else 'in another order'}); write it again by analysis.py of this version")
        for words in lines:
            found.append(_line(words, f"--merge {path}, line {lines.line_num}"))
    except csv.Error as error:
        raise BadInput(f"--merge {path}, line {lines.line_num}: {error}; write it again by analysis.py") from None
    return found


def _line(words: list[str], where: str) -> Line:
    if len(words) != len(long.COLUMNS):
        raise BadInput(f"{where}: {len(words)} values in place of {len(long.COLUMNS)}; write it again by analysis.py")
    line = dict(zip(long.COLUMNS, words, strict=True))
    numbers = (*NUMBERS, *(["retrain"] if line["retrain"] else []))
    for name in (*WHOLE, *numbers):
        try:
            right = math.isfinite(float(line[name])) if name in numbers else int(line[name]) >= 0
        except ValueError:
            right = False
        if not right:
            raise BadInput(f"{where}: {name} is {shown(line[name])}, not a number of a run; write it again by analysis.py")
    return line


def joined(lines: Iterable[Line]) -> tuple[list[Line], int]:
    """Every run's lines once, those of the latest; and how many runs stood there in several versions or files."""
    runs: dict[tuple[str, ...], dict[tuple[str, str], list[Line]]] = {}
    for line in lines:
        versions = runs.setdefault(tuple(line[name] for name in SAME_RUN), {})
        versions.setdefault((line["finished"], line["run"]), []).append(line)
    taken, twice = [], 0
    for versions in runs.values():
        latest = {line["metric"]: line for line in versions[max(versions)]}  # the same file twice has every line twice
        twice += len(versions) > 1 or len(latest) < len(versions[max(versions)])
        taken += latest.values()
    return taken, twice


def parts_of(lines: list[Line]) -> list[Part]:
    """A table a setting: means over seeds with their intervals; retrain first, then the nearest to it."""
    settings: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        settings.setdefault(tuple(line[name] for name in SAME_SETTING), []).append(line)
    called, found = _called(lines), []
    for there in settings.values():
        rows: dict[str, dict[str, dict[str, float]]] = {}
        for line in sorted(there, key=lambda line: line["finished"]):  # of two runs of one seed the later
            rows.setdefault(line["variant"], {}).setdefault(line["metric"], {})[line["seed"]] = float(line["value"])
        labels = labels_of((("", variant) for variant in rows), called)
        shown_there = [name for name in SHOWN if any(name in numbers for numbers in rows.values())]
        body = sorted((_line_of(labels["", variant], numbers, shown_there) for variant, numbers in rows.items()), key=_order)
        last = max(there, key=lambda line: line["finished"])
        heading = Heading(f"{names.told(last['network'])} · forget {last['forget']}", last["setting"])
        table = Table("mean [95 % t-interval] over n training seeds", ("method", "n", *map(head_of, shown_there)), tuple(body))
        found.append(Part(heading, (table,), tag=last["tag"]))
    return found


def _called(lines: Iterable[Line]) -> dict[str, str]:
    """Variant -> what its machines called it, by two names rather than one. A plan's number is each machine's own, and a
    label may be of two plans: these are called by their whole names."""
    found: dict[str, set[str]] = {}
    for line in lines:
        found.setdefault(line["variant"], set()).add(line["label"].partition(" (")[0])
    whole = {variant: json.loads(variant)[0] for variant in found}
    once = {variant: max((text for text in sorted(told) if not NUMBERED.search(text)), key=len, default=whole[variant])
            for variant, told in found.items()}
    plans = collections.Counter(told for told, _ in {(once[variant], name) for variant, name in whole.items()})
    return {variant: whole[variant] if plans[told] > 1 else told for variant, told in once.items()}


def _line_of(label: str, numbers: dict[str, dict[str, float]], measures: list[str]) -> Row:
    means = {name: statistics.interval(list(there.values()), domain_of(name)) for name, there in numbers.items()}
    cells = [Cell(cell(means.get(name), digits_of(name)), means[name].mean if name in means else None) for name in measures]
    n = len(numbers["retain"])
    return Row((Cell(label), Cell(str(n), n), *cells), anchor=label in ANCHORS)


def _order(row: Row) -> tuple[Any, ...]:
    """Retrain, raw, then by ToW, the first measure where there is one."""
    label, tow = row.cells[0].text, row.cells[2].value
    return ANCHORS.index(label) if label in ANCHORS else len(ANCHORS), -tow if tow is not None else math.inf, label
