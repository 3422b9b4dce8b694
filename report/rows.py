"""A row is a method under one setting over its seeds: which runs share one, what it is called, its means and intervals."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

from evaluation import statistics, tow
from evaluation.statistics import Number
from report.answers import answers_of
from report.labels import labels_of, shown_names
from report.measures import domain_of, images_error, margin_distance, measures, shares
from report.pairs import Pair
from report.settings import Setting
from report.variants import computation, variant_of
from utils import BadInput, digest_of

FLOOR = "retrain vs retrain"  # the row that says how far two retrained models are apart
MEAN_GAP, GAP_MEANS = "Avg. gap", "gap of means"  # of single runs, averaged over seeds; of averages over seeds, as published


@dataclasses.dataclass
class Row:
    """A method under one setting over its seeds.

    method: its name and what tells it from others of that name; variant: all that its runs have in common, as JSON; name:
    without what tells it from others.
    numbers: means over seeds with their intervals; of the floor the mean over pairs of retrains, the least and the most.
    values: measure -> seed (or request) -> number, what the means are of.
    images: measure -> standard error of one model's number from the sample of images alone.
    each: of every run of ``pairs``, all of its numbers, those too that others of the row lack.
    picked: of how many settings this one is the best, and by which measure, where it was picked.
    known: what was worked out of this row and others, for whoever asks again.
    """

    setting: str
    method: str
    variant: str
    pairs: list[Pair]
    numbers: dict[str, Number]
    values: dict[str, dict[Hashable, float]] = dataclasses.field(default_factory=dict)
    images: dict[str, float] = dataclasses.field(default_factory=dict)
    each: list[dict[str, float]] = dataclasses.field(default_factory=list)
    picked: str = ""
    name: str = ""
    known: dict[Any, Any] = dataclasses.field(init=False, default_factory=dict, repr=False, compare=False)

    @property
    def place(self) -> Setting:
        return self.pairs[0].setting

    @property
    def id(self) -> str:
        """Letters and digits that no other row has: what leads from a table to its runs."""
        return f"r{digest_of([self.setting, self.method, self.variant])}"

    @property
    def is_reference(self) -> bool:
        """Whether it is the retrain that the setting's runs are compared with."""
        return self.method != FLOOR and self.pairs[0].is_reference

    @property
    def is_raw(self) -> bool:
        """Whether it is the original itself."""
        return self.method != FLOOR and computation(self.pairs[0].run) == "raw"

    @property
    def collapsed(self) -> int:
        """How many of its runs are broken models."""
        return sum(bool(pair.run.record.get("collapsed")) for pair in self.pairs) if self.method != FLOOR else 0

    @property
    def idle(self) -> int:
        """In how many of its runs the method left the original as it was, which raw alone is to do."""
        return sum(bool(pair.run.record.get("did_nothing")) for pair in self.pairs) if self.method != FLOOR else 0

    @property
    def told(self) -> str:
        """The method, and where runs collapsed, that its low forget accuracy is no forgetting, or that it did nothing."""
        found = [(self.collapsed, "collapsed"), (self.idle, "did nothing")]
        found += [(len(self.pairs), self.picked)] if self.picked else []
        words = [word if count == len(self.pairs) else f"{count} of {len(self.pairs)} {word}" for count, word in found if count]
        return f"{self.method} [{', '.join(words)}]" if words else self.method

    def missing(self, name: str) -> str | None:
        """Why a run has no such metric, where its record says so."""
        reasons = [pair.metrics.get(name) for pair in self.pairs]
        return next((reason for reason in reasons if isinstance(reason, str)), None)

    @property
    def seeds(self) -> list[int]:
        return sorted({pair.seed for pair in self.pairs})

    @property
    def units(self) -> list[Hashable]:
        """What the means are over: seeds, or requests."""
        return sorted(self.values.get("retain", {}))

    def others_seeds(self, part: list[Row]) -> bool:
        """Whether its means are over other seeds (or requests) than those of the setting's reference."""
        reference = next((row for row in part if row.is_reference), None)
        return reference is not None and self.method != FLOOR and self.units != reference.units


def rows(found: list[Pair], level: float = statistics.LEVEL) -> list[Row]:
    """One row a method and setting, means and intervals over seeds; then the retrain-vs-retrain floor of each setting."""
    names = shown_names(found)  # of all settings, so that plans have the same numbers in all
    grouped = by_variant(found)
    labels = labels_of(grouped, names)
    table = []
    for key in sorted(grouped, key=lambda key: key[0]):  # setting by setting, so that a retrain is at hand while it is asked
        row = _row(*key, labels[key], names[key[1]], grouped[key], level)
        table += [row, *(_floor(row) if row.is_reference else ())]
    return in_order(table, "ToW")


