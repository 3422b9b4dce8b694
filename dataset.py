"""A data set, its splits and the forget set: load(settings) -> Data -> loader("forget") -> Batch (batches.py)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import sources
from batches import ALTERNATE_PAD, AUGMENTATIONS, Batch, Images, Loader, ahead, forever
from groups import LAST_SEED, Candidates, Chosen, ForgetConfig, choose_forget
from sources.kept import ClassList, ClassNumbers, Part, keep, parse_classes
from sources.labels import first_of_each, mislabel
from utils import BadInput, Config, Runtime, hp, say

__all__ = ["Batch", "ClassList", "Data", "DataConfig", "ForgetConfig", "Images", "Loader", "Splits", "ahead", "forever",
           "load", "parse_classes"]

NONE = np.empty(0, np.int64)
UNCUT = ("data", "download", "batch_size")  # settings that do not decide which images there are, their labels or crops
SETS, ROOM = 2, 2**31  # data sets, and bytes of them, that a process holds for its next run
OOD = ("ood", "ood_test")  # parts that no stage trains on, whose labels are classes of the data set


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Which images, and how they are cut into training, validation and test."""

    dataset: str = hp("cifar10", "data set", choices=tuple(sources.SOURCES.names()))
    data: str = hp("./data", "folder with the data set's public files, or with a prepared DATASET.npz", digest=False)
    download: bool = hp(True, "fetch the public files where torchvision can and they are missing", digest=False)
    any_size: bool = hp(False, "take a data set of another size than the published one", digest=False)
    classes: ClassList | None = hp(None, "keep these classes, renumbered from 0: 0-99 or 1,5,7")
    ood_classes: ClassNumbers | None = hp(None, "leave these classes out of distribution (as after --classes: 12,16-19): no "
                                          "stage trains on them, and the model has no output for them")
    ood_subclass: ClassNumbers | None = hp(None, "leave these sub-classes out the same way, by their fine label (cifar20)")
    val_seed: int = hp(1, "owns the validation split", low=0, high=LAST_SEED)
    val_fraction: float = hp(0.1, "share of each class kept for validation", low=0, below=1)
    train_per_class: int | None = hp(None, "keep the first N images of each class, to train and validate on", low=1)
    label_noise: float | None = hp(None, "share of the images to train on that get a wrong label, of another class at random",
                                   above=0, below=1)
    noise_seed: int = hp(1, "owns which labels are wrong, and what they are", low=0, high=LAST_SEED)
    batch_size: int = hp(256, "examples in a training step", low=1)
    aug: bool | None = hp(None, "random crop and flip in training; without the flag, by protocol")
    aug_form: str = hp("crop", "of --aug. crop: zero-padded crops and random flips, as published; alternate: reflected crops "
                       f"by {ALTERNATE_PAD} pixels, and each image mirrored in every other epoch", choices=AUGMENTATIONS)

    def __post_init__(self) -> None:
        for name in ("ood_classes", "ood_subclass"):  # a record has lists; an empty one is none
            object.__setattr__(self, name, ClassNumbers(getattr(self, name) or ()) or None)
        super().__post_init__()

    def of_labels(self) -> dict[str, Any]:
        """The settings that tell the training images and their labels: scores are of these, whatever the model."""
        noise = ("label_noise", "noise_seed", "val_seed", "val_fraction") if self.label_noise else ("label_noise",)
        kept = ("classes", "ood_classes", "ood_subclass", "train_per_class")
        return {name: getattr(self, name) for name in ("dataset", *kept, *noise)}


