"""Whole processes: a method with its evaluation, start-up, the allocator's setting, analysis of many records."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import main_forget
import main_train
from benchmarks.harness import Case, Context, Skipped, Took, launch, python, row
from benchmarks.inputs import write_arrays
from utils import files_of, find_runs

SMALL = ["--arch", "resnet8s", "--classes", "0-2", "--batch_size", "64", "--dataset", "digits"]
RATE, BATCH = "0.01", 256


def quietly(main: Callable, *words: Any) -> None:
    """A main in this process, as preparation, its lines unseen."""
    with contextlib.redirect_stdout(io.StringIO()):
        main([str(word) for word in words])


def command(words: list[str], environment: dict[str, str] | None = None) -> Callable[[], Callable[[], Took]]:
    return lambda: lambda: launch(words, environment)


@dataclasses.dataclass
class Prepared:
    """An original on random images of CIFAR's shape, and the words of FT upon it, ours and plain."""

    ours: list[str]
    plain: list[str]


def prepare(c: Context, train: int, test: int, forget: int, arch: str = "resnet20s") -> Prepared:
    write_arrays(c.place, train, test)
    base = ["--device", c.rt.device.type, "--no_progress", "--save_dir", c.place / "runs"]
    data = ["--dataset", "cifar10", "--data", c.place, "--any_size"]
    quietly(main_train.main, *base, *data, "--arch", arch, "--epochs", 1, "--batch_size", min(BATCH, train // 4))
    (original,) = find_runs(c.place / "runs", ("train",))
    x = np.arange(train)
    split = {"retain": x[forget + train // 10 :], "forget": x[train // 10 : forget + train // 10], "val": x[: train // 10]}
    np.savez(c.place / "splits.npz", **split)
    method = ["--checkpoint", original.folder, "--num_indexes_to_replace", forget, "--unlearn", "FT", "--unlearn_epochs", 1,
              "--unlearn_lr", RATE, "--force", "--data", c.place]
    theirs = ["benchmarks/plain_script.py", c.place / "cifar10.npz", original.folder / "model.pt", c.place / "splits.npz", arch,
              min(BATCH, train // 4), RATE, c.rt.device.type]
    return Prepared(python("main_forget.py", *base, *method), python(*theirs))


@row("forget", "FT with evaluation as a whole process, a tenth of CIFAR-10's size", seconds=420)
def forget(c: Context) -> Iterator[Case]:
    train, test, gone = (5000, 1000, 300) if not c.quick else (100, 40, 12)
    arch = c.arch("resnet20s")
    found = prepare(c, train, test, gone, arch)
    yield Case(f"FT, 1 epoch, {arch}, {train:,} images, a process", {
        "ours": command(found.ours), "plain": command(found.plain)}, in_process=False)


@row("startup", "--help, and process start to the first training step, against a bare import of torch", seconds=110)
def startup(c: Context) -> Iterator[Case]:
    bare = command(python("-c", "import torch"))
    yield Case("--help", {"ours": command(python("main_forget.py", "--help")), "import torch": bare}, base="import torch",
               in_process=False, check=lambda _: {})
    found = prepare(c, *((600, 20, 10) if not c.quick else (100, 40, 12)), "resnet8s")
    step = python("-m", "benchmarks.steps", "resnet8s", 1, BATCH, c.rt.device.type)
    yield Case("process start to first step, resnet8s", {
        "ours": command(step), "plain": command([*found.plain, "0"]), "import torch": bare}, in_process=False)


VARIABLES = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def steps(c: Context, arch: str, keep: int, environment: dict[str, str] | None = None) -> Callable[[], Callable[[], Took]]:
    """Seconds of the steps alone, not of the process, with its peak."""
    words = python("-m", "benchmarks.steps", arch, c.size(4, 1), c.size(BATCH, 16), c.rt.device.type, c.threads, keep)

    def run() -> Took:
        took = launch(words, environment)
        wall, cpu, faults = map(float, took.answer.split()[-3:])
        return Took(wall, cpu, faults, took.peak)

    return lambda: run


@row("allocator", "training with memory kept for the next step, and with glibc as it is, in separate processes", seconds=300)
def allocator(c: Context) -> Iterator[Case]:
    if platform.libc_ver()[0] != "glibc":
        raise Skipped("it is about glibc's allocator, and the C library here is another")

    def faults(answers: dict[str, float]) -> dict[str, int]:
        return {"page faults": int(answers["ours"]), "page faults as it is": int(answers["--no_keep_memory"])}

    for arch in ("resnet8s",) if c.quick else ("resnet20s", "vgg16_bn"):
        sides = {"ours": steps(c, arch, 1), "by variables": steps(c, arch, 0, VARIABLES), "--no_keep_memory": steps(c, arch, 0)}
        yield Case(f"steps of {arch}, memory kept", sides, base="--no_keep_memory", in_process=False, check=faults)


# -------------------------------------------------------------------------------------------------- analysis of records


def pretended(c: Context, place: Path, count: int) -> None:
    """So many finished runs in sets of a retrain and nine methods, copies of two real ones with outputs of their own."""
    base = ["--device", "cpu", "--no_progress", "--save_dir", place / "made"]
    quietly(main_train.main, *base, *SMALL, "--epochs", 1)
    (original,) = find_runs(place / "made", ("train",))
    for method in ("retrain", "FT"):
        quietly(main_forget.main, *base, "--checkpoint", original.folder, "--num_indexes_to_replace", 20, "--unlearn", method,
                "--unlearn_epochs", 1)
    runs = {run.setting("unlearn"): run for run in find_runs(place / "made", ("forget",))}
    for number in range(count):
        kind = "FT" if number % 10 else "retrain"
        _clone(runs[kind], place / "runs" / "forget" / f"{kind}-{number}", number)


def _clone(run: Any, folder: Path, number: int) -> None:
    folder.mkdir(parents=True)
    for file in run.folder.iterdir():
        if file.suffix in (".npz", ".pt") and file.name != "outputs.npz":
            (folder / file.name).hardlink_to(file)
    with np.load(run.folder / "outputs.npz") as file:
        arrays = dict(file)
    draw = np.random.default_rng(number)
    for name in [name for name in arrays if name.endswith("_logits")]:
        arrays[name] = (arrays[name] + draw.normal(size=arrays[name].shape)).astype(np.float32)
    np.savez(folder / "outputs.npz", **arrays)
    record = copy.deepcopy(run.record)
    group, seed = divmod(number // 10, 5)
    record["settings"]["rt"]["seed"] = seed
    record["split_key"], record["parent"]["sha256"] = f"{group:012x}", f"original of seed {seed}"
    if number % 10:
        record["settings"]["cfg"]["unlearn_lr"] = 0.001 * (number % 10)
    record["files"] = files_of(folder)
    (folder / "record.json").write_text(json.dumps(record))


@row("analysis", "tables of n finished runs, held against those of a quarter of them: linear is 0.25", seconds=150)
def analysis(c: Context) -> Iterator[Case]:
    count = c.size(1000, 8)

    def process(n: int) -> Callable[[], Callable[[], Took]]:
        def make() -> Callable[[], Took]:
            place = c.place / f"records-{n}"
            pretended(c, place, n)
            return lambda: launch(python("analysis.py", "--save_dir", place / "runs", "--out", place / "out"))

        return make

    yield Case(f"analysis of {count} records, a process", {"ours": process(count), "a quarter of them": process(count // 4)},
               base="a quarter of them", in_process=False, work=count, unit="records/s")
