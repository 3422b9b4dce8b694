"""How far the forget set lies from images that no training saw, and from itself under retrain; no threshold is fitted.

The non-members are the test images of the forget set's own classes, weighted to its class proportions: a hard class, or one
that is forgotten whole, must not look like forgetting. What is the same on both sides has an AUC of 1/2; above, the forget
set still looks like members; below, it is over-forgotten.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation import rules
from evaluation.mia import LARGER_IS_MEMBER, Outputs, features, margin

LEVELS = {"TPR@1%": 0.01, "TPR@0.1%": 0.001}
FALSE_ALARMS = 10  # so many non-members must be allowed above the threshold; of fewer the rate is hardly known


def forget_against_test(forget: Outputs, test: Outputs, kinds: tuple[np.ndarray, np.ndarray] | None = None) -> dict[str, Any]:
    """The forget set as members against test images of the same classes as non-members.

    Args:
        test: of all classes, those that are forgotten whole too. Forget examples of a class without test images do not count.
        kinds: the sub-classes of both, int64 [N] each, by which they are then matched instead.

    Returns:
        auc: one-dimensional feature -> ROC AUC in the direction "member", 0 to 1; empty without a class on both sides.
        each of LEVELS: true positive rate at that false positive rate, 0 to 1, by the margin, which orders as the confidence
            does and does not saturate; or why there is none.
    """
    member_labels, labels = kinds or (forget.labels.cpu().numpy(), test.labels.cpu().numpy())
    classes = max(forget.logits.shape[1], *(int(side.max(initial=0)) + 1 for side in (member_labels, labels)))
    asked, there = (np.bincount(side, minlength=classes) for side in (member_labels, labels))
    kept, others = there[member_labels] > 0, asked[labels] > 0
    if not kept.any():
        return {"auc": {}} | dict.fromkeys(LEVELS, "needs test images of the forget set's classes, has none")
    weights = (asked / np.maximum(there, 1))[labels[others]]
    sides = [part.take(np.flatnonzero(rows)) for part, rows in ((forget, kept), (test, others))]
    values = [features(part) for part in sides]
    auc = {}
    for name in values[0].keys() & LARGER_IS_MEMBER.keys():
        signed = ((1 if LARGER_IS_MEMBER[name] else -1) * side[name].cpu().numpy() for side in values)
        auc[name] = rules.area_under_curve(*signed, weights)
    margins = [margin(part).cpu().numpy() for part in sides]
    found: dict[str, Any] = {"auc": {name: auc[name] for name in LARGER_IS_MEMBER if name in auc}}
    for name, level in LEVELS.items():
        needed, count = round(FALSE_ALARMS / level), int(others.sum())
        enough = count >= needed
        found[name] = (rules.rate_at(*margins, level, weights) if enough
                       else f"needs {needed:,} test images of the forget set's classes, has {count:,}")
    return found


def margin_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest distance between the distributions of the margins of one forget set under two models, 0 to 1.

    The Kolmogorov-Smirnov statistic. It sees over-forgetting that accuracy cannot: an example may be as wrong as under
    retrain, and far more surely so.

    Args:
        ours, theirs: float64 [N], ``mia.margin`` of the forget set under each.
    """
    return rules.largest_distance(ours, theirs)
