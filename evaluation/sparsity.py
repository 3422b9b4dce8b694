"""Sparsity layer by layer: counts for the record, a table for the screen, a figure for the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from evaluation.style import BLUE, GREY, SCREEN, styled
from pruner.magnitude import prunable
from utils import Mask, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Layers = dict[str, list[int]]  # parameter name -> [weights that stay, all weights]


def layers(model: nn.Module, mask: Mask | None) -> Layers:
    """Counts of every tensor in the mask; of a dense model all convolutions, whole."""
    weights = dict(model.named_parameters())
    names = list(prunable(model)) if mask is None else list(mask)
    return {name: [weights[name].numel() if mask is None else int(mask[name].sum()), weights[name].numel()] for name in names}


def remaining(found: Mapping[str, list[int]]) -> float:
    """Share of the weights that stay, over all layers."""
    return sum(kept for kept, _ in found.values()) / sum(total for _, total in found.values())


def table(found: Mapping[str, list[int]]) -> str:
    """Markdown: layer, weights, weights that stay, their share in %; the sum in the last line."""
    lines = [("layer", "weights", "kept", "kept %")]
    whole = {"all": [sum(kept for kept, _ in found.values()), sum(total for _, total in found.values())]}
    for name, (kept, total) in {**found, **whole}.items():
        lines.append((name.removesuffix(".weight"), f"{total}", f"{kept}", f"{100 * kept / total:.2f}"))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    text = ["| " + " | ".join(w.ljust(n) if i == 0 else w.rjust(n) for i, (w, n) in enumerate(zip(line, widths, strict=True)))
            + " |" for line in lines]
    rule = "| " + " | ".join(["-" * widths[0], *("-" * (n - 1) + ":" for n in widths[1:])]) + " |"
    return "\n".join([text[0], rule, *text[1:]])


@styled
def figure(found: Mapping[str, list[int]], title: str) -> Figure:
    """A bar a layer, the share of its weights that stay in %; the share over all layers as a line."""
    from matplotlib.figure import Figure  # the object interface: no global state, no display

    drawn = Figure(figsize=(8, 1.4 + 0.24 * len(found)), layout="constrained")
    axes = drawn.subplots()
    shares = [100 * kept / total for kept, total in found.values()]
    axes.barh(range(len(shares)), shares, color=BLUE)
    for place, (kept, total) in enumerate(found.values()):
        axes.annotate(f"{kept} of {total}", (102, place), va="center", fontsize=7)
    axes.axvline(100 * remaining(found), color=GREY, linestyle="--", label=f"all layers: {100 * remaining(found):.2f} %")
    axes.set_yticks(range(len(shares)), [name.removesuffix(".weight") for name in found], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 125)  # the counts stand in a column beside full bars
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("weights that stay, %")
    drawn.legend(loc="outside lower center", frameon=False)
    axes.set_title(title)
    return drawn


def report(run: Run, model: nn.Module, mask: Mask | None) -> None:
    """``layers`` and ``remaining`` into the record; of a pruned model also sparsity.png into the run folder."""
    found = layers(model, mask)
    run.result(layers=found, remaining=remaining(found))
    if mask is not None:
        drawn = figure(found, run.label)
        run.write("sparsity.png", lambda file: drawn.savefig(file, format="png", dpi=SCREEN.dpi))