@dataclasses.dataclass(frozen=True)
class Splits:
    """Index sets (int64, ascending, into the training images) and the keys that pair runs.

    data_key: all training and test images, classes kept and validation split; equal in every stage after the original's
    training.
    split_key: that and the forget set; equal for a mask, an unlearning run and its retrain.
    images_key: all training images and the classes kept, without the validation split; equal for a data set and its scores,
    which are of training images, whichever images a model is tested on.
    test_key: the same of the test images.
    whole_classes: outputs of the classes of which no training example is left in retain; whole_subclasses: the sub-classes
    likewise, of other classes than these.
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
    whole_subclasses: tuple[int, ...] = ()

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
    """A data set, cut: ``loader(part)`` for part in train, retain, forget, val, test, and ood, ood_test where there are any.

    num_classes: outputs of a model. outputs: int64 [classes], the output of each class of the data set, -1 of one out of
    distribution. ood, ood_test: the training and the test images of classes and sub-classes out of distribution, or None;
    their labels are classes of the data set, all others' are outputs (``Loader.relabelled`` gives them some).
    """

    source: sources.Source
    images: Images
    test: Images
    num_classes: int
    splits: Splits
    batch_size: int
    aug: bool
    outputs: np.ndarray = dataclasses.field(default_factory=lambda: NONE)
    ood: Images | None = None
    ood_test: Images | None = None

    def __post_init__(self) -> None:
        if not len(self.outputs):
            object.__setattr__(self, "outputs", np.arange(self.num_classes))

    @property
    def fine(self) -> np.ndarray | None:
        """int64 [N], the sub-class of each training image; None where the data set has none."""
        return self.images.fine

    @property
    def fine_test(self) -> np.ndarray | None:
        """The same of the test images."""
        return self.test.fine

    def classes(self, labels: np.ndarray) -> np.ndarray:
        """The classes of the data set, int64 [n], that outputs stand for: for people to read."""
        return np.flatnonzero(self.outputs >= 0)[labels]

    def images_of(self, part: str) -> Images:
        """The images that the index of a part goes into.

        Raises:
            BadInput: images out of distribution, where none were left out.
        """
        found = getattr(self, part) if part in ("test", *OOD) else self.images
        if found is None:
            raise BadInput("no image is out of distribution: train an original with --ood_classes (or --ood_subclass) and name "
                           "it by --checkpoint")
        return found

    def index(self, part: str) -> np.ndarray:
        if part in OOD and getattr(self, part) is None:
            return NONE
        return np.arange(len(self.images_of(part).y)) if part in ("test", *OOD) else getattr(self.splits, part)

    @property
    def candidates(self) -> Candidates:
        return Candidates(self.images.y.cpu().numpy(), self.splits.train, self.num_classes, self.splits.images_key,
                          self.splits.mislabelled, self.outputs, self.fine, self._fine_ood(), self.source)

    def _fine_ood(self) -> tuple[int, ...]:
        return () if self.ood is None or self.ood.fine is None else tuple(np.unique(self.ood.fine).tolist())

    def forgetting(self, chosen: Chosen) -> Data:
        """The same data with another forget set; the rest of the training examples is to be retained."""
        y, old = self.candidates.y, self.splits
        retain = np.setdiff1d(old.train, chosen.forget)
        whole = tuple(int(c) for c in np.setdiff1d(y[chosen.forget], y[retain]))
        key = _key(old.data_key + _hash(chosen.forget))
        splits = dataclasses.replace(old, retain=retain, forget=chosen.forget, whole_classes=whole, split_key=key,
                                     groups=chosen.groups, scores=chosen.scores,
                                     whole_subclasses=self._whole_subclasses(chosen.forget, retain, whole))
        return dataclasses.replace(self, splits=splits)

    def _whole_subclasses(self, forget: np.ndarray, retain: np.ndarray, whole: tuple[int, ...]) -> tuple[int, ...]:
        if self.fine is None:
            return ()
        part = forget[~np.isin(self.candidates.y[forget], whole)]
        return tuple(np.setdiff1d(self.fine[part], self.fine[retain]).tolist())

    def subclasses(self) -> dict[str, np.ndarray]:
        """By what the outputs of a forget set of some sub-classes are to be judged; empty of any other forget set.

        Returns:
            forget_fine int64 [n], test_fine int64 [M]: their sub-classes; whole_subclasses: of the splits. Where the forget set
            lacks a sub-class of its classes, such as one that was named by sub-class.
        """
        if self.fine is None or self.fine_test is None or not len(self.splits.forget):
            return {}
        y, forget, train = self.candidates.y, self.splits.forget, self.splits.train
        beside = train[np.isin(y[train], y[forget])]
        if len(np.setdiff1d(self.fine[beside], self.fine[forget])) == 0:
            return {}
        return {"forget_fine": self.fine[forget], "test_fine": self.fine_test,
                "whole_subclasses": np.array(self.splits.whole_subclasses, np.int64)}

    def subset(self, index: np.ndarray) -> Loader:
        """Some training images (int64 [n]) in the order given, for evaluation."""
        at = torch.from_numpy(index).to(self.images.home)
        return Loader(self.images, at, self.images.y[at], self.images.eval_batch)

    def loader(self, part: str, rt: Runtime | None = None, purpose: str = "", batch_size: int | None = None) -> Loader:
        """In order for evaluation; with a runtime, shuffled (and augmented, where set) by the purpose's own streams."""
        images = self.images_of(part)
        index = torch.from_numpy(self.index(part)).to(images.home)
        if rt is None:
            return Loader(images, index, images.y[index], batch_size or images.eval_batch)
        shuffle = rt.generator(f"order/{purpose}/{part}")
        augment = images.augmentation(rt, f"{purpose}/{part}") if self.aug else None
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
    cut = _cut_once(cfg, rt)
    if data_key is not None and cut.splits.data_key != data_key:
        raise BadInput(f"the data differ from those the original was trained on (data_key {cut.splits.data_key}, not "
                       f"{data_key}): use the same --dataset, --data, --classes, --ood_classes, --ood_subclass, --val_seed, "
                       "--val_fraction, --train_per_class, --label_noise and --noise_seed")
    train, test, ood, ood_test = (images and images.lent(rt) for images in cut.images)
    data = Data(source, train, test, int(cut.outputs.max()) + 1, cut.splits, cfg.batch_size, bool(cfg.aug), cut.outputs, ood,
                ood_test)
    return data if forget is None else data.forgetting(choose_forget(forget, data.candidates, thirds))


