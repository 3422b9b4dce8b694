"""The processes of one run: ``torchrun`` starts several, and each computes its part of every batch.

    ranks = Ranks.of_environment()        # one process alone, unless torchrun started this one
    with ranks.joined("cuda"):
        rt = Runtime(cfg, ranks)
        rt.ranks.add(gradients)           # their sum over the processes, in each of them

The first of them (rank 0) alone reads and writes the run's folder and speaks; the others compute. Nothing here imports
torch.distributed before there is more than one.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from utils.words import BadInput

# of which torchrun sets all; a queue's own WORLD_SIZE alone starts nothing
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
FOREVER = datetime.timedelta(days=7)  # the first may wait for a folder's lock or a download; a death is noticed at once
PATIENCE = 10.0  # seconds that the first gets to leave its folder in order, where another process fails as it does
SPOKEN, LEFT = "spoken", "left"  # what the processes tell one another by name


class Lost(Exception):
    """Another process of the run is gone, so that this one cannot go on; the state on the disk can."""


class Ranks:
    """Which of the processes this is. rank: from 0; size: how many; local: its number on this machine, that of its GPU."""

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0, beside: int = 1) -> None:
        self.rank, self.size, self.local, self.beside = rank, size, local, beside
        self._store: Any = None

    @classmethod
    def of_environment(cls) -> Ranks:
        """What torchrun told this process; alone without it."""
        if not all(name in os.environ for name in VARIABLES):
            return cls()
        try:
            rank, size, local, beside = (int(os.environ[name]) for name in VARIABLES[:4])
        except ValueError:
            raise BadInput(f"{', '.join(VARIABLES[:4])} in the environment are not the numbers that torchrun sets; unset "
                           "them, or start by torchrun --nproc_per_node N") from None
        return cls(rank, size, local, beside) if size > 1 else cls()

    @property
    def first(self) -> bool:
        return self.rank == 0

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Nothing but the first says anything inside the block."""
        if self.first:
            yield
            return
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            yield

    def speaks(self) -> bool:
        """Whether it is this process that tells of a failure: the one that asks first, so that it is told once."""
        if self._store is None:
            return self.first
        with contextlib.suppress(RuntimeError):  # torchrun itself is gone
            return int(self._store.compare_set(SPOKEN, "", str(self.rank))) == self.rank
        return self.first

    def take_gpu(self) -> None:
        """Before anything else asks for a GPU, which would make each process a context on the first one."""
        if self.size > 1 and self.local < torch.cuda.device_count():
            torch.cuda.set_device(self.local)

    @contextlib.contextmanager
    def joined(self, device: str) -> Iterator[None]:
        """The processes know one another inside the block: by NCCL on GPUs, one each, and by gloo on a CPU.

        Raises:
            BadInput: there are fewer GPUs than processes on this machine.
        """
        if self.size == 1:
            yield
            return
        if device == "cuda" and self.beside > torch.cuda.device_count():
            raise BadInput(f"{self.beside} processes, but {torch.cuda.device_count()} CUDA devices are seen here: torchrun "
                           f"--nproc_per_node {torch.cuda.device_count()}")
        from torch import distributed

        store, rank, size = next(iter(distributed.rendezvous("env://", timeout=FOREVER)))
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", store=store, rank=rank,
                                       world_size=size, timeout=FOREVER)
        self._store = store
        try:
            yield
        except Exception as error:
            self._leave(isinstance(error, BadInput))
            raise
        distributed.destroy_process_group()

    def _leave(self, alike: bool) -> None:
        """After a failure: torchrun ends all processes once one is gone, so the first goes ahead where all fail alike."""
        end = time.monotonic() + PATIENCE
        with contextlib.suppress(RuntimeError):
            if self.first:
                self._store.set(LEFT, "")
            while alike and not self._store.check([LEFT]) and time.monotonic() < end:
                time.sleep(0.05)

    # ---------------------------------------------------------------------------------------------- what they tell each other

    def add(self, values: list[Tensor]) -> None:
        """Each of them (of one dtype) becomes, in place, its sum over the processes, to the bit the same in all."""
        if self.size == 1:
            return
        flat = torch.cat([value.flatten() for value in values])  # one message, whatever the number of tensors
        self._sum(flat)
        for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
            value.copy_(part.view(value.shape))

    def gathered(self, value: Tensor) -> Tensor:
        """[size, ...]: the value of every process."""
        found = value.new_empty(self.size, *value.shape)
        self._gather(found, value)
        return found

    def shared(self, value: Any) -> Any:
        """The first process's value, of tensors and plain values, in each; the others wait until it has one."""
        if self.size == 1:
            return value
        written = io.BytesIO()
        torch.save(value, written)
        content = torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)
        length = torch.tensor([len(content)])
        self._send(length)
        content = content if self.first else torch.empty(int(length), dtype=torch.uint8)
        self._send(content)
        return value if self.first else torch.load(io.BytesIO(content.numpy().tobytes()), weights_only=True)

    @contextlib.contextmanager
    def ahead(self) -> Iterator[None]:
        """The first does the block before the others: it may fetch or write what they read."""
        if not self.first:
            self.shared(None)
        yield
        if self.first:
            self.shared(None)

    def _sum(self, value: Tensor) -> None:
        from torch import distributed

        with _answered():
            distributed.all_reduce(value)

    def _gather(self, found: Tensor, value: Tensor) -> None:
        from torch import distributed

        with _answered():
            distributed.all_gather(list(found.unbind()), value)

    def _send(self, value: Tensor) -> None:
        from torch import distributed

        with _answered():
            distributed.broadcast(value, 0)


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        what = str(error).partition("\n")[0].split("] ", 1)[-1].partition(". ")[0]  # without gloo's own place in its code
        raise Lost(f"another of its processes cannot be reached any more ({what})") from error


ALONE = Ranks()
