"""What differs from retrain and from the best method, and what cannot be told yet: paired tests over seeds, with verdicts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

from evaluation import statistics, tow
from evaluation.statistics import DIFFERENT, EQUIVALENT, UNDECIDED, WITHIN, Paired
from report.measures import shares
from report.pairs import FilterConfig, Pair
from report.rows import FLOOR, MEAN_GAP, Row, same_forget_set

RETRAIN, NOTHING = "retrain", "retrain vs retrain"
Distance = Callable[[Mapping[str, Any], Mapping[str, Any]], float]
DISTANCES: dict[str, Distance] = {
    "ToW": lambda a, b: 1 - tow.tow(shares(a), shares(b)),
    "ToW-MIA": lambda a, b: 1 - tow.tow_mia(shares(a), shares(b)),
    MEAN_GAP: tow.average_gap,
}
NEEDS_ATTACK = ("ToW-MIA", MEAN_GAP)


class Study(NamedTuple):
    """What an analysis compares: its headline measure, accuracies with retrain's, those it shows, its files."""

    headline: str
    measures: tuple[str, ...]
    shown: tuple[str, ...]
    name: str
    pairs: str
    requests: str


TOW = Study("ToW", ("forget", "retain", "val", "test"), ("forget", "retain", "test"), "tow", "pairs", "requests")
MIA = Study("ToW-MIA", ("MIA", "AUC_forget", "retain", "test"), ("MIA", "AUC_forget", "test"), "tow_mia", "pairs_mia",
            "requests_mia")


class Contrast(NamedTuple):
    """One method against retrain, against the floor, or against the best, in one measure.

    found: of the differences over seeds; p_holm: adjusted for the methods that are compared; floor: how far two retrains are
    apart in the measure; needed: seeds that would decide; units: the seeds, or requests, that both have.
    """

    setting: str
    measure: str
    method: str
    against: str
    found: Paired
    p_holm: float | None
    delta: float
    p_tost: float | None
    floor: float | None
    verdict: str
    needed: int | None
    units: tuple[Hashable, ...]


def delta_of(measure: str, cfg: FilterConfig) -> float:
    return cfg.delta_tow if measure.startswith(("ToW", "1 - ToW")) else cfg.delta


def methods_of(part: list[Row]) -> list[Row]:
    """The rows of a setting that are compared: all but the reference and the floor."""
    return [row for row in part if row.method != FLOOR and not row.is_reference]


def reference_of(part: list[Row]) -> Row:
    return next(row for row in part if row.is_reference)


# -------------------------------------------------------------------------------------------------------------- comparisons


def with_retrain(part: list[Row], measure: str, cfg: FilterConfig) -> list[Contrast]:
    """Method - retrain, the retrain of the same seed, in an accuracy or the like."""
    reference = reference_of(part)
    if measure not in reference.values:
        return []
    compared = [(row, statistics.differences(row.values[measure], reference.values[measure]))
                for row in methods_of(part) if measure in row.values]
    return _judged(part, measure, RETRAIN, [(row, *_tested(each, 100.0)) for row, each in compared if each], cfg,
                   _apart(reference, measure))


def with_floor(part: list[Row], measure: str, cfg: FilterConfig) -> list[Contrast]:
    """How much farther a method is from retrain than retrains are from one another; needs two retrains of one forget set."""
    reference = reference_of(part)
    found = [(row, *over) for row in methods_of(part) if (over := _excess(row, reference, measure)) is not None]
    name = measure if measure == MEAN_GAP else f"1 - {measure}"
    return _judged(part, name, NOTHING, found, cfg)


def with_best(part: list[Row], measure: str, cfg: FilterConfig, best: Row | None) -> list[Contrast]:
    """Method - best, on the seeds that both have."""
    others = [row for row in methods_of(part) if row is not best and measure in row.values] if best is not None else []
    compared = [(row, statistics.differences(row.values[measure], best.values[measure])) for row in others]
    most = 1.0 if measure.startswith("ToW") else 100.0
    tested = [(row, *_tested(each, most)) for row, each in compared if each]
    return _judged(part, measure, best.method if best else "", tested, cfg)


def best_of(part: list[Row], measure: str) -> Row | None:
    """The method with the best mean, of those that have retrain's seeds and no broken model; None of fewer than two."""
    reference = reference_of(part)
    fit = [row for row in methods_of(part) if measure in row.values and not row.collapsed
           and row.values[measure].keys() == reference.values["retain"].keys() and row.pairs[0].method != "retrain"]
    return max(fit, key=lambda row: row.numbers[measure].mean) if len(fit) > 1 else None


