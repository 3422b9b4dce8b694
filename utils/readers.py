"""Readers of files that somebody names: regular files alone, plain values alone, and one true line where that fails."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.words import BadInput, shown

# what numpy, json and pickle raise on a file that is cut off, foreign, or too large for the memory
UNREADABLE = (OSError, ValueError, EOFError, KeyError, TypeError, IndexError, AttributeError, ImportError, MemoryError,
              OverflowError, NotImplementedError, RecursionError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile,
              zlib.error)
PICKLED = "it holds Python objects (a pickle), which could run code when read; only plain arrays are"
TORCH = "it is a file of torch.save, and only plain arrays of numpy are read"
LAST = np.iinfo(np.int64).max


@contextlib.contextmanager
def reading(what: str, advice: str) -> Iterator[None]:
    """Turn what a file cannot be read for into one line: ``what`` begins it, ``advice`` ends it."""
    try:
        yield
    except BadInput:
        raise
    except UNREADABLE as error:
        raise BadInput(f"{what}: {reason(error)}; {advice}") from None


def reason(error: BaseException) -> str:
    """Why a file cannot be read, in words that are true of the file: what numpy advises is not to be done here."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "allow_pickle" in text:
        return PICKLED
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, (EOFError, struct.error, zipfile.BadZipFile, zlib.error)):
        return f"it is damaged or cut off ({text or type(error).__name__})"
    return text or type(error).__name__


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read; a folder, a pipe, a device or a socket is an OSError, since those never end or are no content."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise OSError(0, "it is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(0, "it is a pipe, a device or a socket, not a file")
    return open(path, "rb")


def read_json(path: Path) -> Any:
    """The values of a JSON file; a name twice in one object, and NaN or Infinity (which are no JSON), are ValueErrors."""
    with open_regular(path) as file:
        return _json(file.read())


def _json(content: bytes) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name in found if sum(name == other for other, _ in pairs) > 1)
            raise ValueError(f"it has {shown(twice)} twice")
        return found

    def number(word: str) -> Any:
        raise ValueError(f"{word} is no number of JSON")

    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=once, parse_constant=number)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError:
        raise ValueError("it is no text, hence no JSON") from None


def load_arrays(path: Path, wanted: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Those of the wanted arrays that an .npz has, and all the names in it; a lone array, from .npy or text, is named "".

    What a file is, its first bytes say and not its name. Text is numbers, one a line or with commas, or a JSON list; it comes
    as int64 where all are whole. JSON of anything else comes as it is.

    Raises:
        one of UNREADABLE, to be told by ``reading``; Python objects are never read.
    """
    with open_regular(path) as file:
        start = file.read(8)
        file.seek(0)
        if not start:
            raise ValueError("it is empty")
        if start.startswith(b"PK"):
            with zipfile.ZipFile(file) as archive:
                if any(name.endswith("data.pkl") for name in archive.namelist()):
                    raise ValueError(TORCH)
            file.seek(0)
            with np.load(file, allow_pickle=False) as found:
                return {name: np.asarray(found[name]) for name in wanted if name in found}, list(found)
        if start.startswith(b"\x93NUMPY"):
            return {"": np.load(file, allow_pickle=False)}, [""]
        if start[:1] == b"\x80":  # how every pickle since protocol 2 begins, old files of torch.save among them
            raise ValueError(PICKLED)
        return {"": _numbers(file.read())}, [""]


def _numbers(content: bytes) -> Any:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is neither an array of numpy, nor JSON, nor text") from None
    if text.lstrip()[:1] in ("[", "{"):
        found = _json(content)
        return _array(found) if isinstance(found, list) and all(type(value) in (int, float) for value in found) else found
    rows = [(number, line.replace(",", " ").replace(";", " ").split()) for number, line in enumerate(text.splitlines(), 1)
            if line.strip() and not line.lstrip().startswith("#")]
    for number, row in rows:
        if len(row) > 1 and len(rows) > 1:
            raise ValueError(f"line {number} holds {len(row)} values; write one number a line, or all in one line")
    return _array([_number(word, number) for number, row in rows for word in row])


def _number(word: str, line: int) -> float | int:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    raise ValueError(f"line {line} holds {shown(word)}, which is no number")


def _array(values: list[float | int]) -> np.ndarray:
    """int64 of values that are all whole, which np.savetxt writes as 3.0; else float64."""
    largest = max(map(abs, values), default=0)
    if all(value == value // 1 for value in values):  # not so of NaN
        if largest > LAST:
            raise ValueError(f"{shown(largest)} is too large for a whole number of 64 bits")
        return np.asarray(list(map(int, values)), np.int64)
    return np.asarray(values, np.float64)


def read_whole_numbers(path: Path, name: str) -> np.ndarray:
    """A list of whole numbers, int64 [N] as it stands in the file: lone, or under ``name`` in an .npz.

    An array of floats is refused, whole or not, for it may be scores; so is one of bools, a mask.
    """
    found, names = load_arrays(path, [name])
    if not found:
        raise ValueError(f"it holds no '{name}' (it has {', '.join(names) or 'nothing'})")
    (read,) = found.values()
    if not isinstance(read, np.ndarray):
        raise ValueError("need a list of one or more whole numbers")
    if read.ndim != 1 or not len(read) or read.dtype.kind not in "iu":
        raise ValueError(f"need a list of one or more whole numbers; got {read.dtype} {read.shape}")
    if int(read.max()) > LAST:
        raise ValueError(f"{read.max()} is too large for a whole number of 64 bits")
    return read.astype(np.int64)
