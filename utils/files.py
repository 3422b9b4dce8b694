"""Files that are written whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from utils.readers import open_regular
from utils.words import BadInput, CannotWrite


def write_atomic(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a whole file or none: to a temporary name in the same folder, flushed to disk, then renamed."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}; make room, or choose another --save_dir") from error
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, lambda file: file.write((json.dumps(value, indent=1, allow_nan=False) + "\n").encode()))


def sha256(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; repeat the run that wrote it with --force") from None


def digest_of(value: Any) -> str:
    """Ten hexadecimal digits of a JSON value; equal settings meet in the same folder through it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True) if shutil.which("git") else None
    return found.stdout.strip() if found and found.stdout else "unknown"
