"""The run that writes a run folder: lock, log, results, and the state to resume from."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import torch

from utils import folders
from utils.files import append, cannot_write, digest_of, git_commit, make_folder, sweep, write_atomic, write_json, write_tensors
from utils.records import SCHEMA, Saved, files_of, read_record, require
from utils.runtime import PEAKS, Runtime
from utils.settings import Config, hp
from utils.words import BadInput, CannotWrite, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """Where results go."""
    save_dir: str = hp("runs", "folder of the run folders", digest=False)
    force: bool = hp(False, "repeat a finished run, or repair a damaged one", digest=False)
    # a state of ResNet-18 is 90 MB, and writing it counts in the run's seconds
    resume_every: float = hp(60.0, "seconds between the states from which a killed run goes on", low=0, digest=False)


class Run:
    """The folder of one run; ``done`` if the settings ran before.

    BadInput takes what the run wrote away again, and brings back the finished run that it was to repeat. Any other exception
    is written to the record and leaves the state for the next try. A run that another process holds is waited for, and then
    found done. The user's own files in the folder are left alone.
    """

    def __init__(self, cfg: RunConfig, stage: str, label: str, settings: Mapping[str, Config], **identity: Any) -> None:
        self.cfg, self.stage, self.label = cfg, stage, label
        self.seconds: dict[str, float] = {}
        self.read: dict[str, int] = {}
        self.values: dict[str, Any] = {"settings": {k: dataclasses.asdict(v) for k, v in settings.items()}, **identity}
        placeless = {k: {n: x for n, x in v.items() if n != "path"} if isinstance(v, dict) else v for k, v in identity.items()}
        weighty = {k: {f.name: getattr(v, f.name) for f in dataclasses.fields(v) if f.metadata.get("digest", True)}
                   for k, v in settings.items()}
        key = [SCHEMA, stage, weighty, placeless]
        self.folder = Path(cfg.save_dir) / stage / f"{label}-{digest_of(key)}"
        self.done, self._lock = False, folders.FolderLock(self.folder)
        self._made: list[Path] = []  # folders that were not there
        self._counted = False  # whether its peak of memory is counted
        self._open: tuple[str, float, int, Runtime] | None = None  # name, clock, images read before, whose tally

    def __enter__(self) -> Run:
        self._take_lock()
        try:
            self.done = self._finished()
            if not self.done:
                self._begin()
        except BaseException:  # no __exit__ follows
            self._leave()
            raise
        return self

    def _finished(self) -> bool:
        """Whether the folder holds this run, finished and whole; BadInput where it is damaged and is not to be repeated."""
        folders.bring_back_half(self.folder)
        if self.cfg.force or not (self.folder / folders.RECORD).exists():
            return False
        old = read_record(self.folder)
        if old.record["status"] != "done":
            return False
        self.values = require(old).record
        return True

    def _begin(self) -> None:
        try:
            if self.cfg.force:
                folders.set_aside(self.folder)
            self._write("running")
            sweep(self.folder, ".*.part")
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        except CannotWrite:
            folders.bring_back(self.folder)
            raise
        for peak in PEAKS:
            peak.begin()
        self._counted = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        try:
            if self.done:
                return
            if kind is None:
                self.values["files"] = files_of(self.folder)
                self._write("done")
                (self.folder / "state.pt").unlink(missing_ok=True)
                folders.forget_before(self.folder)
            elif issubclass(kind, BadInput):
                self._give_up(error)
            elif issubclass(kind, Exception):
                with contextlib.suppress(CannotWrite):
                    self._write(f"failed: {kind.__name__}: {error}")
        finally:
            self._leave()

    def _leave(self) -> None:
        """Give the lock back, and take away the folders that were made where nothing came to lie in them."""
        self._lock.release()
        for peak in PEAKS if self._counted else ():
            peak.end()
        self._counted = False
        for made in self._made:
            with contextlib.suppress(OSError):  # not empty: this run's files, or others' runs
                made.rmdir()

    def _give_up(self, error: BaseException | None) -> None:
        if folders.bring_back(self.folder):
            say(f"notice: {self.folder} is again as it was before it was to be repeated")
        elif isinstance(error, CannotWrite):
            with contextlib.suppress(CannotWrite):
                self._write(f"failed: {type(error).__name__}: {error}")
        else:
            folders.clear(self.folder)

    def _take_lock(self) -> None:
        while True:
            try:
                self._made = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
                make_folder(self.folder)
                self._lock.acquire(lambda: say(f"waiting for the process that works in {self.folder}"))
                return
            except FileNotFoundError:  # the folder was removed while we waited for its lock, and is made anew
                continue
            except CannotWrite:
                self._leave()
                raise
            except OSError as error:
                if self._is_done():  # a finished run may lie where nothing can be written
                    return
                raise BadInput(f"cannot write {self.folder}: {error.strerror}; choose another --save_dir") from error

    def _is_done(self) -> bool:
        try:
            return not self.cfg.force and read_record(self.folder).record["status"] == "done"
        except BadInput:
            return False

    def _write(self, status: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.values.setdefault("started", now)
        head = {"schema": SCHEMA, "stage": self.stage, "label": self.label, "status": status, "finished": now}
        write_json(self.folder / folders.RECORD, {**head, **self.values, "seconds": self.seconds,
                                                  "images_read": self.read, "commit": git_commit()})

    def saved(self) -> Saved:
        """The folder and the record that is on the disk."""
        return read_record(self.folder)

    def spent(self) -> tuple[dict[str, float], dict[str, int]]:
        """Seconds and images read by name, of a run that is done or at work."""
        return self.values.get("seconds") or self.seconds, self.values.get("images_read") or self.read

    def summary(self) -> str:
        """The run's folder and its seconds, for the last line on the screen."""
        spent = ", ".join(f"{name} {s:.1f} s" for name, s in self.spent()[0].items() if s)
        return f"{self.folder}: {'already done; ' if self.done else ''}{spent}"

    def log(self, **row: Any) -> None:
        append(self.folder / "log.jsonl", json.dumps(row) + "\n")

    def result(self, **values: Any) -> None:  # reaches the disk when the run ends
        self.values.update(values)

    def rename(self, group: str, setting: str, value: Any) -> None:
        """Give a setting of a finished run's record, one that changes no result, another value on the disk."""
        self.values["settings"][group][setting] = value
        write_json(self.folder / folders.RECORD, self.values)

    def path(self, name: str) -> Path:
        """Where a file of the run lies; a name that ``utils.folders`` does not know would be taken for the user's."""
        assert folders.is_ours(name), f"{name} is missing in utils.folders.OURS"
        return self.folder / name

    def write(self, name: str, write: Callable[[BinaryIO], Any]) -> None:
        write_atomic(self.path(name), write)

    def save_tensors(self, name: str, content: dict[str, Any]) -> None:
        self.save_bare(name, {"schema": SCHEMA, **content})

    def save_bare(self, name: str, content: Any) -> None:  # in a published layout, without our schema
        write_tensors(self.path(name), content)

    def save_arrays(self, name: str, **arrays: np.ndarray) -> None:
        self.write(name, lambda file: np.savez(file, **arrays))

    @contextlib.contextmanager
    def timed(self, rt: Runtime, name: str) -> Iterator[None]:
        """Add the block's wall seconds to ``seconds[name]`` and the images that it reads, each as often as it is read, to
        ``read[name]``; what a killed run had spent is counted in."""
        rt.drain()
        self._open = (name, time.perf_counter(), rt.tally.images, rt)
        yield
        rt.drain()
        (self.seconds, self.read), self._open = self._spent(), None

    @contextlib.contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Count the block's seconds and images under ``name``, and not under that of the ``timed`` block it lies in, if any."""
        if self._open is None:
            yield
            return
        outer, start, before, rt = self._open
        rt.drain()
        clock, images = time.perf_counter(), rt.tally.images
        yield
        rt.drain()
        spent, read = time.perf_counter() - clock, rt.tally.images - images
        self.seconds[name], self.read[name] = self.seconds.get(name, 0.0) + spent, self.read.get(name, 0) + read
        self._open = outer, start + spent, before + read, rt

    def so_far(self, name: str) -> float:
        """Seconds under a name by now, those of an open block among them."""
        return self._spent()[0].get(name, 0.0)

    def _spent(self) -> tuple[dict[str, float], dict[str, int]]:
        if self._open is None:
            return self.seconds, self.read
        name, start, before, rt = self._open
        return ({**self.seconds, name: self.seconds.get(name, 0.0) + time.perf_counter() - start},
                {**self.read, name: self.read.get(name, 0) + rt.tally.images - before})

    # ------------------------------------------------------------------------------------------------ state of a killed run

    def save_state(self, **content: Any) -> None:
        log = self.folder / "log.jsonl"
        rows = log.read_text(encoding="utf-8") if log.exists() else ""
        seconds, read = self._spent()
        self.save_tensors("state.pt", {**content, "run": self.folder.name, "seconds": seconds, "read": read, "rows": rows})

    def load_state(self, like: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any] | None:
        """What ``save_state`` wrote last, or None in a run that starts anew; the log goes back to that moment too.

        Args:
            like: content of the form that the caller can use: the names, the shapes of tensors, the kinds of numbers. A state
                that is damaged, of another run, version or form is told, and removed.
        """
        path, log = self.folder / "state.pt", self.folder / "log.jsonl"
        if not path.exists():
            log.unlink(missing_ok=True)
            return None
        state = _read_state(path)
        why = state if isinstance(state, str) else self._foreign(state) or unlike(state, like)
        if isinstance(state, str) or why is not None:
            say(f"notice: {path} {why}; the run starts anew")
            path.unlink()
            return self.load_state()
        self.seconds, self.read = state["seconds"], state["read"]
        write_atomic(log, lambda file: file.write(state["rows"].encode()))
        return state

    def _foreign(self, state: dict[str, Any]) -> str | None:
        if state.get("schema") != SCHEMA:
            return f"is of schema {state.get('schema')!r}, not {SCHEMA}, so of another version"
        spent = [(state.get("seconds"), float), (state.get("read"), int)]
        right = all(isinstance(found, dict) and all(type(x) is kind for x in found.values()) for found, kind in spent)
        if not right or not isinstance(state.get("rows"), str):
            return "holds no state of this version"
        return None if state.get("run") == self.folder.name else "is of another run"


def _read_state(path: Path) -> dict[str, Any] | str:
    """The content, or why there is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises a dozen types on damaged files, AssertionError and struct.error too
        return "is damaged"
    return state if isinstance(state, dict) else "is no state of a run"


def unlike(value: Any, like: Any, name: str = "") -> str | None:
    """Where a value has not the form of another one, or None: names, lengths, shapes and types of tensors, kinds of numbers."""
    if isinstance(like, Mapping):
        if not isinstance(value, Mapping):
            return f"has another {name}"
        lost = [key for key in like if key not in value]
        at = f"{name}." if name else ""
        if lost:
            return f"lacks {at}{lost[0]}"
        return next(filter(None, (unlike(value[key], like[key], f"{at}{key}") for key in like)), None)
    if isinstance(like, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(like):
            return f"has another {name}"
        return next(filter(None, (unlike(*pair, name) for pair in zip(value, like, strict=True))), None)
    if isinstance(like, torch.Tensor):
        same = isinstance(value, torch.Tensor) and (value.shape, value.dtype) == (like.shape, like.dtype)
    else:
        numbers = isinstance(like, (int, float)) and isinstance(value, (int, float))
        same = numbers or isinstance(value, type(like))
    return None if same else f"has another {name}"
