"""How sure models are of the true class: distributions over the images of all seeds, reduced to some points each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evaluation.accuracy import load_outputs, outputs_of, remaining
from evaluation.mia import margin
from report import looks
from report.captions import caption
from report.multiples import Cell, Line, Multiples
from report.names import Heading
from report.pairs import Pair
from report.rows import FLOOR, Row
from report.sheet import Axis
from utils import Kept, Saved

KNOWN = Kept(2**26)  # bytes of margins that an analysis holds: a retrain's stand beside those of every method
POINTS, OUTSIDE = 81, 0.5  # of a curve; percent of the images beyond either end of the axis


class Curve(NamedTuple):
    """A distribution function at the points of an axis: the mean over seeds, the least and the most, float64 [P] each."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def shares_below(samples: Sequence[np.ndarray], xs: np.ndarray) -> Curve:
    """The share of each sample (float64 [N], one a seed) that is at most x, for every x of float64 [P]."""
    each = np.array([np.searchsorted(np.sort(values), xs, side="right") / len(values) for values in samples])
    return Curve(each.mean(0), each.min(0), each.max(0))


def margins_of(run: Saved, part: str) -> np.ndarray:
    """log p - log(1 - p) of the true class for each image, float64 [N]; images without finite outputs are left out.

    Args:
        part: forget, or test without the classes that are forgotten whole.
    """
    return KNOWN.get(run.folder / "outputs.npz", lambda: {name: _margins(run, name) for name in ("forget", "test")})[part]


def _margins(run: Saved, part: str) -> np.ndarray:
    arrays = load_outputs(run.folder)
    rows = np.isfinite(arrays[f"{part}_logits"]).all(1)
    if part == "test":
        rows &= remaining(arrays, run.record["whole_classes"])
    return margin(outputs_of(arrays, part).take(np.flatnonzero(rows))).numpy()


def samples_of(row: Row) -> dict[str, list[np.ndarray]]:
    """forget, test, and retrain's forget -> margins of each seed."""
    def both(pair: Pair) -> dict[str, np.ndarray]:
        return {"test": margins_of(pair.run, "test"), "forget": margins_of(pair.run, "forget"),
                "forget, retrain": margins_of(pair.retrain, "forget")}

    each = [both(pair) for pair in row.pairs]
    return {name: [there[name] for there in each if len(there[name])] for name in each[0]}


def axis_of(found: Sequence[dict[str, list[np.ndarray]]]) -> np.ndarray:
    """The points of an axis for all of them, float64 [P]."""
    values = np.concatenate([own for samples in found for part in samples.values() for own in part])
    return np.linspace(*np.percentile(values, [OUTSIDE, 100 - OUTSIDE]), POINTS)


def chart(part: list[Row], heading: Heading) -> Multiples | None:
    """A cell a method, retrain first; equal axes, which the models decide that are not broken."""
    rows = [row for row in part if row.method != FLOOR]
    samples = {id(row): samples_of(row) for row in rows}
    rows = [row for row in rows if all(samples[id(row)].values())]
    if not rows:
        return None
    xs = axis_of([samples[id(row)] for row in rows if not row.collapsed] or list(samples.values()))
    cells = []
    for row in rows:
        lines = [_line(name, shares_below(own, xs), xs) for name, own in samples[id(row)].items()
                 if not (row.is_reference and name == "forget")]  # which is retrain's
        cells.append(Cell(row.told, tuple(lines)))
    told = caption("Share of the images whose margin, log p - log(1 - p) of the true class, is at most that on the axis; "
                   f"{heading.text}. Where a method's forget curve lies on retrain's, forgotten images look as they do to a "
                   "model that never saw them; the largest distance between the two, seed by seed, is KS_forget. Means over "
                   "seeds; shade: least to most of the seeds.", rows, heading.small, intervals="")
    axes = Axis("margin of the true class (0: p = 1/2)"), Axis("share of images at most", (0, 1), whole=True)
    return Multiples(f"How sure of the true class · {heading.text}", tuple(cells), *axes, caption=told)


def _line(name: str, curve: Curve, xs: np.ndarray) -> Line:
    dashes = "--" if name == "forget, retrain" else "-." if name == "test" else "-"
    return Line(name, xs.tolist(), curve.mean.tolist(), looks.PARTS[name], dashes=dashes, low=curve.low.tolist(),
                high=curve.high.tolist(), band=True)
