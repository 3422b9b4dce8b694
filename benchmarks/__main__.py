"""Measure the suite against the plain way that published code works, in turns in one run, with each side's peak memory.

    python -m benchmarks                           all of it; what it takes is said first
    python -m benchmarks loader attack --rounds 9
    python -m benchmarks --append                  the table goes into RESULTS.md too, as make bench does
    python -m benchmarks --quick                   at toy size, to see that everything runs; the figures mean nothing

Ctrl-C keeps what is done.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import evaluating, pool, processes, pruning, results, second_order, training  # noqa: F401 (they add their rows)
from benchmarks.harness import ROWS, Context, Line, Row, Skipped, measure, once
from utils import BadInput, Runtime, RuntimeConfig, say
from utils.signals import exit_code, terminable
from utils.words import as_line, put


def parsed(argv: list[str] | None) -> argparse.Namespace:
    known = "\n".join(f"  {name:13s}{ROWS[name].about}" for name in ROWS.names())
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=f"{__doc__}\n{known}", allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="times that each side is measured; 5 or more for the record")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=cores(), help="of torch; default: the cores that this process may use")
    parser.add_argument("--append", action="store_true", help="write the table into RESULTS.md, row after row")
    parser.add_argument("--out", type=Path, default=results.PLACE, help="another file than RESULTS.md")
    parser.add_argument("--quick", action="store_true", help="toy sizes; the figures mean nothing")
    parser.add_argument("--no_memory", action="store_true", help="leave out the processes that measure peak memory")
    parser.add_argument("--case", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)  # do it once and print this process's peak MiB
    return parser.parse_args(argv)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chosen(args: argparse.Namespace) -> list[Row]:
    for name, value in (("--rounds", args.rounds), ("--threads", args.threads)):
        if value < 1:
            raise BadInput(f"{name} must be at least 1; got {value}")
    if args.append and args.quick and args.out == results.PLACE:
        raise BadInput("--append --quick: figures at toy size mean nothing and do not go into RESULTS.md; leave one away")
    return [ROWS[name] for name in dict.fromkeys(args.what or ROWS.names())]


@contextlib.contextmanager
def context(args: argparse.Namespace) -> Context:
    """Raises BadInput where there is no such device."""
    rt = Runtime(RuntimeConfig(device=args.device, precision="fp32", progress=False))
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as place:
        yield Context(rt, args.threads, args.quick, Path(place))


def run(args: argparse.Namespace) -> list[Line]:
    """Measure row after row; the lines so far are in the file, where asked for, whatever ends the run."""
    rows, lines = chosen(args), []
    with context(args) as whole:
        head = results.Head.of(whole, args.rounds)
        minutes = sum(row.seconds for row in rows) * (args.rounds + 1) / 6 / 60
        if not args.quick:
            say(f"{len(rows)} benchmarks, about {minutes:.0f} min on two idle cores; Ctrl-C keeps what is done")
        say(f"{head.machine}; {head.told}")
        for row in rows:
            place = whole.place / row.name
            place.mkdir()
            c = dataclasses.replace(whole, place=place)
            try:
                for line in measure(row, c, args.rounds, not args.no_memory):
                    lines.append(line)
                    say(results.as_text(line))
                    if args.append:
                        results.append(head, lines, args.out)
            except Skipped as why:
                say(f"{row.name}: left out; {why}")
    return lines


def main(argv: list[str] | None = None) -> None:
    """Exit code 2 and one line for what the user can put right."""
    args = parsed(argv)
    try:
        with terminable():
            _main(args)
    except BadInput as error:
        put(f"{as_line(f'error: {error}')}\n", sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        say("stopped; what was measured before is kept" if args.append else "stopped")
        sys.exit(exit_code(stop))


def _main(args: argparse.Namespace) -> None:
    if args.side is None:
        run(args)
        return
    with context(args) as c:
        say(str(once(ROWS[args.what[0]], c, args.case, args.side)))


if __name__ == "__main__":
    main()
