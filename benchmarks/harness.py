"""Measure sides of a benchmark in turns: A B A B, medians of the rounds with their spread, and each side's peak memory.

A row is one registered function that yields cases; a case has sides by name, one of which the others are held against:

    @row("loader", "batches of images in random order", seconds=10)
    def loader(c: Context) -> Iterator[Case]:
        yield Case("loader, crop and flip", {"ours": lambda: ..., "plain": lambda: ...})

A side is made by a function without arguments, so that a process of its own, which measures memory, makes that side alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils import BadInput, Registry, Runtime

ROOT = Path(__file__).resolve().parent.parent
# runs a command and says what it cost; small, since what a parent holds counts in a child's peak on Linux
LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
with open(os.environ.pop("BENCHMARK_LOG"), "wb") as log:
    code = subprocess.call(sys.argv[1:], stdout=log, stderr=subprocess.STDOUT)
wall, t = time.perf_counter() - start, os.times()
import resource
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
print(json.dumps([code, wall, t.children_user + t.children_system, peak]))
"""


class Took(NamedTuple):
    """Wall and processor seconds, and what the work gave.

    A side may return one, to leave its preparation out. peak: MiB of the process, of a side that is one.
    """

    wall: float
    cpu: float
    answer: Any = None
    peak: float | None = None


@dataclasses.dataclass
class Context:
    """What a row measures with. quick: at toy size, to see that it runs; its figures mean nothing."""

    rt: Runtime
    threads: int
    quick: bool = False
    place: Path = Path(tempfile.gettempdir())  # for files, gone afterwards

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def arch(self, full: str) -> str:
        return "resnet8s" if self.quick else full


Side = Callable[[], Callable[[], Any]]  # makes what is measured


@dataclasses.dataclass
class Case:
    """One line or more of the table.

    sides: name -> what makes the work. base: the side that the others are held against.
    work, unit: what one call does, for the rate. check: from the answers of all sides, facts such as their difference.
    threads: of torch, where not the context's. in_process: whether memory is of a process that does one side once; else
    the side tells its peak itself.
    """

    title: str
    sides: Mapping[str, Side]
    base: str = "plain"
    work: float = 0
    unit: str = ""
    check: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    threads: int | None = None
    in_process: bool = True


class Skipped(Exception):
    """Why a row has nothing to measure on this machine."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A registered benchmark. seconds: about, of five rounds on two cores, for what is said beforehand."""

    name: str
    about: str
    seconds: float
    cases: Callable[[Context], Iterator[Case]]


ROWS: Registry[Row] = Registry("benchmark")


def row(name: str, about: str, seconds: float) -> Callable:
    """Add a benchmark: this is the one place that a new row needs."""

    def add(cases: Callable[[Context], Iterator[Case]]) -> Callable[[Context], Iterator[Case]]:
        ROWS.add(name, Row(name, about, seconds, cases))
        return cases

    return add


class Spread(NamedTuple):
    """The median of the rounds, the least and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclasses.dataclass(frozen=True)
class Line:
    """One side of a case against its base: seconds of a call, ratios base / ours of the same round, MiB at the peak."""

    name: str
    base: str
    ours: Spread
    theirs: Spread
    wall: Spread
    cpu: Spread
    memory: float | None
    base_memory: float | None
    facts: dict[str, Any]


def measure(row: Row, c: Context, rounds: int, memory: bool = True) -> Iterator[Line]:
    """Every line of a row, as soon as its case is done.

    Raises:
        Skipped: nothing to measure here.
    """
    for number, case in enumerate(row.cases(c)):
        yield from _lines(row, number, case, c, rounds, memory)


def _lines(row: Row, number: int, case: Case, c: Context, rounds: int, memory: bool) -> Iterator[Line]:
    with threads(case.threads or c.threads):
        calls = {name: make() for name, make in case.sides.items()}
        answers = {name: timed(call, c.rt).answer for name, call in calls.items() if case.in_process}  # the warm-up
        seen: dict[str, list[Took]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                took = timed(call, c.rt)
                answers[name] = took.answer
                seen[name].append(took)
    facts = case.check(answers) if case.check is not None else {}
    calls.clear()
    answers.clear()
    peaks = {name: _peak(row, number, name, case, c, took) if memory else None for name, took in seen.items()}
    base = seen[case.base]
    for name, took in seen.items():
        if name != case.base:
            wall, cpu = ([b[i] / o[i] if o[i] else float("inf") for o, b in zip(took, base, strict=True)] for i in (0, 1))
            ours = Spread.of([one.wall for one in took])
            rate = {case.unit: round(case.work / ours.median, 1)} if case.work else {}
            title = case.title if name == "ours" else f"{case.title}: {name}"
            yield Line(title, case.base, ours, Spread.of([one.wall for one in base]), Spread.of(wall), Spread.of(cpu),
                       peaks[name], peaks[case.base], rate | facts)


def timed(call: Callable[[], Any], rt: Runtime) -> Took:
    """One call between two readings of the clock, each after the device has done all that was asked for."""
    rt.drain()
    wall, cpu = time.perf_counter(), time.process_time()
    answer = call()
    rt.drain()
    took = Took(time.perf_counter() - wall, time.process_time() - cpu, answer)
    return answer if isinstance(answer, Took) else took


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------------------------- processes


def launch(words: Sequence[str], environment: Mapping[str, str] | None = None) -> Took:
    """A command from its start to its end, with the peak of its memory; what it wrote is the answer.

    Raises:
        BadInput: it failed.
    """
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "log"
        given = {**os.environ, **(environment or {}), "BENCHMARK_LOG": str(log)}
        said = subprocess.run([sys.executable, "-c", LAUNCHER, *words], cwd=ROOT, env=given, capture_output=True, text=True)
        text = log.read_text(errors="replace") if log.exists() else said.stderr
        if said.returncode:
            raise BadInput(f"the launcher of {' '.join(words[:4])} failed: {said.stderr.strip()[-300:]}")
        code, wall, cpu, peak = json.loads(said.stdout.strip().splitlines()[-1])
        if code:
            raise BadInput(f"{' '.join(words[:6])} ended with code {code}: {text.strip()[-300:]}")
    return Took(wall, cpu, text, peak)


def python(*words: Any) -> list[str]:
    return [sys.executable, *map(str, words)]


def _peak(row: Row, number: int, side: str, case: Case, c: Context, took: list[Took]) -> float | None:
    """MiB: of the process that a side is, or of one that makes and does this side once."""
    if not case.in_process:
        told = [one.peak for one in took if one.peak is not None]
        return statistics.median(told) if told else None
    words = python("-m", "benchmarks", row.name, "--case", number, "--side", side, "--threads", case.threads or c.threads,
                   "--device", c.rt.device.type, *(["--quick"] if c.quick else []))
    return float(launch(words).answer.strip().splitlines()[-1])


def once(row: Row, c: Context, number: int, side: str) -> float:
    """Do one side of one case in this process; its peak in MiB, of the device's memory where that is a GPU."""
    case = next(case for place, case in enumerate(row.cases(c)) if place == number)
    timed(case.sides[side](), c.rt)
    if c.rt.cuda:
        return torch.cuda.max_memory_allocated(c.rt.device) / 2**20
    with contextlib.suppress(OSError, StopIteration):
        # not getrusage: its maximum counts the parent's memory before exec
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return float(c.rt.facts().get("peak_memory_mib", float("nan")))
