"""What work grows with: an analysis with its records, training with its images, and a pool's memory with nothing.

Images, reads and bytes are counted, which no other process changes; time is asked in one place, by wide bounds.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import itertools
import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import OWN, make_data, quiet_runtime, short_config, tiny_net
from pretended import pretend, table_of

import trainer
from evaluation import accuracy
from memorization import feldman
from memorization.registry import Job
from models import find_original, locate
from report import answers, contrasts, margins, output
from report.pairs import AnalysisConfig
from unlearn import METHODS
from utils import Kept, Saved, read_arrays, read_record, records, sha256

TIMES = (1, 2, 4)
SETTINGS = 2


@pytest.fixture(scope="module")
def growing(library: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """12, 24 and 48 runs: two settings of two seeds, with two, five and eleven rows beside their retrains.

    As an experiment leaves them that goes through the methods one after another: the runs of a setting finish far apart.
    """
    root = tmp_path_factory.mktemp("growing")
    for times in TIMES:
        for number, seed, place in itertools.product(range(SETTINGS), (3, 5), range(3 * times)):
            method = "retrain" if place == 0 else "FT"
            changed = {} if place == 0 else {"unlearn_lr": 0.01 * place}
            pretend(library, root / str(times), method, seed, f"-{number}-{place}", split_key=f"{number:06d}", **changed)
    return [root / str(times) for times in TIMES]


def counted(patch: pytest.MonkeyPatch, room: int) -> collections.Counter[Path]:
    """How often each outputs.npz is read from now on, by an analysis that may hold so many bytes of each kind."""
    read: collections.Counter[Path] = collections.Counter()

    def counting(path: Path, form: Any) -> dict[str, np.ndarray]:
        read[path] += 1
        return read_arrays(path, form)

    patch.setattr(accuracy, "read_arrays", counting)
    for module, name in ((accuracy, "KEPT"), (answers, "KNOWN"), (margins, "KNOWN")):
        patch.setattr(module, name, Kept(room))
    return read


def test_retrains_are_read_once_however_many_methods_stand_beside_them(
        growing: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a memory of one setting's answers, far too small for the outputs of all runs."""
    for root, times in zip(growing, TIMES, strict=True):
        read = counted(monkeypatch, 9_000)
        output.write(AnalysisConfig(save_dir=str(root), out=str(tmp_path)), contrasts.TOW, lambda *_: {})
        assert read == {path: 1 for path in root.glob("forget/*/outputs.npz")} and len(read) == 12 * times


