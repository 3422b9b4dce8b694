"""Goals as ratios to the plain way, held against the last table of each machine in RESULTS.md.

    python -m benchmarks.goals [FILE]

A goal counts the median of the rounds. Where a table lacks a goal's line, or a fact that it needs, the goal is not measured.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.results import PLACE, Read, read
from utils import say


@dataclasses.dataclass(frozen=True)
class Goal:
    """line: how the benchmark's name begins; against: what it is held against; of: wall or cpu; at_least: that ratio.

    facts: fact -> the most it may be. seconds: at most, of ours; seconds_above: at most, above the other side's.
    """

    id: str
    told: str
    line: str
    of: str = "wall"
    at_least: float = 0.0
    against: str = "plain"
    facts: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    seconds_above: float | None = None

    def of_lines(self, lines: Iterable[Read]) -> tuple[str, bool | None]:
        """What was measured, in words, and whether the goal is met; None where it was not measured."""
        found = [one for one in lines if one.name.startswith(self.line) and one.base == self.against]
        if not found or any(name not in found[-1].facts for name in self.facts):
            return "–", None
        one, told, met = found[-1], [], []
        if self.at_least:
            ratio = getattr(one, self.of)
            told.append(f"{ratio.median:g} ({ratio.low:g} to {ratio.high:g})")
            met.append(ratio.median >= self.at_least)
        for name, most in self.facts.items():
            told.append(f"{name} {one.facts[name]}")
            met.append(float(one.facts[name]) <= most)
        mine, theirs = one.seconds.median, one.base_seconds.median
        for limit, value in ((self.seconds, mine), (self.seconds_above, mine - theirs)):
            if limit is not None:
                told.append(f"{value:.3g} s")
                met.append(value <= limit)
        return ", ".join(told), all(met)


DIFFERENCE, RELATIVE, EXACT = "largest difference", "relative difference", "off float64"
RECURSION = "influence recursion resnet20s, 400 examples"
GOALS = (
    Goal("P1", "loader with crop and flip, CPU", "loader, crop and flip", "cpu", 8),
    Goal("P2", "loader for evaluation, CPU", "loader, evaluation", "cpu", 8),
    Goal("P3", "training, ResNet-20", "epoch resnet20s, batches", "wall", 1.2),
    Goal("P3", "the same on one thread", "epoch resnet20s, one thread", "wall", 1.15),
    Goal("P4", "training, ResNet-18", "epoch resnet18", "wall", 1.05),
    Goal("P4", "training, VGG-16-BN", "epoch vgg16_bn", "wall", 1.05),
    Goal("P5", "evaluating one model with the attack", "evaluation resnet20s", "wall", 2.2, facts={"images predicted": 6000}),
    Goal("P6", "five SVC attacks at 10,000 + 10,000 rows, CPU", "SVC attack, 10,000", "cpu", 20, facts={DIFFERENCE: 0.002}),
    Goal("P7", "published m_entropy at N = 10,000", "published m_entropy, 10,000", "wall", 300, facts={DIFFERENCE: 1e-9}),
    Goal("P8", "influence recursion, one thread, CPU", f"{RECURSION}, one thread", "cpu", 1.6, facts={RELATIVE: 1e-4}),
    Goal("P8", "the same on all threads", RECURSION, "wall", 3, facts={RELATIVE: 1e-4}),
    Goal("P9", "per-example Fisher, batch of 128, CPU", "per-example Fisher", "cpu", 25, facts={EXACT: 1e-5}),
    Goal("P10", "published fisher_new", "published fisher_new", "cpu", 1.0, facts={EXACT: 1e-5}),
    Goal("P11", "textbook WoodFisher at n = 200", "textbook WoodFisher resnet20s, 200 examples", "cpu", 12,
         facts={EXACT: 1e-3}),
    Goal("P12", "--help, above a bare import of torch", "--help", against="import torch", seconds_above=0.15),
    Goal("P12", "process start to the first step", "process start to first step, resnet8s", "wall", 3, seconds=2.5),
    Goal("P13", "models of a pool on two cores against one thread", "pool resnet20s: 2 processes", "wall", 1.7,
         against="one after another, 1 thread"),
    Goal("P14", "FT with evaluation as a process", "FT, 1 epoch", "wall", 1.9),
)


def exact(goal: Goal, lines: list[Read]) -> list[Read]:
    """The lines of this very name, where there are any: one's name may begin as another's."""
    same = [one for one in lines if one.name == goal.line]
    return same or lines


def table(lines: list[Read]) -> str:
    """One machine's goals, from the lines of its tables in their order; the last of each counts."""
    rows = ["| goal | what | threshold | measured | met |", "| --- | --- | --- | ---: | --- |"]
    for goal in GOALS:
        told, met = goal.of_lines(exact(goal, lines))
        rows.append(f"| {goal.id} | {goal.told} | {threshold(goal)} | {told} | "
                    f"{ {True: 'yes', False: 'NO', None: 'not measured'}[met]} |")
    return "\n".join(rows)


def threshold(goal: Goal) -> str:
    parts = [f">= {goal.at_least:g}x"] if goal.at_least else []
    parts += [f"{name} <= {most:g}" for name, most in goal.facts.items()]
    parts += [f"<= {limit:g} s" for limit in (goal.seconds, goal.seconds_above) if limit is not None]
    return ", ".join(parts)


# of a GPU: goal, what, key of what was measured, must, stretch, whether more is better
GPU_GOALS = (("G1", "ResNet-18 in bf16, batches of 256, img/s", "G1", 50_000, 70_000, True),
             ("G2", "original of 30 epochs as a process, s", "G2", 35, 25, False),
             ("G3", "FT of 10 epochs on 3,000 with all metrics, s", "G3", 12, 9, False),
             ("G4", "ten rows for every seed (three), s", "G4", 420, 300, False),
             ("G5", "all metrics and five attacks of one model, s", "G5", 2, 1, False),
             ("G6", "a model of a pool of 400, s", "G6", 4, 2, False),
             ("G7", "waits for the device inside an epoch", "G7 waits", 0, 0, False),
             ("G7", "loader's share of a step", "G7 share", 0.03, 0.01, False))


def on_a_gpu(found: dict[str, float | None]) -> str:
    """G1 to G8 marked met or not, of what ``benchmarks.gpu`` measured by these keys; None and absent: not measured."""
    rows = ["| goal | what | must | stretch | measured | met |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for name, told, key, must, stretch, more in GPU_GOALS:
        value = found.get(key)
        met = [value is not None and (value >= limit if more else value <= limit) for limit in (must, stretch)]
        said = "not measured" if value is None else "stretch" if met[1] else "yes" if met[0] else "NO"
        rows.append(f"| {name} | {told} | {must:,} | {stretch:,} | {'–' if value is None else f'{value:,.4g}'} | {said} |")
    noise = found.get("G8 noise")
    said = "not measured" if noise is None else "yes" if found["G8"] <= noise else "NO"
    value = "–" if noise is None else f"{found['G8']:.2f} ({noise:.2f})"
    rows.append(f"| G8 | bf16 against float32, points of test accuracy (deviation of a run) | within it | | {value} | {said} |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    found = read((Path(argv[0]) if argv else PLACE).read_text(encoding="utf-8"))
    for machine in dict.fromkeys(one.machine for one in found):
        say(f"### Goals on {machine}\n\n{table([one for one in found if one.machine == machine])}\n")
    if not found:
        say("no table of make bench is there yet")


if __name__ == "__main__":
    main()
