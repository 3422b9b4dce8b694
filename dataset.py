"""Images on the device, splits and the forget set, batches: load(settings) -> Data -> loader("forget") -> Batch.

Images stay where they are as uint8; a subset is an index tensor; a batch is gathered, cropped and flipped as one tensor
operation each. Normalisation is the model's first layer, so batches are in [0, 1].
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import sources
from groups import LAST_SEED, Candidates, Chosen, ForgetConfig, choose_forget
from sources.labels import first_of_each, mislabel
from utils import BadInput, Config, Runtime, hp, shown

NONE = np.empty(0, np.int64)
EVAL_BATCH = {"cpu": 128, "cuda": 1024}  # a CPU's caches want small ones (measured: 1.15x over 256), a GPU large ones


def class_spans(text: str) -> list[tuple[int, int]]:
    """Numbers and ranges such as 0-99 or 1,5,7 as (first, last), ascending, with neighbours merged."""
    try:
        ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    except ValueError:
        ends = [[]]
    if any(len(span) not in (1, 2) or span[0] > span[-1] for span in ends):
        raise BadInput(f"--classes takes numbers and ranges such as 0-99 or 1,5,7; got {shown(text)}")
    merged: list[tuple[int, int]] = []
    for first, last in sorted((span[0], span[-1]) for span in ends):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged


class ClassList(str):
    """A list of classes in one spelling, so that the same classes meet in the same run folder, however they were written."""

    def __new__(cls, text: str) -> ClassList:
        return super().__new__(cls, ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in class_spans(text)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Which images, and how they are cut into training, validation and test."""

    dataset: str = hp("cifar10", "data set", choices=tuple(sources.SOURCES.names()))
    data: str = hp("./data", "folder with the data set's public files, or with a prepared DATASET.npz", digest=False)
    download: bool = hp(True, "fetch the public files where torchvision can and they are missing", digest=False)
    any_size: bool = hp(False, "take a data set of another size than the published one", digest=False)
    classes: ClassList | None = hp(None, "keep these classes, renumbered from 0: 0-99 or 1,5,7")
    val_seed: int = hp(1, "owns the validation split", low=0, high=LAST_SEED)
    val_fraction: float = hp(0.1, "share of each class kept for validation", low=0, below=1)
    train_per_class: int | None = hp(None, "keep the first N images of each class, to train and validate on", low=1)
    label_noise: float | None = hp(None, "share of the images to train on that get a wrong label, of another class at random",
                                   above=0, below=1)
    noise_seed: int = hp(1, "owns which labels are wrong, and what they are", low=0, high=LAST_SEED)
    batch_size: int = hp(256, "examples in a training step", low=1)
    aug: bool | None = hp(None, "random crop and flip in training; without the flag, by protocol")

    def of_labels(self) -> dict[str, Any]:
        """The settings that tell the training images and their labels: scores are of these, whatever the model."""
        noise = ("label_noise", "noise_seed", "val_seed", "val_fraction") if self.label_noise else ("label_noise",)
        return {name: getattr(self, name) for name in ("dataset", "classes", "train_per_class", *noise)}


class Batch(NamedTuple):
    """x: float [B, C, H, W] in [0, 1], channels last; y: int64 [B]; index: int64 [B] into the data set's images."""

    x: Tensor
    y: Tensor
    index: Tensor


class Images:
    """One part of a data set: x uint8 [N, H, W, C], y int64 [N]; on the device, or pinned on the host if too large."""

    def __init__(self, x: np.ndarray, y: np.ndarray, source: sources.Source, rt: Runtime) -> None:
        self.device = rt.device
        self.pad, self.flip, self.tally = source.pad, source.flip, rt.tally
        resident = not rt.cuda or x.nbytes * 4.5 < torch.cuda.mem_get_info(rt.device)[0] * 0.6
        self.home = rt.device if resident else torch.device("cpu")
        self.x, self.y = torch.from_numpy(x).to(self.home), torch.from_numpy(y).to(self.home)
        self._windows: Tensor | None = None

    def batch(self, index: Tensor, augment: torch.Generator | None) -> Tensor:
        """The images of an index as float [B, C, H, W] in [0, 1]; with a generator, randomly cropped and flipped."""
        if augment is None:
            return self.x[index].permute(0, 3, 1, 2) / 255
        windows, draw = self.windows(), {"generator": augment, "device": self.home}
        dy, dx = torch.randint(2 * self.pad + 1, (2, len(index)), **draw)
        mirrored = torch.randint(len(windows), (len(index),), **draw)
        return windows[mirrored, index, dy, dx].permute(0, 3, 1, 2) / 255

    def replaced(self, x: Tensor, y: Tensor) -> Images:
        """The same with other pixels and labels (of the same shapes), which stay where they are."""
        other = copy.copy(self)
        other.x, other.y, other._windows = x, y, None
        return other

    def windows(self) -> Tensor:
        """Every crop, mirrored or not, as a view [1 or 2, N, 2 pad + 1, 2 pad + 1, H, W, C]: a crop is then one gather.

        The view is of a zero-padded copy, and of a mirrored one where the data set flips: for CIFAR-10 another 480 MB,
        for two and a half times the batches a second of flipping each batch.
        """
        if self._windows is None:
            (n, h, w, c), p = self.x.shape, self.pad
            padded = torch.nn.functional.pad(self.x, (0, 0, p, p, p, p))
            padded = torch.stack([padded, padded.flip(2)] if self.flip else [padded])
            f, i, row, col, _ = padded.stride()
            shape, stride = (len(padded), n, 2 * p + 1, 2 * p + 1, h, w, c), (f, i, row, col, row, col, 1)
            self._windows = padded.as_strided(shape, stride)
        return self._windows


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
        return list(zip(starts, [*starts[1:], self.size], strict=True))

    def relabelled(self, labels: Tensor) -> Loader:
        """The same examples under other labels (int64 [M], in the order of ``index``)."""
        assert labels.shape == self.index.shape
        return Loader(self.images, self.index, labels, self.batch_size, self.shuffle, self.augment)

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
            x = batch.x.contiguous(memory_format=torch.channels_last).pin_memory()
            yield Batch(*(t.to(self.images.device, non_blocking=True) for t in (x, batch.y, batch.index)))


