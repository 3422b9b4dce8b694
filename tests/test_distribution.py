"""Variance, silhouette and overlap of the forgotten points against closed forms on Gaussians, scikit-learn and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import gaussian_kde
from sklearn.metrics import silhouette_samples, silhouette_score

from evaluation import distribution
from evaluation.distribution import FORGOTTEN, Kernels


def cloud(count: int = 120, classes: int = 4, width: int = 6, apart: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, F] around random means, and labels of which the first class is the forgotten one."""
    draw = np.random.default_rng(0)
    labels = np.arange(count) % classes - 1
    return draw.normal(size=(classes, width))[labels + 1] * apart + draw.normal(size=(count, width)), labels


def two_gaussians(count: int, apart: float, width: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    way = draw.normal(size=width)
    return draw.normal(size=(count, width)) + apart * way / np.linalg.norm(way), draw.normal(size=(count, width))


def closed_form(count: int, apart: float) -> float:
    """Overlap of two unit Gaussians, each as wide as its kernels make it in the plane: 1 + n^(-1/3)."""
    return 2 * ndtr(-apart / 2 / math.sqrt(1 + count ** (-1 / 3)))


# -------------------------------------------------------------------------------------------------------------- variance


def test_variance_is_the_mean_squared_distance_by_a_loop() -> None:
    points, labels = cloud()
    group = points[labels == FORGOTTEN]
    mean = [math.fsum(column) / len(group) for column in group.T]
    by_hand = math.fsum(math.fsum((x - m) ** 2 for x, m in zip(row, mean, strict=True)) for row in group) / len(group)
    assert distribution.variance(group) == pytest.approx(by_hand, rel=1e-12)


def test_variance_of_a_gaussian_is_the_trace_of_its_covariance() -> None:
    sides = np.array([0.5, 1.0, 3.0])
    found = distribution.variance(np.random.default_rng(1).normal(size=(40_000, 3)) * sides + 7)
    assert found == pytest.approx(np.square(sides).sum(), rel=0.03)


def test_variance_between_classes_is_that_of_their_means_around_the_mean_of_all() -> None:
    """Classes of other sizes: the mean of all points is not that of the means."""
    points, labels = np.array([[0.0, 0], [2, 0], [10, 0]]), np.array([FORGOTTEN, FORGOTTEN, 3])
    assert distribution.between(points, labels) == pytest.approx(((1 - 4) ** 2 + (10 - 4) ** 2) / 2)


def test_relative_variance_is_the_same_in_any_unit() -> None:
    points, labels = cloud()
    found = [distribution.in_space(scale * points, labels) for scale in (1.0, 0.01, 300.0)]
    for name in ("relative_variance", "silhouette", "silhouette_all", "overlap"):
        assert [own[name] for own in found] == pytest.approx([found[0][name]] * 3, rel=1e-6), name
    assert found[2]["variance"] == pytest.approx(90_000 * found[0]["variance"])
    others = [distribution.variance(points[labels == label]) for label in range(3)]
    assert found[0]["relative_variance"] == pytest.approx(found[0]["variance"] / np.mean(others))


# ------------------------------------------------------------------------------------------------------------ silhouette


@pytest.mark.parametrize("width", [2, 6, 200])
def test_silhouette_equals_scikit_learns_on_the_two_classes_alone(width: int) -> None:
    points, labels = cloud(width=width)
    nearest = distribution.nearest_class(points, labels)
    both = np.isin(labels, (FORGOTTEN, nearest))
    assert distribution.silhouette(points, labels) == pytest.approx(silhouette_score(points[both], labels[both]), abs=1e-9)
    every = silhouette_samples(points, labels)
    assert distribution.silhouette_all(points, labels) == pytest.approx(every[labels == FORGOTTEN].mean(), abs=1e-9)
    assert np.allclose(distribution.silhouettes(points, labels, np.arange(len(points))), every, atol=1e-9)


def test_silhouette_holds_far_from_the_origin_and_in_single_precision() -> None:
    points, labels = cloud()
    moved = (points + 500).astype(np.float32)
    assert distribution.silhouette(moved, labels) == pytest.approx(distribution.silhouette(points, labels), abs=1e-4)


def test_silhouette_is_zero_of_a_lone_point_and_of_points_that_are_one() -> None:
    points, labels = np.zeros((4, 2)), np.array([FORGOTTEN, FORGOTTEN, 0, 0])
    assert distribution.silhouette(points, labels) == 0
    points, labels = np.array([[0.0, 0], [5, 0], [6, 0], [7, 0]]), np.array([FORGOTTEN, 0, 0, 0])
    assert list(distribution.silhouettes(points, labels, np.array([0]))) == [0]
    assert distribution.silhouette(points, labels) == pytest.approx(silhouette_score(points, labels))


def test_nearest_class_is_that_of_the_least_mean_distance_to_a_mean() -> None:
    """Not of the nearest single point, nor of the nearest mean to the mean."""
    gone = np.array([[-10.0, 0], [10, 0]])
    points = np.concatenate([gone, [[0.0, 9]] * 2, [[-10.5, 0], [60, 0]], [[10.0, 1]] * 2])
    labels = np.array([FORGOTTEN, FORGOTTEN, 0, 0, 1, 1, 2, 2])
    by_hand = {label: np.mean([math.dist(point, points[labels == label].mean(0)) for point in gone]) for label in range(3)}
    assert distribution.nearest_class(points, labels) == min(by_hand, key=by_hand.get) == 2


@pytest.mark.parametrize("at_once", [1, 7 * 120, 10**9])
def test_blocks_of_distances_do_not_change_the_silhouette(at_once: int) -> None:
    points, labels = cloud()
    rows = np.arange(len(points))
    found = distribution.silhouettes(points, labels, rows, at_once)
    assert np.allclose(found, distribution.silhouettes(points, labels, rows), atol=1e-12)


# --------------------------------------------------------------------------------------------------------------- overlap


@pytest.mark.parametrize("kernels", [1, 700, 2**20])
def test_density_equals_scipys_in_blocks_of_any_size(kernels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "KERNELS", kernels)
    draw = np.random.default_rng(3)
    points = draw.normal(size=(90, 2)) @ np.array([[3.0, 0], [2.5, 0.4]]) + 40
    where = np.concatenate([points[:20], draw.normal(size=(30, 2)) * 5 + 40])
    kde = gaussian_kde(points.T)
    found = Kernels.of(points)
    assert np.allclose(found.covariance, kde.covariance, rtol=1e-12)
    assert np.allclose(found.at(where), kde(where.T), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("apart", [0.0, 0.7, 2.0, 4.0])
def test_overlap_of_two_gaussians_is_the_closed_form_of_their_smoothed_ones(apart: float) -> None:
    """At distance 0 the samples' own noise is left."""
    found = distribution.overlap(*two_gaussians(4000, apart))
    assert found.value == pytest.approx(closed_form(4000, apart), abs=0.06 if apart == 0 else 0.015)


def test_kernels_have_their_part_in_an_overlap() -> None:
    """Of few points it is larger than that of the distributions, as the closed form with kernels says."""
    found = np.mean([distribution.overlap(*two_gaussians(30, 3.0, seed=seed)).value for seed in range(40)])
    assert found == pytest.approx(closed_form(30, 3.0), abs=0.03) and found > 2 * ndtr(-1.5) + 0.03


def test_overlap_is_the_integral_of_scipys_densities() -> None:
    """Of three points each, whose kernels show; far apart nothing is shared."""
    ring = np.stack([np.cos([0, 2, 4]), np.sin([0, 2, 4])], 1)
    assert distribution.overlap(ring, ring).value == pytest.approx(1, abs=1e-3)
    assert distribution.overlap(ring, ring + 50).value == 0
    mixed = distribution.overlap(ring, ring + [1.5, 0])
    kde = [gaussian_kde(part.T) for part in (ring, ring + [1.5, 0])]
    axis = np.linspace(-12, 14, 601)
    where = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    fine = np.minimum(kde[0](where.T), kde[1](where.T)).sum() * (axis[1] - axis[0]) ** 2
    assert abs(mixed.value - fine) < 5e-4 and mixed.error < 1e-3


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_overlap_is_the_same_in_any_unit_and_moved_anywhere(scale: float) -> None:
    group, others = two_gaussians(300, 1.5)
    plain = distribution.overlap(group, others)
    moved = distribution.overlap(scale * group + 3, scale * others + 3)
    assert moved.value == pytest.approx(plain.value, abs=1e-5)
    assert distribution.overlap(others, group).value == pytest.approx(plain.value, abs=1e-9)


def test_overlap_of_kernels_that_lie_askew_is_that_of_a_fine_grid() -> None:
    """Each group is stretched in a direction of its own: no axes but those of both make all kernels upright."""
    draw = np.random.default_rng(2)
    group, others = draw.normal(size=(80, 2)) @ [[2.0, 1.8], [0, 0.3]], draw.normal(size=(50, 2)) @ [[0.4, 0], [-1.5, 1.0]]
    found = distribution.overlap(group, others)
    axis = np.linspace(-12, 12, 300)
    where = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    fine = np.minimum(*(gaussian_kde(part.T)(where.T) for part in (group, others))).sum() * (axis[1] - axis[0]) ** 2
    assert found.value == pytest.approx(fine, abs=1e-3) and found.error < 1e-3
    both = distribution.upright(Kernels.of(group), Kernels.of(others))
    for density in both:
        (low, high), area = density.box, float(np.prod(np.ptp(density.box, 0) / 300))
        axes = tuple(low[i] + (high[i] - low[i]) * (np.arange(300) + 0.5) / 300 for i in (0, 1))
        assert area * density.on(axes).sum() == pytest.approx(1, abs=1e-4), "its box holds the whole density"


def test_a_tight_group_is_seen_whole_and_an_error_is_told() -> None:
    """Among wide others, where the published grid of 200 points over all meets none of it."""
    draw = np.random.default_rng(0)
    group, wide = draw.normal(size=(200, 2)) * 1e-3, draw.normal(size=(200, 2)) * 0.02
    assert distribution.overlap(group, group + 1e-9).value == pytest.approx(1, abs=1e-3)
    found = distribution.overlap(group, np.concatenate([wide, group]))
    kde = [gaussian_kde(part.T) for part in (group, np.concatenate([wide, group]))]
    axis = np.linspace(-0.008, 0.008, 200)
    where = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    fine = np.minimum(kde[0](where.T), kde[1](where.T)).sum() * (axis[1] - axis[0]) ** 2
    assert found.value == pytest.approx(fine, abs=5e-4) and found.error <= 1e-3
    both = distribution.upright(Kernels.of(group), Kernels.of(group))
    few = distribution.on_grid(both, both[0].box[0] * 40, both[0].box[1] * 40, np.array([20, 20]))
    assert few[1] > 0.1 and abs(few[0] - 1) <= 4 * few[1], "cells larger than the group: its mass is not there, which is said"


def test_points_without_a_density_have_no_overlap() -> None:
    plane = np.random.default_rng(0).normal(size=(50, 2))
    line = np.stack([np.arange(9.0), 2 * np.arange(9.0)], 1)
    for group in (line, plane[:2], np.zeros((7, 2)), plane * np.nan):
        assert distribution.overlap(group, plane) is distribution.overlap(plane, group) is None
        assert distribution.raw_grid_sum(group, plane) is None


def test_published_sum_is_that_of_a_plain_loop_and_times_a_cells_area_the_overlap() -> None:
    group, others = two_gaussians(60, 1.0)
    both = np.concatenate([group, others])
    (x0, y0), (x1, y1) = both.min(0) - 1, both.max(0) + 1
    xs, ys = np.mgrid[x0:x1:200j, y0:y1:200j]
    places = np.vstack([xs.ravel(), ys.ravel()])
    published = np.minimum(gaussian_kde(group.T)(places), gaussian_kde(others.T)(places)).sum()
    found = distribution.raw_grid_sum(group, others)
    assert found == pytest.approx(published, rel=1e-9) and found > 1
    area = (x1 - x0) * (y1 - y0) / 200**2
    assert found * area == pytest.approx(distribution.overlap(group, others).value, abs=0.01)


# --------------------------------------------------------------------------------------------- a plane of a large space


@pytest.mark.parametrize("apart", [0.0, 1.5, 3.0])
def test_overlap_across_a_large_space_is_that_along_the_discriminant(apart: float) -> None:
    """Which finds the direction in which two Gaussians lie apart, whatever the others' scale, and invents none."""
    group, others = two_gaussians(1500, apart, width=12)
    points, labels = np.concatenate([group, others]), np.repeat([FORGOTTEN, 0], 1500)
    skewed = points @ np.diag(np.linspace(1, 20, 12))
    for space in (points, skewed):
        found = distribution.overlap_across(space, labels == FORGOTTEN, distribution.halves(labels))
        assert found.value == pytest.approx(closed_form(750, apart), abs=0.12 if apart == 0 else 0.04)


def test_axes_of_all_points_would_tell_apart_what_is_one() -> None:
    """Few points in many dimensions: why the axes are those of the other half."""
    points = np.random.default_rng(0).normal(size=(200, 60))
    labels = np.repeat([FORGOTTEN, 0], 100)
    gone = labels == FORGOTTEN
    seen = points @ distribution.axes_apart(points, gone)
    assert distribution.overlap(seen[gone], seen[~gone]).value < 0.6
    assert distribution.overlap_across(points, gone, distribution.halves(labels)).value > 0.75


def test_axes_are_orthonormal_and_the_second_has_what_varies_most_across_the_first() -> None:
    draw = np.random.default_rng(0)
    points = draw.normal(size=(600, 5)) * [1, 1, 9, 1, 1]
    gone = np.arange(600) < 200
    points[gone, 0] += 6
    axes = distribution.axes_apart(points, gone)
    assert np.allclose(axes.T @ axes, np.eye(2), atol=1e-9)
    assert abs(axes[0, 0]) > 0.98 and abs(axes[2, 1]) > 0.98


def test_features_that_are_constant_or_repeated_are_no_obstacle() -> None:
    """As those behind a ReLU are."""
    points, labels = cloud(200)
    wide = np.concatenate([points, points[:, :2], np.zeros((200, 3))], 1)
    found, plain = distribution.in_space(wide, labels), distribution.in_space(points, labels)
    assert found["overlap"] == pytest.approx(plain["overlap"], abs=0.1)
    flat = distribution.in_space(np.zeros((40, 4)), labels[:40])
    assert flat == {"variance": 0, "between": 0, "silhouette": 0, "silhouette_all": 0}


def test_the_order_of_points_changes_nothing() -> None:
    points, labels = cloud(200)
    order = np.random.default_rng(5).permutation(200)
    plane, half = points[:, :2], distribution.halves(labels)
    for name, value in distribution.in_plane(plane, labels).items():
        assert distribution.in_plane(plane[order], labels[order])[name] == pytest.approx(value, abs=1e-9), name
    plain = distribution.overlap_across(points, labels == FORGOTTEN, half).value
    moved = distribution.overlap_across(points[order], labels[order] == FORGOTTEN, half[order]).value
    assert moved == pytest.approx(plain, abs=1e-9)


def test_halves_are_of_every_class() -> None:
    labels = np.array([0, FORGOTTEN, 0, 0, FORGOTTEN, 1, FORGOTTEN])
    assert list(distribution.halves(labels)) == [True, True, False, True, False, True, True]


# ----------------------------------------------------------------------------------------------------------------- t-SNE


def test_subsample_keeps_the_forgotten_and_the_shares_of_the_others() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([FORGOTTEN, 0, 1, 2], [50, 300, 100, 50]))
    taken = distribution.subsample(labels, 140, seed=1)
    assert len(taken) == len(set(taken)) == 140 and list(taken) == sorted(taken)
    assert [int((labels[taken] == label).sum()) for label in (FORGOTTEN, 0, 1, 2)] == [50, 60, 20, 10]
    assert list(taken) == list(distribution.subsample(labels, 140, seed=1)) != list(distribution.subsample(labels, 140, seed=2))
    assert list(distribution.subsample(labels, 500, seed=1)) == list(range(500))
    few = distribution.subsample(labels, 60, seed=1)
    assert len(few) == 60 and (labels[few] == FORGOTTEN).sum() == 30, "half at most"
    assert len(set(np.flatnonzero(labels[few] == FORGOTTEN))) == 30


def test_plane_is_scikit_learns_and_keeps_groups_apart() -> None:
    from sklearn.manifold import TSNE

    points, labels = cloud(45, classes=3, apart=9)
    found = distribution.tsne(points, seed=42, perplexity=10.0)
    assert np.array_equal(found, TSNE(perplexity=10.0, random_state=42).fit_transform(points.astype(np.float32)))
    told = distribution.in_plane(found, labels)
    assert told["silhouette"] > 0.6 and told["overlap"] < 0.05 and "overlap_raw" in told
    assert distribution.tsne(points[:9], seed=42, perplexity=30.0).shape == (9, 2)


def test_every_measure_is_explained() -> None:
    points, labels = cloud()
    found = {*distribution.in_space(points, labels), *distribution.in_plane(points[:, :2], labels)}
    assert found - {"overlap_error"} == set(distribution.METRICS)
