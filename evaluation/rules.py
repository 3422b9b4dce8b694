"""Exact rules on one-dimensional values, and statistics of their ranks, for many draws from one pool at once.

The pool is sorted once. A draw is then how often it holds each distinct value (``counts``), and everything follows from
cumulated counts: time and memory linear in draws times values.

Shapes: N examples of a pool, U distinct values of it in ascending order, D draws. Larger values speak for members.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def counts(place: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """How often each draw holds each distinct value: int64 [D, size].

    Args:
        place: int64 [N], of each example's value among the ``size`` distinct ones.
        index: int64 [D, n], the examples of each draw.
    """
    rows = np.arange(len(index))[:, None] * size
    return np.bincount((place[index] + rows).ravel(), minlength=len(index) * size).reshape(len(index), size)


@dataclass(frozen=True)
class Intervals:
    """A half-open interval low <= value < high a draw, and whether the members are inside it or outside; [D] each."""

    low: np.ndarray
    high: np.ndarray
    inside: np.ndarray

    def decide(self, values: np.ndarray) -> np.ndarray:
        """Whether each value is called a member: bool [D, M] of values [M], the same for all draws, or [D, M]."""
        within = (values >= self.low[:, None]) & (values < self.high[:, None])
        return within == self.inside[:, None]


def best_thresholds(values: np.ndarray, members: np.ndarray, others: np.ndarray) -> Intervals:
    """The threshold with the best balanced accuracy in each draw, exact: members are the values not below it.

    Thresholds lie midway between neighbouring distinct values of the draw, or at ±inf: all or none are members. Of equally
    good ones it is that which calls most examples members, so that a tie never counts as forgetting.

    Args:
        values: float [U], distinct, ascending.
        members, others: counts int64 [D, U].
    """
    gain = _cumulated_gain(values, members, others)
    # members are what lies above the cut: the less gained below it the better; argmin takes the lowest of equals
    low = _cuts(values, members + others > 0, gain.argmin(1))
    return Intervals(low, np.full(len(low), np.inf), np.ones(len(low), dtype=bool))


def best_intervals(values: np.ndarray, members: np.ndarray, others: np.ndarray) -> Intervals:
    """The interval with the best balanced accuracy in each draw, its inside either members or non-members; exact.

    Of all intervals the one with the largest sum of gains (maximum subarray). Ends are as in ``best_thresholds``. Of equally
    good ones: members inside, then the lowest upper end, then the widest. Where nothing gains, all are called members.
    """
    gain = _cumulated_gain(values, members, others)
    row = np.arange(len(gain))
    (start, stop), (out_start, out_stop) = _best_spans(gain), _best_spans(-gain)
    inside = gain[row, stop] - gain[row, start] >= gain[row, out_start] - gain[row, out_stop]
    start, stop = np.where(inside, start, out_start), np.where(inside, stop, out_stop)
    drawn, nothing = members + others > 0, start == stop
    low, high = _cuts(values, drawn, start), _cuts(values, drawn, stop)
    return Intervals(np.where(nothing, -np.inf, low), np.where(nothing, np.inf, high), inside | nothing)


def _cumulated_gain(values: np.ndarray, members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The gain of what lies below each of the cuts before, between and after the values: int64 [D, U + 1].

    A member below a cut counts +(number of non-members), a non-member -(number of members): integers in proportion to their
    share of the balanced accuracy, so that equals are equal.
    """
    count_m, count_o = members.sum(1, keepdims=True), others.sum(1, keepdims=True)
    assert (count_m > 0).all() and (count_o > 0).all(), "an attack needs members and non-members"
    assert not np.isnan(values[-1]), "a feature is NaN"
    gain = np.zeros((len(members), len(values) + 1), dtype=np.int64)
    np.cumsum(members * count_o - others * count_m, axis=1, out=gain[:, 1:])
    return gain


def _best_spans(gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First positions start <= stop with the largest gain[stop] - gain[start] in each row."""
    stop = (gain - np.minimum.accumulate(gain, axis=1)).argmax(1)
    return np.array([row[: end + 1].argmin() for row, end in zip(gain, stop, strict=True)]), stop


def _cuts(values: np.ndarray, drawn: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The cut before position ``at`` of each draw [D]: midway between the draw's own neighbouring values, or ±inf.

    The value before ``at`` is of the draw, since a first extreme comes right after a value that counts; the one behind need
    not be (drawn: bool [D, U]).
    """
    cuts = np.empty(len(at))
    for row, (there, start) in enumerate(zip(drawn, at, strict=True)):
        ahead = start + int(there[start:].argmax()) if start < len(values) else start
        if start == 0:
            cuts[row] = -np.inf
        elif ahead == len(values) or not there[ahead]:
            cuts[row] = np.inf
        else:
            below, above = values[start - 1], values[ahead]
            between = below / 2 + above / 2
            # of adjacent floats the middle rounds to one of them; the cut must lie above the lower
            cuts[row] = between if between > below else above
    return cuts


# ----------------------------------------------------------------------------------------------------------- of ranks


def areas(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """ROC AUC of each draw [D], 0 to 1: the chance that a member's value exceeds a non-member's, ties counted half.

    Args:
        members, others: counts, or weights, [D, U] of the distinct values in ascending order.
    """
    below = np.cumsum(others, axis=1) - others / 2
    return (members * below).sum(1) / (members.sum(1) * others.sum(1))


def area_under_curve(members: np.ndarray, others: np.ndarray, weights: np.ndarray | None = None) -> float:
    """ROC AUC of values [N] against values [M], ties counted half; 0 to 1.

    Args:
        weights: of the non-members, [M], not negative; equal without them.
    """
    values, place = np.unique(np.concatenate([members, others]), return_inverse=True)
    mine, theirs = place[: len(members)], place[len(members) :]
    shape = 1, len(values)
    return float(areas(np.bincount(mine, minlength=len(values)).reshape(shape),
                       np.bincount(theirs, weights, minlength=len(values)).reshape(shape))[0])


def rate_at(members: np.ndarray, others: np.ndarray, level: float, weights: np.ndarray | None = None) -> float:
    """The true positive rate at a false positive rate of at most ``level``, both 0 to 1.

    Positive is what lies strictly above the highest threshold, a non-member's value, that leaves no more than ``level`` of
    the non-members above it: at n equal ones their (floor(level n) + 1)-th largest value. Ties never exceed the level, and
    nothing is interpolated.

    Args:
        members, others: values [N], [M]; weights: of the non-members, [M].
    """
    weights = np.ones(len(others)) if weights is None else weights
    order = np.argsort(-others, kind="stable")
    spent = np.cumsum(weights[order])
    allowed = np.searchsorted(spent, level * spent[-1] * (1 + 1e-9), "right")
    return float(np.mean(members > others[order[min(allowed, len(order) - 1)]]))


def largest_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The two-sample Kolmogorov-Smirnov statistic, 0 to 1: the largest distance between the distributions of [N] and [M]."""
    first, second = np.sort(first), np.sort(second)
    values = np.concatenate([first, second])
    shares = [np.searchsorted(side, values, "right") / len(side) for side in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())
