"""Figures over the rows of a report; each returns matplotlib Figures by file name, and draws only numbers of the CSV."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.accuracy import load_outputs, remaining
from evaluation.statistics import Number
from groups import LEVELS
from report.output import Pivot
from report.rows import FLOOR, Row
from report.tables import costs_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision
BLUE, ORANGE, GREEN, GREY, RED, LIGHT = "#0072B2", "#E69F00", "#009E73", "#888888", "#D55E00", "#DDDDDD"
SHADES = {"forget": ORANGE, "retain": BLUE, "test": GREEN}


# of a group, a score's column or a kind of plan, in the order of the columns
HUES = (BLUE, GREEN, ORANGE, RED, "#CC79A7", "#56B4E9", GREY, "black", "#7A5230", "#B8A700")
KINDS = {"RUM": RED, "RUM^F": BLUE, "shuffle": ORANGE, "vanilla": GREEN, "plan": "#CC79A7"}
PLAIN = "method alone, by main_forget.py"
HOLLOW = "; hollow: collapsed"  # no forgetting, whatever the number


def tow_figures(table: list[Row], note: str = "") -> dict[str, Figure]:
    """The figures of one setting; note: what their titles say of it, where it has no headroom."""
    figures = {"tow": bars(table, "ToW", "Tug-of-War (ToW)", note), "accuracy": accuracies(table),
               "confidence": histograms(table), "cost": cost(table, "ToW", note=note)}
    if any("acc_low" in row.numbers for row in table):
        figures["group_accuracy"] = groups(table)
    return figures | ({"cost_total": cost(table, "ToW", "seconds_total", note)} if costs_scores(table) else {})


def mia_figures(table: list[Row], note: str = "") -> dict[str, Figure]:
    """As ``tow_figures``, of ToW-MIA and membership inference."""
    figures = {"tow_mia": bars(table, "ToW-MIA", "ToW-MIA", note), "mia": efficacy(table),
               "cost_mia": cost(table, "ToW-MIA", note=note)}
    return figures | ({"cost_total_mia": cost(table, "ToW-MIA", "seconds_total", note)} if costs_scores(table) else {})


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure  # the object interface: no global state, no display

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **more)


def _methods(table: list[Row], name: str = "ToW") -> list[Row]:
    """The rows that have the number, without the floor."""
    return [row for row in table if row.method != FLOOR and name in row.numbers]


def _errors(numbers: Iterable[Number]) -> np.ndarray:
    """Lengths of the intervals to both sides of the means, [2, N]; NaN, which draws nothing, with one seed."""
    ends = [(mean - low, high - mean) for mean, (low, high), _ in ((m, e or (np.nan, np.nan), n) for m, e, n in numbers)]
    return np.maximum(np.array(ends, dtype=float).reshape(-1, 2).T, 0)  # an end at the mean may be rounded past it


def _low(number: Number) -> float:
    return number.ends[0] if number.ends else number.mean


def _titled(axes: Any, title: str, note: str) -> None:
    axes.set_title("\n".join(textwrap.wrap(title, 110) + ([note] if note else [])), fontsize=10)


def bars(table: list[Row], name: str, title: str, note: str = "") -> Figure:
    """A bar a method with its interval, best at the top, collapsed ones below all; the floor of retrains as line and band.

    Where a note says that none is the best, the methods stand in the table's order.
    """
    others = [row for row in _methods(table, name) if not row.is_reference]
    rank = {id(row): -place if note else row.numbers[name].mean for place, row in enumerate(others)}
    shown = sorted(others, key=lambda row: (not row.collapsed, rank[id(row)])) or _methods(table, name)
    figure, axes = _figure(8, 1.6 + 0.36 * len(shown))
    values = [row.numbers[name][0] for row in shown]
    colours = [LIGHT if row.collapsed else GREY if row.pairs[0].method == "raw" else BLUE for row in shown]
    axes.barh(range(len(shown)), values, xerr=_errors(r.numbers[name] for r in shown), color=colours, ecolor="black", capsize=3)
    axes.set_yticks(range(len(shown)), [f"{row.told}  (n={len(row.pairs)})" for row in shown])
    floor = next((r.numbers[name] for r in table if r.method == FLOOR and name in r.numbers), None)
    if floor is not None:
        axes.axvline(floor.mean, color=RED, linestyle="--", label=f"retrain against retrain, other seed: {floor.mean:.3f}"
                     + (" (band: least to most)" if floor.ends else ""))
        if floor.ends:
            axes.axvspan(*floor.ends, color=RED, alpha=0.12, linewidth=0, zorder=0)
        figure.legend(loc="outside upper center", frameon=False)
    low = min(_low(number) for number in [*(row.numbers[name] for row in shown), *([floor] if floor else [])])
    axes.set_xlim(max(0.0, low - 0.15 * (1 - low) - 0.01), 1.0)
    for place, value in enumerate(values):
        axes.annotate(f"{value:.3f}", (axes.get_xlim()[0], place), xytext=(5, -4), textcoords="offset points",
                      bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}, fontsize=9)
    axes.set_xlabel(f"{name}, 1 = like retrain; bars start at {axes.get_xlim()[0]:.2f}; black: 95 % t-interval")
    _titled(axes, f"{title}: {table[0].setting}", note)
    return figure


def accuracies(table: list[Row]) -> Figure:
    """Forget, retain and test accuracy of every method; retrain's as dashed lines of the same colours."""
    shown = _methods(table)
    figure, axes = _figure(max(8, 1.6 + 0.85 * len(shown)), 4.6)
    _beside(axes, shown, {part: (part, colour) for part, colour in SHADES.items()})
    axes.set_ylabel("accuracy in %; dashed: retrain's")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=3, frameon=False)
    axes.set_title(f"Accuracy: {table[0].setting}", fontsize=10)
    return figure


