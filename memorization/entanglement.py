"""Entanglement of two sets of examples in the original's feature space, and groups of examples by it.

    f = features(model, data.loader("train"), rt)
    score = es(f[retain], f[forget])

Shapes: N images of the data set, n of them in the training split, F features.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

import models
from dataset import Loader
from groups import tie_order
from memorization.registry import Job, score
from models import Classifier
from models.modes import full_float32
from utils import BadInput, Config, Runtime, hp

CENTRES = ("sets", "all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EsConfig(Config):
    """Groups of training examples by entanglement."""

    es_chunks: int = hp(15, "chunks that the training split is cut into, by distance to its centroid", low=3)
    es_centre: str = hp("sets", "the centre that the two sets' means are held against: the mean of the two means (as "
                        "published code has it), or of all examples", choices=CENTRES)


@torch.inference_mode()
@full_float32()
def features(model: Classifier, loader: Loader, rt: Runtime) -> Tensor:
    """Embeddings (``models.embed``) float32 [N, F] in the loader's order; eval mode, batch norm folded, no bf16, no TF32."""
    assert loader.shuffle is None and loader.augment is None, "features are of the images as they are, in their order"
    net = models.fold_batchnorm(model)
    return torch.cat([models.embed(net, batch.x).float() for batch in loader]).to(rt.device)


class Sums:
    """Count, sum and sum of squares of a set of features, float64 on their device; differences of sets subtract them.

    ``origin`` (float64 [F]) is taken off first: squares of features far from 0 would cancel.
    """

    def __init__(self, count: int, total: Tensor, squares: Tensor) -> None:
        self.count, self.total, self.squares = count, total, squares

    @classmethod
    def of(cls, part: Tensor, origin: Tensor) -> Sums:
        moved = part.double() - origin
        return cls(len(part), moved.sum(0), moved.square().sum())

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def __sub__(self, other: Sums) -> Sums:
        return Sums(self.count - other.count, self.total - other.total, self.squares - other.squares)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def scatter(self) -> Tensor:
        """Mean squared distance to the set's own mean."""
        return (self.squares / self.count - self.mean.square().sum()).clamp_min(0)


def from_sums(retain: Sums, forget: Sums, centre: str = "sets") -> Tensor:
    """ES of two disjoint sets from their sums, float64 scalar on the device; see ``es``."""
    both = retain + forget
    mu = (retain.mean + forget.mean) / 2 if centre == "sets" else both.mean
    apart = ((retain.mean - mu).square().sum() + (forget.mean - mu).square().sum()) / 2
    return (retain.scatter + forget.scatter) / apart


def es(retain_feats: Tensor, forget_feats: Tensor, centre: str = "sets") -> float:
    """Entanglement Score: scatter inside both sets over the distance between them; higher is more entangled.

    [1/|R| sum ||f - mu_R||^2 + 1/|S| sum ||f - mu_S||^2] / [1/2 (||mu_R - mu||^2 + ||mu_S - mu||^2)]
    (Zhao et al., NeurIPS 2024, arXiv:2406.01257). The published code takes means of batch means; these are the sets' own.

    Args:
        retain_feats, forget_feats: float [|R|, F] and [|S|, F].
        centre: mu is the mean of the two means (``sets``, as the published code), or of all examples (``all``).

    Raises:
        BadInput: an empty set, features that are not finite, or the same single point in both.
    """
    if not len(retain_feats) or not len(forget_feats):
        raise BadInput("the entanglement of an empty set is not defined: name a forget set and a retain set")
    origin = retain_feats.mean(0, dtype=torch.float64)
    value = float(from_sums(Sums.of(retain_feats, origin), Sums.of(forget_feats, origin), centre))
    _check_defined(np.array([value]))
    return value


def _check_defined(values: np.ndarray) -> None:
    if np.isnan(values).any():
        raise BadInput("the entanglement is not defined: the model's features are the same for all examples or not "
                       "finite; check the original's accuracy, or train another")


@score("es", config=EsConfig, source="Zhao et al., NeurIPS 2024, arXiv:2406.01257")
def entanglement(job: Job, cfg: EsConfig) -> dict[str, np.ndarray]:
    """Entanglement of each example's group with the rest of the training split; groups by distance to the centroid.

    Chunks as published: ascending distance, equal sizes, what is left over (the farthest) in none. Which of them are
    low, mid and high is measured, since ES is not monotone in the distance.

    Returns:
        es float32 [N]: the ES of the image's chunk; NaN for validation images and leftovers. group int64 [N]: its
        chunk, -1 for those. distance float64 [N]: to the training split's centroid, NaN for validation images.
        chunk_es float64 [es_chunks]. levels int64 [3]: the chunks of lowest, median and highest ES.
    """
    index, total = job.data.splits.train, len(job.data.images.y)
    if cfg.es_chunks > len(index):
        raise BadInput(f"--es_chunks {cfg.es_chunks}: the training split has only {len(index)} examples")
    found = features(job.model(), job.data.loader("train"), job.rt)
    distance, chunks, chunk_es = cut(found, cfg.es_chunks, cfg.es_centre)
    group = np.full(total, -1)
    for number, members in enumerate(chunks):
        group[index[members]] = number
    whole = np.full(total, np.nan)
    whole[index] = distance
    values = np.where(group < 0, np.nan, chunk_es[group]).astype(np.float32)
    return {"es": values, "group": group, "distance": whole, "chunk_es": chunk_es, "levels": levels(chunk_es)}


def cut(found: Tensor, count: int, centre: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chunks of equal size by distance to the centroid, and their ES against all other examples.

    Equal distances are taken in a random order, one for every request: the chunks are a score and no choice of what to forget.

    Args:
        found: features float [n, F].

    Returns:
        distance float64 [n]; the chunks' members int64 [count, n // count]; their ES float64 [count].
    """
    origin = found.mean(0, dtype=torch.float64)
    blocks = found.split(max(1, len(found) // count))  # of float64 no more than a chunk at a time
    distance = torch.cat([(block.double() - origin).norm(dim=1) for block in blocks])
    mixed = torch.from_numpy(np.argsort(tie_order(len(found), 1))).to(distance.device)
    order = mixed[torch.sort(distance[mixed], stable=True).indices]
    chunks = order[: len(order) // count * count].view(count, -1)
    sums = [Sums.of(found[members], origin) for members in (*chunks, order[chunks.numel():])]
    whole = sum(sums[1:], sums[0])
    values = torch.stack([from_sums(whole - part, part, centre) for part in sums[:count]]).cpu().numpy()
    _check_defined(values)
    return distance.cpu().numpy(), chunks.cpu().numpy(), values


def levels(chunk_es: np.ndarray) -> np.ndarray:
    """The chunks of lowest, median (the upper one of an even number) and highest ES, int64 [3]; ties by chunk."""
    order = np.argsort(chunk_es, kind="stable")
    return order[[0, len(order) // 2, -1]].astype(np.int64)
