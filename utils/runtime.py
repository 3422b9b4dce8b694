"""Device, precision and random streams of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from utils import machine, memory, seeds
from utils.machine import processor
from utils.ranks import ALONE, Ranks
from utils.settings import Config, hp
from utils.words import BadInput

EVAL_BATCH = {"cpu": 128, "cuda": 1024}  # a CPU's caches want small ones (measured: 1.15x over 256), a GPU large ones
Mask = dict[str, Tensor]  # parameter name -> bool of the parameter's shape, True = may change


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Config):
    """How a stage computes."""
    seed: int = hp(1, "initialisation and batch order; 0 is a seed like any other", low=0)
    device: str = hp("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    precision: str = hp("auto", "auto: bf16 where the GPU has it, or where the CPU has it and trains faster with it, else "
                        "fp32", choices=("auto", "fp32", "bf16"))
    compile: str = hp("off", "torch.compile of the model in training",
                      choices=("off", "default", "reduce-overhead", "max-autotune"))
    deterministic: bool = hp(False, "bit-reproducible kernels, slower on a GPU; a CPU run always is")
    progress: bool = hp(True, "show progress bars", digest=False)
    keep_memory: bool = hp(True, "have glibc keep the memory of a step for the next one; faster on a CPU", digest=False)
    eval_batch: int | None = hp(None, "images at once where nothing is trained (default: as calibrated, else 128 on a CPU, "
                                "1024 on a GPU)", low=1, digest=False)
    threads: int | None = hp(None, "threads on a CPU (default: as calibrated here, else one for each core)", low=1,
                             digest=False)
    layout: str = hp("auto", "how images and maps lie in memory; auto: as calibrated here, else channels_last",
                     choices=("auto", *machine.LAYOUTS), digest=False)

    chosen: ClassVar[Mapping[str, Any]] = MappingProxyType({})  # of one by ``measured``: what was not typed, for the record

    def resolved(self) -> RuntimeConfig:
        """The same with ``auto`` replaced by what this machine has."""
        has_cuda = torch.cuda.is_available()
        if self.device == "cuda" and not has_cuda:
            raise BadInput("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
        device = "cuda" if has_cuda and self.device != "cpu" else "cpu"
        # of a CPU it is measured for each network (``calibration``); emulated bf16 nobody gets unasked
        fits = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = ("bf16" if fits else "fp32") if self.precision == "auto" else self.precision
        layout = "channels_last" if self.layout == "auto" else self.layout
        return self.measured(self.chosen, device=device, precision=precision, layout=layout,
                             eval_batch=self.eval_batch or EVAL_BATCH[device])

    def measured(self, chosen: Mapping[str, Any], **values: Any) -> RuntimeConfig:
        """The same with other values, of which ``chosen`` tells the record where they come from."""
        made = dataclasses.replace(self, **values)
        object.__setattr__(made, "chosen", chosen)
        return made

    def unmeasured(self) -> RuntimeConfig:
        """As ``resolved``, but for a precision that is to be measured: what a command line without it says."""
        found = self.resolved()
        is_open = found.device == "cpu" and machine.native_bf16()
        return dataclasses.replace(found, precision=self.precision) if is_open else found


@dataclasses.dataclass
class Tally:
    """How many images the batches of a process held so far: a count, which no device waits for."""

    images: int = 0


class Runtime:
    """Device, precision and random streams of one run.

    Of the global state only the CUDA kernels' choice, what becomes of freed memory and, where asked for, threads are set.

    eval_batch: images at once where nothing is trained. layout: of images and of a network's maps in memory. ranks: the
    processes that compute the run together, each on a GPU of its own where there are some.
    """

    def __init__(self, cfg: RuntimeConfig, ranks: Ranks = ALONE) -> None:
        self.cfg = cfg = cfg.resolved()
        self.ranks = ranks
        self.cuda, self.bf16 = cfg.device == "cuda", cfg.precision == "bf16"
        self.device = torch.device("cuda", ranks.local) if self.cuda and ranks.size > 1 else torch.device(cfg.device)
        if self.cuda:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.set_float32_matmul_precision("highest" if cfg.deterministic else "high")
            torch.backends.cudnn.allow_tf32 = not cfg.deterministic
            torch.backends.cudnn.benchmark = False  # trials at the start of every run, whose gain nobody has measured
            torch.use_deterministic_algorithms(cfg.deterministic)
            torch.cuda.reset_peak_memory_stats(self.device)
        if cfg.keep_memory:
            memory.keep_memory()
        _set_threads(cfg.threads)
        self.eval_batch, self.layout = cfg.eval_batch, machine.LAYOUTS[cfg.layout]
        self.tally = Tally()
        self._streams: dict[str, torch.Generator | seeds.Counter] = {}
        self._restored: dict[str, Tensor] = {}  # positions of streams that are not asked for yet

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def seed_of(self, purpose: str) -> int:
        """An independent seed below 2^64 for each purpose of the run's seed."""
        return seeds.seed_of(self.cfg.seed, purpose)

    def generator(self, purpose: str) -> torch.Generator:
        """A random stream of its own; its position is part of the state that resuming restores.

        On the CPU whatever the device is, so that the same seed draws the same on each, and a run may be resumed on another.
        """
        return self._kept(purpose, seeds.stream(self.seed_of(purpose)))

    def counter(self, purpose: str) -> seeds.Counter:
        """A number of its own that counts on, and is part of that state as well."""
        return self._kept(purpose, seeds.Counter())

    def _kept(self, purpose: str, stream: Any) -> Any:
        self._streams[purpose] = stream.set_state(self._restored.pop(purpose, stream.get_state()))
        return stream

    def seeded(self, purpose: str) -> contextlib.AbstractContextManager:
        """The global streams are the purpose's inside the block, and as they were after it (for initialisers and dropout)."""
        return seeds.seeded(self.seed_of(purpose), self.device)

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

    @property
    def name(self) -> str:
        """Of the device that this process computes on."""
        return torch.cuda.get_device_name(self.device) if self.cuda else f"cpu, {torch.get_num_threads()} threads"

    def facts(self) -> dict[str, Any]:
        """What the record says of the machine; peak memory in MiB, of the run where that can be told from the process's."""
        peak = (CARDS if self.cuda else memory.HOST).value()
        among = {} if self.ranks.size == 1 else {"processes": self.ranks.size}
        name = f"{self.ranks.size} x {self.name}" if among else self.name
        chosen = {"chosen": dict(self.cfg.chosen)} if self.cfg.chosen else {}
        of = "run" if self.cuda or memory.is_of_run() else "process"
        held = {} if peak is None else {"peak_memory_mib": round(peak, 1), "peak_memory_of": of}
        return {"device": name, **among, **held, **chosen, "allocator": memory.allocator(), "processor": processor(),
                "threads": torch.get_num_threads(), "torch": torch.__version__, "numpy": np.__version__}


_threads_set = False


def _set_threads(count: int | None) -> None:
    """None is as torch began, which only matters where an earlier run of this process was told otherwise."""
    global _threads_set
    before = machine.threads()
    if count is not None or _threads_set:
        torch.set_num_threads(count or before)
        _threads_set = count is not None


def _of_cards() -> float:
    cards = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    return max((torch.cuda.max_memory_allocated(card) / 2**20 for card in cards), default=0.0)


def _count_cards_anew() -> None:
    for card in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        torch.cuda.reset_peak_memory_stats(card)


CARDS = memory.Peak(_of_cards, _count_cards_anew)
PEAKS = (memory.HOST, CARDS)  # of which each run has its own