def _tested(each: Mapping[Hashable, float], most: float) -> tuple[Paired, tuple[Hashable, ...]]:
    return statistics.paired(list(each.values()), most=most), tuple(sorted(each))


def _judged(part: list[Row], measure: str, against: str, found: list[tuple[Row, Paired, tuple[Hashable, ...]]],
            cfg: FilterConfig, floor: float | None = None) -> list[Contrast]:
    """The verdicts, with Holm over the methods.

    Equivalence is not claimed where two retrains are farther apart than delta: nothing could show it.
    """
    delta = delta_of(measure, cfg)
    adjusted = statistics.holm([paired.p for _, paired, _ in found])
    tests = sum(p is not None for p in adjusted)
    lines = []
    for (row, paired, units), p in zip(found, adjusted, strict=True):
        near, provable = statistics.tost(paired, delta), floor is None or floor <= delta
        word = statistics.verdict(p, near if provable else None)
        needed = None
        if word == UNDECIDED:
            needed = statistics.seeds_to_decide(paired, delta if provable else None, (1 - statistics.LEVEL) / tests)
        lines.append(Contrast(part[0].setting, measure, row.method, against, paired, p, delta, near, floor, word, needed,
                              units))
    return lines


def _by_request(row: Row) -> dict[str, dict[int, Pair]]:
    found: dict[str, dict[int, Pair]] = {}
    for pair in row.pairs:
        found.setdefault(pair.setting.key, {})[pair.seed] = pair
    return found


def _apart(reference: Row, measure: str) -> float | None:
    """Mean |difference| of a measure between two retrains of one forget set, in points; None of one retrain."""
    found = []
    for there in _by_request(reference).values():
        if len(there) > 1 and same_forget_set(there.values()):
            values = [pair.metrics[measure] for pair in there.values()]
            if None not in values:
                pairs = statistics.upper(statistics.pairwise(values, values, lambda a, b: abs(a - b)))
                found.append(sum(pairs) / len(pairs))
    return sum(found) / len(found) if found else None


def _excess(row: Row, reference: Row, measure: str) -> tuple[Paired, tuple[Hashable, ...]] | None:
    """Of one forget set the jackknife over seeds; of several requests the t-test over them, each with its own excess."""
    known = row.known.get(("excess", measure))
    if known is None or known[0] is not reference:
        known = row.known["excess", measure] = reference, _excess_of(row, reference, measure)
    return known[1]


def _excess_of(row: Row, reference: Row, measure: str) -> tuple[Paired, tuple[Hashable, ...]] | None:
    distance, ours, theirs = DISTANCES[measure], _by_request(row), _by_request(reference)
    each: dict[Hashable, tuple[Paired, tuple[Hashable, ...]]] = {}
    for request, there in ours.items():
        retrained = theirs.get(request, {})
        seeds = sorted(there.keys() & retrained.keys())
        own, ref = ([side[seed].metrics for seed in seeds] for side in (there, retrained))
        whole = not measure.startswith(NEEDS_ATTACK) or all(found["MIA"] is not None for found in (*own, *ref))
        if len(seeds) > 1 and whole and same_forget_set(retrained[seed] for seed in seeds):
            over = statistics.excess(statistics.pairwise(own, ref, distance), statistics.pairwise(ref, ref, distance))
            each[request] = over, tuple(seeds)
    if len(ours) == 1:
        return next(iter(each.values()), None)
    means = {request: paired.mean for request, (paired, _) in each.items()}
    return _tested(means, 100.0) if means else None


# ------------------------------------------------------------------------------------------------------------------- headroom


