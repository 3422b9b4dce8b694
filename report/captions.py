"""What stands below a figure: what is drawn, over which runs, kind of interval, reference, machine and version."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence

from report.rows import FLOOR, Row
from report.settings import machine_of

REFERENCE = "Reference: the retrain of the same original, forget set and seed."
SHOWN = 3  # values of a kind that are named


def caption(what: str, rows: Sequence[Row], small: str = "", *, intervals: str = "Lines: ", logs: bool = False) -> str:
    """A caption of sentences.

    Args:
        what: is drawn, and how to read it.
        rows: behind the figure.
        small: what else is to be said of the setting.
        intervals: the beginning of the sentence on them; "" where none are drawn.
        logs: whether seconds are among the measures.
    """
    told = [what, _counts(rows), _intervals(rows, intervals, logs) if intervals else "", _floor(rows), REFERENCE,
            _made(rows), f"{small[:1].upper()}{small[1:]}." if small else ""]
    return " ".join(text for text in told if text)


def several(rows: Iterable[Row]) -> bool:
    """Whether a row has more than one seed, and so an interval."""
    return any(len(row.pairs) > 1 for row in rows if row.method != FLOOR)


def most_seeds(rows: Iterable[Row]) -> int:
    return max((len(row.pairs) for row in rows if row.method != FLOOR), default=1)


def _counts(rows: Sequence[Row]) -> str:
    """n and the seeds that most rows have, then those of the others."""
    own = [row for row in rows if row.method != FLOOR]
    requests = max((len({pair.setting.key for pair in row.pairs}) for row in own), default=1)
    if len({row.setting for row in own}) == 1 and requests > 1:
        return f"n = {requests} requests, each a mean over its seeds."
    usual = collections.Counter(tuple(row.seeds) for row in own).most_common(1)[0][0]
    other = list(dict.fromkeys(f"{row.method} n = {len(row.seeds)} ({_listed(row.seeds)})" for row in own
                               if tuple(row.seeds) != usual))
    rest = f"; {', '.join(other[:SHOWN])}{f' and {len(other) - SHOWN} more' if len(other) > SHOWN else ''}" if other else ""
    return f"n = {len(usual)} seed{'s'[: len(usual) - 1]} ({_listed(usual)}){rest}."


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _intervals(rows: Sequence[Row], beginning: str, logs: bool) -> str:
    if not several(rows):
        return "One seed each: there are no intervals."
    scale = " (of seconds on the log scale)" if logs else ""
    return f"{beginning}95 % t-intervals over seeds, on the logit scale{scale}; an arrow: it goes on outside."


def _floor(rows: Sequence[Row]) -> str:
    floors = [row for row in rows if row.method == FLOOR]
    if not floors:
        return ""
    pairs = max(number.n for row in floors for number in row.numbers.values())
    if pairs == 1:
        return "retrain vs retrain: of the one pair of retrains."
    return f"retrain vs retrain: mean and range (least to most) of {pairs} pairs of retrains."


def _made(rows: Sequence[Row]) -> str:
    runs = [pair.run.record for row in rows for pair in row.pairs]
    machines = _named(name for run in runs if (name := machine_of(run)))
    commits = _named(str(run.get("commit", "unknown"))[:7] for run in runs)
    return f"Made on {machines}, commit {commits}." if machines else f"Made at commit {commits}."


def _named(values: Iterable[str]) -> str:
    found = list(dict.fromkeys(values))
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def notes_of(rows: Iterable[Row], note: str, hollow: Callable[[Row], object] = lambda row: row.collapsed) -> str:
    """The small print under a figure's title: that none is the best, and what is hollow."""
    told = [note, "hollow: collapsed" if any(hollow(row) for row in rows if row.method != FLOOR) else ""]
    return "; ".join(text for text in told if text)
