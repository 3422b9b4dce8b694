"""Readers of the public data sets: load(name, folder) -> Arrays, from FOLDER/<name>.npz or from the published files.

The first load of published files writes FOLDER/<name>.npz, which every later load takes first, until the published files
change. Files are read where they lie and never moved, no image is dropped, and labels are the published ones from 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sources.arrays import PARTS, Absent, Arrays, Source, channel_statistics, checked
from sources.imagenet import imagenet64_files, read_imagenet64, read_tiny, tiny_files
from sources.prepared import known, listing, part_hash, read_prepared, write_prepared
from sources.small import (
    COARSE_LABELS,
    cifar20_files,
    cifar_files,
    read_cifar10,
    read_cifar20,
    read_cifar100,
    read_digits,
    read_svhn,
    svhn_files,
)
from utils import BadInput, Registry, say

__all__ = ["SOURCES", "Arrays", "Source", "channel_statistics", "load", "table"]

TOLERANCE = 0.002  # between published and recomputed statistics, which agree within 0.0001 where both are right

SOURCES: Registry[Source] = Registry("data set")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """That the system keeps a folder or a file from us is told in one line, wherever a reader meets it."""
    try:
        yield
    except PermissionError as error:
        raise BadInput(f"cannot read {error.filename}: {error.strerror}; name another --data, or get the right to read this "
                       "one") from None


@_told()
def load(name: str, root: Path, *, download: bool = True, any_size: bool = False) -> Arrays:
    """Read a data set from ROOT/<name>.npz, else from its published files, which are then kept as that npz.

    An npz that was made here from files that changed since is made anew; one that somebody else wrote is taken as it is.

    Args:
        download: fetch absent files where torchvision can (CIFAR, SVHN).
        any_size: take published files with another number of images than the data set is published with.

    Raises:
        BadInput: unknown name; files absent, damaged, of another form, or not the whole data set.
    """
    source, root = SOURCES[name], Path(root)
    prepared = root / f"{name}.npz"
    about = known(prepared) if prepared.exists() else {}
    changed = _changed(source, root, about)
    arrays = None
    if changed or not prepared.exists():
        try:
            arrays = _published(source, root, prepared, download and not changed, any_size)
        except BadInput as error:
            if not changed:
                raise
            say(f"notice: {prepared} was made from files that have changed since and cannot be read now ({error}); it is taken "
                "as it is")
        else:
            if changed:
                say(f"notice: {prepared} is made anew: the files that it was made from have changed")
    if arrays is None:
        arrays = read_prepared(prepared, source)
        hashes = tuple(about["sha256"]) if about else _hashes(arrays)
        arrays = dataclasses.replace(arrays, hashes=hashes)
        if not any_size and (told := _other_size(arrays, source, str(prepared))):
            arrays = dataclasses.replace(arrays, remark=f"notice: {told}; --any_size says that this is meant")
            say(arrays.remark)
    if source.own_statistics and (len(arrays.x_train), len(arrays.x_test)) == source.counts:
        _compare_statistics(arrays.x_train, source)
    return arrays


@_told()
def state_of(name: str, root: Path) -> tuple[Any, ...]:
    """What the content of a data set hangs on: its source, its prepared npz and its published files as they lie there now."""
    source, root = SOURCES[name], Path(root).absolute()
    prepared = root / f"{name}.npz"
    about = prepared.stat() if prepared.exists() else None
    npz = about and (about.st_ino, about.st_size, about.st_mtime_ns)
    return source, root, npz, listing(source.files(root), root)


def _changed(source: Source, root: Path, about: dict[str, Any]) -> bool:
    """Whether the published files of a prepared npz are others by now; not where none is there any more."""
    now = listing(source.files(root), root) if about.get("made_from") else ""
    return now not in ("", about.get("made_from"))


def _published(source: Source, root: Path, prepared: Path, download: bool, any_size: bool) -> Arrays:
    """The arrays of the published files, which are kept as the prepared npz."""
    existed, name = root.exists(), source.name
    try:
        arrays = checked(source.read(root, download), source, f"{name} in {root}")
    except Absent as error:
        if not existed and root.is_dir() and not any(root.iterdir()):
            root.rmdir()  # made for a download that failed
        raise BadInput(f"{name}: {error}; put {source.layout} under {root}, or a prepared {name}.npz with "
                       f"{' '.join(PARTS)} (uint8 [N, {source.size}, {source.size}, 3], labels from 0)") from error
    if not any_size and (told := _other_size(arrays, source, str(root))):
        raise BadInput(f"{told}; put the whole data set there, or take what is there by --any_size")
    arrays = dataclasses.replace(arrays, hashes=_hashes(arrays))
    if not source.embedded:
        write_prepared(arrays, prepared, listing(source.files(root), root))
    return arrays


def _hashes(arrays: Arrays) -> tuple[str, str]:
    return part_hash(arrays.x_train, arrays.y_train), part_hash(arrays.x_test, arrays.y_test)


def _other_size(arrays: Arrays, source: Source, where: str) -> str:
    """That a data set has another number of images than published, in words; "" where it has not."""
    if (len(arrays.x_train), len(arrays.x_test)) == source.counts:
        return ""
    return (f"{where} holds {len(arrays.x_train):,} training and {len(arrays.x_test):,} test images, {source.name} as "
            f"published {source.counts[0]:,} and {source.counts[1]:,}")


def _compare_statistics(x: np.ndarray, source: Source) -> None:
    mean, std = channel_statistics(x)
    gap = max(abs(a - b) for a, b in zip((*mean, *std), (*source.mean, *source.std), strict=True))
    if gap > TOLERANCE:
        found = " / ".join(" ".join(f"{value:.4f}" for value in part) for part in (mean, std))
        warnings.warn(f"{source.name}: mean / std of the training images are {found}, up to {gap:.4f} from the "
                      "published ones, which the model normalises with: are these the official images?", stacklevel=3)


def table() -> list[tuple[str, ...]]:
    """One row a data set: name, classes, image side, training / test images, published layout read."""
    sources = [SOURCES[name] for name in SOURCES.names()]
    return [(s.name, str(s.num_classes), str(s.size), f"{s.counts[0]:,} / {s.counts[1]:,}", s.layout) for s in sources]


_CIFAR: dict[str, Any] = dict(size=32, pad=4, flip=True, counts=(50_000, 10_000), own_statistics=True)
_CIFAR100: dict[str, Any] = dict(mean=(0.5071, 0.4866, 0.4409), std=(0.2673, 0.2564, 0.2762), **_CIFAR)
_IMAGENET: dict[str, Any] = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=64, pad=4, flip=True)
_CIFAR100_SOURCE = Source(
    name="cifar100", num_classes=100, about="photographs of a hundred things", read=read_cifar100,
    files=partial(cifar_files, "cifar100"),
    layout="cifar-100-python/ (or cifar-100-python.tar.gz)", **_CIFAR100)

for _source in (
    Source(name="digits", num_classes=10, size=8, mean=(0.305434,) * 3, std=(0.375957,) * 3, pad=1, flip=False,
           about="scikit-learn's handwritten digits, grey as RGB", read=read_digits, counts=(1437, 360),
           layout="nothing: it comes with scikit-learn", own_statistics=True, embedded=True),
    Source(name="cifar10", num_classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
           about="photographs of ten animals and vehicles", read=read_cifar10,
           files=partial(cifar_files, "cifar10"),
           layout="cifar-10-batches-py/ (or cifar-10-python.tar.gz)", **_CIFAR),
    _CIFAR100_SOURCE,
    Source(name="cifar20", num_classes=20, about="CIFAR-100 by its 20 super-classes, fine labels kept",
           read=partial(read_cifar20, _CIFAR100_SOURCE), files=cifar20_files, coarse=COARSE_LABELS,
           layout="cifar-100-python/ (or cifar-100-python.tar.gz, or cifar100.npz)", **_CIFAR100),
    # one of the published repositories divides by .1201 .1231 .1052, which are not SVHN's standard deviations
    Source(name="svhn", num_classes=10, size=32, mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970), pad=0,
           flip=False, about="house numbers, without the extra images", read=read_svhn, files=svhn_files,
           counts=(73_257, 26_032), layout="train_32x32.mat and test_32x32.mat", own_statistics=True),
    Source(name="TinyImagenet", num_classes=200, about="labels in sorted wnid order; test: the official validation set",
           read=read_tiny, files=tiny_files, counts=(100_000, 10_000),
           layout="tiny-imagenet-200/ (wnids.txt, words.txt, train/, val/)",
           **_IMAGENET),
    Source(name="imagenet64", num_classes=1000, about="ImageNet downsampled; test: the official validation set",
           read=read_imagenet64, files=imagenet64_files, counts=(1_281_167, 50_000),
           layout="train_data_batch_1 to train_data_batch_10 and val_data (pickled, or each as .npz)", **_IMAGENET),
):
    SOURCES.add(_source.name, _source)
