"""What decides between methods: intervals, paired differences, equivalence, excess over the floor; pure functions of floats.

The unit of every sample is a training seed (or a request), never an image. Of SciPy only the special functions are used, and
imported there: its distributions are the same numbers, a second of import and half a millisecond a call later.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from utils import BadInput

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 1000  # a number of seeds that nobody has
EQUIVALENT, DIFFERENT = "equivalent", "different"
WITHIN, UNDECIDED = "different but within delta", "undecided"
Domain = tuple[float, float]


class Number(NamedTuple):
    """A mean over seeds; ends of its interval (None with one seed); how many seeds."""

    mean: float
    ends: tuple[float, float] | None
    n: int


class Paired(NamedTuple):
    """Mean, standard deviation and interval of differences, and the p of a mean of 0; None with one seed, but the mean."""

    n: int
    mean: float
    sd: float | None
    ends: tuple[float, float] | None
    p: float | None


class Nested(NamedTuple):
    """A mean over the outer level of the inner means, with its interval; variances of the two levels, where they are known."""

    number: Number
    outer_variance: float | None
    inner_variance: float | None


def _checked(values: Sequence[float]) -> list[float]:
    if len(values) == 0:
        raise BadInput("no values to average; no finished run matches")
    if not all(math.isfinite(value) for value in values):
        raise BadInput(f"cannot average {list(values)}: every value must be finite; repeat the run that diverged")
    return [float(value) for value in values]


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation with n - 1 (0 of one value)."""
    mean = math.fsum(values) / len(values)
    if len(set(values)) == 1:  # a sum of equal values may be rounded
        return float(values[0]), 0.0
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