def groups(table: list[Row]) -> Figure:
    """Accuracy and MIA efficacy on the low, mid and high part of the forget set; retrain's as dashed lines."""
    shown = [row for row in _methods(table) if "acc_low" in row.numbers]
    figure, panels = _figure(max(8, 1.6 + 0.85 * len(shown)), 7.6, 2, 1, sharex=True)
    for axes, kind, what in zip(panels, ("acc", "MIA"), ("accuracy in %", "called non-member in %"), strict=True):
        _beside(axes, shown, {f"{kind}_{level}": (level, colour) for level, colour in zip(LEVELS, HUES, strict=False)})
        axes.set_ylabel(what + ("; dashed: retrain's" if shown[0].is_reference else ""))
    panels[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=3, frameon=False)
    panels[0].set_title(f"Accuracy (above) and MIA efficacy by group: {table[0].setting}", fontsize=10)
    return figure


def _beside(axes: Any, shown: list[Row], parts: dict[str, tuple[str, str]]) -> None:
    """Three bars a method; parts: measure -> (label, colour)."""
    width = 0.26
    for place, (part, (label, colour)) in enumerate(parts.items()):
        at = np.arange(len(shown)) + (place - 1) * width
        values = [row.numbers[part][0] for row in shown]
        axes.bar(at, values, width, yerr=_errors(r.numbers[part] for r in shown), color=colour, label=label, capsize=2)
        for row in shown:
            if row.is_reference:
                axes.axhline(row.numbers[part][0], color=colour, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(shown)), [row.told for row in shown], rotation=30, ha="right")
    lowest = min(_low(row.numbers[part]) for row in shown for part in parts)
    axes.set_ylim(max(0.0, lowest - 5), 101)


def dots(pivot: Pivot, name: str, title: str) -> Figure:
    """A line a method, a point a column of the table (low, mid, high, mix) with its interval; right is better."""
    figure, axes = _figure(8.5, 2.0 + 0.13 * len(pivot.cells) * max(3, len(pivot.columns)))
    series = {column: {method: there[column] for method, there in pivot.cells.items() if column in there}
              for column in pivot.columns}
    broken = {(column, method) for method, column in pivot.collapsed}
    _points(axes, list(pivot.cells), series, dict(zip(pivot.columns, HUES * len(series), strict=False)), broken)
    _tell(figure, [axes], pivot, name, title)
    return figure


def plans(pivot: Pivot, name: str, title: str) -> Figure:
    """A panel a score; a line a method, a point for each way to use it: RUM^F, shuffle, vanilla, alone."""
    ways = {label: _way(label) for label in pivot.cells}
    lines = list(dict.fromkeys(base for _, base in ways.values()))
    kinds = [kind for kind in (*KINDS, PLAIN) if kind in {kind for kind, _ in ways.values()}]
    height = 2.0 + 0.13 * len(lines) * max(3, len(kinds))
    figure, panels = _figure(3.4 + 3.6 * len(pivot.columns), height, 1, len(pivot.columns), squeeze=False, sharex=True,
                             sharey=True)
    for axes, column in zip(panels.flat, pivot.columns, strict=True):
        series = {kind: {base: pivot.cells[label][column] for label, (own, base) in ways.items()
                         if own == kind and column in pivot.cells[label]} for kind in kinds}
        _points(axes, lines, series, KINDS | {PLAIN: GREY}, {ways[label] for label, at in pivot.collapsed if at == column})
        axes.set_title(f"by {column}" if " " not in column else column, fontsize=10)
    _tell(figure, list(panels.flat), pivot, name, title)
    return figure


