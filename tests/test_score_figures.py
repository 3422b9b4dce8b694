"""The figures of scores draw the numbers and the images that they were given."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from conftest import make_data, quiet_runtime
from matplotlib.axes import Axes

from memorization.figures import chunks, draw, extremes, figures, grid, histogram, proxy
from utils import Run, RunConfig


def scored(count: int = 40, seed: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images that differ in each pixel, labels of three classes (none of class 1), scores of which some are NaN."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=count).astype(np.float32)
    scores[random.choice(count, 8, replace=False)] = np.nan
    return random.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8), random.choice([0, 2], count), scores


@pytest.mark.parametrize("polarity", [1, -1])
def test_grid_shows_the_extremes_of_each_class(polarity: int) -> None:
    """Most memorized above least, most extreme first, each above its own score, names at the rows' beginning."""
    images, labels, scores = scored()
    figure = grid(images, labels, scores, ["a", "b", "c"], 4, polarity=polarity)
    shown: list[list[Axes]] = [[], []]
    drawn = [axes for axes in figure.axes if axes.images]
    middle = np.mean([axes.get_position().x0 for axes in drawn])
    for axes in drawn:
        shown[int(axes.get_position().x0 > middle)].append(axes)
    for of, block in zip((0, 2), shown, strict=True):
        members = [i for i in range(40) if labels[i] == of and np.isfinite(scores[i])]
        ordered = sorted(members, key=lambda i: -polarity * scores[i])
        block.sort(key=lambda axes: (-round(axes.get_position().y0, 4), axes.get_position().x0))
        expected = [*ordered[:4], *ordered[::-1][:4]]
        assert len(block) == 8
        for axes, i in zip(block, expected, strict=True):
            assert np.array_equal(np.asarray(axes.images[0].get_array()), images[i])
            assert float(axes.get_title()) == pytest.approx(scores[i], abs=6e-4)
        texts = [block[k].texts[0].get_text() for k in (0, 4)]
        assert texts == [f"{'abc'[of]}\nmost", f"{'abc'[of]}\nleast"]


def test_extremes_are_disjoint_and_ties_go_by_index() -> None:
    scores, labels = np.array([1.0, 5.0, 1.0, 1.0, np.nan, 9.0, 0.0]), np.array([0, 0, 0, 0, 0, 1, 0])
    most, least = extremes(scores, labels, 0, 2)
    assert most.tolist() == [1, 0] and least.tolist() == [6, 2]
    most, least = extremes(scores, labels, 0, 9)
    assert most.tolist() == [1, 0, 2] and least.tolist() == [6, 3]
    most, least = extremes(scores, labels, 0, 2, -1)
    assert most.tolist() == [6, 0] and least.tolist() == [1, 2]
    assert [part.tolist() for part in extremes(scores, labels, 1, 3)] == [[5], []]


def test_grid_of_many_classes_says_how_many_it_shows() -> None:
    images, labels = np.zeros((60, 2, 2, 3), np.uint8), np.arange(60) // 2
    figure = grid(images, labels, np.arange(60.0), [f"class {k}" for k in range(30)], 2)
    names = {text.get_text().split("\n")[0] for axes in figure.axes for text in axes.texts}
    assert len(names) == 20 and {"class 0", "class 29"} <= names and "(20 of 30 classes)" in figure.get_suptitle()


@pytest.mark.parametrize("skew", [False, True])
def test_histogram_counts_every_finite_score(skew: bool) -> None:
    """On a logarithmic axis too, which scores with a long tail get."""
    random = np.random.default_rng(2)
    scores = np.exp(random.normal(0, 4, 300)) if skew else random.normal(size=300)
    scores[:20] = np.nan
    (axes,) = histogram(scores, "toy").axes
    assert sum(bar.get_height() for bar in axes.patches) == 280 and axes.get_xscale() == ("log" if skew else "linear")
    assert axes.get_legend().get_texts()[1].get_text() == f"median {np.median(scores[20:]):.3g}"


