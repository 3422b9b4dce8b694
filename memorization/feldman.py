"""How much a model memorizes each training example, and what each does to test examples: counts over a pool of models.

Feldman and Zhang, NeurIPS 2020, arXiv:2008.03703: the memorization of (x, y) is the probability that a model trained with
it says y at x, less that of a model trained without it (section 2, equation 1); its influence on (x', y') is the same
difference taken at x' (equation 2). Both are estimated by models on random subsets (section 2.3, algorithm 1).

Shapes: T models, N training images, M test images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from memorization.factory import Pool, PoolConfig, prepare
from memorization.registry import Job, score
from utils import BadInput

BLOCK = 256  # test images at a time: 51 MB of influence on CIFAR's 50,000 training images
AT_ONCE = 256  # models whose masks are numbers to multiply, and not bits of a byte each
MOST_PAIRS = 50_000_000  # 600 MB in influence.npz


@dataclasses.dataclass
class Counts:
    """Models that saw each training image, and of these and of the others those that are right on it: int64 [N]."""

    models: int
    n_in: np.ndarray
    right_in: np.ndarray
    right: np.ndarray

    @classmethod
    def none(cls, images: int) -> Counts:
        return cls(0, *(np.zeros(images, np.int64) for _ in range(3)))

    def add(self, mask: np.ndarray, correct: np.ndarray) -> None:
        """One model: which images it saw and which it gets right, bool [N]."""
        self.models += 1
        self.n_in += mask
        self.right_in += mask & correct
        self.right += correct

    def scores(self) -> dict[str, np.ndarray]:
        """See ``memorization``."""
        n_out = self.models - self.n_in
        _check(self.n_in, self.models)
        right_out = self.right - self.right_in
        difference = self.right_in / self.n_in - right_out / n_out
        spread = np.sqrt(_variance(self.right_in, self.n_in) + _variance(right_out, n_out))
        return {"memorization": difference.astype(np.float32), "std_error": spread.astype(np.float32),
                "n_in": self.n_in.astype(np.int32), "n_out": n_out.astype(np.int32)}


def memorization(masks: np.ndarray, correct: np.ndarray) -> dict[str, np.ndarray]:
    """Feldman and Zhang's estimate for each training image, from models on random subsets.

    The standard error is that of a difference of two proportions, sqrt(p_in (1 - p_in) / n_in + p_out (1 - p_out) /
    n_out), after Agresti and Caffo (The American Statistician, 2000): each p and n are taken with one right and one wrong
    model more. So it is never 0 where all models agree, which among few models says little. The estimate itself is plain.

    Args:
        masks: bool [T, N], which images each model was trained on.
        correct: bool [T, N], which images each model gets right.

    Returns:
        memorization float32 [N] from -1 to 1, std_error float32 [N], n_in and n_out int32 [N].

    Raises:
        BadInput: an image that all models or none were trained on.
    """
    counts = Counts.none(masks.shape[1])
    for mask, right in zip(masks, correct, strict=True):
        counts.add(mask, right)
    return counts.scores()


def _variance(right: np.ndarray, n: np.ndarray) -> np.ndarray:
    p = (right + 1) / (n + 2)
    return p * (1 - p) / (n + 2)


def _check(n_in: np.ndarray, models: int) -> None:
    bad = int(((n_in == 0) | (n_in == models)).sum())
    if bad:
        share = float(n_in.mean()) / max(1, models)
        rare = max(share, 1 - share)
        # expected number of such images below 1 in 100
        enough = f"about --models {math.ceil(math.log(0.01 / len(n_in)) / math.log(rare))} would do, or" if rare < 1 else "give"
        raise BadInput(f"{bad} of {len(n_in)} training images were seen by all or by none of the {models} models, so their "
                       f"memorization is unknown: {enough} --subset half")


def influence(masks: np.ndarray, correct: np.ndarray, block: int = BLOCK,
              device: torch.device | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Influence of every training on every test image, in blocks of test images; one block is in memory at a time.

    Args:
        masks: bool [T, N], which training images each model saw.
        correct: bool [T, M], which test images each model gets right.
        device: where to multiply.

    Yields:
        (first test image, float32 [block, N]): P[test image right | trained with the other] - P[right | without].

    Raises:
        BadInput: a training image that all models or none were trained on.
    """
    count = len(masks)
    _check(masks.sum(0), count)
    seen, n_in = torch.from_numpy(masks).to(device), torch.from_numpy(masks.sum(0)).to(device)
    for first in range(0, correct.shape[1], block):
        right = torch.from_numpy(correct[:, first : first + block]).to(device)
        # counts stay below 2^24, so that float32 sums are exact; a byte becomes four for some models at a time alone
        with_it = sum(right[models].t().float() @ seen[models].float() for models in _some(count))
        without = right.sum(0)[:, None] - with_it
        yield first, (with_it / n_in - without / (count - n_in)).cpu().numpy()


