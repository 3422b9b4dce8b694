"""One row of RECORDS.md: n seeds of a whole process, in turns with the record before, judged by the rules written there.

    python -m benchmarks.record cifar10-86 --seeds 1,2,3 --against "--arch resnet20s" -- --arch cifarnet --data FOLDER
    python -m benchmarks.record pool-80 --seeds 1,2,3 -- --arch cifarnet --models 100 --shard 1/50 --data FOLDER

After -- are the flags of the stage; --seed, --save_dir and --no_progress are added here.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.harness import launch, python
from utils import BadInput, find_runs, say
from utils.files import git_commit
from utils.words import as_line, put

LEVEL = 0.95  # of one-sided bounds
FEWEST = 3  # seeds


@dataclasses.dataclass(frozen=True)
class Target:
    """A stage, the mean test accuracy (%) that its runs have to reach, and what is counted: seconds, or seconds of a model."""

    stage: str
    accuracy: float
    told: str
    quality: Callable[[Path], float]
    cost: Callable[[Path, float], float]


def of_original(place: Path) -> float:
    """Test accuracy (%) of the one original below a folder."""
    (run,) = find_runs(place, ("train",))
    return run.record["metrics"]["test"]


def of_pool(place: Path) -> float:
    """Mean test accuracy (%) of a pool's models."""
    shares = []
    for path in _models(place):
        with np.load(path, allow_pickle=False) as file:
            shares.append(100 * np.unpackbits(file["correct_test"], count=len(file["margin_test"])).mean())
    return float(np.mean(shares))


def _models(place: Path) -> list[Path]:
    found = sorted(place.rglob("model-*.npz"))
    if not found:
        raise BadInput(f"no model of a pool was written below {place}")
    return found


TARGETS = {
    "cifar10-86": Target("main_train.py", 86.0, "seconds of a whole process: full CIFAR-10 (45,000 images) to 86 %",
                         of_original, lambda place, wall: wall),
    "cifar10-88": Target("main_train.py", 88.0, "the same to 88 %", of_original, lambda place, wall: wall),
    "cifar10-94": Target("main_train.py", 94.0, "the same to 94 %, on a GPU", of_original, lambda place, wall: wall),
    "pool-80": Target("main_memorization.py", 80.0, "seconds a model: a pool on 70 % of CIFAR-10, models of 80 % on average",
                      of_pool, lambda place, wall: wall / len(_models(place))),
}


class Seen(NamedTuple):
    """One run: seconds by the target's count, and its accuracy (%)."""

    seconds: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """accuracy: mean and its lower bound; seconds: mean; saved: mean of the differences to the record before, and its lower
    bound. valid: the bound reaches the target. faster: the differences' bound is above 0; None without a record before."""

    accuracy: tuple[float, float]
    seconds: float
    saved: tuple[float, float] | None
    valid: bool
    faster: bool | None


def bound(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the one-sided lower bound that Student's t gives it: mean - t s / sqrt(n)."""
    from scipy.special import stdtrit

    mean, n = statistics.fmean(values), len(values)
    return mean, mean - float(stdtrit(n - 1, LEVEL)) * statistics.stdev(values) / math.sqrt(n)


def judge(target: Target, ours: Sequence[Seen], before: Sequence[Seen]) -> Verdict:
    """By the rules of RECORDS.md; ``before`` is empty, or of the same seeds in the same order.

    Raises:
        BadInput: fewer than three seeds.
    """
    if len(ours) < FEWEST:
        raise BadInput(f"--seeds: a record needs at least {FEWEST}; got {len(ours)}")
    accuracy = bound([one.accuracy for one in ours])
    saved = bound([b.seconds - a.seconds for a, b in zip(ours, before, strict=True)]) if before else None
    return Verdict(accuracy, statistics.fmean(one.seconds for one in ours), saved, accuracy[1] >= target.accuracy,
                   None if saved is None else saved[1] > 0)


def run(target: Target, words: Sequence[str], seed: int) -> Seen:
    with tempfile.TemporaryDirectory(prefix="record-") as place:
        took = launch(python(target.stage, *words, "--seed", seed, "--save_dir", place, "--no_progress"))
        return Seen(target.cost(Path(place), took.wall), target.quality(Path(place)))


def row(target: Target, words: Sequence[str], ours: Sequence[Seen], found: Verdict) -> str:
    """The row of RECORDS.md."""
    accuracies, seconds = ", ".join(f"{one.accuracy:.2f}" for one in ours), ", ".join(f"{one.seconds:.1f}" for one in ours)
    told = {None: "first", True: f"yes, by {found.saved[0]:.1f} s (at least {found.saved[1]:.1f})" if found.saved else "",
            False: "not told apart from the one before"}[found.faster]
    return (f"| {time.strftime('%Y-%m-%d')} | {found.seconds:.1f} | {seconds} | {found.accuracy[0]:.2f} (at least "
            f"{found.accuracy[1]:.2f}) | {accuracies} | {'yes' if found.valid else 'NO'} | {told} | `{target.stage} "
            f"{shlex.join(words)}` at {git_commit()[:10]} |")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    known = "\n".join(f"  {name:12s}{target.told}" for name, target in TARGETS.items())
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=f"{__doc__}\n{known}", allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seeds", default=(1, 2, 3), type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--against", help="flags of the record before, run again beside this one")
    args = parser.parse_args(argv[:cut])
    target, words = TARGETS[args.target], argv[cut + 1 :]
    try:
        if len(set(args.seeds)) < FEWEST:
            raise BadInput(f"--seeds: a record needs at least {FEWEST} different ones; got {len(set(args.seeds))}")
        ours, before = [], []
        for seed in args.seeds:
            ours.append(run(target, words, seed))
            say(f"seed {seed}: {ours[-1].seconds:.1f} s, {ours[-1].accuracy:.2f} %")
            if args.against is not None:
                before.append(run(target, shlex.split(args.against), seed))
                say(f"seed {seed}, the record before: {before[-1].seconds:.1f} s, {before[-1].accuracy:.2f} %")
        say(row(target, words, ours, judge(target, ours, before)))
    except BadInput as error:
        put(f"{as_line(f'error: {error}')}\n", sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