def sparsities(pivots: Mapping[str, Pivot]) -> Figure:
    """A panel a measure against the original's sparsity, a line a method; hollow points are collapsed models.

    Sparsities stand at equal distances, since most of a sweep lies near 100 %; lines are moved apart by a little.
    """
    figure, panels = _figure(5.2 * len(pivots), 5.4, 1, len(pivots), squeeze=False)
    methods = list(dict.fromkeys(method for pivot in pivots.values() for method in pivot.cells))
    plain = {"retrain": ("black", "--", "o"), FLOOR: (GREY, ":", "o")}
    styles = ((hue, "-", marker) for marker in itertools.cycle("osD^v") for hue in HUES[:6])  # six colours, then other points
    looks = {method: plain.get(method) or next(styles) for method in methods}
    for axes, (name, pivot) in zip(panels.flat, pivots.items(), strict=True):
        for method, there in pivot.cells.items():
            colour, line, marker = looks[method]
            shift = 0.4 * ((methods.index(method) + 0.5) / len(methods) - 0.5)
            at = {column: place + shift for place, column in enumerate(pivot.columns) if column in there}
            axes.errorbar(list(at.values()), [there[c][0] for c in at], fmt=marker, linestyle=line, color=colour, label=method,
                          yerr=_errors(there[c] for c in at), markersize=4, capsize=2, elinewidth=0.8, linewidth=1.2)
            hollow = [c for c in at if (method, c) in pivot.collapsed]
            axes.plot([at[c] for c in hollow], [there[c][0] for c in hollow], marker, markersize=4, color=colour,
                      markerfacecolor="white", zorder=5)
        _upright(axes, name, [mean for there in pivot.cells.values() for mean, *_ in there.values()])
        axes.set_xticks(range(len(pivot.columns)), pivot.columns)
        axes.set_xlabel("prunable weights that are gone before unlearning")
    handles = {label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize=9)
    title = textwrap.fill(f"{', '.join(pivots)} by sparsity: {next(iter(pivots.values())).heading}", 60 * len(pivots))
    bars = any(ends is not None for pivot in pivots.values() for there in pivot.cells.values() for _, ends, _ in there.values())
    notes = ("; bars: 95 % t-intervals" if bars else "") + (HOLLOW if any(p.collapsed for p in pivots.values()) else "")
    figure.suptitle(title + notes.replace("; ", "\n", 1), fontsize=10)
    return figure


def _upright(axes: Any, name: str, means: list[float]) -> None:
    """Limits and label of an axis with a measure; the points decide, as in ``_tell``."""
    if name == "seconds":
        axes.set_yscale("log")
        axes.set_ylim(min(means) / 2, max(means) * 2)
        axes.set_ylabel("seconds (method and mask), log scale")
        return
    best = 1 if name.startswith("ToW") else 100
    room = 0.3 * (max(means) - min(means)) + 0.01 * best
    axes.set_ylim(max(min(means) - room, -0.03 * best), min(max(means) + room, 1.03 * best))
    axes.set_ylabel(f"{name} (1 = like retrain)" if name.startswith("ToW") else f"{name}, %")


def _way(label: str) -> tuple[str, str]:
    """A row's kind and method: ("RUM^F", "NG (alpha=0.9)"); a plan of several methods is its own line."""
    kind, _, rest = label.partition(" ")
    if kind in ("RUM", "plan"):
        return kind, label
    return (kind, rest) if kind in KINDS else (PLAIN, label)


