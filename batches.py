"""Images on the device and batches of them: Loader(images, index, labels) -> Batch.

Images stay where they are as uint8; a subset is an index tensor; a batch is gathered, cropped and flipped as one tensor
operation each. Normalisation is the model's first layer, so batches are in [0, 1].
"""

from __future__ import annotations

import contextlib
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
from utils import BadInput, Ranks, Runtime

AUGMENTATIONS = ("crop", "alternate")
ALTERNATE_PAD = 2  # pixels of reflection, as published; fewer where a data set's own crops move by less
RESIDENT = 0.6  # share of a device's memory that images may take


class Batch(NamedTuple):
    """x: float [B, C, H, W] in [0, 1], as the runtime's layout; y: int64 [B]; index: int64 [B] into the data set's images."""

    x: Tensor
    y: Tensor
    index: Tensor


class Images:
    """One part of a data set: x uint8 [N, H, W, C], y int64 [N]; on the device, or on the host if too large.

    Which of the two follows from the device's whole memory and never from what is free: a busy neighbour changes nothing.

    fine: int64 [N], the sub-class of each image, or None.

    Args:
        aug: one of ``AUGMENTATIONS``, or none, which needs no room for crops.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, source: Source, rt: Runtime, fine: np.ndarray | None = None,
                 aug: str = "crop") -> None:
        self.device, self.fine, self.eval_batch, self.layout = rt.device, fine, rt.eval_batch, rt.layout
        self.tally = rt.tally
        self.reflect, self.flip = aug == "alternate", source.flip
        self.pad = min(source.pad, ALTERNATE_PAD) if self.reflect else source.pad
        copies = (1 + self.flip) * (1 + 2 * self.pad / x.shape[1]) * (1 + 2 * self.pad / x.shape[2]) if aug else 0
        resident = not rt.cuda or x.nbytes * (1 + copies) < torch.cuda.mem_get_info(rt.device)[1] * RESIDENT
        self.home = rt.device if resident else torch.device("cpu")
        self.x, self.y = torch.from_numpy(x).to(self.home), torch.from_numpy(y).to(self.home)
        self._windows: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """What pixels, labels and windows hold in memory; every window is a view of one padded copy."""
        return self.x.nbytes + self.y.nbytes + sum(view.untyped_storage().nbytes() for view in self._windows)

    def batch(self, index: Tensor, crops: Tensor | None) -> Tensor:
        """The images of an index as float [B, C, H, W] in [0, 1], cropped and mirrored as ``crops`` (int64 [3, B]) say."""
        return self.scaled(self.pixels(index, crops).to(self.device))

    def scaled(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, C] as float [B, C, H, W] in [0, 1]; channels last is how they lie already."""
        return pixels.permute(0, 3, 1, 2).contiguous(memory_format=self.layout) / 255

    def pixels(self, index: Tensor, crops: Tensor | None) -> Tensor:
        """The same as uint8 [B, H, W, C], where the images are."""
        if crops is None:
            return self.x[index]
        mirrored, dy, dx = crops
        return self.windows()[mirrored, index, dy, dx]

    def replaced(self, x: Tensor, y: Tensor) -> Images:
        """The same with other pixels and labels (of the same shapes), which stay where they are."""
        other = copy.copy(self)
        other.x, other.y, other._windows = x, y, []
        return other

    def lent(self, rt: Runtime) -> Images:
        """The same pixels, labels and windows to another run of this process, which writes into none of them."""
        other = copy.copy(self)
        other.tally, other.eval_batch, other.layout = rt.tally, rt.eval_batch, rt.layout
        return other

    def windows(self) -> Tensor:
        """Every crop, mirrored or not, as a view [1 or 2, N, 2 pad + 1, 2 pad + 1, H, W, C]: a crop is then one gather.

        The view is of a padded copy (by zeros, or by reflection without the edge), and of a mirrored one where the data set
        flips: for CIFAR-10 another 480 MB, for two and a half times the batches a second of flipping each batch.
        """
        if not self._windows:
            (n, h, w, c), p = self.x.shape, self.pad
            padded = self.x.new_zeros(1 + self.flip, n, h + 2 * p, w + 2 * p, c)  # filled in place: nothing else is as large
            padded[0, :, p : p + h, p : p + w] = self.x
            for i in range(1, p + 1) if self.reflect else ():
                padded[0, :, p - i], padded[0, :, p + h - 1 + i] = padded[0, :, p + i], padded[0, :, p + h - 1 - i]
            for i in range(1, p + 1) if self.reflect else ():
                padded[0, :, :, p - i], padded[0, :, :, p + w - 1 + i] = padded[0, :, :, p + i], padded[0, :, :, p + w - 1 - i]
            if self.flip:
                for column in range(w + 2 * p):
                    padded[1, :, :, column] = padded[0, :, :, w + 2 * p - 1 - column]
            f, i, row, col, _ = padded.stride()
            shape, stride = (len(padded), n, 2 * p + 1, 2 * p + 1, h, w, c), (f, i, row, col, row, col, 1)
            self._windows.append(padded.as_strided(shape, stride))
        return self._windows[0]

    def augmentation(self, rt: Runtime, purpose: str) -> Crops:
        """Crops and mirror images of the purpose's own stream."""
        stream = rt.generator(f"augment/{purpose}")
        return Alternating(self, stream, rt, purpose) if self.reflect else Crops(self, stream)