def test_with_figures_every_file_is_read_twice_at_most(
        growing: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = counted(monkeypatch, 9_000)

    def charts(rows: list[Any], heading: Any, cfg: Any) -> dict[str, Any]:
        margins.chart(rows, heading)
        return {}

    output.write(AnalysisConfig(save_dir=str(growing[0]), out=str(tmp_path), figures=True), contrasts.TOW, charts)
    assert len(read) == 12 and set(read.values()) == {2}


def test_an_analysis_is_linear_in_the_records(growing: list[Path], tmp_path: Path) -> None:
    """Twice the records take at most 2.3 times as long, measured over a factor of four."""
    def seconds(root: Path) -> float:
        begun = time.process_time()
        output.write(AnalysisConfig(save_dir=str(root), out=str(tmp_path)), contrasts.TOW, lambda *_: {})
        return time.process_time() - begun

    seconds(growing[0])  # imports
    small, large = (min(seconds(root) for _ in range(3)) for root in (growing[0], growing[2]))
    assert large <= 2.3**2 * small, f"{small:.3f} s, then {large:.3f} s"


def test_the_memory_of_an_analysis_is_that_of_its_rows(growing: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that an analysis has been through leaves its record and its numbers behind, and no outputs."""
    def held(root: Path) -> int:
        counted(monkeypatch, 9_000)
        tracemalloc.start()
        table = table_of(root)
        found = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return found if table else 0

    small, middle, large = (held(root) for root in growing)
    outputs = (growing[0] / "forget" / "FT-3-0-1" / "outputs.npz").stat().st_size
    each = (large - small) / 36
    assert (large - middle) / 24 == pytest.approx(each, rel=0.2)
    assert each < 45_000, f"{each:.0f} bytes a run, whose outputs are {outputs}"


def test_an_original_is_found_among_any_number_of_finished_runs_by_its_own_record_alone(
        growing: list[Path], original: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(records, "read_record", lambda folder: opened.append(folder) or read_record(folder))
    monkeypatch.setattr(Path, "glob", None)
    for number, root in enumerate(growing):
        there = tmp_path / str(number)
        there.mkdir()
        (there / "forget").symlink_to(root / "forget")
        (there / "train").symlink_to(original.folder.parent)
        found = find_original({"save_dir": str(there)}, {})
        assert found.record == original.record and len(opened) == number + 1
        assert locate({"path": str(found.file), "sha256": sha256(found.file)}, there) == found.file


# ------------------------------------------------------------------------------------------------------------- its readers


def test_arrays_are_those_of_numpys_own_reader(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.asfortranarray(np.arange(6.0).reshape(3, 2)), "none": np.empty((0, 4)),
              "one": np.array(3, np.int16), "text": np.array("key"), "half": np.ones(3, np.float16), "long": np.arange(9)[::2]}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "it.npz", **arrays)
        found = read_arrays(tmp_path / "it.npz", {})
        with np.load(tmp_path / "it.npz") as file:
            assert found.keys() == set(file)
            for name, array in found.items():
                np.testing.assert_array_equal(array, file[name], strict=True)
                assert array.flags.writeable and array.flags.f_contiguous == file[name].flags.f_contiguous


def test_the_fast_look_at_a_record_takes_what_the_explaining_one_takes(library: Path) -> None:
    """Every field of records of several stages in turn lost, or of every kind of JSON."""
    kinds = [None, True, 3, 2.5, "text", [], {}, [{"x": 1}], {"x": None}]
    seen = collections.Counter()
    for stage in ("train", "mask", "forget"):
        record = json.loads(next(library.glob(f"{stage}/*/record.json")).read_text())
        for where in places(record):
            for value in [..., *kinds]:
                other = copy.deepcopy(record)
                inner = other
                for name in where[:-1]:
                    inner = inner[name]
                if value is ...:
                    del inner[where[-1]]
                else:
                    inner[where[-1]] = value
                why = records.misfit(other, records.FORM)
                seen[why is None] += 1
                assert records._FITS(other) == (why is None), (where, value, why)
    assert min(seen.values()) > 300, seen


def places(value: Any, deep: int = 3) -> list[tuple[str, ...]]:
    """The ways to all fields of a group, to some depth."""
    if not isinstance(value, dict) or not deep:
        return []
    return [(name, *rest) for name, inner in value.items() for rest in [(), *places(inner, deep - 1)]]


# ------------------------------------------------------------------------------------------------ images through a network


def work(name: str, retained: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """Images that a method reads, images that go through its network, and steps, beside so many images to retain."""
    rt, method = quiet_runtime(), METHODS[name]
    data = make_data(rt, 240, method=name)
    keep = data.splits.retain[:retained]
    splits = dataclasses.replace(data.splits, retain=keep, train=np.sort(np.concatenate([keep, data.splits.forget])))
    data, model, through, steps = dataclasses.replace(data, splits=splits), tiny_net(rt), [], []
    model.conv.register_forward_hook(lambda module, args, output: through.append(len(output)))
    real = trainer.Descent.__dict__["_step"]
    monkeypatch.setattr(trainer.Descent, "_step", lambda self, *rest: (steps.append(1), real(self, *rest)))
    method.apply(model, data, short_config(name), rt)
    monkeypatch.undo()
    return rt.tally.images, sum(through), len(steps)


def test_methods_that_do_not_read_retain_do_the_same_work_whatever_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    blind = [name for name in OWN if "retain" not in METHODS[name].uses]
    assert len(blind) >= 5, blind
    done = {name: {work(name, size, monkeypatch) for size in (30, 60, 120)} for name in blind}
    assert not {name: found for name, found in done.items() if len(found) > 1}
    assert [name for name, ((read, *_),) in done.items() if not read] == ["raw"]


@pytest.mark.parametrize("name", ["retrain", "FT", "NG", "SCRUB", "RL_og", "wfisher", "fisher"])
def test_methods_that_read_retain_do_work_that_is_linear_in_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small, middle, large = (np.array(work(name, size, monkeypatch)) for size in (48, 96, 192))
    assert (large[0] - middle[0]) == 2 * (middle[0] - small[0]) > 0, "images read"
    assert (large <= 4 * small).all() and (middle <= 2 * small).all(), (small, middle, large)


def test_training_is_linear_in_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image once an epoch, and a step for each batch; nothing is read beside."""
    for size in (48, 96, 192):
        read, through, steps = work("retrain", size, monkeypatch)
        assert (read, through, steps) == (2 * size, 2 * size, 2 * size // 16)


# ----------------------------------------------------------------------------------------------------------- pools of models


def test_the_memory_of_scores_is_flat_in_the_number_of_models() -> None:
    """Models come one at a time, and counts of what they are right on are all that stays."""
    images = 2_000

    def peak(models: int) -> int:
        tracemalloc.start()
        found = feldman.score_memorization(Job(*[None] * 5, prepared=FakePool(models, images)), None)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(found["memorization"]) == images
        return highest

    peak(8)  # imports
    small, middle, large = map(peak, (8, 32, 128))
    assert large < 1.05 * small and middle < 1.05 * small, (small, middle, large)


def test_influence_is_the_same_for_any_number_of_models_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    masks, right = random.random((23, 40)) < 0.5, random.random((23, 17)) < 0.6
    whole = np.concatenate([block for _, block in feldman.influence(masks, right, 5)])
    loop = [[right[masks[:, j], i].mean() - right[~masks[:, j], i].mean() for j in range(40)] for i in range(17)]
    assert whole == pytest.approx(np.array(loop), abs=1e-6)
    for some in (1, 4, 22, 23):
        monkeypatch.setattr(feldman, "AT_ONCE", some)
        assert np.array_equal(np.concatenate([block for _, block in feldman.influence(masks, right, 5)]), whole)


class FakePool:
    """Models that were right by chance, made when they are asked for."""

    def __init__(self, models: int, images: int) -> None:
        self.models, self.sizes = models, {"train": images}

    def records(self) -> Iterator[SimpleNamespace]:
        for number in range(self.models):
            half, right = np.random.default_rng(number // 2).random((2, self.sizes["train"])) < 0.6
            yield SimpleNamespace(mask=half if number % 2 else ~half, correct={"train": right}, seconds=1.0)
