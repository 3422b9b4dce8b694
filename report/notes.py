"""What a reader of a table must know to not misread it."""

from __future__ import annotations

from collections.abc import Iterable

from evaluation import separation
from report.labels import WRITTEN
from report.rows import FLOOR, GAP_MEANS, MEAN_GAP, Row, same_forget_set
from report.settings import name_of
from unlearn.plan import NAMED as PLANS

WEAK = 60.0  # AUC in % (or 100 less it) under which confidence hardly tells the forget set from test images
NAMED = 3  # rows that are named where many are meant
BROKEN = ("A collapsed model is broken (see metrics.collapsed of its record): its low forget accuracy is no forgetting, and "
          "its ToW and gap, in brackets, are not to be ranked.")
IDLE = ("A method that did nothing left its original as it was, weight by weight: its row is raw's, and says nothing of the "
        "method; change its settings.")
NO_REFERENCE = "Retrain itself is broken here, so that ToW and gaps to it say nothing of the methods."
ALIKE = "One computation under two names; of runs of one seed the first is taken."


def explained(part: Iterable[Row]) -> list[str]:
    """A sentence for each name among the rows that does not tell what was done: of plans, and of two names of one method."""
    told = {}
    for row in part:
        if row.method == FLOOR:
            continue
        name, shown = name_of(row.pairs[0].run), row.name
        if written := WRITTEN.search(name):
            told[shown.removeprefix("shuffle ")] = written[1]
        elif name.removeprefix("shuffle ").split(" (")[0] == "RUM":
            told["RUM"] = PLANS["rum"]
        elif " = " in shown:
            told[shown] = ALIKE.rstrip(".")
    return [f"{label}: {text}." for label, text in sorted(told.items())]


def notes_of(part: list[Row], columns: tuple[str, ...]) -> list[str]:
    """Sentences below the table of one setting."""
    lines = [*_what_means_are(part, columns)]
    if any(row.collapsed for row in part):
        lines.append(BROKEN)
    if any(row.idle for row in part):
        lines.append(IDLE)
    if any(row.collapsed for row in part if row.is_reference):
        lines.append(NO_REFERENCE)
    for name in separation.LEVELS:
        reason = next((row.missing(name) for row in part if name in columns and row.missing(name)), None)
        lines += [f"There is no {name}: it {reason}."] if reason else []
    return [*lines, *_weak_attack(part, columns), *_other_seeds(part), *_no_floor(part), *_versions(part)]


def _what_means_are(part: list[Row], columns: tuple[str, ...]) -> list[str]:
    reference = next((row for row in part if row.is_reference), part[0])
    requests = len({pair.setting.key for pair in reference.pairs})
    if requests > 1:
        over = f"{requests} requests, each a mean over its seeds"
    else:
        over = "training seeds" + (", for this forget set alone" if same_forget_set(reference.pairs) else "")
    told = [f"Means over {over}"]
    if any(row.numbers["ToW"].n > 1 for row in part):
        told.append("intervals on the logit scale (seconds: log)")
    if any(MEAN_GAP in row.numbers for row in part) and MEAN_GAP in columns:
        told.append(f"{MEAN_GAP}: mean over seeds of single runs' gaps")
    if any(GAP_MEANS in row.numbers for row in part) and GAP_MEANS in columns:
        told.append(f"{GAP_MEANS}: the published one, of means over seeds")
    images = [f"{name} {reference.images[name]:.2f}" for name in ("forget", "test", "MIA") if name in reference.images]
    return [f"{'; '.join(told)}. Other images alone would change one model's numbers by {', '.join(images)} points (standard "
            "error, of retrain's)."]


def _weak_attack(part: list[Row], columns: tuple[str, ...]) -> list[str]:
    """Where no model of the table tells its forget set from test images; with whole classes forgotten all may, and rightly."""
    aucs = [row.numbers["AUC_forget"].mean for row in part if row.method != FLOOR and "AUC_forget" in row.numbers]
    farthest = max((max(auc, 100 - auc) for auc in aucs), default=100.0)
    whole = any(pair.run.record["whole_classes"] or pair.run.record.get("whole_subclasses")
                for row in part for pair in row.pairs)
    if whole or farthest >= WEAK or not {"MIA", MEAN_GAP} & set(columns):
        return []
    return [f"No model here tells its forget set from test images by confidence (AUC at most {farthest:.1f} %): MIA, and "
            "ToW-MIA and gaps with it, follow the threshold more than membership."]


def _other_seeds(part: list[Row]) -> list[str]:
    told = [f"{row.method}: {' '.join(map(str, row.units))}" for row in part if row.others_seeds(part)]
    return [f"* means over other seeds than retrain's, not to be compared with the rest: {'; '.join(told)}. The paired tests "
            "take the seeds that both have."] if told else []


def _no_floor(part: list[Row]) -> list[str]:
    reference = next((row for row in part if row.is_reference), None)
    if reference is None or len(reference.pairs) < 2 or any(row.method == FLOOR for row in part):
        return []
    return ["Every seed forgets other examples (by scores of its own original), so that retrains of two seeds are about two "
            "questions and there is no floor."]


def _versions(part: list[Row]) -> list[str]:
    """Rows whose runs were made by different versions of this suite, or of torch."""
    told = []
    for row in part:
        differ = {name: _short(pair.run.record.get(name, "unknown") for pair in row.pairs) for name in ("commit", "torch")}
        words = [f"{name} {', '.join(values)}" for name, values in differ.items() if len(values) > 1]
        if words and row.method != FLOOR:
            told.append(f"{row.method} ({'; '.join(words)})")
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return [f"Versions differ inside a row: {', '.join(told[:NAMED])}{more}."] if told else []


def _short(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(value[:7] if len(value) == 40 else value for value in values))
