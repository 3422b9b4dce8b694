"""Many runs in one process: data are read and cut once, and nothing that a run does reaches the next."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from conftest import quiet_runtime

import dataset
import sources
from attack import backdoor
from dataset import Data, DataConfig
from utils import Saved

nowhere = pytest.fixture(autouse=True)(shell.nowhere)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """A process that holds no data yet."""
    held: dict[Any, Any] = {}
    monkeypatch.setattr(dataset, "_CUTS", held)
    return held


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The data sets that are read from files from now on."""
    found, real = [], sources.load
    monkeypatch.setattr(sources, "load", lambda name, *rest, **more: found.append(name) or real(name, *rest, **more))
    return found


def load(root: Path, **values: Any) -> Data:
    values = {"dataset": "digits", "aug": True, "any_size": True} | values
    return dataset.load(DataConfig(data=str(root), **values), quiet_runtime())


def content(data: Data) -> list[Any]:
    """All that a run could have spoilt, copied."""
    arrays = [data.images.x, data.images.y, data.test.x, data.test.y, data.images.windows()]
    return [*(tensor.clone() for tensor in arrays), data.splits.keys(),
            *(part.copy() for part in data.splits.arrays().values())]


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a, b) if not isinstance(a, dict) else a == b for a, b in zip(one, other, strict=True))


def test_runs_of_one_process_read_and_cut_their_data_once(
        library: Path, original: Saved, tmp_path: Path, reads: list[str]) -> None:
    """And have the weights, the numbers and the images read of a process of their own."""
    for method in ("FT", "GA", "FT"):
        shell.forget(original, tmp_path, method, *shell.FORGET, "--force")
    assert reads == ["digits"]
    for method in ("FT", "GA"):
        here, alone = (shell.only(root, "forget", unlearn=method) for root in (tmp_path, library))
        theirs = shell.weights(alone)
        assert all(torch.equal(value, theirs[name]) for name, value in shell.weights(here).items())
        for name in ("metrics", "images_read", "data_key", "split_key"):
            assert here.record[name] == alone.record[name], name


def test_nothing_of_a_poisoned_run_is_left_for_the_next(tmp_path: Path, reads: list[str]) -> None:
    clean, windows = content(load(tmp_path)), load(tmp_path).images.windows()
    case = backdoor.poison(load(tmp_path), backdoor.TriggerConfig(trigger_size=2, class_to_replace=2))
    poisoned = content(case.data)
    assert not same(poisoned, clean) and not np.array_equal(poisoned[4], clean[4]), "the trigger is in the crops"
    assert not np.array_equal(case.stamped.test.x, case.data.test.x)
    noisy = load(tmp_path, label_noise=0.2)
    assert not np.array_equal(noisy.images.y, clean[1])
    noisy.forgetting(dataset.choose_forget(dataset.ForgetConfig(class_to_replace=(1,)), noisy.candidates))
    again = load(tmp_path)
    assert same(content(again), clean) and again.images.windows() is windows and reads == ["digits"] * 2


def test_every_run_counts_its_own_images_in_its_own_batches(tmp_path: Path) -> None:
    first, second = quiet_runtime(), quiet_runtime()
    config = DataConfig(dataset="digits", data=str(tmp_path))
    one, other = (dataset.load(config, rt) for rt in (first, second))
    assert sum(len(batch.y) for batch in one.loader("test")) == first.tally.images == 360 and second.tally.images == 0
    assert other.test.tally is second.tally and one.test.tally is first.tally
    assert {name for name, value in vars(one.test).items() if vars(other.test)[name] is not value} <= {"tally"}


@pytest.mark.parametrize("changed", [
    {"val_seed": 2}, {"val_fraction": 0.2}, {"classes": dataset.ClassList("0-3")}, {"ood_classes": (3,)},
    {"train_per_class": 9}, {"label_noise": 0.1}, {"label_noise": 0.1, "noise_seed": 2}, {"any_size": False}, {"aug": False}])
def test_other_settings_have_data_of_their_own(changed: dict[str, Any], tmp_path: Path, reads: list[str],
                                               fresh: dict[Any, Any]) -> None:
    before = load(tmp_path, **{name: value for name, value in changed.items() if name == "label_noise" and len(changed) > 1})
    found = load(tmp_path, **changed)
    assert len(reads) == 2
    fresh.clear()
    assert same(content(found), content(load(tmp_path, **changed))) and len(reads) == 3
    assert changed in ({"any_size": False}, {"aug": False}) or not same(content(found), content(before))


def test_what_does_not_decide_the_images_shares_them(tmp_path: Path, reads: list[str]) -> None:
    sizes = [load(tmp_path, batch_size=size).batch_size for size in (8, 16)]
    assert sizes == [8, 16] and len(reads) == 1
    known = {field.name for field in dataclasses.fields(DataConfig)}
    assert set(dataset.UNCUT) < known


def test_files_that_changed_are_read_anew(tmp_path: Path, reads: list[str]) -> None:
    """The same size and other labels; then another folder."""
    shell.write_digits(tmp_path / "data")
    first = load(tmp_path / "data")
    shell.write_digits(tmp_path / "data", relabel=lambda y: (y + 1) % 3)
    second = load(tmp_path / "data")
    assert len(reads) == 2 and torch.equal(second.images.y, (first.images.y + 1) % 3)
    assert second.splits.data_key != first.splits.data_key
    shell.write_digits(tmp_path / "other", test=90)
    assert len(load(tmp_path / "other").test.y) == 90 and len(load(tmp_path / "data").test.y) == 137 and len(reads) == 3


def test_data_that_change_while_they_are_read_are_not_held(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: dict[Any, Any]) -> None:
    shell.write_digits(tmp_path)
    real = sources.load

    def load_and_change(*rest: Any, **more: Any) -> Any:
        found = real(*rest, **more)
        shell.write_digits(tmp_path, relabel=lambda y: (y + 1) % 3)
        return found

    monkeypatch.setattr(sources, "load", load_and_change)
    load(tmp_path)
    assert not fresh


def test_every_run_is_told_of_data_of_another_size(tmp_path: Path, reads: list[str], capsys: pytest.CaptureFixture) -> None:
    shell.write_digits(tmp_path)
    for _ in range(3):
        load(tmp_path, any_size=False)
    assert capsys.readouterr().out.count("--any_size says that this is meant") == 3 and len(reads) == 1


def test_two_data_sets_are_held_and_no_more_than_there_is_room_for(
        tmp_path: Path, reads: list[str], fresh: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2, 1, 3, 1, 2):
        load(tmp_path, val_seed=seed)
        assert len(fresh) <= dataset.SETS
    assert len(reads) == 4, "1, 2, 3, and 2 again: of three the one goes that was asked for longest ago"
    with_windows = sum(cut.nbytes for cut in fresh.values())
    load(tmp_path, val_seed=2).images.windows()
    assert sum(cut.nbytes for cut in fresh.values()) > with_windows
    monkeypatch.setattr(dataset, "ROOM", 1)
    load(tmp_path, val_seed=5)
    assert collections.Counter(reads) == {"digits": 5} and len(fresh) == 1, "the one at work stays, whatever its size"