def _points(axes: Any, lines: list[str], series: Mapping[str, Mapping[str, Number]], colours: Mapping[str, str],
            broken: set[tuple[str, str]]) -> None:
    """Points with intervals, the first line at the top; an interval that is wider than the axes is cut off.

    broken: (series, line) of collapsed models, whose points are hollow.
    """
    sharing = {line: [label for label, numbers in series.items() if line in numbers] for line in lines}
    for label, numbers in series.items():
        shift = [sharing[line].index(label) - (len(sharing[line]) - 1) / 2 for line in numbers]
        at = [lines.index(line) + 0.72 * s / max(2, len(series)) for line, s in zip(numbers, shift, strict=True)]
        axes.errorbar([mean for mean, *_ in numbers.values()], at, xerr=_errors(numbers.values()), fmt="o", markersize=5,
                      capsize=2, elinewidth=1, color=colours[label], label=label)
        hollow = [(mean, y) for (line, (mean, *_)), y in zip(numbers.items(), at, strict=True) if (label, line) in broken]
        axes.plot([x for x, _ in hollow], [y for _, y in hollow], "o", markersize=5, color=colours[label],
                  markerfacecolor="white", zorder=5)
    for between in range(1, len(lines)):
        axes.axhline(between - 0.5, color="#DDDDDD", linewidth=0.8)
    axes.set_yticks(range(len(lines)), [textwrap.fill(line, 36) for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)


def _tell(figure: Figure, panels: list[Any], pivot: Pivot, name: str, title: str) -> None:
    """Limits by the points, since an interval over two seeds can be wider than all of them; title, legend and axes."""
    numbers = [number for there in pivot.cells.values() for number in there.values()]
    low = min(mean for mean, *_ in numbers)
    room = 1.005 - low
    lowest = max(0.0, low - 0.6 * room, min(_low(number) for number in numbers))
    for axes in panels:
        axes.set_xlim(lowest - 0.04 * room, 1.0 + 0.04 * room)
        floor = ", of retrains their range" if FLOOR in pivot.cells else ""
        axes.set_xlabel(f"{name}, 1 = like retrain; lines: 95 % t-intervals{floor}", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=9)
    figure.suptitle(f"{title}: {pivot.heading}" + (HOLLOW if pivot.collapsed else ""), fontsize=10)


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
    axes.barh(range(len(shown)), [r.numbers["MIA"][0] for r in shown], xerr=_errors(r.numbers["MIA"] for r in shown),
              color=BLUE, capsize=3)
    axes.set_yticks(range(len(shown)), [f"{row.told}  (n={len(row.pairs)})" for row in shown])
    for row in shown:
        if row.is_reference:
            axes.axvline(row.numbers["MIA"][0], color=RED, linestyle="--", label="retrain: the target")
            axes.legend()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the forget set that the confidence attack calls non-member, %")
    axes.set_title(f"MIA efficacy: {table[0].setting}", fontsize=10)
    return figure


def cost(table: list[Row], name: str, spent: str = "seconds", note: str = "") -> Figure:
    """Seconds of the method, mask included (and with ``seconds_total`` its scores), against ToW: upper left is better."""
    shown = [row for row in _methods(table, name) if row.numbers[spent][0] > 0 and row.pairs[0].method != "raw"]
    shown.sort(key=lambda row: row.numbers[name][0])
    figure, axes = _figure(9, 5)
    for place, row in enumerate(shown):
        x, y = row.numbers[spent][0], row.numbers[name][0]
        colour = RED if row.is_reference else BLUE
        axes.errorbar(x, y, xerr=_errors([row.numbers[spent]]), yerr=_errors([row.numbers[name]]), fmt="o", color=colour,
                      capsize=2, elinewidth=0.8)
        # names stand in a column beside the axes, in the order of the points: near points would hide each other's
        axes.annotate(row.told, (x, y), xytext=(1.04, (place + 0.5) / len(shown)), textcoords="axes fraction", fontsize=9,
                      va="center", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "relpos": (0, 0.5)})
    axes.set_xscale("log")
    axes.tick_params(axis="x", which="minor", labelsize=7)
    points = [(row.numbers[spent][0], row.numbers[name][0]) for row in shown]
    xs, ys = zip(*points, strict=True) if points else ((1.0,), (0.0,))
    axes.set_xlim(min(xs) / 3, max(xs) * 3)  # the points decide: an interval over two seeds can be wider than all of them
    axes.set_ylim(max(-0.03, min(ys) - 0.3 * (1.03 - min(ys))), 1.03)
    counted = "method and mask" if spent == "seconds" else "method, mask and scores"
    axes.set_xlabel(f"seconds ({counted}, without evaluation), log scale; bars: 95 % t-intervals over seeds")
    axes.set_ylabel(f"{name} (1 = like retrain)")
    _titled(axes, f"Cost against {name}: {table[0].setting}", note)
    return figure