def _some(models: int) -> list[slice]:
    return [slice(start, start + AT_ONCE) for start in range(0, models, AT_ONCE)]


def prepare_scored(job: Job, cfg: PoolConfig) -> Pool | None:
    """``factory.prepare``, of models enough to score every image.

    Raises:
        BadInput: an image that all models or none are to see; before any is trained.
    """
    pool = Pool(Path(job.where.save_dir), cfg, job.data, job.config, job.rt, job.data_config)
    n_in = np.zeros(pool.sizes["train"], np.int64)
    for number in range(cfg.models):
        n_in += pool.mask(number)
    _check(n_in, cfg.models)
    return prepare(job, cfg)


@score("memorization", config=PoolConfig, source="Feldman & Zhang, NeurIPS 2020, arXiv:2008.03703", original=False,
       prepare=prepare_scored)
def score_memorization(job: Job, cfg: PoolConfig) -> dict[str, np.ndarray]:
    """Probability of being right on an image for models trained with it, less that for models trained without."""
    pool: Pool = job.prepared
    counts, seconds = Counts.none(pool.sizes["train"]), 0.0
    for record in pool.records():
        counts.add(record.mask, record.correct["train"])
        seconds += record.seconds
    found = counts.scores()
    if job.run is not None:
        job.run.seconds["pool"] = seconds
        job.run.result(pool=str(pool.folder), models=counts.models, pool_seconds=seconds)
        if cfg.influence or cfg.influence_whole:
            _write_influence(job, pool, cfg)
    return found


def _write_influence(job: Job, pool: Pool, cfg: PoolConfig) -> None:
    """influence.npz with test_index, train_index (int32 [pairs]) and value (float32 [pairs]); influence.npy if asked for."""
    run, masks, correct = job.run, pool.masks(), pool.correct("test")
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def blocks() -> Iterator[np.ndarray]:
        kept = 0
        for first, block in influence(masks, correct, BLOCK, job.rt.device):
            test, train = np.nonzero(np.abs(block) > cfg.influence_above)
            kept += len(test)
            if cfg.influence and kept > MOST_PAIRS:
                raise BadInput(f"more than {MOST_PAIRS:,} pairs have an influence above {cfg.influence_above:g}: give a "
                               "larger --influence_above, or more --models, which lowers the noise")
            if cfg.influence:
                pairs.append(((test + first).astype(np.int32), train.astype(np.int32), block[test, train]))
            yield block

    def whole(file: BinaryIO) -> None:
        head = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False,
                "shape": (correct.shape[1], masks.shape[1])}
        np.lib.format.write_array_header_1_0(file, head)
        for block in blocks():
            file.write(np.ascontiguousarray(block).data)

    if cfg.influence_whole:  # written in order rather than by open_memmap, which a full disk ends with a bus error
        run.write("influence.npy", whole)
    else:
        for _ in blocks():
            pass
    if cfg.influence:
        test, train, value = (np.concatenate(part) for part in zip(*pairs, strict=True))
        run.save_arrays("influence.npz", test_index=test, train_index=train, value=value)
