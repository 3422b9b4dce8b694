"""runs.csv: a line for each run and measure, with retrain's number, so that anybody can do their own statistics.

All that is needed to find the run, to tell its setting and to join the tables of several machines stands in every line.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterator, Sequence
from typing import Any

from report.pairs import Pair
from report.rows import FLOOR, Row
from utils import digest_of

NAME = "runs"
COLUMNS = (
    "setting", "dataset", "arch", "network", "forget", "forget_size", "group", "score", "request", "against", "tag", "data_key",
    "split_key", "method", "label", "variant", "collapsed", "seed", "split_seed", "val_seed", "metric", "value", "retrain",
    "run", "digest", "status", "finished", "retrain_run", "original", "commit", "torch", "device", "processor", "threads")


def csv_of(table: list[Row]) -> Iterator[bytes]:
    """The head, then a piece of text for each run; numbers in full. What a record of an older version does not tell is empty.

    It is 33 kB a run, most of it the same in all lines of one, so that no more than one run's lines are ever held.
    """
    references = {row.setting: {pair.seed: numbers for pair, numbers in zip(row.pairs, row.each, strict=True)}
                  for row in table if row.is_reference}
    yield f"{_line(COLUMNS)}\r\n".encode()
    for row in table:
        if row.method == FLOOR:
            continue
        for pair, numbers in zip(row.pairs, row.each, strict=True):
            theirs, same = references.get(row.setting, {}).get(pair.seed, {}), facts(row, pair)
            before, after = _line(same[:COLUMNS.index("metric")]), _line(same[COLUMNS.index("metric"):])
            yield "".join(f"{before},{_quoted(name)},{value},{theirs.get(name, '')},{after}\r\n"
                          for name, value in numbers.items()).encode()


def _line(values: Sequence[Any]) -> str:
    """Values as the csv module writes them, without the end of the line."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(values)
    return out.getvalue()


@functools.cache
def _quoted(name: str) -> str:
    return _line([name])


def facts(row: Row, pair: Pair) -> list[Any]:
    """What is the same in all lines of a run, in the order of the columns."""
    place, run, record = pair.setting, pair.run, pair.run.record
    threads = record.get("threads")
    return [place.label, run.setting("dataset"), run.setting("arch"), place.model, place.what, place.size, place.group,
            place.score, place.request or "", place.reference, place.tag, record["data_key"], record["split_key"], pair.method,
            row.method, row.variant, int(bool(record.get("collapsed"))), pair.seed, run.setting("split_seed"),
            run.setting("val_seed"), run.folder, digest_of([record["stage"], run.folder.name]), record["status"],
            record["finished"], pair.retrain.folder, record["parent"]["sha256"], record.get("commit", ""),
            record.get("torch", ""), record.get("device", ""), record.get("processor", ""), "" if threads is None else threads]
