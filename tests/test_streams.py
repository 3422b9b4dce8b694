"""Random streams: seeds of 64 bits on a CPU too, one for each purpose, and dropout that no two trainings share."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pools
import pytest
import shell
import torch
from conftest import quiet_runtime
from torch import Tensor, nn

from memorization.engines import train_one
from models.registry import ARCHS
from models.resnet import CifarResNet
from utils import Runtime


def draws(rt: Runtime, purpose: str = "any") -> tuple[list[int], list[int]]:
    """Of a stream of the runtime's, and of the global stream seeded by it; below 2^27, where torch takes one word each."""
    made = torch.empty(700, dtype=torch.int64).random_(0, 2**27 - 1, generator=rt.generator(purpose))
    with rt.seeded(purpose):
        return made.tolist(), torch.empty(700, dtype=torch.int64).random_(0, 2**27 - 1).tolist()


def test_all_64_bits_of_a_seed_decide_a_stream_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that agree in their lower 32 bits: no number in common, where torch's own seeding gives the same stream."""
    found = []
    for high in (0, 1, 2**31):
        monkeypatch.setattr(Runtime, "seed_of", lambda rt, purpose, high=high: high << 32 | 12345)
        made, globally = draws(quiet_runtime())
        assert made == globally
        found.append(made)
    assert all(np.mean(np.equal(a, b)) < 0.01 for a, b in ((found[0], found[1]), (found[0], found[2]), (found[1], found[2])))


def test_streams_of_the_cpu_are_numpys_twister() -> None:
    """MT19937 with the words that SeedSequence gives for the seed; 700 numbers go past the first block of 624."""
    rt = quiet_runtime()
    key = np.random.SeedSequence(rt.seed_of("any")).generate_state(624, np.uint32)
    key[0] = 0x80000000
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
    expected = (twister.random_raw(700) % (2**27 - 1)).tolist()
    assert draws(rt) == (expected, expected)


def test_seeds_use_64_bits_of_the_purpose_and_of_themselves() -> None:
    """Two words of one crc32 are two purposes; of 4,000 seeds about half have each bit set, within 5 sigma."""
    rt = quiet_runtime()
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo") and rt.seed_of("plumless") != rt.seed_of("buckeroo")
    seeds = [rt.seed_of(f"pool/{number}") for number in range(4000)]
    for bit in range(64):
        assert abs(sum(seed >> bit & 1 for seed in seeds) - 2000) < 5 * 4000**0.5 / 2
    assert rt.seed_of("any") != quiet_runtime(6).seed_of("any") and len(set(seeds)) == 4000


def test_seeding_leaves_the_global_stream() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    rt = quiet_runtime()
    rt.generator("any")
    with contextlib.suppress(KeyError), rt.seeded("any"):
        torch.rand(5)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


class Dropping(CifarResNet):
    """ResNet-8 with dropout ahead of its head."""

    def __init__(self, num_classes: int, normalize: nn.Module) -> None:
        super().__init__(1, num_classes, normalize)
        self.drop = nn.Dropout(0.5)

    def classify(self, features: Tensor) -> Tensor:
        return self.fc(self.drop(features))


def test_no_two_trainings_of_a_seed_share_their_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Original, its training after a prune, retrain, the steps of a plan, held-out tuning, models of a pool: masks apart.

    Only what is to be the same training by another way is the same: a plan's first step is that of the method alone.
    """
    monkeypatch.setitem(ARCHS._entries, "resnet8s", dataclasses.replace(ARCHS["resnet8s"], build=partial(Dropping)))
    masks: dict[str, set[bytes]] = defaultdict(set)
    at, real = [""], nn.functional.dropout

    def dropout(x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        if training:
            stream = torch.Generator().set_state(torch.get_rng_state())
            masks[at[0]].add(torch.rand(8, generator=stream).numpy().tobytes())
        return real(x, p, training, inplace)

    def call(name: str, stage: str, *words: Any) -> None:
        at[0] = name
        original = ["--checkpoint", shell.only(tmp_path, "train").folder] if stage != "main_train.py" and name != "imp" else []
        shell.call(stage, *original, *words, save_dir=tmp_path)

    monkeypatch.setattr(nn.functional, "dropout", dropout)
    here = ["--dataset", "digits", "--arch", "resnet8s", "--classes", "0,1", "--seed", 1, "--batch_size", 256, "--epochs", 2]
    call("train", "main_train.py", *here)
    call("retrain", "main_forget.py", "--unlearn", "retrain", *shell.FORGET)
    call("FT", "main_forget.py", "--unlearn", "FT", "--unlearn_epochs", 1, *shell.FORGET)
    call("plan", "main_rum.py", "--unlearn", "FT", "--unlearn_epochs", 1, "--shuffle", *shell.FORGET)
    call("ho_ret", "main_memorization.py", "--score", "ho_ret", "--ft_epochs", 1)
    call("imp", "main_imp.py", *here, "--protocol", "rum", "--pruning_times", 2, "--rate", 0.5, "--rewind_epoch", 1)
    setup = pools.make_setup(torch.float32)
    for number in range(2):
        at[0] = f"pool/{number}"
        train_one(setup, number, np.arange(20))
    assert all(masks[name] for name in ("train", "retrain", "plan", "FT", "ho_ret", "imp", "pool/0", "pool/1"))
    assert masks["train"] < masks.pop("imp")  # its first training is the original's
    assert masks.pop("FT") < masks["plan"]
    every = [mask for found in masks.values() for mask in found]
    assert len(set(every)) == len(every)
