"""Figures of scores: histogram, pictures of the most and least memorized images, proxy against memorization, ES chunks.

Shapes: N training images of the data set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dataset import Data
from evaluation.style import BLUE, GREEN, GREY, ORANGE, RED, SCREEN, styled
from groups import LEVELS
from memorization.proxies import spearman
from sources.scores import POLARITY
from utils import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 20  # in a grid; pictures of more are too small or the page too long
SKEW = 50  # largest over median, from which a score's axis is logarithmic
CROWD = 3000  # points from which a scatter plot hides its own density
LEVEL_COLOURS = dict(zip(LEVELS, (BLUE, GREEN, ORANGE), strict=True))
HIGH_END = {1: "large values go with memorization", -1: "small values go with memorization", 0: ""}


def _figure(width: float, height: float, layout: str = "constrained") -> Figure:
    from matplotlib.figure import Figure  # the object interface: no global state, no display

    return Figure(figsize=(width, height), layout=layout)


def _skewed(values: np.ndarray) -> bool:
    """Whether a linear axis would show one bar: above 0, with a tail far beyond the median."""
    return bool(len(values) and values.min() > 0 and values.max() > SKEW * np.median(values))


@styled
def histogram(scores: np.ndarray, title: str, label: str = "score") -> Figure:
    """Number of images by score (float [N], NaN left out), on a log scale, with mean and median."""
    values = scores[np.isfinite(scores)].astype(np.float64)
    figure = _figure(7, 3.8)
    axes = figure.subplots()
    bins: int | np.ndarray = 60 if len(np.unique(values)) > 1 else 1
    if _skewed(values):
        bins = np.geomspace(values.min(), values.max(), 61)
        axes.set_xscale("log")
    if len(values):
        axes.hist(values, bins=bins, color=BLUE, edgecolor="white", linewidth=0.3)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.6)  # a single image is a bar too
        axes.axvline(values.mean(), color=RED, linestyle="--", label=f"mean {values.mean():.3g}")
        axes.axvline(np.median(values), color=ORANGE, label=f"median {np.median(values):.3g}")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    axes.set_xlabel(label)
    axes.set_ylabel("images, log scale")
    figure.suptitle(f"{title} ({len(values)} images)")
    return figure


def extremes(scores: np.ndarray, labels: np.ndarray, of: int, count: int, polarity: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The most and the least memorized images of a class, in this order, ties by index: two int64 arrays.

    Up to ``count`` each; no image is in both.

    Args:
        polarity: of the score; see ``groups.POLARITY``.
    """
    members = np.flatnonzero((labels == of) & np.isfinite(scores))
    count = min(count, (len(members) + 1) // 2)
    keys = polarity * scores[members]
    most = members[np.argsort(-keys, kind="stable")[:count]]
    rest = np.setdiff1d(members, most)
    return most, rest[np.argsort(polarity * scores[rest], kind="stable")[:count]]


@styled
def grid(images: np.ndarray, labels: np.ndarray, scores: np.ndarray, names: list[str], per_class: int = 8, *,
         title: str = "", polarity: int = 1) -> Figure:
    """Two rows a class, the most memorized images above the least, the score under each; classes without images are left out.

    Of more than 20 classes 20 are shown, evenly spread over their numbers, and the title says so.

    Args:
        images: uint8 [N, H, W, C]; labels: int64 [N]; scores: float [N], NaN for images to leave out.
        names: of the classes.
        polarity: of the score, so that the most memorized are on top whichever way it runs.
    """
    there = [k for k in range(len(names)) if np.any((labels == k) & np.isfinite(scores))]
    shown = [there[i] for i in np.unique(np.linspace(0, len(there) - 1, min(len(there), MOST_CLASSES)).round().astype(int))]
    halves = -(-len(shown) // 2)  # two classes side by side keep the page readable
    height = 0.86 * 2 * halves + 0.7
    # margins by hand: constrained layout is slow with some hundred panels
    figure = _figure(0.62 * 2 * per_class + 1.8, height, "none")
    panels = figure.subplots(2 * halves, 2 * per_class + 1, squeeze=False, gridspec_kw={
        "left": 0.85 / (0.62 * 2 * per_class + 1.8), "right": 0.99, "bottom": 0.25 / height, "top": 1 - 0.45 / height,
        "hspace": 0.42, "wspace": 0.1})  # the middle column is for the names of the right half
    for panel in panels.flat:
        panel.set_axis_off()
    whole = np.all(scores[np.isfinite(scores)] % 1 == 0)
    for place, k in enumerate(shown):
        first = (place // halves) * (per_class + 1)
        chosen_of = dict(zip(("most", "least"), extremes(scores, labels, k, per_class, polarity), strict=True))
        for row, (kind, chosen) in enumerate(chosen_of.items()):
            line = panels[2 * (place % halves) + row, first : first + per_class]
            line[0].text(-0.12, 0.5, f"{names[k]}\n{kind}", fontsize=7.5, ha="right", va="center", transform=line[0].transAxes)
            for panel, i in zip(line, chosen, strict=False):
                panel.imshow(images[i], interpolation="nearest")
                panel.set_title(_number(scores[i], whole), fontsize=6.5, y=-0.3)
    some = f" ({len(shown)} of {len(there)} classes)" if len(shown) < len(there) else ""
    title = title or "most and least memorized images of each class"
    figure.suptitle(title + some, y=1 - 0.08 / height, va="top")
    return figure


def _number(value: float, whole: bool) -> str:
    return f"{value:.0f}" if whole or value == 0 else f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.1e}"


@styled
def proxy(score: np.ndarray, memorization: np.ndarray, rho: float, name: str, polarity: int = 0) -> Figure:
    """A proxy against memorization (float [N] each), images finite in both; Spearman's ``rho`` in the title."""
    both = np.isfinite(score) & np.isfinite(memorization)
    x, y = score[both], memorization[both]
    figure = _figure(6, 4.6)
    axes = figure.subplots()
    scale = "log" if _skewed(x) else "linear"
    axes.set_xscale(scale)
    if len(x) > CROWD:
        drawn = axes.hexbin(x, y, gridsize=45, bins="log", mincnt=1, xscale=scale, cmap="viridis", linewidths=0.1)
        figure.colorbar(drawn, ax=axes, label="images, log scale")
    else:
        axes.scatter(x, y, s=10, alpha=0.45, color=BLUE, linewidths=0)
    axes.set_xlabel(f"{name} ({HIGH_END[polarity]})" if polarity else name)
    axes.set_ylabel("memorization")
    axes.set_title(f"{name} against memorization: Spearman's $\\rho$ = {rho:.3f}, {len(x)} images")
    return figure


@styled
def chunks(chunk_es: np.ndarray, levels: np.ndarray, distances: np.ndarray) -> Figure:
    """Entanglement of each chunk, and its distance to the centroid below; the chunks of low, mid and high ES are marked.

    Args:
        chunk_es: float64 [chunks]; levels: int64 [3], low, mid and high; distances: float64 [chunks], mean of the chunk.
    """
    figure = _figure(max(6.0, min(12.0, 1.8 + 0.36 * len(chunk_es))), 5.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
    place = np.arange(len(chunk_es))
    for axes, values in ((upper, chunk_es), (lower, distances)):
        axes.plot(place, values, color=GREY, marker="o", markersize=5, linewidth=1)
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    for level, chunk in zip(LEVELS, levels, strict=True):
        upper.plot(chunk, chunk_es[chunk], "o", markersize=10, color=LEVEL_COLOURS[level],
                   label=f"{level}: chunk {chunk}, ES {chunk_es[chunk]:.4g}")
        lower.plot(chunk, distances[chunk], "o", markersize=7, color=LEVEL_COLOURS[level])
    upper.set_yscale("log")
    upper.set_ylabel("entanglement score (ES), log scale")
    upper.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    lower.set_ylim(0, 1.1 * distances.max())
    lower.set_ylabel("mean distance")
    lower.set_xlabel("chunk, from the training split's centroid outwards")
    if len(place) <= 30:
        lower.set_xticks(place)
    figure.suptitle("Entanglement of each chunk with the rest of the training split")
    return figure


def figures(name: str, arrays: dict[str, np.ndarray], data: Data, memorization: np.ndarray | None) -> dict[str, Figure]:
    """The figures that fit a score, by file name without ending; see ``draw``."""
    scores, polarity, setting = arrays[name], POLARITY[name], data.source.name
    if name == "es":
        held = [arrays["distance"][arrays["group"] == chunk].mean() for chunk in range(len(arrays["chunk_es"]))]
        return {"chunks": chunks(arrays["chunk_es"], arrays["levels"], np.array(held))}
    label = f"{name} ({HIGH_END[polarity]})" if name != "memorization" else "memorization"
    names = [f"class {k}" for k in data.classes(np.arange(data.num_classes))]
    found = {"histogram": histogram(scores, f"{name}: {setting}", label),
             "grid": grid(data.images.x.cpu().numpy(), data.images.y.cpu().numpy(), scores, names, polarity=polarity,
                          title=f"most and least memorized images of each class, by {name}: {setting}")}
    if memorization is not None and name != "memorization":
        found["proxy"] = proxy(scores, memorization, spearman(scores, memorization)[0], name, polarity)
    return found


def draw(run: Run, name: str, arrays: dict[str, np.ndarray], data: Data, memorization: np.ndarray | None) -> list[str]:
    """Write the figures that fit a score into its run folder.

    Args:
        arrays: of the score (``Score.apply``).
        memorization: float [N], where scores exist; a proxy is drawn against it.

    Returns:
        The names of the files.
    """
    written: list[str] = []
    for title, figure in figures(name, arrays, data, memorization).items():
        written.append(f"{title}.png")
        run.write(written[-1], lambda file, figure=figure: figure.savefig(file, format="png", dpi=SCREEN.dpi))
    return written
