"""Freed memory is kept for the next step, in a pool's processes too, and changes no bit; the peak of a run is its own."""

from __future__ import annotations

import hashlib
import os
import resource
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import quiet_runtime, tiny_net

import trainer
from dataset import Batch
from memorization.engines import spread
from trainer import Descent, ScheduleConfig, cross_entropy, resumable
from utils import Run, RunConfig, Runtime, RuntimeConfig, memory

MIB = 2**18  # float32 numbers


def steps_of_large_tensors(order: None) -> Callable[[int], Any]:
    """What a pool's process does in the next test: some steps whose activations are above glibc's 32 MiB.

    Returns:
        number -> (page faults of each step, what the weights became, the record's word); number 0 keeps memory.
    """
    def act(number: int) -> tuple[list[int], str, str]:
        rt = Runtime(RuntimeConfig(device="cpu", seed=5, keep_memory=number == 0, progress=False))
        model, faults = tiny_net(rt), []
        x = torch.rand(2200, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        batch = Batch(x, torch.arange(2200) % 3, torch.arange(2200))
        opt = Descent(model, ScheduleConfig(), lr=0.05, epochs=1, rt=rt, purpose="test")
        for _ in range(9):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            opt.epoch([batch], cross_entropy)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        bits = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
        return faults[2:], bits, rt.facts()["allocator"]
    return act


@pytest.mark.skipif(not memory._libc().startswith("glibc"), reason="another C library")
def test_a_process_of_a_pool_keeps_its_memory_and_learns_the_same() -> None:
    """Two new processes: with it few pages are mapped anew, without it (by the flag) thousands a step; the same bits."""
    found = dict(spread(steps_of_large_tensors, None, [0, 1], [{}, {}]))
    (few, kept, told), (many, plain, other) = found[0], found[1]
    # medians: an activation has 8,800 pages, and now and then one finds no gap of its size in the heap
    assert statistics.median(few) < 100 and statistics.median(many) > 8000
    assert kept == plain
    assert told == "glibc, freed memory is kept" and other == "glibc as it is"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """What the C library is told; it is one that knows nothing yet."""
    told: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, parameter: int, value: int) -> int:
            told.append((parameter, value))
            return 1

    for name in (*memory.VARIABLES, "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory, "_kept", False)
    monkeypatch.setattr(memory, "_libc", lambda: "glibc 2.36")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: Library())
    yield told


def test_memory_is_kept_once_a_process_and_not_where_the_flag_says_so(calls: list[tuple[int, int]]) -> None:
    cfg = RuntimeConfig(device="cpu", keep_memory=False)
    assert Runtime(cfg).facts()["allocator"] == "glibc as it is" and not calls
    for _ in range(2):
        assert quiet_runtime().facts()["allocator"] == "glibc, freed memory is kept"
    assert calls == [(-3, 2**30), (-1, -1)]


