"""Run folders: the record of a run, and the run that writes it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import pickle
import shutil
import time
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.files import digest_of, git_commit, write_atomic, write_json
from utils.runtime import Runtime
from utils.settings import Config, hp
from utils.words import BadInput, CannotWrite, say

SCHEMA = 1  # of model.pt, record.json and state.pt; raised when a reader of the old form would misread the new one


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """Where results go."""
    save_dir: str = hp("runs", "folder of the run folders", digest=False)
    force: bool = hp(False, "repeat a finished run", digest=False)
    resume_every: float = hp(10.0, "seconds between the states from which a killed run goes on", low=0, digest=False)


class Saved(typing.NamedTuple):
    """A run folder and its record."""

    folder: Path
    record: dict[str, Any]

    def setting(self, name: str) -> Any:
        """A setting by its flag's name, whichever group holds it; None where the run has none of that name."""
        return next((group[name] for group in self.record["settings"].values() if name in group), None)


def read_record(folder: Path) -> Saved:
    try:
        record = json.loads((folder / "record.json").read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} holds no readable record.json ({error}); repeat that run or remove the folder") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or not {"status", "settings"} <= record.keys():
        raise BadInput(f"{folder / 'record.json'} is no record of schema {SCHEMA}; repeat that run or remove the folder")
    return Saved(folder, record)


def find_runs(root: Path, stages: tuple[str, ...], finished: bool = True, **wanted: Any) -> list[Saved]:
    """Finished (or all other) runs of the stages under a ``save_dir`` whose settings equal all ``wanted``, oldest first."""
    runs = [read_record(path.parent) for stage in stages for path in sorted((root / stage).glob("*/record.json"))]
    runs = [run for run in runs if (run.record["status"] == "done") == finished]
    runs = [run for run in runs if all(run.setting(name) == value for name, value in wanted.items())]
    return sorted(runs, key=lambda run: run.record["finished"])


class Run:
    """The folder of one run: lock, log, results, and the state to resume from; ``done`` if the settings ran before.

    BadInput takes the folder away again; any other exception is written to the record and leaves the state for the next
    try. A run that another process holds is waited for, and then found done.
    """

    def __init__(self, cfg: RunConfig, stage: str, label: str, settings: Mapping[str, Config], **identity: Any) -> None:
        self.cfg, self.stage, self.label = cfg, stage, label
        self.seconds: dict[str, float] = {}
        self.values: dict[str, Any] = {"settings": {k: dataclasses.asdict(v) for k, v in settings.items()}, **identity}
        placeless = {k: {n: x for n, x in v.items() if n != "path"} if isinstance(v, dict) else v for k, v in identity.items()}
        weighty = {k: {f.name: getattr(v, f.name) for f in dataclasses.fields(v) if f.metadata.get("digest", True)}
                   for k, v in settings.items()}
        key = [SCHEMA, stage, weighty, placeless]
        self.folder = Path(cfg.save_dir) / stage / f"{label}-{digest_of(key)}"
        self.done, self._lock, self._made = False, -1, [self.folder]
        self._open: tuple[str, float] | None = None

    def __enter__(self) -> Run:
        self._take_lock()
        try:
            old = read_record(self.folder).record if (self.folder / "record.json").exists() else {}
            self.done = old.get("status") == "done" and not self.cfg.force
            if self.done:
                self.values = old
                return self
            self._write("running")  # before anything goes, so that a kill here leaves no finished record of missing files
            # what a repeated run has, or a process that was killed while it wrote
            for path in self.folder.iterdir() if self.cfg.force else self.folder.glob(".*.part"):
                if path.name != "record.json":
                    path.unlink()
        except BaseException:  # no __exit__ follows
            os.close(self._lock)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        try:
            if self.done:
                return
            if kind is None:
                self._write("done")
                (self.folder / "state.pt").unlink(missing_ok=True)
            elif issubclass(kind, BadInput) and not issubclass(kind, CannotWrite):
                shutil.rmtree(self.folder, ignore_errors=True)
                for made in self._made:
                    with contextlib.suppress(OSError):  # not empty: others' runs live there
                        made.rmdir()
            elif issubclass(kind, Exception):
                with contextlib.suppress(CannotWrite):
                    self._write(f"failed: {kind.__name__}: {error}")
        finally:
            os.close(self._lock)

    def _take_lock(self) -> None:
        while True:  # a folder that was removed while we waited for its lock is made anew
            try:
                self._made = [parent for parent in self.folder.parents if not parent.exists()]
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock = os.open(self.folder, os.O_RDONLY)
            except OSError as error:
                raise BadInput(f"cannot write {self.folder}: {error.strerror}; choose another --save_dir") from error
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for the process that works in {self.folder}")
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            if self.folder.exists() and os.fstat(self._lock).st_ino == self.folder.stat().st_ino:
                return
            os.close(self._lock)

    def _write(self, status: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.values.setdefault("started", now)
        head = {"schema": SCHEMA, "stage": self.stage, "label": self.label, "status": status, "finished": now}
        write_json(self.folder / "record.json", {**head, **self.values, "seconds": self.seconds, "commit": git_commit()})

    def summary(self) -> str:
        """The run's folder and its seconds, for the last line on the screen."""
        spent = ", ".join(f"{name} {s:.1f} s" for name, s in (self.values.get("seconds") or self.seconds).items() if s)
        return f"{self.folder}: {'already done; ' if self.done else ''}{spent}"

    def log(self, **row: Any) -> None:
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def result(self, **values: Any) -> None:  # reaches the disk when the run ends
        self.values.update(values)

    def save_tensors(self, name: str, content: dict[str, Any]) -> None:
        self.save_bare(name, {"schema": SCHEMA, **content})

    def save_bare(self, name: str, content: Any) -> None:  # in a published layout, without our schema
        whole = io.BytesIO()  # torch's own writer answers a full disk with a RuntimeError
        torch.save(content, whole)
        write_atomic(self.folder / name, lambda file: file.write(whole.getbuffer()))

    def save_arrays(self, name: str, **arrays: np.ndarray) -> None:
        write_atomic(self.folder / name, lambda file: np.savez(file, **arrays))

    @contextlib.contextmanager
    def timed(self, rt: Runtime, name: str) -> Iterator[None]:
        """Add the block's wall seconds to ``seconds[name]``; what a killed run had spent is counted in."""
        rt.drain()
        self._open = (name, time.perf_counter())
        yield
        rt.drain()
        self.seconds, self._open = self._spent(), None

    def _spent(self) -> dict[str, float]:
        if self._open is None:
            return self.seconds
        name, start = self._open
        return {**self.seconds, name: self.seconds.get(name, 0.0) + time.perf_counter() - start}

    def save_state(self, **content: Any) -> None:
        log = self.folder / "log.jsonl"
        rows = log.read_text() if log.exists() else ""
        self.save_tensors("state.pt", {**content, "seconds": self._spent(), "rows": rows})

    def load_state(self) -> dict[str, Any] | None:
        """What ``save_state`` wrote last, or None in a run that starts anew; the log goes back to that moment too."""
        path, log = self.folder / "state.pt", self.folder / "log.jsonl"
        if not path.exists():
            log.unlink(missing_ok=True)
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError):
            say(f"notice: {path} is damaged; the run starts anew")
            path.unlink()
            return self.load_state()
        self.seconds = state["seconds"]
        write_atomic(log, lambda file: file.write(state["rows"].encode()))
        return state
