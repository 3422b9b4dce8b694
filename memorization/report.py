"""What a score is worth: its polarity, its seconds, and its rank correlation with memorization where that is known."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dataset import Data
from memorization import figures
from memorization.proxies import spearman
from sources.scores import read_scores
from utils import BadInput, Run, Saved, find_runs, read_arrays


def memorization_of(data: Data, roots: list[Path], named: str | None) -> tuple[Path, np.ndarray] | None:
    """Memorization scores of a data set, float64 [N]: of the file that is named, else of the largest pool there is.

    Args:
        roots: folders of run folders.
    """
    if named is not None:
        found = [Path(named)]
    else:
        runs = [run for root in roots for run in find_runs(root, ("memorization",), score="memorization")]
        runs = [run for run in runs if run.record["images_key"] == data.splits.images_key]
        found = [max(runs, key=_models).folder / "scores.npz"] if runs else []
    return next(((path, read_scores(path, "memorization", data.candidates.y, data.splits.images_key)) for path in found), None)


def check(args: SimpleNamespace, data: Data) -> None:
    """Refuse, before anything is computed, a --scores file that cannot be read or that this score has no use for (BadInput)."""
    if args.choice.scores is not None and (args.entry.name == "memorization" or args.entry.polarity == 0):
        raise BadInput(f"--scores is what a proxy is compared with; leave it away with --score {args.entry.name}")
    memorization_of(data, [], args.choice.scores)


def _models(run: Saved) -> int:
    return run.record.get("models", 0)


def compare(run: Run, args: SimpleNamespace, data: Data) -> dict[str, Any]:
    """Draw the score's figures into its folder; Spearman's rho with memorization, the file it was taken from, the examples."""
    name = args.entry.name
    arrays = read_arrays(run.folder / "scores.npz", {name: ("fiu", "images"), "labels": ("iu", "images")})
    roots = list(dict.fromkeys([Path(args.run.save_dir), Path("runs")]))
    known = memorization_of(data, roots, args.choice.scores) if name != "memorization" else None
    drawn = figures.draw(run, name, arrays, data, None if known is None else known[1])
    if known is None or args.entry.polarity == 0:
        return {"figures": drawn}
    rho, count = spearman(arrays[name], known[1])
    # a score that is the same for all, as bi_acc on easy data, has no ranks to correlate
    return {"figures": drawn, "spearman": None if math.isnan(rho) else rho, "compared_with": str(known[0]), "compared": count}


def line(run: Run, args: SimpleNamespace, data: Data) -> str:
    """One line for the screen; a finished run is compared anew, since memorization may have become known since."""
    told = compare(run, args, data) if run.done else run.values
    way = {1: "larger = more memorized", -1: "smaller = more memorized", 0: "about groups"}[args.entry.polarity]
    rho = told.get("spearman")
    rho = "" if rho is None else f"; Spearman with memorization {rho:+.3f} over {told['compared']} examples"
    return f"{args.entry.name}: {way}{rho}; scores.npz, {', '.join(told['figures'])}"
