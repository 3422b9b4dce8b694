"""Learning events: what the original's own training shows of each of its examples, recorded as it goes by.

    events = Events(len(data.images.y), rt)
    trainer.train(model, loader, cfg, rt, run, watch=events)
    run.save_arrays("events.npz", **events.arrays(labels, images_key))

Shapes: N training images of the data set (the validation split's included), B images in a batch, K classes; p the softmax
of the logits, y the label.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset import Batch
from models.modes import evaluating, full_float32
from trainer import loss_slope
from utils import Runtime, read_arrays, say

MEANS = ("confidence", "max_conf", "entropy", "bi_acc")  # over all presentations
COLUMNS = (*MEANS, "el2n", "forgetting", "seen", "seen_early")
SEEN = COLUMNS.index("seen")
EARLY = 10  # EL2N is of the first tenth of the training
EPS = 1e-7


def learning_events(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """What one presentation of each example shows.

    A p that underflows adds 0 to the entropy, and 1 - p_y is the sum of the others, which a p_y next to 1 would round away.

    Returns:
        float32 [B] each: confidence p_y; max_conf, the largest p; entropy -sum p log p in nats (published code stores the
        negative, NaN once a p underflows); bi_acc, 1 where the largest p is that of y; el2n, the norm of p - onehot(y)
        (Paul et al., NeurIPS 2021, arXiv:2107.07075).
    """
    logp = F.log_softmax(logits.float(), 1)
    p = logp.exp()
    best, top = logp.max(1)
    others = p.masked_fill(torch.arange(logp.shape[1], device=y.device) == y[:, None], 0)
    return {"confidence": p.gather(1, y[:, None])[:, 0],
            "max_conf": best.exp(),
            "entropy": -(p * logp.clamp_min(torch.finfo(p.dtype).min)).sum(1),  # 0 x -inf would be NaN
            "bi_acc": (top == y).float(),
            "el2n": (others.square().sum(1) + others.sum(1).square()).sqrt()}


def curvature(model: nn.Module, x: Tensor, y: Tensor, h: float) -> Tensor:
    """Curvature of the loss around each image, along the sign of its gradient.

    c = ||grad_x l(x + z) - grad_x l(x)||_2 with z = h (s + 1e-7) / (||s||_2 + 1e-7), s = sign grad_x l(x): Zhao et al.,
    arXiv:2410.16516, after Garg, Ravikumar and Roy, ICML 2024, arXiv:2307.05831. Losses and norms are each image's own,
    and the model must be in eval mode, so that an image's value does not depend on its batch. Full float32 under
    autocast too: it is a difference of near gradients. Gradients of the weights are neither computed nor touched.

    Args:
        x: float [B, C, H, W] in [0, 1]; y: int64 [B]; h: length of the step in pixels of range 1.

    Returns:
        float32 [B].
    """

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        # not by the compiled call: CUDA graphs would overwrite the first gradient by the second
        logits = model.forward(at)
        return torch.autograd.grad(logits, at, loss_slope(logits.detach(), y))[0]

    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False), full_float32():
        here = gradient(x)
        sign = here.sign()
        length = sign.flatten(1).norm(dim=1)[:, None, None, None]
        there = gradient(x + h * (sign + EPS) / (length + EPS))
    return (there - here).flatten(1).norm(dim=1)


class Events:
    """Watch of a training (``watch.Watch``): sums of the learning events of each image, on the device.

    The logits are those of the training's own forward passes: of the images as augmented, ahead of each update. The
    weights come out as without it, bit by bit. Sums are float32: off by less than 1e-4 of the mean after 1000 epochs.

    Args:
        count: N.
        curvature: also the loss curvature ahead of each step, in eval mode (two more forward and backward passes a step).
        h: of the curvature.
    """

    def __init__(self, count: int, rt: Runtime, *, curvature: bool = False, h: float = 0.01) -> None:
        self.rt, self.curvature, self.h = rt, curvature, h
        self.keep: dict[str, Any] = {
            "sums": torch.zeros(count, len(COLUMNS), device=rt.device),
            "correct": torch.zeros(count, dtype=torch.bool, device=rt.device),  # at the last presentation
            "curvature": torch.zeros(count if curvature else 0, 2, device=rt.device),  # sum, presentations
            "seconds": 0.0,
            "curvature_seconds": 0.0,
            "epochs": 0,
        }
        self._early, self._before = False, torch.zeros(0)
        self._pairs: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    def begin(self, epoch: int, epochs: int) -> None:
        for name in ("sums", "correct", "curvature"):  # a resumed run has them from disk
            self.keep[name] = self.keep[name].to(self.rt.device)
        if bool(len(self.keep["curvature"])) != self.curvature:
            self.curvature = not self.curvature
            did = "recorded" if self.curvature else "did not record"
            say(f"notice: the killed run {did} the loss curvature, so it goes on that way; --force starts anew")
        self.keep["epochs"] = epochs
        self._early = epoch < max(1, epochs // EARLY)
        self._before = self.keep["sums"][:, SEEN].clone()

    def before(self, model: nn.Module, batch: Batch) -> None:
        if not self.curvature:
            return
        with self._timed("curvature_seconds"), evaluating(model):
            found = curvature(model, batch.x, batch.y, self.h)
            self.keep["curvature"].index_add_(0, batch.index, torch.stack([found, torch.ones_like(found)], 1))

    @torch.no_grad()
    def after(self, batch: Batch, logits: Tensor) -> None:
        with self._timed("seconds"):
            row = learning_events(logits, batch.y)
            now, one = row["bi_acc"].bool(), torch.ones_like(row["bi_acc"])
            row["forgetting"] = (self.keep["correct"][batch.index] & ~now).float()
            row["seen"], row["seen_early"] = one, one * self._early
            row["el2n"] = row["el2n"] * self._early
            self.keep["sums"].index_add_(0, batch.index, torch.stack([row[name] for name in COLUMNS], 1))
            self.keep["correct"].index_copy_(0, batch.index, now)

    @torch.no_grad()
    def end(self) -> None:
        """Of several processes each gets, to the bit, the row of the one that an image was shown to in this pass."""
        if self.rt.ranks.size == 1:
            return
        names = ["sums", "correct", *(["curvature"] if self.curvature else [])]
        rows = torch.cat([self.keep[name].float().view(len(self._before), -1) for name in names], 1)
        here = (rows[:, SEEN] != self._before)[:, None]
        found = torch.cat([rows, torch.ones_like(here)], 1) * here
        self.rt.ranks.add([found])  # one of them at most is not 0
        rows = torch.where(found[:, -1:] > 0, found[:, :-1], rows)
        for name, part in zip(names, rows.split([len(COLUMNS), 1, 2][: len(names)], 1), strict=True):
            self.keep[name].copy_(part.view(self.keep[name].shape))

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Add the block's seconds without waiting for the device: a GPU's own clock is read once it has got there."""
        if not self.rt.cuda:
            start = time.perf_counter()
            yield
            self.keep[name] += time.perf_counter() - start
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self._pairs.append((name, first, last))
        self._tally(wait=False)

    def _tally(self, wait: bool) -> None:
        while self._pairs and (wait or self._pairs[0][2].query()):
            name, first, last = self._pairs.popleft()
            last.synchronize()
            self.keep[name] += first.elapsed_time(last) / 1000

    @property
    def seconds(self) -> float:
        """What the learning events have cost so far, killed parts of the run included; waits for the device."""
        self._tally(wait=True)
        return self.keep["seconds"]

    @property
    def curvature_seconds(self) -> float:
        """The same of the loss curvature, which none of the other proxies needs."""
        self._tally(wait=True)
        return self.keep["curvature_seconds"]

    def arrays(self, labels: np.ndarray, images_key: str) -> dict[str, np.ndarray]:
        """What events.npz holds.

        Args:
            labels: int64 [N]; images_key: of the data set. Readers check both.

        Returns:
            float32 [N], NaN for images that were never shown: the means of ``learning_events`` over the epochs (el2n: over
            the first tenth of them, at least one); forgetting, the number of times that an image went from right to wrong
            between two presentations, and of an image that was never right the number of epochs (Toneva et al., ICLR
            2019, arXiv:1812.05159); loss_curvature, where it was recorded. And labels, images_key and epochs (int64).
        """
        sums = dict(zip(COLUMNS, self.keep["sums"].cpu().double().numpy().T, strict=True))
        seen, epochs = sums["seen"], self.keep["epochs"]
        found = {name: _ratio(sums[name], seen) for name in MEANS}
        found["el2n"] = _ratio(sums["el2n"], sums["seen_early"])
        forgotten = np.where(sums["bi_acc"] == 0, epochs, sums["forgetting"])
        found["forgetting"] = np.where(seen > 0, forgotten, np.nan).astype(np.float32)
        if len(self.keep["curvature"]):
            found["loss_curvature"] = _ratio(*self.keep["curvature"].cpu().double().numpy().T)
        return {**found, "labels": labels, "images_key": np.array(images_key), "epochs": np.array(epochs)}


def check_recorded(path: Path, curvature: bool) -> None:
    """Say where a finished training, whose events.npz this is, lacks the curvature that is asked for now."""
    if not curvature:
        return
    if "loss_curvature" not in read_arrays(path, {"labels": ("iu", "images")}):
        say("notice: this run recorded no loss curvature; --force repeats it with --record_curvature")


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The mean, float32 [N]; NaN where there is nothing to take it of."""
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0).astype(np.float32)
