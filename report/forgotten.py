"""Pictures of what was forgotten: images of the forget set, drawn by a seed, from the data as the run recorded them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

import dataset
from dataset import Data, DataConfig
from report.page import Shots, shot
from report.pairs import Pair
from utils import BadInput, Runtime, RuntimeConfig, read_arrays

DRAW = 1  # seed of which images are shown
WRONG = "*"  # behind a label that is wrong by --label_noise


class Album:
    """The data of runs, each read once; None shown where they are not here."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.read: dict[str, Data | str] = {}

    def of(self, pair: Pair) -> tuple[tuple[Shots, ...], str]:
        """Images of a run's forget set, a grid a group where it has groups; and what is to be said of them, or instead."""
        if not self.most:
            return (), ""
        found = self._data(pair)
        if isinstance(found, str):
            return (), f"The forgotten images are not shown: {found}."
        forget = read_arrays(pair.run.folder / "splits.npz", {"forget": ("iu", "n")})["forget"]
        parts = pair.groups or {"": forget}
        labels, wrong = found.classes(found.images.y.cpu().numpy()), getattr(found.splits, "mislabelled", ())
        grids = [self._grid(name, part, self.most // len(parts), found, labels, np.asarray(wrong))
                 for name, part in parts.items() if len(part)]
        told = ["Below each image stands its class"]
        if np.isin(forget, wrong).any():
            told.append(f"{WRONG} marks a label that is wrong by --label_noise")
        return tuple(grids), "; ".join(told) + "."

    def _data(self, pair: Pair) -> Data | str:
        recorded = pair.run.record["settings"]["data"]
        key = f"{sorted(recorded.items())} {pair.run.record['data_key']}"
        if key not in self.read:
            try:
                self.read[key] = _load(recorded, pair.run.record["data_key"])
            except BadInput as error:  # an analysis may be made where the data never were
                self.read[key] = str(error).rstrip(".")
        return self.read[key]

    def _grid(self, name: str, part: np.ndarray, count: int, data: Data, labels: np.ndarray, wrong: np.ndarray) -> Shots:
        drawn = np.random.default_rng(DRAW).permutation(np.sort(part))[: max(1, count)]
        drawn = drawn[np.lexsort((drawn, labels[drawn]))]
        shots = [shot(data.images.x[i].cpu().numpy(), f"{labels[i]}{WRONG if i in wrong else ''}", int(i)) for i in drawn]
        some = f"{len(drawn)} of {len(part):,} images, drawn at random" if len(drawn) < len(part) else f"all {len(part)} images"
        return Shots(f"What was forgotten{f', {name}' if name else ''}: {some}", tuple(shots))


def _load(recorded: Mapping[str, Any], data_key: str) -> Data:
    """The data of a record's settings, as far as they are here: nothing is fetched."""
    known = {field.name for field in dataclasses.fields(DataConfig)}
    cfg = DataConfig(**{name: value for name, value in recorded.items() if name in known} | {"download": False})
    return dataset.load(cfg, Runtime(RuntimeConfig(device="cpu", progress=False)), data_key=data_key)
