"""TinyImageNet's folders of JPEGs and the downsampled ImageNet's batches."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sources.arrays import Absent, Arrays, checked_labels, read_npz
from sources.pickled import load_plain
from utils import UNREADABLE, BadInput, open_regular, reason

SIDE = 64
TINY_CLASSES, IMAGENET_CLASSES = 200, 1000
CHUNK = 250  # pictures a thread decodes at a time
IMAGENET64_FOLDERS = ("", "imagenet64", "Imagenet64_train", "Imagenet64_train_part1", "Imagenet64_train_part2",
                      "Imagenet64_val")  # as the archives unpack


def read_tiny(root: Path, download: bool) -> Arrays:
    """Every training image, by sorted wnid and file name, and every official validation image, as annotated.

    The published readers move files, cut by the order in which the disk lists them, and lose the last image; this one
    only reads. ROOT is tiny-imagenet-200 or holds it.
    """
    home = _tiny_home(root)
    if home is None:
        raise Absent(f"{root / 'tiny-imagenet-200' / 'wnids.txt'} is missing")
    wnids = sorted({line.strip() for line in _lines(home / "wnids.txt") if line.strip()})
    if len(wnids) != TINY_CLASSES:
        raise BadInput(f"{home / 'wnids.txt'} lists {len(wnids)} classes, not {TINY_CLASSES}; unpack the archive again")
    train = [(path, y) for y, wnid in enumerate(wnids)
             for path in map(Path, pictures(home / "train" / wnid / "images"))]
    empty = sorted(set(range(len(wnids))) - {y for _, y in train})
    if empty:
        raise BadInput(f"{home / 'train' / wnids[empty[0]] / 'images'} holds no *.JPEG; unpack the archive again")
    test = _annotated(home / "val", {wnid: y for y, wnid in enumerate(wnids)})
    words = dict(line.split("\t", 1) for line in _lines(home / "words.txt") if "\t" in line)
    return Arrays(*_decoded(train), *_decoded(test), classes=tuple(words.get(wnid, wnid).strip() for wnid in wnids))


def _tiny_home(root: Path) -> Path | None:
    return next((home for home in (root, root / "tiny-imagenet-200") if (home / "wnids.txt").is_file()), None)


def tiny_files(root: Path) -> Iterator[os.PathLike[str]]:
    """TinyImageNet's lists and pictures that are there."""
    home = _tiny_home(root)
    if home is None:
        return
    lists = (home / "wnids.txt", home / "words.txt", home / "val" / "val_annotations.txt")
    yield from (path for path in lists if path.is_file())
    for wnid in sorted(set(_lines(home / "wnids.txt"))):
        yield from pictures(home / "train" / wnid.strip() / "images")
    yield from pictures(home / "val" / "images")


def pictures(folder: Path) -> list[os.DirEntry[str]]:
    """A folder's pictures by name, without the hidden files that other systems leave beside them (._x.JPEG)."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as found:
        kept = [entry for entry in found if entry.name.endswith(".JPEG") and not entry.name.startswith(".")]
    return sorted(kept, key=operator.attrgetter("name"))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _annotated(folder: Path, label: dict[str, int]) -> list[tuple[Path, int]]:
    """Paths and labels of the official validation images, in the order of val_annotations.txt."""
    notes, images = folder / "val_annotations.txt", folder / "images"
    rows = [line.split("\t")[:2] for line in _lines(notes) if line.strip()]
    if not rows:
        raise BadInput(f"{notes} is missing or empty; unpack the archive again")
    foreign = next((row for row in rows if len(row) < 2 or row[1] not in label), None)
    if foreign:
        raise BadInput(f"{notes} has the line {' '.join(foreign)!r}, not an image and a wnid; unpack the archive again")
    listed, there = {row[0] for row in rows}, {entry.name for entry in pictures(images)}
    if listed != there or len(listed) < len(rows):
        raise BadInput(f"{images} holds {len(there)} images and {notes.name} lists {len(rows)}, {len(listed & there)} "
                       "in common: did another program move them? Unpack the archive again")
    return [(images / name, label[wnid]) for name, wnid in rows]


def _decoded(listed: Sequence[tuple[Path, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as uint8 [N, 64, 64, 3], grey ones as RGB, and labels, int64 [N]."""
    from tqdm import tqdm

    pixels = np.empty((len(listed), SIDE, SIDE, 3), np.uint8)

    def fill(start: int) -> int:
        paths = [path for path, _ in listed[start : start + CHUNK]]
        for number, path in enumerate(paths, start):
            pixels[number] = _picture(path)
        return len(paths)

    # the decoder works outside the interpreter's lock, so threads do not wait for each other
    bar = tqdm(total=len(listed), desc="decoding", unit="image", disable=None)
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for count in pool.map(fill, range(0, len(listed), CHUNK)):
            bar.update(count)
    return pixels, np.array([y for _, y in listed], np.int64)


