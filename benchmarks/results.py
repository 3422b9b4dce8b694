"""RESULTS.md: a section for each machine, under it a dated table for each run, which people read and a script parses.

    ## `make bench`: AMD EPYC, 2 cores, cpu
    ### 2026-11-25 17:30, 2 threads, torch 2.15.0, commit 0123456789, load average 0.3, rounds 5
    | benchmark | ours, s | against | its s | ratio, wall | ratio, CPU | MiB | its MiB | notes |
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.harness import Context, Line, Spread
from utils import write_atomic
from utils.files import git_commit
from utils.machine import processor

PLACE = Path(__file__).resolve().parent / "RESULTS.md"
SECTION = "## `make bench`: "
HEADS = ("benchmark", "ours, s", "against", "its s", "ratio, wall", "ratio, CPU", "MiB", "its MiB", "notes")
NONE = "–"


@dataclasses.dataclass(frozen=True)
class Head:
    """What is said of a run: its machine (the section's title) and the rest (the table's)."""

    machine: str
    told: str

    @classmethod
    def of(cls, c: Context, rounds: int) -> Head:
        device = torch.cuda.get_device_name(c.rt.device) if c.rt.cuda else "cpu"
        load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
        return cls(f"{processor()}, {os.cpu_count()} cores, {device}",
                   f"{time.strftime('%Y-%m-%d %H:%M:%S')}, {c.threads} threads, torch {torch.__version__}, "
                   f"commit {git_commit()[:10]}, load average {load}, rounds {rounds}")

    @property
    def section(self) -> str:
        return SECTION + self.machine

    @property
    def title(self) -> str:
        return f"### {self.told}"


def cells(line: Line) -> list[str]:
    facts = "; ".join(f"{name}: {f'{value:.3g}' if isinstance(value, float) else value}" for name, value in line.facts.items())
    memory = [NONE if value is None else f"{value:.0f}" for value in (line.memory, line.base_memory)]
    return [line.name, _told(line.ours), line.base, _told(line.theirs), _told(line.wall), _told(line.cpu), *memory, facts]


def as_text(line: Line) -> str:
    """The same for the terminal."""
    name, *rest = cells(line)
    told = (f"{head}: {cell}" for head, cell in zip(HEADS[1:], rest, strict=True) if cell not in ("", NONE))
    return f"{name}  " + "  ".join(told)


def _told(spread: Spread) -> str:
    """The median with the least and the largest in brackets, to three digits."""
    median, low, high = (_digits(value) for value in spread)
    return f"{median} ({low} to {high})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def table(lines: Iterable[Line]) -> str:
    rows = [HEADS, ["---", "---:", "---", *["---:"] * 5, "---"], *map(cells, lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def put(text: str, section: str, title: str, body: str) -> str:
    """The file with this run's text in its machine's section, in place of the same run's earlier one."""
    block = f"{title}\n\n{body}"
    if title in text:
        start = text.index(title)
        rest = re.search(r"^#{2,3} ", text[start + 4 :], re.M)
        after = text[start + 4 + rest.start() :] if rest else ""
        return text[:start] + block + ("\n" + after if after else "")
    lines = text.splitlines(keepends=True)
    if section + "\n" not in lines:
        return f"{text.rstrip()}\n\n{section}\n\n{block}"
    at = lines.index(section + "\n") + 1
    end = next((place for place in range(at, len(lines)) if lines[place].startswith("## ")), len(lines))
    before, after = "".join(lines[:end]).rstrip(), "".join(lines[end:])
    return f"{before}\n\n{block}" + (f"\n{after}" if after else "")


def append(head: Head, lines: Iterable[Line], path: Path = PLACE) -> None:
    """Write what there is so far; whole or not at all, so that an interrupted run keeps what is done."""
    put_file(path, head.section, head.title, table(lines))


def put_file(path: Path, section: str, title: str, body: str) -> None:
    text = path.read_text(encoding="utf-8") if path.exists() else "# Measured\n"
    write_atomic(path, lambda file: file.write(put(text, section, title, body).encode()), "--out")


@dataclasses.dataclass(frozen=True)
class Read:
    """A line as the file has it."""

    machine: str
    told: str
    name: str
    base: str
    seconds: Spread
    base_seconds: Spread
    wall: Spread
    cpu: Spread
    memory: tuple[float | None, float | None]
    facts: dict[str, str]


def read(text: str) -> list[Read]:
    """Every line of every ``make bench`` table of a file, in its order."""
    found, machine, told = [], "", ""
    for line in text.splitlines():
        if line.startswith("## "):
            machine, told = line.removeprefix(SECTION) if line.startswith(SECTION) else "", ""
        elif line.startswith("### "):
            told = line.removeprefix("### ")
        elif machine and told and line.startswith("| ") and not line.startswith(("| benchmark ", "| ---")):
            values = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
            if len(values) == len(HEADS):
                found.append(_line(machine, told, values))
    return found


def _line(machine: str, told: str, values: list[str]) -> Read:
    name, ours, base, theirs, wall, cpu, memory, its, notes = values
    facts = dict(part.partition(": ")[::2] for part in notes.split("; ") if part)
    return Read(machine, told, name, base, _spread(ours), _spread(theirs), _spread(wall), _spread(cpu),
                tuple(None if value == NONE else float(value) for value in (memory, its)), facts)


def _spread(text: str) -> Spread:
    median, low, high = re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", text).groups()
    return Spread(float(median), float(low), float(high))
