"""Which examples a membership attack is fitted on: class-balanced draws of members and non-members, or the published ones.

A draw depends on labels and on its generator alone, so that every model of a seed meets the same ones.

Shapes: D draws, N and M examples to draw from, n drawn a side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from utils import BadInput

MODES = ("balanced", "published")
Sides = tuple[np.ndarray, np.ndarray]  # of members among retain, of non-members among test: int64 [D, n] each


class Draws(NamedTuple):
    """Members and non-members of D draws.

    fit: what the attack on the forget set is fitted on: all of a draw, since the forget set is in neither side.
    privacy, held_out: what the attack whose own success is measured is fitted on, and what it is then asked about.
    """

    fit: Sides
    privacy: Sides
    held_out: Sides

    def __len__(self) -> int:
        return len(self.fit[0])

    def take(self, part: slice) -> Draws:
        """Some of the draws."""
        return Draws(*((members[part], others[part]) for members, others in self._sides()))

    def parts(self, size: int) -> Iterator[Draws]:
        """All of them in order, at most so many at once."""
        return (self.take(slice(start, start + size)) for start in range(0, len(self), size))

    def _sides(self) -> tuple[Sides, ...]:
        return self.fit, self.privacy, self.held_out


def draws(members: np.ndarray, others: np.ndarray, mode: str, count: int, generator: np.random.Generator) -> Draws:
    """``count`` draws in mode ``balanced``, the one that there is in mode ``published``.

    Fewer draws from an equal generator are the first of more.

    Args:
        members, others: labels int64 [N] of retain and [M] of test.

    Raises:
        BadInput: too few examples, or no class on both sides.
    """
    if mode == "published":
        fit = published_draw(len(members), len(others))
        size = len(fit[0]) // 2
        privacy = np.arange(size), np.arange(size)
        held_out = np.arange(size, len(members)), np.arange(size, len(others))
        found = Draws(*((a[None], b[None]) for a, b in (fit, privacy, held_out)))
    else:
        fit = balanced_draws(members, others, count, generator)
        (fit_a, held_a), (fit_b, held_b) = (halves(index) for index in fit)
        found = Draws(fit, (fit_a, fit_b), (held_a, held_b))
    if min(index.shape[1] for index in (*found.privacy, *found.held_out)) == 0:
        raise BadInput("the membership attack needs two retain and two test examples of the same classes at least")
    return found


def balanced_draws(members: np.ndarray, others: np.ndarray, count: int, generator: np.random.Generator) -> Sides:
    """Indices of members and non-members, int64 [count, n] each: equally many of every class, as many as there are.

    A class that one side lacks is left out. Position i holds the same class in both sides and in all draws, classes one
    after the other and random within a class, so that ``halves`` splits each class.

    Args:
        members, others: labels int64 [N], [M].

    Raises:
        BadInput: no class occurs on both sides.
    """
    classes = np.intersect1d(members, others)
    if not len(classes):
        raise BadInput(f"no class occurs in both the {len(members)} retain and the {len(others)} test examples; "
                       "the membership attack needs some of both")
    sizes = [np.array([np.count_nonzero(labels == label) for label in classes]) for labels in (members, others)]
    taken = np.minimum(*sizes)
    found = tuple(np.empty((count, taken.sum()), dtype=np.int64) for _ in sizes)
    of_class = np.arange(taken.sum()) - np.repeat(np.cumsum(taken) - taken, taken)  # 0, 1, ... in each class
    pools = []
    for labels, size in zip((members, others), sizes, strict=True):
        pool = np.flatnonzero(np.isin(labels, classes))
        first = np.repeat(np.cumsum(size) - size, taken) + of_class  # of every class in the order below
        pools.append((pool, np.searchsorted(classes, labels[pool]).astype(np.int16), first))
    for draw in range(count):
        for index, (pool, kind, first) in zip(found, pools, strict=True):
            order = generator.permutation(len(pool))
            # a stable sort of 16-bit numbers takes linear time
            index[draw] = pool[order[np.argsort(kind[order], kind="stable")[first]]]
    return found[0], found[1]


def halves(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every other entry of [D, n] to fit with, the rest held out; of balanced draws half of every class, give or take one."""
    return index[:, 0::2], index[:, 1::2]


def published_draw(num_retain: int, num_test: int) -> tuple[np.ndarray, np.ndarray]:
    """The released code's choice: the first |test| retain examples in data set order, and the whole test set.

    Where retain is smaller than test the released code fails; here both sides are then cut to their first |retain|.

    Raises:
        BadInput: one side is empty.
    """
    size = min(num_retain, num_test)
    if size == 0:
        raise BadInput(f"the membership attack needs retain and test examples; got {num_retain} and {num_test}")
    return np.arange(size), np.arange(size)
