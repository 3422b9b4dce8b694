"""The outputs of a model on the parts of a data set: predicted once, also where the run that it starts from has them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import models
from dataset import Data
from trainer import predict_all
from utils import BadInput, Run, Runtime, Saved, read_arrays, read_record, require, say

TRAINING = ("train", "retain", "forget")  # parts of the images to train on, whichever a run has cut them into
MACHINE = ("device", "processor", "threads", "torch")  # by which logits may part in the last digits


def outputs(model: nn.Module, data: Data, rt: Runtime, run: Run, parts: Sequence[str]) -> dict[str, np.ndarray]:
    """Index, labels and logits of each part: of the parent's outputs.npz where it is the very same model, else predicted.

    The same is a model with the same weights to the bit, of the same data key, on the same machine and device, in the same
    evaluation batches and layout; which batch an image is in then moves its logits by rounding alone. So it is with raw,
    whose forget sets cut one training set differently. What is not whole is said, and predicted.

    Returns:
        <part>_index, <part>_labels int64 [N], <part>_logits float32 [N, K].
    """
    facts = rt.facts()
    about = {"weights": weights_key(model), "eval_batch": rt.eval_batch, "layout": str(rt.layout),
             **{name: facts[name] for name in MACHINE}, "device": rt.name}  # of one, whatever the number that trained it
    run.result(outputs=about | {"parts": list(parts)})
    found = _known(run.values.get("parent") or {}, about, data, parts)
    if found is None:
        found = {}
        for part, (logits, labels) in zip(parts, predict_all(model, [data.loader(part) for part in parts], rt), strict=True):
            found |= {f"{part}_index": data.index(part), f"{part}_labels": labels.cpu().numpy(),
                      f"{part}_logits": logits.cpu().numpy()}
    return found


def weights_key(model: nn.Module) -> str:
    """sha256 of the structure and of all parameters and buffers, which normalise too."""
    found = hashlib.sha256(json.dumps(models.about(model)).encode())
    for name, value in model.state_dict().items():
        array = value.detach().cpu().contiguous()
        found.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        found.update(array.flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _known(parent: Mapping[str, Any], about: Mapping[str, Any], data: Data,
           parts: Sequence[str]) -> dict[str, np.ndarray] | None:
    """What the parent's run has on the disk, in the order of the parts; None where it is of something else, or damaged."""
    folder = Path(parent.get("path", "")).parent
    try:
        run = read_record(folder)
    except BadInput:  # a bare file, or a run that is gone or moved: nothing is lost by it
        return None
    told = dict(run.record.get("outputs", {}))
    there = told.pop("parts", [])
    if run.record["status"] != "done" or told != about or run.record.get("data_key") != data.splits.data_key:
        return None
    try:
        return _cut(_read(run, there), data, there, parts)
    except BadInput as error:
        say(f"notice: {error}; its outputs are predicted again")
        return None


def _read(run: Saved, there: Sequence[str]) -> dict[str, np.ndarray]:
    form = {f"{part}_{name}": shape for part in there for name, shape in (
        ("index", ("iu", part)), ("labels", ("iu", part)), ("logits", ("f", f"{part} classes")))}
    return read_arrays(require(run, "outputs.npz").folder / "outputs.npz", form)


def _cut(arrays: Mapping[str, np.ndarray], data: Data, there: Sequence[str],
         parts: Sequence[str]) -> dict[str, np.ndarray] | None:
    found = {}
    for part in parts:
        wanted, labels = data.index(part), data.loader(part).labels.cpu().numpy()
        sides = [name for name in there if name == part or (name in TRAINING and part in TRAINING)]
        rows = {name: np.concatenate([arrays[f"{side}_{name}"] for side in sides]) if sides else np.empty(0, np.int64)
                for name in ("index", "labels", "logits")}
        order = np.argsort(rows["index"])
        at = order[np.searchsorted(rows["index"], wanted, sorter=order).clip(max=len(order) - 1)] if sides else order
        if not sides or not np.array_equal(rows["index"][at], wanted) or not np.array_equal(rows["labels"][at], labels):
            return None
        found |= {f"{part}_index": wanted, f"{part}_labels": labels, f"{part}_logits": rows["logits"][at]}
    return found
