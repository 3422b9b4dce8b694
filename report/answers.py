"""What the numbers of a run need of its outputs, worked out once: a retrain is asked by every method beside it."""

from __future__ import annotations

import numpy as np

from evaluation.accuracy import PARTS, load_outputs, outputs_of, remaining
from evaluation.mia import margin
from utils import Kept, Saved

KNOWN = Kept(2**26)  # bytes of answers that an analysis holds; they are a hundredth of the outputs that they come from


def answers_of(run: Saved) -> dict[str, np.ndarray]:
    """The answers of a run to its images; not to be written into.

    Returns:
        <part>_predicted int [N], <part>_finite and <part>_right bool [N], of each part that there is (an output that is not
        finite is a wrong answer); forget_index int64 [n]; counted bool [M], the test images of what is not forgotten whole;
        margins float64 [n] of the forget set, where all of its outputs are finite.
    """
    return KNOWN.get(run.folder / "outputs.npz", lambda: _worked_out(run))


def _worked_out(run: Saved) -> dict[str, np.ndarray]:
    outputs = load_outputs(run.folder)
    found = {"forget_index": outputs["forget_index"], "counted": remaining(outputs, run.record["whole_classes"])}
    for part in PARTS:
        if f"{part}_logits" not in outputs:
            continue
        logits = outputs[f"{part}_logits"]
        finite = np.isfinite(logits).all(1)
        predicted = (logits if finite.all() else np.nan_to_num(logits)).argmax(1)
        found |= {f"{part}_finite": finite, f"{part}_predicted": predicted.astype(np.int32),
                  f"{part}_right": (predicted == outputs[f"{part}_labels"]) & finite}
    if found["forget_finite"].all():
        found["margins"] = margin(outputs_of(outputs, "forget")).numpy()
    return found
