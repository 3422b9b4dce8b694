"""Numbers of one run beside its retrain: its own metrics, its distance to retrain, its cost, what other images would change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluation import accuracy, separation, statistics, tow
from evaluation.accuracy import load_outputs
from report.answers import answers_of
from report.pairs import Pair
from report.settings import machine_of
from report.variants import computation, needs_scores

SHARE, PERCENT = (0.0, 1.0), (0.0, 100.0)


def domain_of(name: str) -> statistics.Domain:
    """Least and largest value that a measure can have."""
    if name.startswith(("seconds", "speed_up", "images_read")):  # more images than retrain reads is possible
        return 0.0, math.inf
    if name == "AUC_difference":
        return -100.0, 100.0
    return SHARE if name.startswith("ToW") else PERCENT


def shares(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Accuracies and MIA efficacy as shares, for ToW."""
    names = ("forget", "retain", "test", "MIA")
    return {"mia" if name == "MIA" else name: metrics[name] / 100 for name in names if metrics[name] is not None}


def measures(pair: Pair) -> dict[str, float]:
    """Every number of one run: its own metrics, its distance to retrain, its cost."""
    own, ref = pair.metrics, pair.reference
    numbers = {name: own[name] for name in ("forget", "retain", "val", "test", "UA", "RA", "TA", "MIA", "privacy")
               if own.get(name) is not None}
    numbers |= {f"MIA_{feature}": value for feature, value in own["mia"]["forget"].items()}
    numbers |= {f"AUC_{feature}": value for feature, value in own["mia"]["auc"].items()}
    numbers |= apart(pair)
    numbers["ToW"] = tow.tow(shares(own), shares(ref))
    if own.get("val") is not None and ref.get("val") is not None:
        numbers["ToW_val"] = tow.tow(shares(own) | {"test": own["val"] / 100}, shares(ref) | {"test": ref["val"] / 100})
        numbers["gap_val"] = math.fsum(abs(own[part] - ref[part]) for part in ("forget", "retain", "val")) / 3
    if own["MIA"] is not None and ref["MIA"] is not None:
        numbers["ToW-MIA"] = tow.tow_mia(shares(own), shares(ref))
        numbers["Avg. gap"] = tow.average_gap(own, ref)
    ours, theirs = answers_of(pair.run), answers_of(pair.retrain)
    for part, rows in {"forget": slice(None), "test": ours["counted"]}.items():
        if all(answers[f"{part}_finite"][rows].all() for answers in (ours, theirs)):
            differ = ours[f"{part}_predicted"][rows] != theirs[f"{part}_predicted"][rows]
            numbers[f"disagreement_{part}"] = 100 * float(differ.mean())
    if (distance := margin_distance(ours, theirs)) is not None:
        numbers["KS_forget"] = distance
    spent, scores = pair.run.record["seconds"], pair.run.record.get("scores", {})
    numbers["seconds"] = spent.get("unlearn", 0.0) + spent.get("mask", 0.0)
    numbers["seconds_scores"] = scores["seconds"] if needs_scores(pair.run) else 0.0
    numbers["seconds_total"] = numbers["seconds"] + numbers["seconds_scores"]
    return numbers | cost(pair) | by_group(pair)


def cost(pair: Pair) -> dict[str, float]:
    """speed_up: retrain's seconds over the run's; images_read: by the method and its mask, in percent of retrain's."""
    found = {}
    own, ref = (sum(run.record["seconds"].get(name, 0.0) for name in ("unlearn", "mask")) for run in (pair.run, pair.retrain))
    alike = machine_of(pair.run.record) == machine_of(pair.retrain.record)
    if own > 0 and ref > 0 and alike and computation(pair.run) != "raw":  # which does nothing, and takes the time to say so
        found["speed_up"] = ref / own
    read, theirs = (run.record.get("images_read") for run in (pair.run, pair.retrain))
    if read is not None and theirs is not None and theirs.get("unlearn"):
        found["images_read"] = 100 * (read.get("unlearn", 0) + read.get("mask", 0)) / theirs["unlearn"]
    return found


def apart(pair: Pair) -> dict[str, float]:
    """What stands beside the membership attack, in percent: its Monte-Carlo error, forget against test without a threshold."""
    own, ref = pair.metrics, pair.reference
    found = {name: own[name] for name in ("AUC_forget", *separation.LEVELS) if isinstance(own[name], float)}
    found |= {f"AUC_forget_{feature}": value for feature, value in own["mia"]["auc_forget"].items() if feature != "confidence"}
    if "AUC_forget" in found and ref["AUC_forget"] is not None:
        found["AUC_difference"] = found["AUC_forget"] - ref["AUC_forget"]
    error = own["mia"].get("error", {}).get("forget", {}).get("confidence")
    return found if error is None else found | {"MIA_error": error}


def margin_distance(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float | None:
    """KS_forget of two runs' answers in percent; None where one is not finite, or where they forget other examples."""
    same = np.array_equal(ours["forget_index"], theirs["forget_index"])
    if not same or "margins" not in ours or "margins" not in theirs:
        return None
    return 100 * separation.margin_distance(ours["margins"], theirs["margins"])


def by_group(pair: Pair) -> dict[str, float]:
    """acc_<group> and MIA_<group>, in percent, of every group of the forget set."""
    if not pair.groups or pair.metrics["MIA"] is None:  # a model whose outputs are not finite has no attack
        return {}
    outputs, right = load_outputs(pair.run.folder), answers_of(pair.run)["forget_right"]
    gone = accuracy.nonmembers(outputs, tuple(pair.run.record["whole_classes"]), pair.attack, pair.seed)
    found: dict[str, float] = {}
    for name, index in pair.groups.items():
        rows = np.isin(outputs["forget_index"], index)
        assert rows.sum() == len(index), f"{pair.run.folder}: examples of the group {name} are not among the outputs"
        found |= {f"acc_{name}": 100 * float(right[rows].mean()), f"MIA_{name}": 100 * float(gone[rows].mean())}
    return found


def images_error(pair: Pair) -> dict[str, float]:
    """Standard error of one model's numbers from the sample of images alone, in their unit: what other images would change.

    Binomial for shares; for ToW the bootstrap over the images of each part, those of the model and of its retrain together.
    """
    ours, theirs = answers_of(pair.run), answers_of(pair.retrain)
    changes: dict[str, tuple[int, int, int]] = {}
    found: dict[str, float] = {}
    for part in ("forget", "retain", "val", "test"):
        if f"{part}_right" not in ours:
            continue
        rows = ours["counted"] if part == "test" else slice(None)
        own = ours[f"{part}_right"][rows]
        found[part] = 100 * statistics.share_error(float(own.mean()), len(own))
        if part != "val":
            ref = theirs[f"{part}_right"][rows]
            changes[part] = int((own & ~ref).sum()), int((ref & ~own).sum()), int((own == ref).sum())
    if pair.metrics["MIA"] is not None:
        found["MIA"] = 100 * statistics.share_error(pair.metrics["MIA"] / 100, len(ours["forget_right"]))
    return found | {"ToW": statistics.tow_error(changes)}
