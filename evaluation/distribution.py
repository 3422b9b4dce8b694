"""How the forgotten points lie among the others: variance, silhouette, overlap; pure functions of arrays.

The three measures are those of the over-unlearning and replay code (arXiv:2507.20573), which takes them in a t-SNE plane of
the logits. Here they are taken in the space itself too. None is good or bad alone: they are held against retrain's.

Shapes: N points of F coordinates with labels int64 [N]; the forgotten ones have the label FORGOTTEN. M points of the plane,
G points of a grid.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

FORGOTTEN = -1
AT_ONCE = 2**24  # distances that are one array: 128 MiB
KERNELS = 2**20  # kernel values that are one array: 8 MiB
REACH = 4.5  # kernel deviations around the outermost points
RIM = 2 * math.erfc(REACH / math.sqrt(2))  # of a kernel beyond that on its four sides, at most
CELLS, MOST_CELLS = 200, 1600  # of a grid along either axis
CLOSE = 1e-3  # error of an overlap up to which its grid is fine enough

# measure -> (unit, healthy direction, meaning); the README's table
METRICS = {
    "variance": ("squared units of the space", "as retrain's", "mean squared distance of the forgotten points to their mean; "
                 "to be compared within one space only"),
    "relative_variance": ("ratio", "as retrain's", "variance over the mean variance of the other classes, in which no unit of "
                          "the space is left"),
    "between": ("squared units of the space", "for information", "mean squared distance of the classes' means, that of the "
                "forgotten points among them, to the mean of all points"),
    "silhouette": ("-1 to 1", "as retrain's", "mean silhouette coefficient of the forgotten points and of the nearest other "
                   "class (by mean distance to its mean) together, as published: high where the forgotten stand apart"),
    "silhouette_all": ("-1 to 1", "as retrain's", "mean silhouette coefficient of the forgotten points, among all classes"),
    "overlap": ("0 to 1", "as retrain's", "integral of the smaller of two Gaussian kernel densities (Scott's rule), of the "
                "forgotten points and of all others. In the space itself: of their places along Fisher's discriminant and the "
                "first principal component across it, fitted on one half of the points and taken of the other; but for the "
                "kernels' width it is never less than in all dimensions"),
    "overlap_raw": ("a sum", "for information", "in the t-SNE plane alone, the published number: the smaller density summed "
                    "over 200 x 200 grid points, not multiplied by the cells' area"),
}


class Overlap(NamedTuple):
    """value: 0 to 1; error: what the grid and its rim may be off by."""

    value: float
    error: float


# -------------------------------------------------------------------------------------------------------------- variance


def variance(points: np.ndarray) -> float:
    """Mean squared distance of points [n, F] to their mean: the sum of the variances of the coordinates."""
    points = np.asarray(points, np.float64)
    return float(np.square(points - points.mean(0)).sum(1).mean())


def between(points: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the squared distance of a class's mean to the mean of all points."""
    means = _means(points, labels)[1]
    return float(np.square(means - np.asarray(points, np.float64).mean(0)).sum(1).mean())


