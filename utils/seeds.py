"""Seeds of 64 bits from a run's seed and a purpose, and torch's random streams from them on every device."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
import torch

WORDS, START = 624, 24  # of the Mersenne twister; bytes ahead of them in the state that torch gives and takes


def seed_of(seed: int, purpose: str) -> int:
    """An independent seed below 2^64 for each pair of seed and purpose."""
    words = np.frombuffer(hashlib.sha256(purpose.encode()).digest()[:8], "<u4").tolist()
    high, low = np.random.SeedSequence([seed, *words]).generate_state(2, np.uint32).tolist()
    return high << 32 | low


class Counter:
    """Counts from 0; saved and restored as a random stream is."""

    def __init__(self) -> None:
        self.count = 0

    def next(self) -> int:
        self.count += 1
        return self.count - 1

    def get_state(self) -> torch.Tensor:
        return torch.tensor([self.count])

    def set_state(self, state: torch.Tensor) -> Counter:
        self.count = int(state[0])
        return self


def stream(seed: int) -> torch.Generator:
    """A random stream on the CPU that all 64 bits of the seed decide.

    torch's own seeding of a CPU stream reads the lower 32, so that one pair of streams in 4 billion is equal, and of 30,000
    purposes (a pool of models) two in one run out of ten.
    """
    made = torch.Generator().manual_seed(seed)
    return made.set_state(_filled(made.get_state(), seed))


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global streams inside the block and give them back as they were (for initialisers and dropout)."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.set_rng_state(_filled(torch.get_rng_state(), seed))
        yield


def _filled(state: torch.Tensor, seed: int) -> torch.Tensor:
    """A freshly seeded CPU state with the Mersenne twister's words from numpy's SeedSequence, as MT19937(seed) has them."""
    words = state[START : START + 8 * WORDS].numpy().view(np.uint64)
    assert words[0] == seed % 2**32, "torch keeps its CPU stream in another layout"
    words[:] = np.random.SeedSequence(seed).generate_state(WORDS, np.uint32)
    words[0] = 0x80000000  # so that the state is never all zeros
    return state
