"""Files of scores, one number for each training image, and where they are found.

``POLARITY`` says which way a score runs, so that "high" always means most memorized.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils import BadInput, Saved, find_runs, flag_words, load_arrays, reading

# +1: larger values go with memorization, -1: smaller ones do; entanglement (es) is about groups and orders no examples
POLARITY = {"memorization": 1, "confidence": -1, "max_conf": -1, "entropy": 1, "bi_acc": -1, "ho_ret": 1, "loss_curvature": 1,
            "el2n": 1, "forgetting": 1, "es": 0}
RECORDED = ("confidence", "max_conf", "entropy", "bi_acc", "el2n", "forgetting")  # in events.npz of every original
PUBLISHED = {"memorization": "tr_mem", "labels": "tr_labels"}  # keys of Feldman and Zhang's released file
PROXIES = tuple(name for name in POLARITY if name != "memorization")
# between which values a score lies by its definition; el2n is a distance of two points of the simplex
BOUNDS = {"memorization": (-1.0, 1.0), "confidence": (0.0, 1.0), "max_conf": (0.0, 1.0), "bi_acc": (0.0, 1.0),
          "entropy": (0.0, math.inf), "el2n": (0.0, math.sqrt(2)), "forgetting": (0.0, math.inf), "ho_ret": (0.0, math.inf),
          "loss_curvature": (0.0, math.inf)}
SLACK = 1e-4  # by which rounding may lead out of them
WHOLE = ("forgetting",)  # counts


def arrays_in(path: Path, wanted: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of the wanted arrays that a file of scores has, and all the names in it (BadInput where it is no such file)."""
    with reading(f"cannot read the scores in {path}", "main_memorization.py writes scores.npz"):
        found, names = load_arrays(path, wanted)
    if "" in found:
        raise BadInput(f"{path} is a list of numbers without a name, which any score could be; np.savez(FILE, "
                       "memorization=values) names it: 'memorization', 'tr_mem' or a proxy")
    return found, names


def read_scores(path: Path, name: str, labels: np.ndarray | None = None, images_key: str | None = None, insist: str = "",
                any_values: bool = False) -> np.ndarray:
    """A score of every training image, float64 [N]; NaN where the file has none.

    Reads our own files and the published ones (``memorization``, or ``tr_mem`` with ``tr_labels``).

    Args:
        labels: int64 [N] of the data set, checked where the file holds labels.
        images_key: of the data set's training images, checked where the file holds one.
        any_values: take whole numbers, and values outside the score's definition; insist: how the user asks for that.

    Raises:
        BadInput: unreadable, no such score, another length, other labels, another data set, values that cannot be.
    """
    found, names = arrays_in(path, [*(key for key in (name, PUBLISHED.get(name)) if key), "labels", PUBLISHED["labels"],
                                    "images_key"])
    values = next((found[key] for key in (name, PUBLISHED.get(name)) if key in found), None)
    if values is None:
        raise BadInput(f"{path} holds no '{name}' (it has {', '.join(names) or 'nothing'})")
    inside = [found[key] for key in ("labels", PUBLISHED["labels"]) if key in found]
    key = str(found["images_key"]) if "images_key" in found else None
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise BadInput(f"{path}: '{name}' must be one real number for each training image; got {values.dtype} {values.shape}")
    advice = "take the scores of this data set (and the same --classes)"
    if labels is not None and len(values) != len(labels):
        raise BadInput(f"{path} has {len(values)} scores, the data set {len(labels)} training images; {advice}")
    if labels is not None and inside and not np.array_equal(np.ravel(inside[0]), labels):
        raise BadInput(f"{path} is of another data set: its labels differ; {advice}")
    if key is not None and images_key is not None and key != images_key:
        raise BadInput(f"{path} is of another data set (images_key {key}, not {images_key}); {advice}")
    if not any_values and (wrong := _wrong(name, values)):
        raise BadInput(f"{path}: '{name}' {wrong}; is it another score's file?" + (f" If not, {insist}" if insist else ""))
    return values.astype(np.float64)


def _wrong(name: str, values: np.ndarray) -> str:
    """Why numbers cannot be this score, in words; "" where they can. What is not finite is not known."""
    if values.dtype.kind in "iu" and name not in WHOLE:
        return f"holds whole numbers ({values.dtype}), where the score is a real one"
    low, high = BOUNDS.get(name, (-math.inf, math.inf))
    found = values[np.isfinite(values)]
    if len(found) and (found.min() < low - SLACK or found.max() > high + SLACK):
        limits = f"{low:.4g} or more" if high == math.inf else f"{low:.4g} to {high:.4g}"
        return f"goes from {found.min():.4g} to {found.max():.4g}, where the score is {limits}"
    return ""


def find_scores(name: str, original: Saved | None, roots: list[Path], wanted: Mapping[str, Any], parent: str | None) -> Path:
    """The file of a score, by record: what the original's training recorded, else the one run of main_memorization.py.

    Args:
        roots: folders of run folders, searched in order.
        wanted: settings of the memorization run (data set and classes).
        parent: sha256 of the original; a proxy is of one model.

    Raises:
        BadInput: none, with the command that makes it, or several, listed.
    """
    events = original.folder / "events.npz" if original is not None and original.record else None
    if name in RECORDED:
        if events is not None and original.record["stage"] != "train":
            raise BadInput(f"'{name}' is recorded while an original is trained, and {original.folder} is of a "
                           f"{original.record['stage']} run; name that original's events.npz by --scores, or use ho_ret or "
                           "loss_curvature, which are of any model")
        if events is None or not events.exists():
            raise BadInput(f"'{name}' is recorded while an original is trained, and there is no events.npz beside this one; "
                           "train it by main_train.py (--force repeats a run), or name a file by --scores")
        return events
    command = "main_memorization.py" if name == "memorization" else f"main_memorization.py --score {name}"
    for root in roots:
        found = find_runs(root, ("memorization",), score=name, **(wanted if name == "memorization" else {}))
        if name != "memorization":
            found = [run for run in found if run.record["parent"].get("sha256") == parent]
        elif len({json.dumps(run.record.get("pool")) for run in found}) == 1:
            found = [max(found, key=lambda run: run.record["models"])]  # the same pool, grown
        if len(found) == 1:
            return found[0].folder / "scores.npz"
        if found:
            raise BadInput(f"several runs have the scores '{name}': {', '.join(str(run.folder) for run in found)}; name one of "
                           "their scores.npz by --scores")
    if name == "memorization" or original is None:
        told = "".join(f" {word}" for key, value in wanted.items() for word in flag_words(key, value))
    else:  # a proxy is of one model
        told = f" --checkpoint {original.folder}"
    told += f" --save_dir {roots[0]}" if roots[0] != Path("runs") else ""
    raise BadInput(f"no scores '{name}' under {' or '.join(map(str, roots))}; make them: python {command}{told}, or name a "
                   "file by --scores")