def _means(points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels that there are, ascending, and the mean point of each."""
    known = np.unique(labels)
    return known, np.stack([np.asarray(points[labels == label], np.float64).mean(0) for label in known])


# ------------------------------------------------------------------------------------------------------------ silhouette


def silhouettes(points: np.ndarray, labels: np.ndarray, rows: np.ndarray, at_once: int = AT_ONCE) -> np.ndarray:
    """Silhouette coefficient (b - a) / max(a, b) of some points among all, float64 [len(rows)], -1 to 1.

    a is the mean Euclidean distance to the others of the own class, b the least mean distance to another class; 0 where the
    own class has no other point (Rousseeuw 1987; equal to scikit-learn's). Distances are taken in blocks.

    Args:
        rows: int64, which points; labels: of two classes at least. at_once: distances in one block.
    """
    known, own, counts = np.unique(labels, return_inverse=True, return_counts=True)
    assert len(known) > 1, "a silhouette needs another class"
    x = np.asarray(points, np.float64)
    x = x - x.mean(0)  # squares of points far from 0 would cancel
    squares, member = np.square(x).sum(1), (own[:, None] == np.arange(len(known))).astype(np.float64)
    found = np.zeros(len(rows))
    step = max(1, at_once // len(x))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        apart = x[part] @ x.T
        apart *= -2
        apart += squares[part, None]
        apart += squares
        np.sqrt(np.maximum(apart, 0, out=apart), out=apart)
        apart[np.arange(len(part)), part] = 0  # of a point to itself, but for rounding
        sums, mine = apart @ member, (np.arange(len(part)), own[part])
        inside = sums[mine] / np.maximum(counts[own[part]] - 1, 1)
        sums /= counts
        sums[mine] = np.inf
        outside = sums.min(1)
        larger = np.maximum(inside, outside)
        found[start : start + step] = np.where((counts[own[part]] > 1) & (larger > 0), (outside - inside)
                                               / np.where(larger > 0, larger, 1), 0)
    return found


def nearest_class(points: np.ndarray, labels: np.ndarray) -> int:
    """The other class to whose mean the forgotten points have the least mean distance."""
    gone = np.asarray(points[labels == FORGOTTEN], np.float64)
    known, means = _means(points[labels != FORGOTTEN], labels[labels != FORGOTTEN])
    return int(known[np.argmin([np.linalg.norm(gone - mean, axis=1).mean() for mean in means])])


def silhouette(points: np.ndarray, labels: np.ndarray) -> float:
    """The mean coefficient of the forgotten points and of those of the nearest other class, these two classes alone."""
    both = np.isin(labels, (FORGOTTEN, nearest_class(points, labels)))
    return float(silhouettes(points[both], labels[both], np.arange(both.sum())).mean())


def silhouette_all(points: np.ndarray, labels: np.ndarray) -> float:
    """The mean coefficient of the forgotten points among all classes."""
    return float(silhouettes(points, labels, np.flatnonzero(labels == FORGOTTEN)).mean())


# --------------------------------------------------------------------------------------------------------------- overlap


class Kernels(NamedTuple):
    """A Gaussian kernel density of points in the plane, by Scott's rule.

    points: float64 [n, 2]; covariance: of a kernel, [2, 2]: n^(-1/3) times that of the points.
    """

    points: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray) -> Kernels | None:
        """None of fewer than three points, and of points that float64 cannot tell from a line."""
        points = np.asarray(points, np.float64)
        if len(points) < 3 or not np.isfinite(points).all():
            return None
        covariance = np.cov(points.T) * len(points) ** (-1 / 3)
        least, most = np.linalg.eigvalsh(covariance)
        return cls(points, covariance) if least > 1e-12 * most > 0 else None

    def at(self, where: np.ndarray) -> np.ndarray:
        """The density at points [G, 2], float64 [G], in blocks."""
        root, middle = np.linalg.cholesky(self.covariance), self.points.mean(0)
        of, to = (torch.from_numpy(np.linalg.solve(root, (there - middle).T).T) for there in (self.points, where))
        # -|g - p|^2 / 2 as one product: [g, -|g|^2 / 2, 1] with [p, 1, -|p|^2 / 2]
        half_of, half_to = (-0.5 * there.square().sum(1, keepdim=True) for there in (of, to))
        right = torch.cat([of, torch.ones_like(half_of), half_of], 1).T.contiguous()
        left = torch.cat([to, half_to, torch.ones_like(half_to)], 1)
        found = torch.empty(len(left), dtype=torch.float64)
        step = max(1, KERNELS // len(of))
        block = torch.empty(step, len(of), dtype=torch.float64)  # one, since many of this size would tear the memory apart
        for start in range(0, len(left), step):
            part = left[start : start + step]
            torch.sum(torch.mm(part, right, out=block[: len(part)]).exp_(), 1, out=found[start : start + step])
        return found.numpy() / (len(of) * 2 * math.pi * root[0, 0] * root[1, 1])


class Upright(NamedTuple):
    """A density whose kernels are along the axes: points float64 [n, 2], deviations of a kernel [2]."""

    points: np.ndarray
    deviations: np.ndarray

    @property
    def box(self) -> np.ndarray:
        """Lowest and highest corner [2, 2] of what the points cover with their kernels."""
        reach = REACH * self.deviations
        return np.stack([self.points.min(0) - reach, self.points.max(0) + reach])

    def on(self, axes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """The density on a grid [G, H] of axes [G] and [H], exactly: a kernel there is a product, and the sum of them one of
        matrices."""
        found = np.zeros([len(axis) for axis in axes])
        step = max(1, KERNELS // max(map(len, axes)))
        for start in range(0, len(self.points), step):
            part = self.points[start : start + step]
            sides = [np.exp(-0.5 * np.square((axis[:, None] - part[:, i]) / self.deviations[i])) for i, axis in enumerate(axes)]
            found += sides[0] @ sides[1].T
        return found / (len(self.points) * 2 * math.pi * self.deviations.prod())


def upright(a: Kernels, b: Kernels) -> tuple[Upright, Upright]:
    """Both in coordinates in which the kernels of both are along the axes: an overlap is the same in any."""
    root = np.linalg.cholesky(a.covariance)
    back = np.linalg.inv(root)
    squares, turn = np.linalg.eigh(back @ b.covariance @ back.T)
    to, middle = turn.T @ back, a.points.mean(0)
    deviations = np.ones(2), np.sqrt(np.maximum(squares, np.finfo(float).tiny))
    return tuple(Upright((kernels.points - middle) @ to.T, own) for kernels, own in zip((a, b), deviations, strict=True))


def overlap(group: np.ndarray, others: np.ndarray) -> Overlap | None:
    """The integral of the smaller of the two kernel densities of points [n, 2] and [m, 2]; 1 of equal densities.

    The grid covers all that both cover with their kernels; outside, the smaller density is no more than a kernel's tail. It is
    refined until the sums over it and over every second cell agree. None where a density cannot be had.
    """
    both = Kernels.of(group), Kernels.of(others)
    if both[0] is None or both[1] is None:
        return None
    both = upright(*both)
    low, high = np.maximum(both[0].box[0], both[1].box[0]), np.minimum(both[0].box[1], both[1].box[1])
    if (low >= high).any():
        return Overlap(0.0, RIM)
    narrowest = np.minimum(both[0].deviations, both[1].deviations)
    cells = 2 * np.clip(np.ceil((high - low) / narrowest / 2), CELLS / 2, MOST_CELLS / 2).astype(int)
    while True:
        value, error = on_grid(both, low, high, cells)
        if error <= CLOSE or (cells >= MOST_CELLS).all():
            return Overlap(min(value, 1.0), error)
        cells = np.minimum(2 * cells, MOST_CELLS)


def on_grid(both: tuple[Upright, Upright], low: np.ndarray, high: np.ndarray, cells: np.ndarray) -> tuple[float, float]:
    """The overlap over a grid with even numbers of cells [2], and its error: what the rim cuts off, what the masses of the
    densities that lie inside whole lack of 1, and what the sums over every second cell differ by."""
    axes = tuple(low[i] + (high[i] - low[i]) * (np.arange(cells[i]) + 0.5) / cells[i] for i in (0, 1))
    area = float(np.prod((high - low) / cells))
    dense = [density.on(axes) for density in both]
    whole = [(density.box[0] >= low).all() and (density.box[1] <= high).all() for density in both]
    lost = [abs(1 - area * float(there.sum())) for there, inside in zip(dense, whole, strict=True) if inside]
    smaller = np.minimum(*dense)
    value = area * float(smaller.sum())
    coarse = [4 * area * float(smaller[i::2, j::2].sum()) for i in (0, 1) for j in (0, 1)]
    # the rule's error falls at least as the square of the cells' size
    return value, max([RIM, *lost, *(abs(one - value) / 3 for one in coarse)])


def raw_grid_sum(group: np.ndarray, others: np.ndarray) -> float | None:
    """The published "overlap": the sum of the smaller density over 200 x 200 points that span the data and 1 around it.

    Not multiplied by the cells' area, so that it grows as points lie closer; for comparison with published tables alone.
    """
    both = Kernels.of(group), Kernels.of(others)
    if both[0] is None or both[1] is None:
        return None
    every = np.concatenate([both[0].points, both[1].points])
    axes = [np.linspace(every[:, i].min() - 1, every[:, i].max() + 1, 200) for i in (0, 1)]
    where = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    return float(np.minimum(*(kernels.at(where) for kernels in both)).sum())


# --------------------------------------------------------------------------------------------- a plane of a large space


def axes_apart(points: np.ndarray, forgotten: np.ndarray) -> np.ndarray:
    """Two orthonormal axes [F, 2]: Fisher's discriminant of the forgotten against all others, and the first principal
    component of what is left across it.

    The covariance inside both groups is shrunk as Ledoit and Wolf (2004) have it, so that it can be inverted.

    Args:
        points: [n, F], of two coordinates at least; forgotten: bool [n], some of them and not all.
    """
    from sklearn.covariance import ledoit_wolf

    x = np.asarray(points, np.float64)
    means = [x[part].mean(0) for part in (forgotten, ~forgotten)]
    inside = x - np.where(forgotten[:, None], *means)
    shrunk = ledoit_wolf(inside, assume_centered=True)[0]
    shrunk[np.diag_indices_from(shrunk)] += 1e-12 * max(np.trace(shrunk), 1e-300)
    first = np.linalg.solve(shrunk, means[0] - means[1])
    length = np.linalg.norm(first)
    covariance = np.cov(x.T)
    first = first / length if length > 0 else np.linalg.eigh(covariance)[1][:, -1]
    along = np.outer(first, first)
    across = np.eye(len(first)) - along
    # the first axis itself is made the last of all
    second = np.linalg.eigh(across @ covariance @ across - (np.trace(covariance) or 1.0) * along)[1][:, -1]
    return np.stack([first, second], 1)


def overlap_across(points: np.ndarray, forgotten: np.ndarray, half: np.ndarray) -> Overlap | None:
    """The overlap in the plane of ``axes_apart``: axes of one half of the points, densities of the other; the mean of both.

    Directions that were fitted on the same points would tell groups apart that are not: with F = 512 and 2,500 forgotten of
    37,500 points, two samples of one distribution would overlap by 0.8.

    Args:
        half: bool [N], of about half of the forgotten points and of the others.
    """
    found = []
    for side in (False, True):
        fitted, asked = half == side, half != side
        if min(forgotten[fitted].sum(), (~forgotten)[fitted].sum()) < 2:
            return None
        seen = np.asarray(points[asked], np.float64) @ axes_apart(points[fitted], forgotten[fitted])
        found.append(overlap(seen[forgotten[asked]], seen[~forgotten[asked]]))
    if None in found:
        return None
    return Overlap(sum(one.value for one in found) / 2, max(one.error for one in found))


def halves(labels: np.ndarray) -> np.ndarray:
    """bool [N]: every second point of each class, in the order given."""
    found = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        found[np.flatnonzero(labels == label)[::2]] = True
    return found


# ----------------------------------------------------------------------------------------------------------------- t-SNE


def subsample(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Which points go into the t-SNE plane, int64, ascending: all where there are no more than ``count``.

    The forgotten points are kept whole up to half of the count; the others are drawn at random, each class by its share.
    """
    if len(labels) <= count:
        return np.arange(len(labels))
    draw = np.random.default_rng([seed, 0x74534E45])
    gone = np.flatnonzero(labels == FORGOTTEN)
    gone = draw.permutation(gone)[: count // 2]
    known, there = np.unique(labels[labels != FORGOTTEN], return_counts=True)
    shares = (count - len(gone)) * there / there.sum()
    taken = np.floor(shares).astype(int)
    taken[np.argsort(taken - shares, kind="stable")[: count - len(gone) - taken.sum()]] += 1  # the largest remainders
    parts = [draw.permutation(np.flatnonzero(labels == label))[:most] for label, most in zip(known, taken, strict=True)]
    return np.sort(np.concatenate([gone, *parts]))


def tsne(points: np.ndarray, seed: int, perplexity: float) -> np.ndarray:
    """The points [M, F] in a t-SNE plane, float32 [M, 2]: scikit-learn's, with its defaults but for these two.

    A perplexity that the points are too few for is lowered to a third of them.
    """
    from sklearn.manifold import TSNE

    few = (len(points) - 1) / 3
    plane = TSNE(perplexity=min(perplexity, few), random_state=seed, n_jobs=torch.get_num_threads())
    return plane.fit_transform(np.asarray(points, np.float32))


# ------------------------------------------------------------------------------------------------------------ all of them


def in_space(points: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every measure of the space itself; those that cannot be had are left out."""
    forgotten = labels == FORGOTTEN
    return _numbers(points, labels, overlap=overlap_across(points, forgotten, halves(labels)))


def in_plane(points: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every measure of a plane [M, 2]; those that cannot be had are left out."""
    gone, others = points[labels == FORGOTTEN], points[labels != FORGOTTEN]
    raw = raw_grid_sum(gone, others)
    return _numbers(points, labels, overlap=overlap(gone, others)) | ({} if raw is None else {"overlap_raw": raw})


def _numbers(points: np.ndarray, labels: np.ndarray, overlap: Overlap | None) -> dict[str, float]:
    found = {"variance": variance(points[labels == FORGOTTEN])}
    inside = [variance(points[labels == label]) for label in np.unique(labels) if label != FORGOTTEN]
    if (usual := sum(inside) / len(inside)) > 0:
        found["relative_variance"] = found["variance"] / usual
    found |= {"between": between(points, labels), "silhouette": silhouette(points, labels),
              "silhouette_all": silhouette_all(points, labels)}
    return found | ({} if overlap is None else {"overlap": overlap.value, "overlap_error": overlap.error})