class _Cut(NamedTuple):
    """A data set as its settings cut it: training, test and left-out images; what every run is told of it."""

    images: tuple[Images, Images, Images | None, Images | None]
    outputs: np.ndarray
    splits: Splits
    remark: str

    @property
    def nbytes(self) -> int:
        return sum(images.nbytes for images in self.images if images is not None)


_CUTS: dict[Any, _Cut] = {}  # of this process, the one asked for last at the end


def _cut_once(cfg: DataConfig, rt: Runtime) -> _Cut:
    """The cut of the settings on the run's device, which the next run of this process finds made.

    It is made anew where a file, a setting or the device is another one. Of others as many stay as there is room for beside
    it. Nobody writes into what is lent from here: a poisoned copy has pixels and labels of its own.
    """
    weighty = tuple(getattr(cfg, field.name) for field in dataclasses.fields(cfg) if field.name not in UNCUT)
    state = sources.state_of(cfg.dataset, Path(cfg.data))
    cut = _CUTS.pop((state, weighty, rt.device), None)
    if cut is None:
        cut = _cut(cfg, rt)
    elif cut.remark:
        say(cut.remark)
    while _CUTS and (len(_CUTS) >= SETS or sum(other.nbytes for other in (*_CUTS.values(), cut)) > ROOM):
        del _CUTS[next(iter(_CUTS))]
    if state == sources.state_of(cfg.dataset, Path(cfg.data)):  # no file came or changed while it was read
        _CUTS[state, weighty, rt.device] = cut
    return cut


def _cut(cfg: DataConfig, rt: Runtime) -> _Cut:
    source = sources.SOURCES[cfg.dataset]
    arrays = sources.load(cfg.dataset, Path(cfg.data), download=cfg.download, any_size=cfg.any_size)
    kept = keep(arrays, source, cfg.classes, cfg.ood_classes, cfg.ood_subclass)
    x, y, fine = kept.train
    parts = [_key(json.dumps([cfg.dataset, kept.key, part])) for part in arrays.hashes]
    if cfg.train_per_class and len(first := first_of_each(y, cfg.train_per_class)) < len(y):
        x, y, fine = (values if values is None else values[first] for values in (x, y, fine))
        parts[0] = _key(parts[0] + _hash(first))
    train, val = _validation_split(y, cfg.val_fraction, cfg.val_seed)
    y, wrong = mislabel(y, train, cfg.label_noise, cfg.noise_seed) if cfg.label_noise else (y, NONE)
    if len(wrong):
        parts[0] = _key(parts[0] + _hash(y))
    key = _key(json.dumps([*parts, _hash(val)]))
    splits = Splits(train, val, train, NONE, (), key, _key(key + _hash(NONE)), *parts, mislabelled=wrong)
    found = (Part(x, y, fine), kept.test, kept.ood, kept.ood_test)
    form = {True: cfg.aug_form}.get(bool(cfg.aug), "")
    images = tuple(part and Images(part.x, part.y, source, rt, part.fine, form) for part in found)
    return _Cut(images, kept.outputs, splits, arrays.remark)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _validation_split(y: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``fraction`` of each class, class by class in label order from one RandomState, as published."""
    random = np.random.RandomState(seed)
    drawn = [random.choice(np.flatnonzero(y == c), int(fraction * (y == c).sum()), replace=False) for c in np.unique(y)]
    val = np.sort(np.concatenate(drawn)).astype(np.int64)
    return np.setdiff1d(np.arange(len(y)), val), val
