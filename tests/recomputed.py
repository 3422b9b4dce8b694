"""The tables of analysis.py once more, from outputs.npz and record.json alone, by code that shares nothing with the suite's.

Of the suite's tests it takes the draws and the threshold of the membership attack, done the slow way.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plain_attack
from scipy import stats

Distance = Callable[["Run", "Run"], float]
PARTS = ("forget", "retain", "test")


def interval(values: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """Ends of the 95 % t-interval around the mean on the logit scale (log where ``high`` is inf), in full."""
    mean, half = float(np.mean(values)), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    if len(set(values)) == 1 or not low < mean < high:
        return mean, mean
    if high == math.inf:
        return low + (mean - low) * math.exp(-half / (mean - low)), low + (mean - low) * math.exp(half / (mean - low))
    slope = (high - low) / ((mean - low) * (high - mean))
    ends = [math.log((mean - low) / (high - mean)) + sign * half * slope for sign in (-1, 1)]
    return tuple(low + (high - low) / (1 + math.exp(-end)) for end in ends)


class Run:
    """One run's numbers, in percent, from its logits."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, json.loads((folder / "record.json").read_text())
        with np.load(folder / "outputs.npz") as file:
            self.arrays = {name: file[name] for name in file.files}
        self.seed = self.record["settings"]["rt"]["seed"]
        self.method = self.record["settings"]["method"]["unlearn"]
        whole = self.record["whole_classes"]
        self.kept = {part: np.ones(len(self.arrays[f"{part}_labels"]), bool) for part in (*PARTS, "val")}
        self.kept["test"] = np.array([label not in whole for label in self.arrays["test_labels"]])
        self.told: dict[str, np.ndarray] = {part: np.array([row.argmax() for row in self.arrays[f"{part}_logits"]])
                                            for part in self.kept}

    def accuracy(self, part: str) -> float:
        right = [int(a == b) for a, b, kept in zip(self.told[part], self.arrays[f"{part}_labels"], self.kept[part], strict=True)
                 if kept]
        return 100 * sum(right) / len(right)

    def _confidence(self, part: str) -> np.ndarray:
        z = self.arrays[f"{part}_logits"][self.kept[part]].astype(np.float64)
        y = self.arrays[f"{part}_labels"][self.kept[part]]
        return np.array([1 / sum(math.exp(other - row[label]) for other in row) for row, label in zip(z, y, strict=True)])

    @functools.cache  # noqa: B019
    def margins(self, part: str) -> np.ndarray:
        found = []
        for row, label in zip(self.arrays[f"{part}_logits"].astype(np.float64), self.arrays[f"{part}_labels"], strict=True):
            others = np.delete(row, label)
            found.append(row[label] - others.max() - math.log(sum(math.exp(z - others.max()) for z in others)))
        return np.array(found)

    def efficacy(self) -> float:
        """Mean over the draws of the share of the forget set below the best threshold of confidence."""
        a, b, asked = (self._confidence(part) for part in ("retain", "test", "forget"))
        labels = [self.arrays[f"{part}_labels"][self.kept[part]] for part in ("retain", "test")]
        stream = np.random.default_rng([self.seed, 0x6D6961])
        draws = plain_attack.draws(*labels, self.record["evaluation"]["mia_draws"], stream)
        return 100 * float(np.mean([np.mean(asked < plain_attack.threshold(a[i], b[j])) for i, j in draws]))

    def separation(self) -> float:
        """AUC of forget against test by the margin, pair by pair, test images weighted to the classes of the forget set."""
        mine, theirs = self.arrays["forget_labels"], self.arrays["test_labels"]
        a, b = self.margins("forget"), self.margins("test")
        wins = total = 0.0
        for label in np.unique(mine):
            weight = (mine == label).sum() / (theirs == label).sum()
            for other in b[theirs == label]:
                wins += weight * ((a > other).sum() + 0.5 * (a == other).sum())
                total += weight * len(a)
        return 100 * wins / total

    def disagreement(self, other: Run, part: str) -> float:
        kept = self.kept[part]
        return 100 * sum(int(a != b) for a, b in zip(self.told[part][kept], other.told[part][kept], strict=True)) / kept.sum()


def apart(a: Run, b: Run) -> float:
    """Kolmogorov-Smirnov distance of the margins of one forget set under two models, in percent."""
    return 100 * float(stats.ks_2samp(a.margins("forget"), b.margins("forget")).statistic)


