"""What every layer stands on: settings that know their flag, registries, the runtime, and run folders."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fcntl
import hashlib
import io
import json
import math
import os
import pickle
import resource
import shutil
import subprocess
import time
import typing
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

SCHEMA = 1  # of model.pt, record.json and state.pt; raised when a reader of the old form would misread the new one
Mask = dict[str, Tensor]  # parameter name -> bool of the parameter's shape, True = may change
T = TypeVar("T")


class BadInput(ValueError):
    """What the user can put right: one line that says what is wrong and what to do. Mains turn it into exit code 2."""


class CannotWrite(BadInput):
    """A full disk, or one closed to us; the run stays as it was, to go on once there is room."""


def hp(default: Any, help: str, *, low: float = -math.inf, high: float = math.inf, above: float = -math.inf,
       below: float = math.inf, choices: tuple[str, ...] = (), digest: bool = True) -> Any:
    """A setting: a dataclass field that knows its flag's help and its bounds.

    ``low`` and ``high`` are themselves allowed, ``above`` and ``below`` are not. ``digest`` is False for what cannot
    change the weights (where to write, how to show progress), so that it does not move the run to another folder.
    """
    keep = dict(help=help, low=low, high=high, above=above, below=below, choices=choices, digest=digest)
    return dataclasses.field(default=default, metadata=keep)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all settings; checks every ``hp`` when made, from the shell, a plan or Python alike."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                _check(field.name, item, field.metadata)


def _check(name: str, value: Any, meta: Mapping[str, Any]) -> None:
    if value is None or not meta:
        return
    if meta["choices"] and value not in meta["choices"]:
        raise BadInput(f"--{name} must be one of {', '.join(meta['choices'])}; got {value!r}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    inside = meta["low"] <= value <= meta["high"] and meta["above"] < value < meta["below"]
    if not inside or math.isinf(value):  # NaN fails every comparison
        left = f"({meta['above']:.10g}" if meta["above"] > -math.inf else f"[{meta['low']:.10g}"
        right = f"{meta['high']:.10g}]" if meta["high"] < math.inf else f"{meta['below']:.10g})"
        raise BadInput(f"--{name} must lie in {left}, {right}; got {value:.10g}")


class Registry(Generic[T]):
    """Names to entries; a second entry under a name is our error, an unknown name the user's."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        if name in self._entries:
            raise ValueError(f"the {self.kind} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def names(self) -> list[str]:
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            close = difflib.get_close_matches(str(name), self._entries, n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise BadInput(f"unknown {self.kind} {name!r}{hint}; known: {', '.join(self._entries)}")
        return self._entries[name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Config):
    """How a stage computes."""
    seed: int = hp(2, "initialisation and batch order; 0 is a seed like any other", low=0)
    device: str = hp("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    precision: str = hp("auto", "auto: bf16 where the GPU has it, else fp32", choices=("auto", "fp32", "bf16"))
    compile: str = hp("off", "torch.compile of the model in training",
                      choices=("off", "default", "reduce-overhead", "max-autotune"))
    deterministic: bool = hp(False, "bit-reproducible kernels, slower on a GPU; a CPU run always is")
    progress: bool = hp(True, "show progress bars", digest=False)

    def resolved(self) -> RuntimeConfig:
        """The same with ``auto`` replaced by what this machine has."""
        has_cuda = torch.cuda.is_available()
        if self.device == "cuda" and not has_cuda:
            raise BadInput("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
        device = "cuda" if has_cuda and self.device != "cpu" else "cpu"
        # emulated bf16 is 12-20 times slower than fp32 (measured on a CPU), so nobody gets that unasked
        fits = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = ("bf16" if fits else "fp32") if self.precision == "auto" else self.precision
        return dataclasses.replace(self, device=device, precision=precision)


class Runtime:
    """Device, precision and random streams of one run; of the global state only the CUDA kernels' choice is set."""

    def __init__(self, cfg: RuntimeConfig) -> None:
        self.cfg = cfg = cfg.resolved()
        self.device = torch.device(cfg.device)
        self.cuda, self.bf16 = cfg.device == "cuda", cfg.precision == "bf16"
        if self.cuda:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.set_float32_matmul_precision("highest" if cfg.deterministic else "high")
            torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = not cfg.deterministic
            torch.use_deterministic_algorithms(cfg.deterministic)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._streams: dict[str, torch.Generator] = {}
        self._restored: dict[str, Tensor] = {}  # positions of streams that are not asked for yet

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def seed_of(self, purpose: str) -> int:
        """An independent 63-bit seed for each pair of seed and purpose (SeedSequence mixes seed and crc32)."""
        words = np.random.SeedSequence([self.cfg.seed, zlib.crc32(purpose.encode())]).generate_state(2, np.uint32)
        return int(words[0]) << 31 ^ int(words[1])

    def generator(self, purpose: str, device: torch.device | None = None) -> torch.Generator:
        """A random stream of its own on the device; its position is part of the state that resuming restores."""
        stream = torch.Generator(device or self.device).manual_seed(self.seed_of(purpose))
        self._streams[purpose] = stream.set_state(self._restored.pop(purpose, stream.get_state()))
        return stream

    @contextlib.contextmanager
    def seeded(self, purpose: str) -> Iterator[None]:
        """Seed the global streams inside the block and give them back as they were (for initialisers and dropout)."""
        with torch.random.fork_rng(devices=[self.device] if self.cuda else []):
            torch.manual_seed(self.seed_of(purpose))
            yield

    def streams(self) -> dict[str, Tensor]:
        return self._restored | {purpose: stream.get_state() for purpose, stream in self._streams.items()}

    def restore_streams(self, states: Mapping[str, Tensor]) -> None:
        self._restored = dict(states)
        for purpose in self._streams.keys() & states.keys():
            self._streams[purpose].set_state(self._restored.pop(purpose))

    def drain(self) -> None:
        """Wait for the device, so that a clock read next counts all the work that was asked for."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def facts(self) -> dict[str, Any]:
        """What the record says of the machine; peak memory in MiB of the run on a GPU, else of the process so far."""
        name = torch.cuda.get_device_name(self.device) if self.cuda else f"cpu, {torch.get_num_threads()} threads"
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = torch.cuda.max_memory_allocated(self.device) / 2**20 if self.cuda else kib / 1024
        return {"device": name, "peak_memory_mib": round(peak, 1), "torch": torch.__version__, "numpy": np.__version__}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """Where results go."""
    save_dir: str = hp("runs", "folder of the run folders", digest=False)
    force: bool = hp(False, "repeat a finished run", digest=False)
    resume_every: float = hp(10.0, "seconds between the states from which a killed run goes on", low=0, digest=False)


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
        with open(path, "rb") as file:
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


def find_runs(root: Path, stages: tuple[str, ...], **wanted: Any) -> list[Saved]:
    """Finished runs of the stages under a ``save_dir`` whose settings equal all that is ``wanted``, oldest first."""
    runs = [read_record(path.parent) for stage in stages for path in sorted((root / stage).glob("*/record.json"))]
    runs = [run for run in runs if run.record["status"] == "done"]
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


def say(text: str) -> None:  # the only way anybody here speaks to the person at the terminal
    print(text, flush=True)