@pytest.mark.parametrize("constant", [np.ones(5), np.full(5, np.nan)])
def test_histogram_of_scores_without_spread(constant: np.ndarray, tmp_path: Path) -> None:
    histogram(constant, "toy").savefig(tmp_path / "h.png")
    assert matplotlib.image.imread(tmp_path / "h.png").size


@pytest.mark.parametrize("count", [200, 5000])
def test_proxy_draws_images_finite_in_both(count: int) -> None:
    random = np.random.default_rng(count)
    score, memorization = random.normal(size=(2, count))
    score[:5], memorization[3:9] = np.nan, np.inf
    axes = proxy(score, memorization, -0.8123, "confidence", -1).axes[0]
    assert "= -0.812" in axes.get_title() and f"{count - 9} images" in axes.get_title()
    (drawn,) = axes.collections
    if count == 200:
        assert np.array_equal(drawn.get_offsets(), np.stack([score[9:], memorization[9:]], 1))
    else:
        assert drawn.get_array().sum() == count - 9


def test_chunks_are_marked_by_measured_entanglement() -> None:
    values, distances = np.array([5.0, 90.0, 40.0, 2.0]), np.array([1.0, 2.0, 3.0, 7.0])
    upper, lower = chunks(values, np.array([3, 2, 1]), distances).axes
    assert np.array_equal(upper.lines[0].get_ydata(), values) and np.array_equal(lower.lines[0].get_ydata(), distances)
    labels = {line.get_label(): line.get_xydata()[0].tolist() for line in upper.lines[1:]}
    assert labels == {"low: chunk 3, ES 2": [3, 2], "mid: chunk 2, ES 40": [2, 40], "high: chunk 1, ES 90": [1, 90]}


def test_every_score_gets_the_figures_that_fit_it(tmp_path: Path) -> None:
    """PNG files in the run's folder, without leftovers; a proxy needs memorization to be drawn against."""
    data = make_data(quiet_runtime())
    random = np.random.default_rng(6)
    scores, memorization = random.random((2, 60))
    group = np.repeat([0, 1, 2, -1], [20, 20, 14, 6])
    entangled = {"es": scores, "group": group, "distance": scores * 3, "chunk_es": np.array([3.0, 1.0, 2.0]),
                 "levels": np.array([1, 2, 0])}
    with Run(RunConfig(save_dir=str(tmp_path)), "memorization", "toy", {}) as run:
        assert draw(run, "memorization", {"memorization": scores}, data, memorization) == ["histogram.png", "grid.png"]
        assert draw(run, "entropy", {"entropy": scores}, data, None) == ["histogram.png", "grid.png"]
        assert draw(run, "entropy", {"entropy": scores}, data, memorization)[-1] == "proxy.png"
        assert draw(run, "es", entangled, data, memorization) == ["chunks.png"]
    pictures = {"histogram.png", "grid.png", "proxy.png", "chunks.png"}
    assert {path.name for path in run.folder.iterdir()} == {*pictures, "record.json"}
    assert matplotlib.image.imread(run.folder / "chunks.png").shape[2] == 4
    lower = figures("es", entangled, data, None)["chunks"].axes[1]
    assert lower.lines[0].get_ydata() == pytest.approx([(3 * scores)[group == k].mean() for k in range(3)])


def test_proxy_on_top_is_the_most_memorized_by_polarity() -> None:
    """Low confidence is on top, high entropy too."""
    data, scores = make_data(quiet_runtime()), np.random.default_rng(8).random(60)
    of = np.flatnonzero(data.images.y.numpy() == 0)
    for name, best in (("confidence", of[scores[of].argmin()]), ("entropy", of[scores[of].argmax()])):
        first = next(axes for axes in figures(name, {name: scores}, data, None)["grid"].axes if axes.images)
        assert np.array_equal(np.asarray(first.images[0].get_array()), data.images.x[best].numpy())
