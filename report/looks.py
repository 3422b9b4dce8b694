"""One look for a method in every figure: a colour and a marker, which no other method has together."""

from __future__ import annotations

import re

from evaluation.style import BLACK, BLUE, GREEN, GREY, HUES, MARKERS, ORANGE, PINK, RED
from report.rows import FLOOR
from unlearn import METHODS

Look = tuple[str, str]  # colour and marker, as matplotlib takes them
BAND = "#9A9A9A"  # of what is no method: how far retrains are apart
ANCHORS: dict[str, Look] = {"retrain": (BLACK, "H"), "raw": (GREY, "8"), FLOOR: (BAND, "_")}
ALONE = "method alone"
# of plans, by their kind; the markers are no method's
KINDS: dict[str, Look] = {"RUM^F": (BLUE, "<"), "RUM": (RED, "h"), "shuffle": (ORANGE, ">"), "vanilla": (GREEN, "d"),
                          "plan": (PINK, "p"), ALONE: (GREY, "s")}
_ALONE = [name for name in METHODS.names() if name not in ANCHORS]
LOOKS = {name: (HUES[place % len(HUES)], MARKERS[(place + place // len(HUES)) % len(MARKERS)])
         for place, name in enumerate(_ALONE)}
# parts of the data; forget and test as retrain's line is black
PARTS = {"forget": ORANGE, "test": GREEN, "retain": BLUE, "forget, retrain": BLACK}


def look_of(label: str) -> Look:
    """Of a row, by the beginning of its name: settings in brackets and what else tells it from its mates do not change it."""
    if label.startswith(FLOOR):
        return ANCHORS[FLOOR]
    first = _first(label)
    return ANCHORS.get(first) or LOOKS.get(first) or KINDS.get(first) or KINDS["plan"]


def _first(label: str) -> str:
    return re.split(r"[ ,(\[]", label, maxsplit=1)[0]


def kind_of(label: str) -> tuple[str, str]:
    """Of a plan its kind and what it does with each group, of a method that it stands alone: ("RUM^F", "NG (alpha=0.9)")."""
    kind, _, rest = label.partition(" ")
    if kind in ("RUM", "plan"):
        return kind, label
    if _first(label) in METHODS:
        return ALONE, label
    return (kind, rest) if kind in KINDS else ("plan", label)  # by its own label