@functools.cache
def _t(share: float, freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def interval(values: Sequence[float], domain: Domain | None = None, level: float = LEVEL) -> Number:
    """Mean and Student's t interval, which stays within the quantity's domain.

    In a domain the interval is taken on the logit scale (on the log scale where the domain has no upper end) around the mean,
    with the standard error carried over by the slope there: mean m, standard error s, ends g^-1(g(m) -+ t s g'(m)). It covers
    as often as the plain one, is the same where the mean is far from the ends, and never passes them.

    Args:
        values: one number a seed, in any unit; finite.
        domain: least and largest possible value; (0, inf) for seconds; None: anything.

    Raises:
        BadInput: no values, or one is NaN or infinite.
    """
    assert 0 < level < 1, f"level must lie between 0 and 1; got {level}"
    values = _checked(values)
    mean, sd = _moments(values)
    if len(values) == 1:
        return Number(mean, None, 1)
    half = _t((1 + level) / 2, len(values) - 1) * sd / math.sqrt(len(values))
    return Number(mean, _within(mean, half, domain), len(values))


def _within(mean: float, half: float, domain: Domain | None) -> tuple[float, float]:
    if half == 0 or domain is None:
        return mean - half, mean + half
    low, high = domain
    if high == math.inf:
        ratio = math.exp(min(half / (mean - low), 700.0)) if mean > low else 1.0
        return low + (mean - low) / ratio, low + (mean - low) * ratio
    share = (mean - low) / (high - low)
    if not 0 < share < 1:  # all at an end, but for rounding
        return mean, mean
    move = half / (high - low) / (share * (1 - share))
    logit = math.log(share / (1 - share))
    return tuple(low + (high - low) * _expit(logit + sign * move) for sign in (-1, 1))


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(max(x, -700.0)) / (1 + math.exp(max(x, -700.0)))


# -------------------------------------------------------------------------------------------------------- paired differences


def differences(a: Mapping[Hashable, float], b: Mapping[Hashable, float]) -> dict[Hashable, float]:
    """a - b for every seed that both have."""
    return {unit: a[unit] - b[unit] for unit in a if unit in b}


def paired(values: Sequence[float], level: float = LEVEL, most: float = math.inf) -> Paired:
    """Paired t-test of differences, one a seed, with n - 1 degrees of freedom.

    Args:
        most: largest possible |difference|; the interval is cut there, which costs no coverage.
    """
    values = _checked(values)
    mean, sd = _moments(values)
    count = len(values)
    if count == 1:
        return Paired(1, mean, None, None, None)
    half = _t((1 + level) / 2, count - 1) * sd / math.sqrt(count)
    return Paired(count, mean, sd, (max(mean - half, -most), min(mean + half, most)), 2 * _tail(abs(mean), sd, count))


def _tail(mean: float, sd: float, count: int) -> float:
    """P(T > mean / standard error); differences that are all equal leave no doubt."""
    if sd == 0:
        return 0.5 if mean == 0 else float(mean < 0)
    from scipy.special import stdtr

    return float(stdtr(count - 1, -mean / (sd / math.sqrt(count))))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p of several tests, in their order; None (no test) stays None and counts for nothing."""
    there = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    found: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(there):
        largest = max(largest, min(1.0, (len(there) - rank) * p))
        found[place] = largest
    return found


def tost(found: Paired, delta: float) -> float | None:
    """p of |true mean| >= delta, the larger of two one-sided tests; below 0.05 the 90 % interval lies within +-delta."""
    assert delta > 0, f"delta must be above 0; got {delta}"
    if found.sd is None:
        return None
    return max(_tail(delta - found.mean, found.sd, found.n), _tail(delta + found.mean, found.sd, found.n))


def verdict(p: float | None, p_equal: float | None, level: float = LEVEL) -> str:
    """One of four words; "" with one seed.

    Args:
        p: of no difference, adjusted; p_equal: of a difference of delta or more, None where equivalence cannot be shown.
    """
    if p is None:
        return ""
    different, near = p < 1 - level, p_equal is not None and p_equal < 1 - level
    if different:
        return WITHIN if near else DIFFERENT
    return EQUIVALENT if near else UNDECIDED


# ------------------------------------------------------------------------------------------------------------- how many seeds


def power_of_t(effect: float, n: int, alpha: float = 1 - LEVEL) -> float:
    """Probability that a two-sided paired t-test of n differences finds a mean of ``effect`` standard deviations."""
    from scipy.special import ndtr

    need, shift = _t(1 - alpha / 2, n - 1) * _spreads(n), abs(effect) * math.sqrt(n)
    return float((ndtr(shift - need) + ndtr(-shift - need)).mean())


def power_of_tost(margin: float, n: int, mean: float = 0.0, alpha: float = 1 - LEVEL) -> float:
    """Probability that TOST of n differences shows |mean| < margin; both in standard deviations."""
    from scipy.special import ndtr

    room = margin * math.sqrt(n) - _t(1 - alpha, n - 1) * _spreads(n)
    shift = mean * math.sqrt(n)
    return float(np.maximum(ndtr(room - shift) - ndtr(-room - shift), 0).mean())


@functools.cache
def _spreads(n: int) -> np.ndarray:
    """Estimated over true standard deviation of n normal values, at 2,000 equal shares of probability."""
    from scipy.special import gammaincinv

    return np.sqrt(2 * gammaincinv((n - 1) / 2, (np.arange(2000) + 0.5) / 2000) / (n - 1))


def _fewest(power: Callable[[int], float]) -> int | None:
    """The smallest n of at least 2 with the power; None above MOST_SEEDS. Power grows with n."""
    if power(MOST_SEEDS) < POWER:
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def seeds_to_differ(effect: float, alpha: float = 1 - LEVEL) -> int | None:
    """Seeds for 80 % power of the paired t-test at |mean| / sd = effect; None for more than a thousand."""
    return _fewest(lambda n: power_of_t(effect, n, alpha)) if effect else None


def seeds_to_equal(margin: float, mean: float = 0.0, alpha: float = 1 - LEVEL) -> int | None:
    """Seeds for 80 % power of TOST at delta / sd = margin and a true mean / sd."""
    return _fewest(lambda n: power_of_tost(margin, n, mean, alpha)) if margin > abs(mean) else None


@functools.lru_cache(maxsize=2**14)
def seeds_to_decide(found: Paired, delta: float | None, alpha: float = 1 - LEVEL) -> int | None:
    """Seeds that would do if mean and spread are as seen, for a difference or for equivalence, whichever takes fewer.

    A spread over three seeds is known within a factor of six only, so that this is an order of magnitude.

    Args:
        delta: None where equivalence cannot be shown; alpha: of the test of a difference, after the correction for several.
    """
    if not found.sd:
        return None
    mean = found.mean / found.sd
    counts = [seeds_to_differ(mean, alpha), seeds_to_equal(delta / found.sd, mean) if delta is not None else None]
    return min((count for count in counts if count is not None), default=None)


# -------------------------------------------------------------------------------------------------------------- nested means


def nested(table: Sequence[Sequence[float]], domain: Domain | None = None, level: float = LEVEL) -> Nested:
    """Mean over an outer level (requests, or training seeds) of inner means, with the interval of the outer level.

    Two runs under one outer unit share it, so that the interval has T - 1 degrees of freedom, whatever the inner numbers. The
    variances are those of a balanced table: inner = MS_within, outer = max(0, (MS_between - MS_within) / U).

    Args:
        table: the values of every outer unit.
    """
    means = [_moments(_checked(row))[0] for row in table]
    number = interval(means, domain, level)
    width = len(table[0])
    if len({len(row) for row in table}) > 1 or len(table) < 2 or width < 2:
        return Nested(number, None, None)
    inner = math.fsum(_moments(row)[1] ** 2 for row in table) / len(table)
    between = width * _moments(means)[1] ** 2
    return Nested(number, max(0.0, (between - inner) / width), inner)


def cheapest_split(outer: float, inner: float, outer_cost: float, inner_cost: float) -> float:
    """Inner runs an outer unit that give the least standard error for the cost: sqrt(c_T s_U^2 / (c_U s_T^2)), at least 1."""
    return max(1.0, math.sqrt(outer_cost * inner / (inner_cost * outer))) if outer else math.inf


# ------------------------------------------------------------------------------------------------------- excess over the floor


def excess(own: np.ndarray, floor: np.ndarray, level: float = LEVEL) -> Paired:
    """How much farther a method is from retrain than retrain from itself: mean of own less mean of floor, off the diagonal.

    Both means are over pairs of different seeds, so that they are of the same kind: a run and the retrain of its own seed may
    share a batch order, two retrains never do. Interval and p are the jackknife's over seeds (three or more), t with n - 1,
    since pairs share models; the standard deviation is that of its pseudo-values.

    Args:
        own: distances float64 [n, n], unlearned of seed i to retrain of seed j; floor: retrain i to retrain j, symmetric.
    """
    count = len(own)
    assert own.shape == floor.shape == (count, count) and count > 1, f"{own.shape} and {floor.shape}"

    apart = (own - floor) * ~np.eye(count, dtype=bool)
    total = math.fsum(apart.ravel())
    whole = total / (count * (count - 1))
    if count < 3:
        return Paired(count, whole, None, None, None)
    # a pair that a seed is in stands in its row or in its column
    without = ((total - apart.sum(0) - apart.sum(1)) / ((count - 1) * (count - 2))).tolist()
    _, sd = _moments([count * whole - (count - 1) * part for part in without])
    half = _t((1 + level) / 2, count - 1) * sd / math.sqrt(count)
    return Paired(count, whole, sd, (whole - half, whole + half), 2 * _tail(abs(whole), sd, count))


def pairwise(items: Sequence[Any], others: Sequence[Any], distance: Callable[[Any, Any], float]) -> np.ndarray:
    """float64 [n, m]: the distance of every item to every other."""
    return np.array([[distance(a, b) for b in others] for a in items], dtype=np.float64).reshape(len(items), len(others))


def upper(matrix: np.ndarray) -> list[float]:
    """The values above the diagonal: one for every unordered pair."""
    return [float(matrix[i, j]) for i, j in itertools.combinations(range(len(matrix)), 2)]


# --------------------------------------------------------------------------------------------------------- the sample of images


def share_error(share: float, count: int) -> float:
    """Standard error of a share of ``count`` images that were drawn at random: what other images would change."""
    return math.sqrt(max(0.0, share * (1 - share)) / count)


def tow_error(changes: Mapping[str, tuple[int, int, int]]) -> float:
    """Standard error of ToW from the images alone: that of the bootstrap over the images of each part, with no draw made.

    Parts are independent, so that the variance of the product follows from the first two moments of each factor.

    Args:
        changes: part -> how many of its images the model alone gets right, retrain alone, and both or neither; images drawn
            with replacement make these counts multinomial, so that no image need be touched.
    """
    square = mean = 1.0
    for counts in changes.values():
        first, second = _moments_of_distance(*counts)
        mean *= 1 - first
        square *= 1 - 2 * first + second
    return math.sqrt(max(0.0, square - mean**2))


@functools.lru_cache(maxsize=2**12)
def _moments_of_distance(alone: int, other: int, rest: int) -> tuple[float, float]:
    """Means of |a - b| / n and of its square, for multinomial a, b of n draws at the shares of the three counts.

    The distribution of a - b is the Fourier transform of its characteristic function's n-th power; the transform is as long
    as twelve standard deviations to either side, and where it wraps around there is nothing.
    """
    total = alone + other + rest
    p, q = alone / total, other / total
    middle, spread = total * (p - q), math.sqrt(total * (p + q - (p - q) ** 2))
    size = 2 ** math.ceil(math.log2(min(2 * total + 1, 24 * spread + 128)))
    angles = 2 * np.pi * np.arange(size) / size
    law = np.fft.fft((p * np.exp(1j * angles) + q * np.exp(-1j * angles) + rest / total) ** total).real / size
    lowest = round(middle) - size // 2 if size <= 2 * total else -total
    values = lowest + (np.arange(size) - lowest) % size  # the residue's representative that lies about the mean
    return float(np.abs(values) @ law) / total, (spread**2 + middle**2) / total**2