def _picture(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with open_regular(path) as file, Image.open(file) as picture:
            if picture.size != (SIDE, SIDE):
                raise ValueError(f"{picture.width} x {picture.height} pixels, not {SIDE} x {SIDE}")
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"{path} cannot be read ({reason(error)}); unpack the archive again") from error


def read_imagenet64(root: Path, download: bool) -> Arrays:
    """The ten training batches in order and the validation batch, pickled or npz."""
    found = _batches(root)
    absent = next((name for name, path in found.items() if path is None), None)
    if absent is not None:
        raise Absent(f"{root / absent} (or {absent}.npz) is missing")
    paths = [path for path in found.values() if path is not None]
    return Arrays(*_joined([_read_batch(path) for path in paths[:-1]]), *_joined([_read_batch(paths[-1])]))


def _batches(root: Path) -> dict[str, Path | None]:
    """Where each batch lies, in order, training first."""
    found = {}
    for name in [*(f"train_data_batch_{number}" for number in range(1, 11)), "val_data"]:
        options = [root / folder / f"{name}{end}" for folder in IMAGENET64_FOLDERS for end in ("", ".npz")]
        found[name] = next((path for path in options if path.is_file()), None)
    return found


def imagenet64_files(root: Path) -> list[Path]:
    return [path for path in _batches(root).values() if path is not None]


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows, uint8 [N, 3 * 64 * 64] channel first, and labels from 0, int64 [N]; published labels start at 1."""
    found: Any = read_npz(path, ("data", "labels")) if path.suffix == ".npz" else load_plain(path)
    try:
        rows, labels = np.asarray(found["data"]), np.asarray(found["labels"])
    except UNREADABLE as error:
        raise BadInput(f"{path} is no dictionary with data and labels; put the official file there") from error
    if rows.dtype != np.uint8 or rows.shape[1:] != (3 * SIDE * SIDE,) or not len(rows):
        raise BadInput(f"{path}: data is {rows.dtype} {list(rows.shape)}, not uint8 [N, {3 * SIDE * SIDE}] (64 x 64 "
                       "pixels, channel first); put the official file there")
    from_zero = labels.astype(np.int64) - 1 if labels.dtype.kind in "iu" else labels
    return rows, checked_labels(from_zero, len(rows), IMAGENET_CLASSES, f"{path}: labels less 1")


def _joined(batches: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Batches of rows as uint8 [N, 64, 64, 3], with their labels; empties the list.

    The untouched part of ``np.empty`` costs no memory and a copied batch is freed, so that the peak is the data set and
    one batch (17 GB for ImageNet), not twice the data set.
    """
    y = np.concatenate([labels for _, labels in batches])
    x, start = np.empty((len(y), SIDE, SIDE, 3), np.uint8), 0
    while batches:
        rows = batches.pop(0)[0]
        x[start : start + len(rows)] = rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        start += len(rows)
        del rows
    return x, y
