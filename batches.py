"""Images on the device and batches of them: Loader(images, index, labels) -> Batch.

Images stay where they are as uint8; a subset is an index tensor; a batch is gathered, cropped and flipped as one tensor
operation each. Normalisation is the model's first layer, so batches are in [0, 1].
"""

from __future__ import annotations

import copy
import itertools
import math
import queue
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sources.arrays import Source
from utils import Runtime


class Batch(NamedTuple):
    """x: float [B, C, H, W] in [0, 1], as the runtime's layout; y: int64 [B]; index: int64 [B] into the data set's images."""

    x: Tensor
    y: Tensor
    index: Tensor


class Images:
    """One part of a data set: x uint8 [N, H, W, C], y int64 [N]; on the device, or pinned on the host if too large.

    fine: int64 [N], the sub-class of each image, or None.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, source: Source, rt: Runtime, fine: np.ndarray | None = None) -> None:
        self.device, self.fine, self.eval_batch, self.layout = rt.device, fine, rt.eval_batch, rt.layout
        self.pad, self.flip, self.tally = source.pad, source.flip, rt.tally
        resident = not rt.cuda or x.nbytes * 4.5 < torch.cuda.mem_get_info(rt.device)[0] * 0.6
        self.home = rt.device if resident else torch.device("cpu")
        self.x, self.y = torch.from_numpy(x).to(self.home), torch.from_numpy(y).to(self.home)
        self._windows: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """What pixels, labels and windows hold in memory; every window is a view of one padded copy."""
        return self.x.nbytes + self.y.nbytes + sum(view.untyped_storage().nbytes() for view in self._windows)

    def batch(self, index: Tensor, augment: torch.Generator | None) -> Tensor:
        """The images of an index as float [B, C, H, W] in [0, 1]; with a generator, randomly cropped and flipped."""
        if augment is None:
            return self._laid_out(self.x[index])
        windows, draw = self.windows(), {"generator": augment, "device": self.home}
        dy, dx = torch.randint(2 * self.pad + 1, (2, len(index)), **draw)
        mirrored = torch.randint(len(windows), (len(index),), **draw)
        return self._laid_out(windows[mirrored, index, dy, dx])

    def _laid_out(self, x: Tensor) -> Tensor:
        """float [B, C, H, W] in [0, 1] of uint8 [B, H, W, C]; channels last is how they lie already."""
        return x.permute(0, 3, 1, 2).contiguous(memory_format=self.layout) / 255

    def replaced(self, x: Tensor, y: Tensor) -> Images:
        """The same with other pixels and labels (of the same shapes), which stay where they are."""
        other = copy.copy(self)
        other.x, other.y, other._windows = x, y, []
        return other

    def lent(self, rt: Runtime) -> Images:
        """The same pixels, labels and windows to another run of this process, which writes into none of them."""
        other = copy.copy(self)
        other.tally, other.eval_batch = rt.tally, rt.eval_batch
        return other

    def windows(self) -> Tensor:
        """Every crop, mirrored or not, as a view [1 or 2, N, 2 pad + 1, 2 pad + 1, H, W, C]: a crop is then one gather.

        The view is of a zero-padded copy, and of a mirrored one where the data set flips: for CIFAR-10 another 480 MB,
        for two and a half times the batches a second of flipping each batch.
        """
        if not self._windows:
            (n, h, w, c), p = self.x.shape, self.pad
            padded = torch.nn.functional.pad(self.x, (0, 0, p, p, p, p))
            padded = torch.stack([padded, padded.flip(2)] if self.flip else [padded])
            f, i, row, col, _ = padded.stride()
            shape, stride = (len(padded), n, 2 * p + 1, 2 * p + 1, h, w, c), (f, i, row, col, row, col, 1)
            self._windows.append(padded.as_strided(shape, stride))
        return self._windows[0]


class Loader:
    """Batches of some examples of ``images``: in order, or shuffled anew in every pass when given a generator.

    No example is dropped. A last batch of a single example joins the one before, since batch norm has no variance then.
    """

    def __init__(self, images: Images, index: Tensor, labels: Tensor, batch_size: int,
                 shuffle: torch.Generator | None = None, augment: torch.Generator | None = None) -> None:
        self.images, self.index, self.labels = images, index, labels
        self.batch_size, self.shuffle, self.augment = batch_size, shuffle, augment

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.index)

    def __len__(self) -> int:
        return len(self._cuts())

    def _cuts(self) -> list[tuple[int, int]]:
        starts = list(range(0, self.size, self.batch_size))
        if len(starts) > 1 and self.size - starts[-1] == 1:
            starts.pop()
        return list(itertools.pairwise([*starts, self.size])) if starts else []  # a loader of no examples has no batches

    def relabelled(self, labels: Tensor) -> Loader:
        """The same examples under other labels (int64 [M], in the order of ``index``)."""
        assert labels.shape == self.index.shape
        return Loader(self.images, self.index, labels, self.batch_size, self.shuffle, self.augment)

    def plain(self) -> Loader:
        """The same without augmentation; the order goes on where it stands."""
        return Loader(self.images, self.index, self.labels, self.batch_size, self.shuffle)

    def none(self) -> Loader:
        """None of the examples: what a part is to those that shall not see it."""
        return Loader(self.images, self.index[:0], self.labels[:0], self.batch_size, self.shuffle, self.augment)

    def __add__(self, other: Loader) -> Loader:
        """The examples of both, shuffled together."""
        index, labels = torch.cat([self.index, other.index]), torch.cat([self.labels, other.labels])
        return Loader(self.images, index, labels, self.batch_size, self.shuffle, self.augment)

    def __iter__(self) -> Iterator[Batch]:
        resident = self.images.home == self.images.device
        for batch in self._batches() if resident else ahead(self._from_host()):
            self.images.tally.images += len(batch.index)
            yield batch

    def _batches(self) -> Iterator[Batch]:
        index, labels = self.index, self.labels
        if self.shuffle is not None:
            order = torch.randperm(self.size, generator=self.shuffle, device=index.device)
            index, labels = index[order], labels[order]
        for start, end in self._cuts():
            yield Batch(self.images.batch(index[start:end], self.augment), labels[start:end], index[start:end])

    def _from_host(self) -> Iterator[Batch]:
        for batch in self._batches():
            x = batch.x.contiguous(memory_format=self.images.layout).pin_memory()
            yield Batch(*(t.to(self.images.device, non_blocking=True) for t in (x, batch.y, batch.index)))


def forever(loader: Loader) -> Iterator[Batch]:
    """The loader over and over, shuffled anew in every pass, unlike itertools.cycle."""
    return itertools.chain.from_iterable(itertools.repeat(loader))


class Pairs:
    """A batch of one loader with one of another, as long as the first lasts, the second over and over.

    every: batches of the first to one of the second, which stands beside the first of them; the others stand beside None.
    Where one has no examples, every batch of the other once, with None: what is left of a method without its retain set.
    """

    def __init__(self, first: Loader, second: Loader, every: int = 1) -> None:
        self.first, self.second, self.every = first, second, every

    def __len__(self) -> int:
        return len(self.first) or len(self.second)

    @property
    def batches(self) -> int:
        """How many there are in all."""
        return len(self) + math.ceil(len(self.first) / self.every)

    def __iter__(self) -> Iterator[tuple[Batch | None, Batch | None]]:
        if not self.first.size:
            yield from ((None, batch) for batch in self.second)
            return
        again = forever(self.second)
        for place, batch in enumerate(self.first):
            yield batch, None if place % self.every or not self.second.size else next(again)


def ahead(items: Iterator[Any], depth: int = 2) -> Iterator[Any]:
    """Run an iterator in a thread, ``depth`` items ahead; its exception is raised here."""
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, item: Any) -> None:
        while not stop.is_set():
            try:
                return ready.put((kind, item), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put("item", item)
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (got := ready.get())[0] == "item":
            yield got[1]
        if got[0] == "error":
            raise got[1]
    finally:
        stop.set()
        thread.join()  # one that still computes when Python ends takes the process down with it