@pytest.mark.parametrize(("name", "value"), [
    ("MALLOC_MMAP_THRESHOLD_", "65536"), ("MALLOC_TRIM_THRESHOLD_", "0"), ("MALLOC_TOP_PAD_", "1"),
    ("MALLOC_MMAP_MAX_", "9"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=65536"),
    ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")])
def test_what_the_user_chose_for_the_allocator_stays(name: str, value: str, calls: list[tuple[int, int]],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert quiet_runtime().facts()["allocator"] == f"as the environment has it: {name}={value}" and not calls


@pytest.mark.parametrize(("name", "value"), [("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"), ("MALLOC_ARENA_MAX", "2"),
                                             ("LD_PRELOAD", "/usr/lib/libfaketime.so.1")])
def test_what_says_nothing_of_thresholds_is_no_choice(name: str, value: str, calls: list[tuple[int, int]],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert memory.keep_memory() and len(calls) == 2


@pytest.mark.parametrize("refused", ["musl", ""])
def test_another_c_library_is_left_alone(refused: str, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_libc", lambda: refused)
    assert quiet_runtime().facts()["allocator"] == "the system's" and not calls


def test_a_c_library_that_refuses_is_not_said_to_keep(calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: type("Old", (), {"mallopt": lambda self, p, v: 0})())
    assert quiet_runtime().facts()["allocator"] == "glibc as it is"


# --------------------------------------------------------------------------------------------------------------- the peak


def run_of(folder: Path, number: int) -> Run:
    return Run(RunConfig(save_dir=str(folder)), "train", f"toy{number}", {})


@pytest.mark.skipif(not memory.is_of_run(), reason="this kernel does not count anew")
def test_the_peak_is_of_the_run_and_of_those_inside_it(tmp_path: Path) -> None:
    """A large run, a small one after it, and one whose inner runs are large and small."""
    rt, peaks = quiet_runtime(), []

    def hold(mib: int) -> float:
        torch.ones(mib * MIB)
        return rt.facts()["peak_memory_mib"]

    for number, mib in enumerate((400, 20)):
        with run_of(tmp_path, number):
            peaks.append(hold(mib))
    with run_of(tmp_path, 2):
        for number, mib in ((3, 300), (4, 20)):
            with run_of(tmp_path, number):
                peaks.append(hold(mib))
        peaks.append(hold(1))
    large, small, inner, last, outer = (peak - peaks[1] for peak in peaks)
    # 380 and 280 but for what else the process gives back or asks for meanwhile
    assert 200 < large < 600 and 120 < inner < 500 and last < inner / 2, peaks
    assert outer == inner and small == 0 and rt.facts()["peak_memory_of"] == "run", peaks


def test_where_the_kernel_counts_once_the_peak_is_the_processs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "REFERENCES", tmp_path / "no" / "file")
    rt = quiet_runtime()
    with run_of(tmp_path, 0):
        assert rt.facts()["peak_memory_of"] == "process"
    monkeypatch.setattr(memory, "STATUS", tmp_path / "no" / "file")
    with run_of(tmp_path, 1):
        found = rt.facts()["peak_memory_mib"]
    assert abs(found - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024) < 1


def test_a_run_that_fails_or_was_done_leaves_no_count_open(tmp_path: Path) -> None:
    with pytest.raises(ValueError), run_of(tmp_path, 0):
        raise ValueError
    for _ in range(2):
        with run_of(tmp_path, 1):
            pass
    assert not memory.HOST._open and os.path.exists(tmp_path)


def test_peaks_follow_a_written_out_timeline() -> None:
    """Against numbers by hand: what is held over time, runs that begin and end in it."""
    held, mark = [0.0], [0.0]

    def hold(mib: float) -> None:
        held[0], mark[0] = mib, max(mark[0], mib)

    def reset() -> None:
        mark[0] = held[0]

    def enter(mib: float) -> None:
        peak.begin()
        hold(mib)

    peak = memory.Peak(lambda: mark[0], reset)
    hold(5)
    assert peak.value() == 5
    hold(1)
    enter(7)
    hold(2)
    enter(3)
    assert peak.value() == 3
    peak.end()
    assert peak.value() == 7  # before the inner one began
    hold(1)
    enter(9)
    hold(1)
    enter(4)
    peak.end()
    assert peak.value() == 9
    peak.end()
    assert peak.value() == 9  # of the inner one, which another inside it had counted anew
    peak.end()
    hold(1)
    enter(3)
    assert peak.value() == 3


def test_a_state_is_written_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten epochs of 25 seconds by a clock of the test, between two epochs each: after the third, sixth and ninth."""
    now, saved = [0.0], []
    rt = quiet_runtime()
    opt = Descent(tiny_net(rt), ScheduleConfig(), lr=0.05, epochs=10, rt=rt, purpose="test")
    monkeypatch.setattr(Run, "save_state", lambda self, epoch, **_: saved.append(epoch))
    with run_of(tmp_path, 0) as run, monkeypatch.context() as patch:
        patch.setattr(trainer.time, "perf_counter", lambda: now[0])
        for _ in resumable(10, opt, rt, run):
            now[0] += 25.0
    assert saved == [3, 6, 9]