def by_variant(found: Iterable[Pair]) -> dict[tuple[str, str], list[Pair]]:
    """(setting, variant) -> its runs, one a seed.

    Raises:
        BadInput: several runs of one seed, which no mean over seeds may take.
    """
    grouped: dict[tuple[str, str], list[Pair]] = {}
    for pair in found:
        grouped.setdefault((pair.setting.label, variant_of(pair.run)), []).append(pair)
    for (setting, _), members in grouped.items():
        if len({pair.seed for pair in members}) < len(members):
            raise BadInput(f"{setting}, {members[0].method}: several runs of one seed, of originals that cannot be told apart: "
                           f"{', '.join(str(p.run.folder) for p in members)}; keep those of one, or filter")
    return grouped


def in_order(table: list[Row], measure: str) -> list[Row]:
    """Setting by setting: retrain, raw and the floor, with which the others are compared; then these, the nearest to retrain
    first by a measure whose best is 1; what collapsed, and what has no such number, last."""
    def place(row: Row) -> tuple[Any, ...]:
        anchor = 0 if row.is_reference else 2 if row.method == FLOOR else 1 if row.is_raw else 3
        known = measure in row.numbers
        return row.setting, anchor, bool(row.collapsed), not known, -row.numbers[measure].mean if known else 0.0, row.method

    return sorted(table, key=place)


def _row(setting: str, variant: str, label: str, name: str, members: list[Pair], level: float) -> Row:
    each = [measures(pair) for pair in members]
    # a mean over some of the seeds would stand beside means over others
    names = [name for name in each[0] if all(name in own for own in each)]
    values = {name: {pair.seed: own[name] for pair, own in zip(members, each, strict=True)} for name in names}
    numbers = {name: statistics.interval(list(there.values()), domain_of(name), level) for name, there in values.items()}
    if MEAN_GAP in numbers:
        numbers[GAP_MEANS] = Number(gap_of_means(members), None, len(members))
    errors = [images_error(pair) for pair in members]
    shared = [name for name in errors[0] if all(name in own for own in errors)]
    images = {name: math.fsum(own[name] for own in errors) / len(errors) for name in shared}
    return Row(setting, label, variant, members, numbers, values, images, each, name=name)


def gap_of_means(members: list[Pair]) -> float:
    """Mean |difference| of UA, RA, TA and MIA, each averaged over the seeds first: the published "Avg. gap", in points."""
    own, ref = ({name: math.fsum(metrics[name] for metrics in side) / len(members) for name in ("UA", "RA", "TA", "MIA")}
                for side in ([pair.metrics for pair in members], [pair.reference for pair in members]))
    return tow.average_gap(own, ref)


def same_forget_set(members: Iterable[Pair]) -> bool:
    """Whether all seeds forget the same examples; proxies of each seed's own original choose others."""
    return len({pair.run.record["split_key"] for pair in members}) == 1


def _floor(reference: Row) -> Iterable[Row]:
    """What chance alone costs: means over the pairs of retrained models, from the least to the most.

    None of one retrain, nor where every seed forgets other examples: two retrains would then be about two questions. The
    floor of the gap of means over n seeds is that of single runs over sqrt(n), as the spread of a mean.
    """
    if len(reference.pairs) < 2 or not same_forget_set(reference.pairs):
        return
    metrics = [pair.metrics for pair in reference.pairs]
    found = {"ToW": tow.noise_floor([shares(own) for own in metrics], tow.tow)}
    if all(own["MIA"] is not None for own in metrics):
        found["ToW-MIA"] = tow.noise_floor([shares(own) for own in metrics], tow.tow_mia)
        found[MEAN_GAP] = tow.noise_floor(metrics, tow.average_gap)
    answers = [answers_of(pair.run) for pair in reference.pairs]
    apart = [margin_distance(*both) for both in itertools.combinations(answers, 2)]
    if None not in apart:
        found["KS_forget"] = apart
    numbers = {name: Number(float(np.mean(values)), (min(values), max(values)) if len(values) > 1 else None, len(values))
               for name, values in found.items()}
    if MEAN_GAP in numbers:
        mean, _, count = numbers[MEAN_GAP]
        numbers[GAP_MEANS] = Number(mean / math.sqrt(len(reference.pairs)), None, count)
    yield Row(reference.setting, FLOOR, "", reference.pairs, numbers)
