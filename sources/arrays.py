"""The form every data set is read into, and its checks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import BadInput, load_arrays, reading

PARTS = ("x_train", "y_train", "x_test", "y_test")


class Absent(BadInput):
    """A published file is not there (or could not be fetched); ``load`` adds what to put where."""


@dataclass(frozen=True)
class Arrays:
    """Training and test images, uint8 [N, H, W, 3], with labels, int64 [N], and the names of the classes if known.

    fine_*: int64 [N], the finer label under a coarse one (cifar20: CIFAR-100's), or None. hashes: of the training and the
    test part, all their pixels and labels (``prepared.part_hash``); of what ``sources.load`` gives.
    remark: what every run that takes them is told.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    fine_train: np.ndarray | None = None
    fine_test: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    hashes: tuple[str, str] = ("", "")
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is published about a data set, and how to read it.

    size: side of the square images; mean, std: by channel, of pixels in [0, 1]; pad, flip: the published augmentation
    (crop padding, 0 = none; horizontal mirroring); counts: official training and test images; layout: what lies under
    the folder; files: those of them that are there now; coarse: the label that each fine label belongs to; own_statistics:
    mean and std are of these very training images; embedded: comes with an installed package, so nothing is written.
    """

    name: str
    num_classes: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: int
    flip: bool
    about: str
    read: Callable[[Path, bool], Arrays]
    files: Callable[[Path], Iterable[os.PathLike[str]]] = lambda root: ()
    counts: tuple[int, int] = (0, 0)
    layout: str = ""
    coarse: tuple[int, ...] = ()
    own_statistics: bool = False
    embedded: bool = False


def channel_statistics(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel, of pixels in [0, 1]; ``x``: uint8 [N, H, W, C].

    Exact sums by position over 64 images at a time: 64 * 255**2 < 2**24, so float32 holds them.
    """
    rows = x.reshape(len(x), -1)
    total, squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for start in range(0, len(rows), 64):
        chunk = rows[start : start + 64].astype(np.float32)
        total += chunk.sum(0)
        squares += np.einsum("ij,ij->j", chunk, chunk)
    count = x[..., 0].size
    mean = total.reshape(-1, x.shape[-1]).sum(0) / count
    std = np.sqrt(squares.reshape(-1, x.shape[-1]).sum(0) / count - mean**2)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def read_npz(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Arrays of an npz by key; pickled objects are refused.

    Raises:
        BadInput: no whole npz, a required key missing, or an array that only a pickle could give.
    """
    with reading(f"{path} cannot be read", f"put a whole npz with {' '.join(required)} (plain arrays) there, or delete it to "
                 "read other published files"):
        found, names = load_arrays(path, (*required, *optional))
        absent = [key for key in required if key not in found]
        if absent:
            raise ValueError(f"no {' '.join(absent)} in it, only {' '.join(filter(None, names)) or 'an array without a name'}")
        return found


def checked(arrays: Arrays, source: Source, origin: str) -> Arrays:
    """The same arrays with int64 labels.

    Raises:
        BadInput: images, labels or names that do not fit the data set; ``origin`` says where they came from.
    """
    known = len(arrays.classes) or source.num_classes
    if known > source.num_classes:
        raise BadInput(f"{origin}: {known} class names, but {source.name} has {source.num_classes} classes; name fewer")
    if (arrays.fine_train is None) != (arrays.fine_test is None):
        raise BadInput(f"{origin}: fine_train and fine_test belong together; add the other or leave both out")
    labels = {}
    for part in ("train", "test"):
        x, y, fine = (getattr(arrays, f"{kind}_{part}") for kind in ("x", "y", "fine"))
        if x.dtype != np.uint8 or x.shape[1:] != (source.size, source.size, 3) or not len(x):
            raise BadInput(f"{origin}: x_{part} is {x.dtype} {list(x.shape)}; {source.name} needs at least one image, "
                           f"uint8 [N, {source.size}, {source.size}, 3] (rows, columns, channels)")
        labels[f"y_{part}"] = checked_labels(y, len(x), known, f"{origin}: y_{part}")
        if fine is None:
            continue
        labels[f"fine_{part}"] = checked_labels(fine, len(x), len(source.coarse) or None, f"{origin}: fine_{part}")
        if source.coarse and (np.array(source.coarse)[labels[f"fine_{part}"]] != labels[f"y_{part}"]).any():
            raise BadInput(f"{origin}: fine_{part} and y_{part} disagree; y must be the super-class of each fine label")
    return Arrays(x_train=arrays.x_train, x_test=arrays.x_test, classes=arrays.classes, **labels)


def checked_labels(y: np.ndarray, count: int, limit: int | None, what: str) -> np.ndarray:
    """Labels of any integer type as int64 [count], all in 0 to ``limit`` - 1."""
    if y.dtype.kind not in "iu" or y.shape != (count,):
        raise BadInput(f"{what} is {y.dtype} {list(y.shape)}; it must hold one integer for each of the {count} images")
    if y.min() < 0 or (limit is not None and y.max() >= limit):
        bound = "0 or more" if limit is None else f"0 to {limit - 1}"
        raise BadInput(f"{what} holds {y.min()} to {y.max()}; labels must be {bound}")
    return y.astype(np.int64)
