"""Files that are written whole or not at all, and read with care."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from utils.readers import UNREADABLE, open_regular
from utils.words import BadInput, CannotWrite

STALE = 3600  # seconds after which a half-written file has no writer any more
REPEAT = "repeat the run that wrote it with --force"
Form = Mapping[str, tuple[str, str]]  # array -> (kinds of numpy's dtype, dimensions), such as ("f", "N K")


def cannot_write(path: Path, error: OSError, flag: str = "--save_dir") -> CannotWrite:
    return CannotWrite(f"cannot write {path}: {error.strerror or error}; make room, or choose another {flag}")


def write_atomic(path: Path, write: Callable[[BinaryIO], None], flag: str = "--save_dir") -> None:
    """Write a whole file or none: to a temporary name in the same folder, flushed to disk, then renamed.

    Args:
        flag: that gives another place, for the error.

    Raises:
        CannotWrite: a full disk, or a place that is closed to us.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        sweep(path.parent, f".{path.name}.*.part", STALE)
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except Exception as error:  # numpy's zip file answers a full disk with its own complaint on top
        cause = _os_error(error)
        if cause is None:
            raise
        raise cannot_write(path, cause, flag) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's error that an exception is, or was raised upon."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def sweep(folder: Path, pattern: str, age: float = 0) -> None:
    """Remove files that match and were not written to for so many seconds: of processes that were killed at it."""
    for path in folder.glob(pattern):
        try:
            if time.time() - path.stat().st_mtime >= age:
                path.unlink()
        except FileNotFoundError:  # another process was the first to tidy up
            continue


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, lambda file: file.write((json.dumps(value, indent=1, allow_nan=False) + "\n").encode()))


def write_tensors(path: Path, content: Any, flag: str = "--save_dir") -> None:
    whole = io.BytesIO()  # torch's own writer answers a full disk with a RuntimeError
    torch.save(content, whole)
    write_atomic(path, lambda file: file.write(whole.getbuffer()), flag)


def append(path: Path, text: str) -> None:
    """Add to the end of a file (CannotWrite as in ``write_atomic``)."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise cannot_write(path, error) from error


def make_folder(path: Path, flag: str = "--save_dir") -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error, flag) from error


def read_arrays(path: Path, form: Form) -> dict[str, np.ndarray]:
    """The arrays of an npz of ours: at least those of the form, of its kinds and dimensions.

    Args:
        form: dimensions of one name have one size in all arrays; "" is a single value.

    Raises:
        BadInput: missing, damaged, or arrays that lack or are of another size.
    """
    try:
        found = _arrays_in(path)
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; {REPEAT}") from None
    except UNREADABLE:  # numpy's own words are about flags that nobody here has
        raise BadInput(f"{path} is damaged; {REPEAT}") from None
    sizes: dict[str, int] = {}
    for name, (kinds, dims) in form.items():
        array, wanted = found.get(name), dims.split()
        if array is None:
            raise BadInput(f"{path} lacks {name}; {REPEAT}")
        if array.dtype.kind not in kinds or array.ndim != len(wanted) or any(
                sizes.setdefault(dim, size) != size for dim, size in zip(wanted, array.shape, strict=True)):
            raise BadInput(f"{path} is damaged: {name} is {array.dtype} {list(array.shape)}, which does not fit the other "
                           f"arrays; {REPEAT}")
    return found


def _arrays_in(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz, its checksums looked at; in one read, and with no header parsed twice, as np.load would."""
    with open_regular(path) as file:
        whole = io.BytesIO(file.read())
    with zipfile.ZipFile(whole) as archive:
        return {name.removesuffix(".npy"): _array_of(archive.read(name)) for name in archive.namelist()}


def _array_of(content: bytes) -> np.ndarray:
    head = 10 + int.from_bytes(content[8:10], "little")
    shape, fortran, dtype = _header(content[:head])
    size = math.prod(shape)
    if dtype.hasobject or len(content) - head != size * dtype.itemsize:
        raise ValueError("it holds Python objects, or is cut off")
    flat = np.frombuffer(content, dtype, size, head) if size else np.empty(0, dtype)
    # a copy, since torch takes none that is read-only
    return flat.copy().reshape(shape, order="F" if fortran else "C")


@functools.lru_cache(maxsize=1024)
def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type; of the runs of an analysis most have the same ones."""
    file = io.BytesIO(head)
    if np.lib.format.read_magic(file) != (1, 0):  # np.savez writes others only where a header is longer than 64 KiB
        raise ValueError("it is of another version of numpy's format")
    return np.lib.format.read_array_header_1_0(file)


def sha256(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; {REPEAT}") from None


def digest_of(value: Any) -> str:
    """Ten hexadecimal digits of a JSON value; equal settings meet in the same folder through it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


@functools.cache
def git_commit() -> str:
    """Of the code that this process has read; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True) if shutil.which("git") else None
    return found.stdout.strip() if found and found.stdout else "unknown"