def forever(loader: Loader) -> Iterator[Batch]:
    """The loader over and over, shuffled anew in every pass, unlike itertools.cycle."""
    return itertools.chain.from_iterable(itertools.repeat(loader))


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


@dataclasses.dataclass(frozen=True)
class Splits:
    """Index sets (int64, ascending, into the training images) and the keys that pair runs.

    data_key: all training and test images, classes kept and validation split; equal in every stage after the original's
    training.
    split_key: that and the forget set; equal for a mask, an unlearning run and its retrain.
    images_key: all training images and the classes kept, without the validation split; equal for a data set and its scores,
    which are of training images, whichever images a model is tested on.
    test_key: the same of the test images.
    whole_classes: classes of which no training example is left in retain.
    groups: name -> the part of the forget set that is of this group; disjoint, or none.
    scores: which scores they were cut by; see ``groups.Chosen``.
    mislabelled: those of train that have a wrong label (--label_noise).
    """

    train: np.ndarray
    val: np.ndarray
    retain: np.ndarray
    forget: np.ndarray
    whole_classes: tuple[int, ...]
    data_key: str
    split_key: str
    images_key: str = ""
    test_key: str = ""
    groups: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    mislabelled: np.ndarray = dataclasses.field(default_factory=lambda: NONE)

    def __post_init__(self) -> None:
        for a, b in (("train", "val"), ("retain", "forget"), ("retain", "val"), ("forget", "val")):
            shared = len(np.intersect1d(getattr(self, a), getattr(self, b)))
            assert shared == 0, f"{a} and {b} share {shared} examples"
        assert len(self.retain) + len(self.forget) == len(self.train)

    def keys(self) -> dict[str, str]:
        return {"data_key": self.data_key, "split_key": self.split_key}

    def facts(self) -> dict[str, Any]:
        """What a record says of the forget set: its size, of how many it is, its groups', their scores, its wrong labels."""
        wrong = {"mislabelled": len(np.intersect1d(self.forget, self.mislabelled))} if len(self.mislabelled) else {}
        groups = {name: len(index) for name, index in self.groups.items()}
        return {"forget_size": len(self.forget), "train_size": len(self.train), "groups": groups, "scores": self.scores} | wrong

    def arrays(self) -> dict[str, np.ndarray]:
        """What splits.npz holds; --forget_index takes that file."""
        groups = {f"group_{name}": index for name, index in self.groups.items()}
        wrong = {"mislabelled": self.mislabelled} if len(self.mislabelled) else {}
        return {part: getattr(self, part) for part in ("train", "val", "retain", "forget")} | groups | wrong


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set, cut: ``loader(part)`` for part in train, retain, forget, val, test."""

    source: sources.Source
    images: Images
    test: Images
    num_classes: int
    splits: Splits
    batch_size: int
    aug: bool

    def index(self, part: str) -> np.ndarray:
        return np.arange(len(self.test.y)) if part == "test" else getattr(self.splits, part)

    @property
    def candidates(self) -> Candidates:
        return Candidates(self.images.y.cpu().numpy(), self.splits.train, self.num_classes, self.splits.images_key,
                          self.splits.mislabelled)

    def forgetting(self, chosen: Chosen) -> Data:
        """The same data with another forget set; the rest of the training examples is to be retained."""
        y, old = self.candidates.y, self.splits
        retain = np.setdiff1d(old.train, chosen.forget)
        whole = tuple(int(c) for c in np.setdiff1d(y[chosen.forget], y[retain]))
        key = _key(old.data_key + _hash(chosen.forget))
        splits = dataclasses.replace(old, retain=retain, forget=chosen.forget, whole_classes=whole, split_key=key,
                                     groups=chosen.groups, scores=chosen.scores)
        return dataclasses.replace(self, splits=splits)

    def subset(self, index: np.ndarray) -> Loader:
        """Some training images (int64 [n]) in the order given, for evaluation."""
        at = torch.from_numpy(index).to(self.images.home)
        return Loader(self.images, at, self.images.y[at], EVAL_BATCH[self.images.device.type])

    def loader(self, part: str, rt: Runtime | None = None, purpose: str = "", batch_size: int | None = None) -> Loader:
        """In order for evaluation; with a runtime, shuffled (and augmented, where set) by the purpose's own streams."""
        images = self.test if part == "test" else self.images
        index = torch.from_numpy(self.index(part)).to(images.home)
        if rt is None:
            return Loader(images, index, images.y[index], batch_size or EVAL_BATCH[images.device.type])
        shuffle = rt.generator(f"order/{purpose}/{part}", images.home)
        augment = rt.generator(f"augment/{purpose}/{part}", images.home) if self.aug else None
        return Loader(images, index, images.y[index], self.batch_size, shuffle, augment)