def no_room(part: list[Row], study: Study, cfg: FilterConfig) -> str:
    """Why the forget set cannot tell methods apart: the untouched original is already like retrain; "" where it is not.

    Headed "no headroom", or "too few seeds" to say so.

    Either it lies within delta of retrain in all that the headline measure is made of; or no test over the seeds tells it from
    retrain: because its mean distance is within the range of the floor, or because there are too few seeds to say.
    """
    raw = next((row for row in methods_of(part) if row.is_raw), None)
    if raw is None:
        return ""
    alone = [row for row in part if row is raw or row.is_reference]
    over = with_floor(alone, study.headline, cfg)
    parts = [with_retrain(alone, name, cfg) for name in (study.shown[0], "retain", "test")]
    if not all(parts):  # a model whose outputs are not finite
        return ""
    if all(_near(found[0]) for found in parts):
        return f"no headroom: the original itself lies within delta of retrain ({delta_of(study.shown[0], cfg):g} points)"
    tests = [*over, *(found[0] for found in parts)]
    if max(c.found.n for c in tests) == 1 or any(c.verdict.startswith(DIFFERENT) for c in tests):
        return ""
    floor = next((row.numbers.get(study.headline) for row in part if row.method == FLOOR), None)
    if over and floor is not None:
        own, least = 1 - floor.mean + over[0].found.mean, floor.ends[0] if floor.ends else floor.mean
        if own <= 1 - least:
            return ("no headroom: the original itself is as near to retrain as retrains are to one another (1 - "
                    f"{study.headline}: {own:.3f}; they {1 - floor.mean:.3f}, at most {1 - least:.3f})")
    seen = ", ".join(f"{c.measure} {words(c)}" for c in tests)
    return f"too few seeds: {parts[0][0].found.n} do not tell the original itself from retrain ({seen})"


def _near(contrast: Contrast) -> bool:
    if contrast.found.n == 1:
        return abs(contrast.found.mean) <= contrast.delta
    return contrast.verdict in (EQUIVALENT, WITHIN)


def no_gain(part: list[Row], study: Study, cfg: FilterConfig) -> str:
    """How doing nothing is as good as the best method, by the headline measure, headed "no gain"; "" where it is not."""
    raw = next((row for row in methods_of(part) if row.is_raw), None)
    best = best_of(part, study.headline)
    if raw is None or best is None:
        return ""
    if best is raw:
        return f"no gain over raw: no method has a better {study.headline} than the original itself"
    found = with_best([row for row in part if row is raw or row is best or row.is_reference], study.headline, cfg, best)
    if found and found[0].verdict == EQUIVALENT:
        return (f"no gain over raw: the original itself is equivalent to the best method ({best.method}; {study.headline} "
                f"{found[0].found.mean:+.3f})")
    return ""


def nobody_best(part: list[Row], study: Study, cfg: FilterConfig) -> str:
    """Why no method of a setting is called the best, with a head of a few words before a colon; "" where one may be."""
    return no_room(part, study, cfg) or no_gain(part, study, cfg)


# --------------------------------------------------------------------------------------------------------------------- output


def of_setting(part: list[Row], study: Study, cfg: FilterConfig) -> list[Contrast]:
    """Every comparison of one setting's rows: for the CSV, and for each of its tables."""
    known, key = reference_of(part).known, (study.name, cfg)
    rows, found = known.get(key, ([], []))
    if len(rows) != len(part) or any(a is not b for a, b in zip(rows, part, strict=True)):
        found = _of_setting(part, study, cfg)
        known[key] = list(part), found
    return found


def _of_setting(part: list[Row], study: Study, cfg: FilterConfig) -> list[Contrast]:
    best = None if nobody_best(part, study, cfg) else best_of(part, study.headline)
    distances = (study.headline, MEAN_GAP)
    return [*(c for name in study.measures for c in with_retrain(part, name, cfg)),
            *(c for name in distances for c in with_floor(part, name, cfg)),
            *(c for name in distances for c in with_best(part, name, cfg, best))]


def csv_of(found: Iterable[Contrast]) -> list[list[Any]]:
    """A line a comparison, full precision; p and interval are empty with one seed."""
    lines: list[list[Any]] = [["setting", "measure", "method", "against", "n", "mean", "sd", "low", "high", "p", "p_holm",
                               "delta", "p_tost", "floor", "verdict", "seeds_to_decide", "seeds"]]
    for c in found:
        ends = c.found.ends or (None, None)
        lines.append([c.setting, c.measure, c.method, c.against, c.found.n, c.found.mean, c.found.sd, *ends, c.found.p,
                      c.p_holm, c.delta, c.p_tost, c.floor, c.verdict, c.needed, " ".join(map(str, c.units))])
    return lines


def words(contrast: Contrast | None) -> str:
    """``+1.54 undecided (12)``: the difference, its verdict, the seeds that would decide."""
    if contrast is None:
        return "-"
    digits = 3 if "ToW" in contrast.measure else 2
    told = contrast.verdict
    if told == UNDECIDED:
        told += f" ({contrast.needed})" if contrast.needed else ""
    return f"{contrast.found.mean:+.{digits}f} {told}".rstrip()
