"""A stage in one process, or in its part of those that torchrun started."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from stages import STAGES
from utils import BadInput, Lost, Ranks, RuntimeConfig

TOGETHER = ("train",)  # stages that several processes compute together


def work(stage: str, ranks: Ranks, parse: Callable[[], SimpleNamespace], main: Callable[[SimpleNamespace], None],
         parser: Any) -> None:
    """``main`` of what ``parse`` finds; of several processes one speaks, and where one fails all end (exit code 1)."""
    check_stage(stage, ranks)
    ranks.take_gpu()
    with ranks.quiet():
        args = parse()
        args.ranks = ranks
        if ranks.size == 1:
            main(args)
            return
        check_settings(args.rt)
        try:
            with ranks.joined(args.rt.device):
                # each may have measured otherwise
                values, chosen = ranks.shared((dataclasses.asdict(args.rt), dict(args.rt.chosen)))
                args.rt = args.settings["rt"] = args.rt.measured(chosen, **values)
                main(args)
        except Lost as error:
            parser.exit(1, f"{parser.prog}: {error}; the same command goes on where it was saved last\n")
        except Exception as error:
            if isinstance(error, BadInput) or ranks.speaks():
                raise
            parser.exit(1)


def check_stage(stage: str, ranks: Ranks) -> None:
    """Refuse several processes where each would do the whole work."""
    if ranks.size > 1 and stage not in TOGETHER:
        names = ", ".join(STAGES[name][0] for name in TOGETHER)
        raise BadInput(f"torchrun started {ranks.size} processes, and this stage computes in one; start it by python (several "
                       f"compute together in {names} alone)")


def check_settings(cfg: RuntimeConfig) -> None:
    """Refuse, of several processes, what they cannot do together."""
    if cfg.compile != "off":
        raise BadInput("--compile is of one process, since batch norm of several waits for the others inside the model; leave "
                       "the flag away")