def load(cfg: DataConfig, rt: Runtime, forget: ForgetConfig | None = None, data_key: str | None = None,
         thirds: bool = False) -> Data:
    """Read a data set, cut it and choose the forget set.

    Args:
        data_key: of the original's record; the data must be the same.
        thirds: cut the forget set into its least, middle and most memorized third, where a score is named.

    Raises:
        BadInput: files missing or damaged, other data than the original's, or a forget set that cannot be.
    """
    source = sources.SOURCES[cfg.dataset]
    if cfg.aug and not (source.pad or source.flip):
        raise BadInput(f"--aug: {cfg.dataset} has no augmentation; leave the flag away or use --no_aug")
    arrays = sources.load(cfg.dataset, Path(cfg.data), download=cfg.download, any_size=cfg.any_size)
    x, y, x_test, y_test, kept = _keep_classes(arrays, source, cfg.classes)
    parts = [_key(json.dumps([cfg.dataset, kept, part])) for part in arrays.hashes]
    if cfg.train_per_class and len(first := first_of_each(y, cfg.train_per_class)) < len(y):
        x, y, parts[0] = x[first], y[first], _key(parts[0] + _hash(first))
    train, val = _validation_split(y, cfg.val_fraction, cfg.val_seed)
    y, wrong = mislabel(y, train, cfg.label_noise, cfg.noise_seed) if cfg.label_noise else (y, NONE)
    if len(wrong):
        parts[0] = _key(parts[0] + _hash(y))
    key = _key(json.dumps([*parts, _hash(val)]))
    if data_key is not None and key != data_key:
        raise BadInput(f"the data differ from those the original was trained on (data_key {key}, not {data_key}): "
                       "use the same --dataset, --data, --classes, --val_seed, --val_fraction, --train_per_class, "
                       "--label_noise and --noise_seed")
    splits = Splits(train, val, train, NONE, (), key, _key(key + _hash(NONE)), *parts, mislabelled=wrong)
    data = Data(source, Images(x, y, source, rt), Images(x_test, y_test, source, rt), len(kept), splits, cfg.batch_size,
                bool(cfg.aug))
    return data if forget is None else data.forgetting(choose_forget(forget, data.candidates, thirds))


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _keep_classes(a: sources.Arrays, source: sources.Source, wanted: str | None) -> tuple:
    """Training and test images and labels of the classes to keep, and which these are, by their labels in the data set.

    Their number is the data set's (or that of the names in a prepared npz), whichever labels happen to be there.
    """
    total = len(a.classes) or source.num_classes
    if wanted is None:
        return a.x_train, a.y_train, a.x_test, a.y_test, list(range(total))
    keep = parse_classes(wanted, total)
    new = np.full(total, -1)
    new[keep] = np.arange(len(keep))
    train, test = np.isin(a.y_train, keep), np.isin(a.y_test, keep)
    if not train.any() or not test.any():
        raise BadInput(f"--classes {wanted}: no training or no test image there is of these classes")
    return a.x_train[train], new[a.y_train[train]], a.x_test[test], new[a.y_test[test]], keep


def parse_classes(text: str, total: int) -> list[int]:
    """``0-4,7`` -> [0, 1, 2, 3, 4, 7]; ascending, at least two, all below ``total``."""
    spans = class_spans(text)
    keep = [c for first, last in spans for c in range(first, min(last, total) + 1)]
    if len(keep) < 2 or spans[-1][1] >= total:
        raise BadInput(f"--classes needs two or more of the classes 0-{total - 1}; got {shown(text)}")
    return keep


def _validation_split(y: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``fraction`` of each class, class by class in label order from one RandomState, as published."""
    random = np.random.RandomState(seed)
    drawn = [random.choice(np.flatnonzero(y == c), int(fraction * (y == c).sum()), replace=False) for c in np.unique(y)]
    val = np.sort(np.concatenate(drawn)).astype(np.int64)
    return np.setdiff1d(np.arange(len(y)), val), val