class Crops:
    """Which crop and which mirror image each example of a pass is, drawn for the whole pass at its start, on the CPU.

    So a device of any kind sees the same ones, and a pass that is broken off leaves the stream where a whole one does.
    """

    def __init__(self, images: Images, stream: torch.Generator) -> None:
        self.pad, self.flip, self.stream = images.pad, images.flip, stream

    def draw(self, index: Tensor) -> Tensor:
        """int64 [3, n] on the CPU: mirrored, row and column of the crop, for each of the images of a pass (int64 [n])."""
        offsets = torch.randint(2 * self.pad + 1, (2, len(index)), generator=self.stream)
        return torch.cat([self.mirrored(index)[None], offsets])

    def mirrored(self, index: Tensor) -> Tensor:
        return torch.randint(1 + self.flip, (len(index),), generator=self.stream)


class Alternating(Crops):
    """Each image in one orientation in one pass and in the other in the next; by chance in the first (airbench, 2024).

    Any two passes that follow each other show both orientations of every image, in place of 1.5 on average. An image's
    orientation is its own: it does not depend on which others are trained on.

    Source: Jordan, arXiv:2404.00498, section 3.6.
    """

    def __init__(self, images: Images, stream: torch.Generator, rt: Runtime, purpose: str) -> None:
        super().__init__(images, stream)
        self.first = torch.from_numpy(np.random.default_rng(rt.seed_of(f"flip/{purpose}")).integers(2, size=len(images.y)))
        self.passes = rt.counter(f"passes/{purpose}")

    def mirrored(self, index: Tensor) -> Tensor:
        now = (self.first[index.cpu()] + self.passes.next()) % 2
        return now if self.flip else torch.zeros_like(now)


class Loader:
    """Batches of some examples of ``images``: in order, or shuffled anew in every pass when given a generator.

    No example is dropped. A last batch of a single example joins the one before, since batch norm has no variance then.
    """

    part = (0, 1)  # which of how many equal parts of each batch is given

    def __init__(self, images: Images, index: Tensor, labels: Tensor, batch_size: int,
                 shuffle: torch.Generator | None = None, augment: Crops | None = None) -> None:
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

    def _own(self, start: int, end: int) -> tuple[int, int]:
        (number, parts), count = self.part, end - start
        return start + count * number // parts, start + count * (number + 1) // parts

    @property
    def shares(self) -> list[float]:
        """The part's share of the examples of each batch."""
        owns = [(self._own(*cut), cut) for cut in self._cuts()]
        return [(own[1] - own[0]) / (cut[1] - cut[0]) for own, cut in owns]

    def among(self, ranks: Ranks) -> Loader:
        """What one of several processes gets of each batch; all of them draw order and crops of the whole, alike.

        Raises:
            BadInput: a batch of a single example, of which no process could see that it has no variance.
        """
        if any(end - start == 1 for start, end in self._cuts()):
            raise BadInput("a batch of one example has no parts for several processes: use a larger --batch_size, or one "
                           "process")
        other = copy.copy(self)
        other.part = (ranks.rank, ranks.size)
        return other

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
        pieces = self._pieces()
        pieces = pieces if self.images.home == self.images.device else self._sent(pieces)
        for (start, end), (batch, at) in zip(self._cuts(), pieces, strict=True):
            self.images.tally.images += end - start  # of all parts
            yield self._finished(batch, at)

    def _order(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of a whole pass: places in ``index``, what is there, and crops; drawn on the CPU and moved to the images once."""
        at = torch.arange(self.size) if self.shuffle is None else torch.randperm(self.size, generator=self.shuffle)
        at = at.to(self.index.device)
        index = self.index[at]
        return at, index, None if self.augment is None else self.augment.draw(index).to(self.index.device)

    def _pieces(self) -> Iterator[tuple[Batch, Tensor]]:
        """Batches whose x is uint8 [B, H, W, C] yet, where the images are, and the places [B] of their examples."""
        at, index, crops = self._order()
        labels = self.labels[at]
        for start, end in itertools.starmap(self._own, self._cuts()):
            pixels = self.images.pixels(index[start:end], None if crops is None else crops[:, start:end])
            yield Batch(pixels, labels[start:end], index[start:end]), at[start:end]

    def _finished(self, batch: Batch, at: Tensor) -> Batch:
        """The batch on the device with x as it is promised."""
        return batch._replace(x=self.images.scaled(batch.x))

    def _sent(self, pieces: Iterator[tuple[Batch, Tensor]]) -> Iterator[tuple[Batch, Tensor]]:
        """The same on the device: pinned and sent as bytes by a thread, on a stream of its own, while the device computes."""
        device = self.images.device
        side = torch.cuda.Stream(device) if device.type == "cuda" else None

        def sent() -> Iterator[tuple[list[Tensor], Any]]:
            for batch, at in pieces:
                with contextlib.nullcontext() if side is None else torch.cuda.stream(side):
                    there = [part.pin_memory().to(device, non_blocking=True) for part in (*batch, at)]
                yield there, None if side is None else side.record_event()

        for there, arrived in ahead(sent()):
            if arrived is not None:
                here = torch.cuda.current_stream(device)
                here.wait_event(arrived)
                for part in there:
                    part.record_stream(here)  # else its memory is free for the other stream while this one still reads it
            yield Batch(*there[:3]), there[3]


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
