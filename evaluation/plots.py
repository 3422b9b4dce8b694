"""Figures over the rows of a report; each returns matplotlib Figures by file name, and draws only numbers of the CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.accuracy import load_outputs, remaining
from evaluation.report import FLOOR, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision
BLUE, ORANGE, GREEN, GREY, RED, LIGHT = "#0072B2", "#E69F00", "#009E73", "#888888", "#D55E00", "#DDDDDD"
SHADES = {"forget": ORANGE, "retain": BLUE, "test": GREEN}


def tow_figures(table: list[Row]) -> dict[str, Figure]:
    return {"tow": bars(table, "ToW", "Tug-of-War (ToW)"), "accuracy": accuracies(table), "confidence": histograms(table),
            "cost": cost(table, "ToW")}


def mia_figures(table: list[Row]) -> dict[str, Figure]:
    return {"tow_mia": bars(table, "ToW-MIA", "ToW-MIA"), "mia": efficacy(table), "cost_mia": cost(table, "ToW-MIA")}


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure  # the object interface: no global state, no display

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **more)


def _methods(table: list[Row], name: str = "ToW") -> list[Row]:
    """The rows that have the number, without the floor."""
    return [row for row in table if row.method != FLOOR and name in row.numbers]


def _half(row: Row, name: str) -> float:
    """Half width of the interval; NaN, which draws nothing, with one seed."""
    half = row.numbers[name][1]
    return float("nan") if half is None else half


def _low(row: Row, name: str) -> float:
    return row.numbers[name][0] - (row.numbers[name][1] or 0.0)


def bars(table: list[Row], name: str, title: str) -> Figure:
    """A bar a method, best at the top, collapsed ones below all; with its interval, and the floor of retrains as a line."""
    others = [row for row in _methods(table, name) if row.pairs[0].method != "retrain"]
    shown = sorted(others, key=lambda row: (not row.collapsed, row.numbers[name][0])) or _methods(table, name)
    figure, axes = _figure(8, 1.6 + 0.36 * len(shown))
    values = [row.numbers[name][0] for row in shown]
    colours = [LIGHT if row.collapsed else GREY if row.pairs[0].method == "raw" else BLUE for row in shown]
    axes.barh(range(len(shown)), values, xerr=[_half(r, name) for r in shown], color=colours, ecolor="black", capsize=3)
    axes.set_yticks(range(len(shown)), [f"{row.told}  (n={len(row.pairs)})" for row in shown])
    floor = next((r.numbers[name][0] for r in table if r.method == FLOOR), None)
    if floor is not None:
        axes.axvline(floor, color=RED, linestyle="--", label=f"retrain against retrain, other seed: {floor:.3f}")
        figure.legend(loc="outside upper center", frameon=False)
    low = min([_low(row, name) for row in shown] + ([floor] if floor is not None else []))
    axes.set_xlim(max(0.0, low - 0.15 * (1 - low) - 0.01), 1.0)
    for place, value in enumerate(values):
        axes.annotate(f"{value:.3f}", (axes.get_xlim()[0], place), xytext=(5, -4), textcoords="offset points",
                      bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}, fontsize=9)
    axes.set_xlabel(f"{name}, 1 = like retrain; bars start at {axes.get_xlim()[0]:.2f}; black: 95 % t-interval")
    axes.set_title(f"{title}: {table[0].setting}", fontsize=10)
    return figure


def accuracies(table: list[Row]) -> Figure:
    """Forget, retain and test accuracy of every method; retrain's as dashed lines of the same colours."""
    shown = _methods(table)
    figure, axes = _figure(max(8, 1.6 + 0.85 * len(shown)), 4.6)
    width = 0.26
    for place, (part, colour) in enumerate(SHADES.items()):
        at = np.arange(len(shown)) + (place - 1) * width
        values = [row.numbers[part][0] for row in shown]
        axes.bar(at, values, width, yerr=[_half(r, part) for r in shown], color=colour, label=part, capsize=2)
        for row in shown:
            if row.pairs[0].method == "retrain":
                axes.axhline(row.numbers[part][0], color=colour, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(shown)), [row.told for row in shown], rotation=30, ha="right")
    lowest = min(_low(row, part) for row in shown for part in SHADES)
    axes.set_ylim(max(0.0, lowest - 5), 101)
    axes.set_ylabel("accuracy in %; dashed: retrain's")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=3, frameon=False)
    axes.set_title(f"Accuracy: {table[0].setting}", fontsize=10)
    return figure


