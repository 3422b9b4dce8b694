"""What lies in a run folder: files of ours, the lock, and the run before, which a repeated run may have to give back."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = ("model.pt", "rewind.pt", "mask.pt", "with_*.pt", "outputs.npz", "splits.npz", "scores.npz", "events.npz",
        "influence.npz", "influence.npy")
FIGURES = ("sparsity.png", "trigger.png", "histogram.png", "grid.png", "proxy.png", "chunks.png")
OURS = (*DATA, *FIGURES, "state.pt", "log.jsonl", ".*.part")  # and record.json; any other file is the user's
BEFORE = ".before"
RECORD = "record.json"
NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


def is_ours(name: str, patterns: tuple[str, ...] = OURS) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def ours(folder: Path, patterns: tuple[str, ...] = OURS) -> list[Path]:
    """The files of a run folder that a run wrote, the record aside."""
    return [path for path in folder.iterdir() if is_ours(path.name, patterns) and (path.is_file() or path.is_symlink())]


def clear(folder: Path) -> None:
    """Remove what a run wrote, its record too; what the user put there stays, and the folder with it."""
    for path in [*ours(folder), folder / RECORD]:
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / BEFORE, ignore_errors=True)


# ----------------------------------------------------------------------------------------------- the run before a repeat


def set_aside(folder: Path) -> None:
    """Before a run is repeated: keep what it wrote in a folder inside, its record last, until the new one is finished."""
    bring_back_half(folder)
    kept = folder / BEFORE
    if kept.exists() or not (folder / RECORD).exists():  # a repeat that was interrupted keeps it already; or nothing ended
        for path in ours(folder):
            path.unlink()
        return
    kept.mkdir()
    for path in [*ours(folder), folder / RECORD]:
        os.replace(path, kept / path.name)


def bring_back(folder: Path) -> bool:
    """The run before takes its place again; whether there was one."""
    kept = folder / BEFORE
    if not kept.exists():
        return False
    for path in ours(folder):
        path.unlink()
    _move_out(folder)
    return True


def bring_back_half(folder: Path) -> None:
    """After a kill in the middle of ``set_aside``, when the record was not there yet."""
    if (folder / BEFORE).exists() and not (folder / BEFORE / RECORD).exists():
        _move_out(folder)


def _move_out(folder: Path) -> None:
    kept = folder / BEFORE
    for path in sorted(kept.iterdir(), key=lambda path: path.name == RECORD):
        os.replace(path, folder / path.name)
    kept.rmdir()


def forget_before(folder: Path) -> None:
    shutil.rmtree(folder / BEFORE, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------- the lock


class FolderLock:
    """One process at a time in a folder, on file systems without flock too; the lock file goes when it is released."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._held: Any = None

    def acquire(self, waiting: Callable[[], None]) -> None:
        """Wait for the folder, having called ``waiting`` where another process has it.

        Raises:
            FileNotFoundError: the folder went while it was waited for. OSError: nothing can be written there.
        """
        import filelock  # 60 ms, which --help does without

        try:
            self._acquire(filelock.FileLock(self.path), waiting)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            self.path.unlink(missing_ok=True)  # what was made for flock, and locks nothing here
            self._acquire(filelock.SoftFileLock(f"{self.path}.soft"), waiting)

    def _acquire(self, lock: Any, waiting: Callable[[], None]) -> None:
        import filelock

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it goes by the file's existence, where there is no flock
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                waiting()
                lock.acquire()
        self._held = lock

    def release(self) -> None:
        if self._held is None:
            return
        import filelock

        if not isinstance(self._held, filelock.SoftFileLock):  # whose own release removes its file
            with contextlib.suppress(OSError):
                self.path.unlink()  # who waits for it sees that it is gone, and begins anew
        self._held.release()
        self._held = None
