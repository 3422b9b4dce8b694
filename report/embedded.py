"""What models make of the points of a forget set: one forward pass, the measures of its features, and t-SNE planes.

Numbers and planes are kept in files by the hash of the model and all that they depend on, so that the next analysis asks no
model again, and one that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import models
from dataset import Data
from evaluation import distribution
from evaluation.distribution import FORGOTTEN
from models import ModelConfig
from models.modes import full_float32
from utils import BadInput, Runtime, digest_of, make_folder, read_arrays, sha256, write_atomic

FORM = 1  # of the files; raised when the measures change
PLACE = "embeddings"  # folder of the files
OWN, TSNE = "own", "tsne"  # spaces
FEATURES = ("penultimate", "logits")
SPACES = (OWN, TSNE)

Numbers = dict[str, float]


class Asked(NamedTuple):
    """What is to be measured; all that the numbers depend on, but for models and points."""

    features: tuple[str, ...]
    spaces: tuple[str, ...]
    tsne_points: int
    tsne_seed: int
    perplexity: float


class Scene(NamedTuple):
    """The points of a forget set, the same for every model.

    data: they are of; index int64 [N]: training images, then ``ood`` of those out of distribution, if any. labels int64 [N]:
    the class of each. group int64 [N]: -1 of a point among the others, else which of ``names`` is measured with it.
    """

    data: Data
    index: np.ndarray
    labels: np.ndarray
    group: np.ndarray
    names: tuple[str, ...]
    ood: bool = False

    @property
    def key(self) -> str:
        """Digest of the points."""
        told = [self.data.splits.data_key, *(there.tolist() for there in (self.index, self.labels, self.group)), self.names]
        return digest_of([*told, self.ood])

    def of_group(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """bool [N]: the points that a group is measured among, its own and the others; and the labels of these."""
        seen = (self.group < 0) | (self.group == place)
        return seen, np.where(self.group == place, FORGOTTEN, self.labels)[seen]


class Seen(NamedTuple):
    """What one model makes of a scene.

    numbers: (group's name, features, space) -> measures, without those that cannot be had. planes: features -> the points
    ``taken`` in a t-SNE plane, float32 [M, 2]. taken: (features, space) -> int64 [M] rows of the scene; labels, marked: of
    the scene, int64 and bool [N]. told: how long it took.
    """

    numbers: dict[tuple[str, str, str], Numbers]
    planes: dict[str, np.ndarray]
    taken: dict[tuple[str, str], np.ndarray]
    labels: np.ndarray
    marked: np.ndarray
    told: str

    @property
    def points(self) -> int:
        """How many the scene has."""
        return len(self.labels)


def scene_of(data: Data, retain: np.ndarray, forget: np.ndarray) -> Scene:
    """Retained and forgotten training images, in the order of the data set."""
    index = np.sort(np.concatenate([retain, forget]))
    gone = np.isin(index, forget)
    return Scene(data, index, _labels(data, index), np.where(gone, 0, -1), ("forgotten",))


def never_seen(data: Data, retain: np.ndarray) -> Scene | None:
    """Retained training images, and a group for each class out of distribution; None where there is none."""
    if data.ood is None:
        return None
    classes = data.ood.y.cpu().numpy()
    whole = data.outputs[classes] < 0  # else a sub-class was left out of its class
    told = [f"class {c}" if gone else f"sub-class {fine}" for c, gone, fine in zip(
        classes, whole, classes if data.ood.fine is None else data.ood.fine, strict=True)]
    names = tuple(sorted(set(told), key=lambda name: (name.split()[0], int(name.split()[1]))))
    retain = np.sort(retain)
    return Scene(data, np.concatenate([retain, np.arange(len(classes))]), np.concatenate([_labels(data, retain), classes]),
                 np.concatenate([np.full(len(retain), -1), [names.index(name) for name in told]]), names, True)


def _labels(data: Data, index: np.ndarray) -> np.ndarray:
    return data.images.y.cpu().numpy()[index]


@torch.inference_mode()
@full_float32()
def features_of(model: models.Classifier, scene: Scene, rt: Runtime) -> dict[str, np.ndarray]:
    """``penultimate`` float32 [N, F] and ``logits`` float32 [N, K] of the images as they are, in eval mode."""
    net = models.fold_batchnorm(model)
    train = scene.index[: len(scene.index) - (len(scene.data.index("ood")) if scene.ood else 0)]
    loaders = [scene.data.subset(train), *([scene.data.loader("ood")] if scene.ood else [])]
    found: dict[str, list[torch.Tensor]] = {name: [] for name in FEATURES}
    for batch in (batch for loader in loaders for batch in loader):
        features = models.embed(net, batch.x).float()
        found["penultimate"].append(features)
        found["logits"].append(net.classify(features).float())
    return {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}


def look(file: Path, cfg: ModelConfig, scene: Scene, asked: Asked, kept: Path, rt: Runtime) -> Seen:
    """What the model of a file makes of a scene.

    Args:
        kept: folder of the files of earlier analyses.

    Raises:
        BadInput: the file is no model of these data; or ``kept`` cannot be written.
    """
    key, features, times = [FORM, sha256(file), dataclasses.asdict(cfg), scene.key], {}, []
    numbers, planes, taken = {}, {}, {}
    for name in asked.features:
        for space in asked.spaces:
            plane_of = [*asked[2:], version("scikit-learn")] if space == TSNE else []
            path = kept / f"{digest_of([*key, name, space, *plane_of])}.npz"
            found = _read(path, len(scene.index))
            if found is None:
                if not features:
                    make_folder(kept, "--out")  # before anything is waited for
                    began = time.perf_counter()
                    features = features_of(models.load(file, cfg, scene.data, rt)[0], scene, rt)
                    times.append(f"features {time.perf_counter() - began:.1f} s")
                began = time.perf_counter()
                found = _measured(features[name], scene, asked, space)
                times.append(f"{name} {space} {time.perf_counter() - began:.1f} s")
                write_atomic(path, lambda file, it=found: np.savez(file, **it), "--out")
            taken[name, space], plane = found["taken"], found.get("plane")
            if plane is not None:
                planes[name] = plane
            for place, group in enumerate(scene.names):
                start = f"{place}:"
                numbers[group, name, space] = {key.removeprefix(start): float(value) for key, value in found.items()
                                               if key.startswith(start)}
    return Seen(numbers, planes, taken, scene.labels, scene.group >= 0, ", ".join(times) or "kept from before")


def _read(path: Path, count: int) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None of one that is not there, or is damaged."""
    try:
        found = read_arrays(path, {"taken": ("iu", "M")})
    except BadInput:
        return None
    plane = found.get("plane")
    whole = found["taken"].max(initial=0) < count and (plane is None or plane.shape == (len(found["taken"]), 2))
    return found if whole and all(value.shape == () for name, value in found.items() if ":" in name) else None


def _measured(points: np.ndarray, scene: Scene, asked: Asked, space: str) -> dict[str, Any]:
    """The measures of each group as ``<place>:<measure>``, and which points were taken; of t-SNE their plane too.

    None of features that are not finite: the model has diverged.
    """
    taken = np.arange(len(points))
    if not np.isfinite(points).all():
        return {"taken": taken}
    plane: dict[str, np.ndarray] = {}
    if space == TSNE:
        grouped = np.where(scene.group < 0, scene.labels, FORGOTTEN)
        taken = distribution.subsample(grouped, asked.tsne_points, asked.tsne_seed)
        if np.ptp(points[taken], axis=0).max() == 0:  # all are one point
            return {"taken": taken}
        points = distribution.tsne(points[taken], asked.tsne_seed, asked.perplexity)
        plane = {"plane": points}
    measures = distribution.in_plane if space == TSNE else distribution.in_space
    found: dict[str, Any] = {"taken": taken, **plane}
    for place in range(len(scene.names)):
        seen, labels = scene.of_group(place)
        inside = seen[taken]
        labels = labels[np.isin(np.flatnonzero(seen), taken)]
        if (labels == FORGOTTEN).any() and (labels != FORGOTTEN).any():
            found |= {f"{place}:{name}": value for name, value in measures(points[inside], labels).items()}
    return found


def mean_of(each: Sequence[Mapping[str, float]]) -> Numbers:
    """Of the measures that all have."""
    names = [name for name in each[0] if all(name in own for own in each)]
    return {name: sum(own[name] for own in each) / len(each) for name in names}