def confidences(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Softmax probability of the true class, float64 [N]."""
    z = logits.astype(np.float64)
    z = z - z.max(1, keepdims=True)
    return np.exp(z[np.arange(len(z)), labels]) / np.exp(z).sum(1)


def histograms(table: list[Row], bins: int = 20) -> Figure:
    """A panel a method (its first seed): confidence on its forget and test set, and on the forget set of its retrain."""
    shown = _methods(table)
    columns = min(4, len(shown))
    count = -(-len(shown) // columns)
    figure, panels = _figure(3.1 * columns, 2.3 * count + 0.7, count, columns, squeeze=False, sharex=True)
    for panel, row in zip(panels.flat, shown, strict=False):
        own, ref = load_outputs(row.pairs[0].run.folder), load_outputs(row.pairs[0].retrain.folder)
        for outputs, part, colour, label in ((own, "test", GREEN, "test"), (own, "forget", ORANGE, "forget"),
                                             (ref, "forget", "black", "forget, retrain")):
            rows = np.isfinite(outputs[f"{part}_logits"]).all(1)  # a collapsed model may have none
            if part == "test":
                rows &= remaining(outputs, row.pairs[0].run.record["whole_classes"])
            values = confidences(outputs[f"{part}_logits"][rows], outputs[f"{part}_labels"][rows])
            panel.hist(values, bins, range=(0, 1), weights=np.full(len(values), 1 / max(1, len(values))), histtype="step",
                       color=colour, label=label, linewidth=1.6, linestyle="--" if colour == "black" else "-")
        panel.set_yscale("log")
        panel.set_title(f"{row.told}, seed {row.pairs[0].seed}", fontsize=9)
    for panel in panels.flat[len(shown):]:
        panel.set_axis_off()
    panels.flat[0].legend(fontsize=8)
    figure.supxlabel("confidence in the true class")
    figure.supylabel("share of the examples")
    return figure


def efficacy(table: list[Row]) -> Figure:
    """MIA efficacy (confidence attack) of every method beside retrain's: nearer to its line is better, not higher."""
    shown = _methods(table, "MIA")
    figure, axes = _figure(8, 1.6 + 0.36 * len(shown))
    axes.barh(range(len(shown)), [r.numbers["MIA"][0] for r in shown], xerr=[_half(r, "MIA") for r in shown], color=BLUE,
              capsize=3)
    axes.set_yticks(range(len(shown)), [f"{row.told}  (n={len(row.pairs)})" for row in shown])
    for row in shown:
        if row.pairs[0].method == "retrain":
            axes.axvline(row.numbers["MIA"][0], color=RED, linestyle="--", label="retrain: the target")
            axes.legend()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the forget set that the confidence attack calls non-member, %")
    axes.set_title(f"MIA efficacy: {table[0].setting}", fontsize=10)
    return figure


def cost(table: list[Row], name: str) -> Figure:
    """Seconds of the method, mask included, against ToW: upper left is better."""
    shown = [row for row in _methods(table, name) if row.numbers["seconds"][0] > 0 and row.pairs[0].method != "raw"]
    shown.sort(key=lambda row: row.numbers[name][0])
    figure, axes = _figure(9, 5)
    for place, row in enumerate(shown):
        x, y = row.numbers["seconds"][0], row.numbers[name][0]
        colour = RED if row.pairs[0].method == "retrain" else BLUE
        axes.errorbar(x, y, xerr=_half(row, "seconds"), yerr=_half(row, name), fmt="o", color=colour, capsize=2, elinewidth=0.8)
        # names stand in a column beside the axes, in the order of the points: near points would hide each other's
        axes.annotate(row.told, (x, y), xytext=(1.04, (place + 0.5) / len(shown)), textcoords="axes fraction", fontsize=9,
                      va="center", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "relpos": (0, 0.5)})
    axes.set_xscale("log")
    points = [(row.numbers["seconds"][0], row.numbers[name][0]) for row in shown]
    xs, ys = zip(*points, strict=True) if points else ((1.0,), (0.0,))
    axes.set_xlim(min(xs) / 3, max(xs) * 3)  # the points decide: an interval over two seeds can be wider than all of them
    axes.set_ylim(max(-0.03, min(ys) - 0.3 * (1.03 - min(ys))), 1.03)
    axes.set_xlabel("seconds (method and mask, without evaluation), log scale; bars: 95 % t-intervals over seeds")
    axes.set_ylabel(f"{name} (1 = like retrain)")
    axes.set_title(f"Cost against {name}: {table[0].setting}", fontsize=10)
    return figure