class Table:
    """Every run below a folder, and what the tables say of one method."""

    def __init__(self, root: Path, records: str = "forget/*/record.json") -> None:
        runs = [Run(path.parent) for path in sorted(root.glob(records))]
        self.runs: dict[str, dict[int, Run]] = {}
        for run in runs:
            self.runs.setdefault(run.method, {})[run.seed] = run
        self.own = {id(run): {**{part: run.accuracy(part) for part in (*PARTS, "val")}, "MIA": run.efficacy(),
                              "AUC_forget": run.separation()} for run in runs}

    def numbers(self, run: Run) -> dict[str, float]:
        return self.own[id(run)]

    def tow(self, a: Run, b: Run, first: str = "forget") -> float:
        return math.prod(1 - abs(self.numbers(a)[part] - self.numbers(b)[part]) / 100 for part in (first, "retain", "test"))

    def gap(self, a: Run, b: Run) -> float:
        return sum(abs(self.numbers(a)[name] - self.numbers(b)[name]) for name in (*PARTS, "MIA")) / 4

    def measures(self, run: Run) -> dict[str, float]:
        """Its own numbers, and those beside the retrain of its seed."""
        own, ref = self.numbers(run), self.runs["retrain"][run.seed]
        spent = run.record["seconds"]["mask"] + run.record["seconds"]["unlearn"]
        read, theirs = (side.record["images_read"] for side in (run, ref))
        cost = {"images_read": 100 * (read["unlearn"] + read["mask"]) / theirs["unlearn"]}
        if run.method != "raw":
            cost["speed_up"] = (ref.record["seconds"]["mask"] + ref.record["seconds"]["unlearn"]) / spent
        product = math.prod(1 - abs(own[part] - self.numbers(ref)[part]) / 100 for part in ("forget", "retain", "val"))
        cost["ToW_val"] = product
        cost["gap_val"] = sum(abs(own[part] - self.numbers(ref)[part]) for part in ("forget", "retain", "val")) / 3
        return {**own, **cost, "UA": 100 - own["forget"], "RA": own["retain"], "TA": own["test"], "ToW": self.tow(run, ref),
                "ToW-MIA": self.tow(run, ref, "MIA"), "Avg. gap": self.gap(run, ref), "seconds": spent, "seconds_scores": 0.0,
                "seconds_total": spent, "AUC_difference": own["AUC_forget"] - self.numbers(ref)["AUC_forget"],
                "KS_forget": apart(run, ref), "disagreement_forget": run.disagreement(ref, "forget"),
                "disagreement_test": run.disagreement(ref, "test")}

    def per_seed(self, method: str, name: str) -> dict[int, float]:
        """A measure of a method in every seed."""
        return {seed: self.measures(run)[name] for seed, run in self.runs[method].items()}

    def gap_of_means(self, method: str) -> float:
        seeds = list(self.runs[method])
        means = {name: [np.mean([self.numbers(self.runs[who][seed])[name] for seed in seeds]) for who in (method, "retrain")]
                 for name in (*PARTS, "MIA")}
        return float(sum(abs(a - b) for a, b in means.values()) / 4)

    def floor(self, distance: Distance) -> list[float]:
        return [distance(a, b) for a, b in itertools.combinations(self.runs["retrain"].values(), 2)]

    def excess(self, method: str, distance: Distance) -> tuple[float, list[float]]:
        """Over the floor, on pairs of different seeds; and the jackknife's pseudo-values."""
        seeds = sorted(self.runs[method].keys() & self.runs["retrain"].keys())

        def of(keep: list[int]) -> float:
            own, ref = self.runs[method], self.runs["retrain"]
            return float(np.mean([distance(own[i], ref[j]) for i in keep for j in keep if i != j])
                         - np.mean([distance(ref[i], ref[j]) for i in keep for j in keep if i < j]))

        n = len(seeds)
        pseudo = [n * of(seeds) - (n - 1) * of([s for s in seeds if s != gone]) for gone in seeds] if n > 2 else []
        return of(seeds), pseudo


def step_down(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p: for each the largest over those not above it of (number of those not below) x p, at most 1."""
    known = [p for p in ps if p is not None]
    def adjusted(p: float) -> float:
        return max(min(1.0, sum(other >= q for other in known) * q) for q in known if q <= p)
    return [None if p is None else adjusted(p) for p in ps]


def csv_number(text: str) -> Any:
    return None if text == "" else float(text)
