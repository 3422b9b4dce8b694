"""Prepared npz files: a data set's arrays in one file, with their hashes and what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sources.arrays import PARTS, Arrays, Source, checked, read_npz
from utils import UNREADABLE, BadInput, open_regular, reason, write_atomic

ABOUT = "about.npy"  # a JSON text beside the arrays


def part_hash(x: np.ndarray, y: np.ndarray) -> str:
    """sha256 of all pixels and labels of a part, x uint8 [N, H, W, C] and y int64 [N], and of their number."""
    found = hashlib.sha256(repr(x.shape).encode())
    for array in (x, y):
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()


def listing(files: Iterable[os.PathLike[str]], root: Path) -> str:
    """What tells a folder's files apart from those of another time: their number, and a hash of names, sizes and times.

    Args:
        files: paths below ``root`` or entries of os.scandir, in an order that does not depend on the disk.

    Returns:
        "" where there is none.
    """
    start, rows = len(str(root)), []
    for file in files:
        about = file.stat()  # type: ignore[attr-defined]
        rows.append(f"{os.fspath(file)[start:]} {about.st_size} {about.st_mtime_ns}")
    return f"{len(rows)} files, sha256 {hashlib.sha256(chr(10).join(rows).encode()).hexdigest()}" if rows else ""


def known(path: Path) -> dict[str, Any]:
    """What a prepared npz says of itself: ``sha256`` of the training and the test part, ``made_from`` (a ``listing``).

    Empty for a file that somebody else wrote, or that anybody changed since: the checksums that the zip form keeps of each
    member must be those that were noted when the hashes were. (Reading a member compares its checksum with its content.)
    """
    try:
        with open_regular(path) as content, zipfile.ZipFile(content) as archive, archive.open(ABOUT) as file:
            about = json.loads(str(np.lib.format.read_array(file, allow_pickle=False)))
            whole = about["members"] == _members(archive) and len(about["sha256"]) == 2 and "made_from" in about
    except UNREADABLE:
        return {}
    return about if whole else {}


def _members(archive: zipfile.ZipFile) -> dict[str, int]:
    return {info.filename: info.CRC for info in archive.infolist() if info.filename != ABOUT}


def read_prepared(path: Path, source: Source) -> Arrays:
    """The arrays of a prepared npz, checked; it may hold a part of the images and of the classes."""
    found = read_npz(path, PARTS, ("fine_train", "fine_test", "classes"))
    names = found.pop("classes", np.empty(0, np.str_))
    if names.dtype.kind != "U" or names.ndim != 1:
        raise BadInput(f"{path}: classes is {names.dtype} {list(names.shape)}; it must be a list of names, or left out")
    return checked(Arrays(**found, classes=tuple(names.tolist())), source, str(path))


def write_prepared(arrays: Arrays, path: Path, made_from: str) -> None:
    """Keep the arrays as a prepared npz, not compressed; a folder that cannot be written is only a warning.

    Args:
        made_from: of the files that were read, a ``listing``.
    """
    kept = {key: getattr(arrays, key) for key in (*PARTS, "fine_train", "fine_test") if getattr(arrays, key) is not None}
    kept["classes"] = np.array(arrays.classes, np.str_)

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, value in kept.items():
                _add(archive, f"{name}.npy", value)
            about = {"sha256": arrays.hashes, "made_from": made_from, "members": _members(archive)}
            _add(archive, ABOUT, np.array(json.dumps(about)))

    try:
        write_atomic(path, write)
    except BadInput as error:
        warnings.warn(f"{path} could not be written ({reason(error.__cause__ or error)}); the data were read, but "
                      "the next load reads the published files again", stacklevel=3)


def _add(archive: zipfile.ZipFile, name: str, value: np.ndarray) -> None:
    with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=False)
