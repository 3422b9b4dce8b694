"""Readers of the public data sets: load(name, folder) -> Arrays, from FOLDER/<name>.npz or from the published files.

The first load of published files writes FOLDER/<name>.npz, which every later load takes first. Files are read where
they lie and never moved, no image is dropped, and labels are the published ones from 0.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sources.arrays import PARTS, Absent, Arrays, Source, channel_statistics, checked, read_prepared, write_prepared
from sources.imagenet import read_imagenet64, read_tiny
from sources.small import COARSE_LABELS, read_cifar10, read_cifar20, read_cifar100, read_digits, read_svhn
from utils import BadInput, Registry

__all__ = ["SOURCES", "Arrays", "Source", "channel_statistics", "load", "table"]

TOLERANCE = 0.002  # between published and recomputed statistics, which agree within 0.0001 where both are right

SOURCES: Registry[Source] = Registry("data set")


def load(name: str, root: Path, *, download: bool = True) -> Arrays:
    """Read a data set from ROOT/<name>.npz, else from its published files, which are then kept as that npz.

    Args:
        download: fetch absent files where torchvision can (CIFAR, SVHN).

    Raises:
        BadInput: unknown name; files absent, damaged or of another form.
    """
    source, root = SOURCES[name], Path(root)
    prepared, existed = root / f"{name}.npz", root.exists()
    if prepared.exists():
        arrays = read_prepared(prepared, source)
    else:
        try:
            arrays = checked(source.read(root, download), source, f"{name} in {root}")
        except Absent as error:
            if not existed and root.is_dir() and not any(root.iterdir()):
                root.rmdir()  # made for a download that failed
            raise BadInput(f"{name}: {error}; put {source.layout} under {root}, or a prepared {name}.npz with "
                           f"{' '.join(PARTS)} (uint8 [N, {source.size}, {source.size}, 3], labels from 0)") from error
        if not source.embedded:
            write_prepared(arrays, prepared)
    if source.own_statistics and (len(arrays.x_train), len(arrays.x_test)) == source.counts:
        _compare_statistics(arrays.x_train, source)
    return arrays


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
    layout="cifar-100-python/ (or cifar-100-python.tar.gz)", **_CIFAR100)

for _source in (
    Source(name="digits", num_classes=10, size=8, mean=(0.305434,) * 3, std=(0.375957,) * 3, pad=1, flip=False,
           about="scikit-learn's handwritten digits, grey as RGB", read=read_digits, counts=(1437, 360),
           layout="nothing: it comes with scikit-learn", own_statistics=True, embedded=True),
    Source(name="cifar10", num_classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
           about="photographs of ten animals and vehicles", read=read_cifar10,
           layout="cifar-10-batches-py/ (or cifar-10-python.tar.gz)", **_CIFAR),
    _CIFAR100_SOURCE,
    Source(name="cifar20", num_classes=20, about="CIFAR-100 by its 20 super-classes, fine labels kept",
           read=partial(read_cifar20, _CIFAR100_SOURCE), coarse=COARSE_LABELS,
           layout="cifar-100-python/ (or cifar-100-python.tar.gz, or cifar100.npz)", **_CIFAR100),
    # one of the published repositories divides by .1201 .1231 .1052, which are not SVHN's standard deviations
    Source(name="svhn", num_classes=10, size=32, mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970), pad=0,
           flip=False, about="house numbers, without the extra images", read=read_svhn, counts=(73_257, 26_032),
           layout="train_32x32.mat and test_32x32.mat", own_statistics=True),
    Source(name="TinyImagenet", num_classes=200, about="labels in sorted wnid order; test: the official validation set",
           read=read_tiny, counts=(100_000, 10_000), layout="tiny-imagenet-200/ (wnids.txt, words.txt, train/, val/)",
           **_IMAGENET),
    Source(name="imagenet64", num_classes=1000, about="ImageNet downsampled; test: the official validation set",
           read=read_imagenet64, counts=(1_281_167, 50_000),
           layout="train_data_batch_1 to train_data_batch_10 and val_data (pickled, or each as .npz)", **_IMAGENET),
):
    SOURCES.add(_source.name, _source)
