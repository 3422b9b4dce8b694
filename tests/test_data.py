"""Splits, forget sets and keys of data, against plain loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import loaded
import numpy as np
import pytest
from conftest import quiet_runtime
from loaded import load
from scipy.stats import chi2

import dataset
import groups
import sources
from dataset import ForgetConfig
from utils import BadInput, Runtime

digits = pytest.fixture(scope="module")(loaded.digits)


# --------------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(("seed", "fraction"), [(1, 0.1), (7, 0.1), (0, 0.25), (1, 0.0)])
def test_validation_is_the_published_draw_and_the_rest_is_training(
    seed: int, fraction: float, rt: Runtime, digits: sources.Arrays
) -> None:
    """numpy's RandomState, class by class in label order, int(fraction n) of each without replacement."""
    state, wanted = np.random.RandomState(seed), []
    for label in range(10):
        members = [i for i, y in enumerate(digits.y_train) if y == label]
        wanted += list(state.choice(members, int(fraction * len(members)), replace=False))
    splits = load(rt, val_seed=seed, val_fraction=fraction).splits
    assert splits.val.tolist() == sorted(wanted)
    assert sorted([*splits.val, *splits.train]) == list(range(1437)) and list(splits.train) == sorted(splits.train)
    assert splits.train.dtype == splits.val.dtype == np.int64
    assert len(splits.forget) == 0 and np.array_equal(splits.retain, splits.train) and splits.whole_classes == ()


def test_every_class_gives_its_tenth(rt: Runtime, digits: sources.Arrays) -> None:
    val = load(rt).splits.val
    for label in range(10):
        assert (digits.y_train[val] == label).sum() == (digits.y_train == label).sum() // 10


def test_kept_classes_are_renumbered(rt: Runtime, digits: sources.Arrays) -> None:
    data = load(rt, classes="7,1,5")
    assert data.num_classes == 3
    for images, x, y in ((data.images, digits.x_train, digits.y_train), (data.test, digits.x_test, digits.y_test)):
        keep = [i for i, label in enumerate(y) if label in (1, 5, 7)]
        assert images.y.tolist() == [{1: 0, 5: 1, 7: 2}[y[i]] for i in keep]
        assert np.array_equal(images.x.numpy(), x[keep])


@pytest.mark.parametrize(("text", "wanted"), [
    ("0-4,7", [0, 1, 2, 3, 4, 7]), ("7,0", [0, 7]), ("1,1,2", [1, 2]), ("0-99", list(range(100))), ("98-99", [98, 99])])
def test_class_lists_are_read(text: str, wanted: list[int]) -> None:
    assert dataset.parse_classes(text, 100) == wanted


@pytest.mark.parametrize(("text", "wanted"), [
    ("0,1,2", "0-2"), ("2-1,0", None), ("7,1,5", "1,5,7"), ("4-6,0-2,2,3", "0-6"), ("0-2,4-9,12", "0-2,4-9,12"),
    ("1,0", "0-1")])
def test_class_lists_have_one_spelling(text: str, wanted: str | None) -> None:
    if wanted is None:
        with pytest.raises(BadInput, match="--classes"):
            dataset.ClassList(text)
    else:
        assert dataset.ClassList(text) == wanted


@pytest.mark.parametrize("text", ["", "a", "1-", "-1,2", "1,,2", "1-2-3", "5", "5-5", "3-1", "0-100", "1.5,2",
                                  "0-1,101", "0-3,200-300"])
def test_wrong_class_lists_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--classes"):
        dataset.parse_classes(text, 100)


# ---------------------------------------------------------------------------------------------------------- forget sets


@pytest.mark.parametrize(("asked", "size", "classes"), [
    ({"num_indexes_to_replace": 100}, 100, None),
    ({"forget_fraction": 0.1}, 130, None),
    ({"forget_fraction": 1e-9}, 1, None),
    ({"class_to_replace": (3,)}, 132, {3}),
    ({"class_to_replace": (8, 0)}, 254, {0, 8}),
    ({"class_to_replace": (3,), "num_indexes_to_replace": 50}, 50, {3}),
    ({"class_to_replace": (2, 9), "num_indexes_to_replace": 150}, 150, {2, 9}),
    ({"class_to_replace": (3,), "forget_fraction": 0.5}, 66, {3}),
])
def test_forget_sets_have_their_size_and_classes(
    asked: dict[str, Any], size: int, classes: set[int] | None, rt: Runtime, digits: sources.Arrays
) -> None:
    splits = load(rt, asked).splits
    forget = splits.forget
    assert len(forget) == size and forget.dtype == np.int64 and list(forget) == sorted(set(forget))
    assert set(forget) <= set(splits.train) and sorted([*forget, *splits.retain]) == list(splits.train)
    assert set(digits.y_train[forget]) == (set(range(10)) if classes is None and size > 100 else classes or
                                           set(digits.y_train[forget]))
    # the same question has the same answer, whatever the seed of the training
    again = load(quiet_runtime(77), asked).splits
    assert np.array_equal(again.forget, forget) and again.split_key == splits.split_key
    # another question about the same original: every other set and its key stay, unless all candidates are asked for
    other = load(rt, asked | {"split_seed": 2}).splits
    drawn = "num_indexes_to_replace" in asked or "forget_fraction" in asked
    assert np.array_equal(other.forget, forget) != drawn and other.data_key == splits.data_key
    assert np.array_equal(other.val, splits.val) and (other.split_key == splits.split_key) != drawn


@pytest.mark.parametrize("seed", [1, 2, 5])
@pytest.mark.parametrize(("classes", "number"), [((-1,), 100), ((3,), 40), ((8, 0), 77), ((8, 0), None), ((-1,), 1)])
def test_published_flags_give_the_published_forget_set(
    seed: int, classes: tuple[int, ...], number: int | None, rt: Runtime, digits: sources.Arrays
) -> None:
    """The released code's steps in plain words: validation off by the seed, positions in what is left, drawn by seed - 1."""
    y = digits.y_train
    state, held_out = np.random.RandomState(seed), []
    for label in range(max(y) + 1):
        members = np.where(y == label)[0]
        held_out.append(state.choice(members, int(0.1 * len(members)), replace=False))
    left = sorted(set(range(len(y))) - set(np.hstack(held_out).tolist()))
    targets = y[left]
    positions = np.flatnonzero(np.ones_like(targets) if -1 in classes else np.isin(targets, classes))
    if number is not None:
        positions = np.random.RandomState(seed - 1).choice(positions, size=number, replace=False)
    asked = {"class_to_replace": classes, "num_indexes_to_replace": number, "split_seed": seed}
    assert load(rt, asked, val_seed=seed).splits.forget.tolist() == sorted(left[p] for p in positions)


def test_seed_zero_draws_by_the_last_of_numpys_seeds(rt: Runtime) -> None:
    """The released code has none for it; no other seed draws by that one."""
    train = load(rt).splits.train
    wanted = np.random.RandomState(2**32 - 1).choice(train, 9, replace=False)
    assert load(rt, {"num_indexes_to_replace": 9, "split_seed": 0}).splits.forget.tolist() == sorted(wanted)
    last = np.random.RandomState(2**32 - 2).choice(train, 9, replace=False)
    assert load(rt, {"num_indexes_to_replace": 9, "split_seed": 2**32 - 1}).splits.forget.tolist() == sorted(last)


@pytest.mark.parametrize(("fraction", "count", "wanted"), [
    (0.1, 37, 4), (0.1, 34, 3), (0.3, 5, 2), (0.5, 7, 4), (0.29, 100, 29), (0.57, 100, 57), (1 / 3, 10, 3), (2 / 3, 10, 7),
    (0.001, 100, 1), (0.96, 40, 38)])
def test_a_share_of_the_candidates_is_rounded_to_the_nearest_number(fraction: float, count: int, wanted: int) -> None:
    """Never cut off: 0.29 of a hundred is 28.999999999999996 in floating point."""
    pool = groups.Candidates(np.zeros(count, int), np.arange(count), 1, "key")
    assert len(groups.choose_forget(ForgetConfig(forget_fraction=fraction), pool).forget) == wanted


def test_whole_classes_are_those_without_a_retained_example(
    rt: Runtime, digits: sources.Arrays, tmp_path: Path
) -> None:
    assert load(rt, {"class_to_replace": (8, 3)}).splits.whole_classes == (3, 8)
    train = load(rt).splits.train
    threes, fives = (train[digits.y_train[train] == label] for label in (3, 5))
    for index, whole in ((threes, (3,)), (threes[1:], ()), (np.append(threes, fives[:4]), (3,))):
        np.save(tmp_path / "index.npy", index)
        assert load(rt, {"forget_index": str(tmp_path / "index.npy")}).splits.whole_classes == whole


def test_random_forget_sets_are_spread_evenly(rt: Runtime) -> None:
    """Over 200 split seeds the number of draws of each candidate is binomial: chi-square within its 0.1 % tails."""
    y, train = np.zeros(50, int), np.arange(10, 50)
    pool = groups.Candidates(y, train, 1, "key")
    asked = [ForgetConfig(num_indexes_to_replace=8, split_seed=seed) for seed in range(200)]
    drawn = np.concatenate([groups.choose_forget(cfg, pool).forget for cfg in asked])
    counts = np.bincount(drawn, minlength=50)
    assert counts[:10].sum() == 0 and counts.sum() == 1600
    # without replacement the variance of each count is 200 p (1 - p), with p = 8 / 40
    statistic = ((counts[10:] - 40) ** 2 / (200 * 0.2 * 0.8)).sum() * 39 / 40
    assert chi2.ppf(0.001, 39) < statistic < chi2.ppf(0.999, 39)


@pytest.mark.parametrize("suffix", ["npy", "json", "npz"])
def test_forget_set_is_read_from_a_file(suffix: str, rt: Runtime, tmp_path: Path) -> None:
    wanted = load(rt).splits.train[[5, 90, 17, 400]]
    path = tmp_path / f"forget.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(wanted.tolist()))
    elif suffix == "npy":
        np.save(path, wanted.astype(np.int16))
    else:
        np.savez(path, forget=wanted, retain=np.arange(3))
    splits = load(rt, {"forget_index": str(path)}).splits
    assert splits.forget.tolist() == sorted(wanted) and splits.forget.dtype == np.int64
    assert np.array_equal(splits.retain, np.setdiff1d(splits.train, wanted))


def test_overlapping_splits_are_refused() -> None:
    a, b = np.arange(5), np.arange(4, 8)
    with pytest.raises(AssertionError, match="train and val share 1"):
        dataset.Splits(a, b, a, a[:0], (), "", "")
    with pytest.raises(AssertionError, match="retain and forget share 2"):
        dataset.Splits(a, b + 4, a, a[:2], (), "", "")


# ----------------------------------------------------------------------------------------------------------------- keys


def test_data_key_changes_with_each_ingredient_and_with_nothing_else(rt: Runtime, tmp_path: Path) -> None:
    key = load(rt).splits.data_key
    for change in ({"val_seed": 2}, {"val_fraction": 0.2}, {"val_fraction": 0.0}, {"classes": "0-8"},
                   {"classes": "1-9"}):
        assert load(rt, **change).splits.data_key != key, change
    for change in ({"batch_size": 7}, {"aug": True}, {"aug": False}, {"classes": "0-9"}, {"data": str(tmp_path)}):
        assert load(rt, **change).splits.data_key == key, change
    assert load(quiet_runtime(99)).splits.data_key == key
    assert load(rt, {"num_indexes_to_replace": 9}).splits.data_key == key


@pytest.mark.parametrize("part", ["x_train", "y_train", "y_test"])
def test_data_key_changes_with_the_files(part: str, rt: Runtime, tmp_path: Path, digits: sources.Arrays) -> None:
    """A prepared npz with the same content has the same key, one with other images or one other label has not."""
    found = {name: getattr(digits, name) for name in sources.PARTS}
    np.savez(tmp_path / "digits.npz", **found)
    assert load(rt, data=str(tmp_path)).splits.data_key == load(rt).splits.data_key
    changed = found[part].copy()
    if part == "x_train":
        changed = changed[:, :, ::-1]  # mirrored, so that mean and deviation stay
    else:
        changed[5] = (changed[5] + 1) % 10
    np.savez(tmp_path / "digits.npz", **found | {part: changed})
    other = load(rt, data=str(tmp_path)).splits.data_key
    assert other != load(rt).splits.data_key
    with pytest.raises(BadInput, match=f"data differ.*{other}"):
        load(rt, data=str(tmp_path), data_key=load(rt).splits.data_key)


def test_split_key_changes_with_the_forget_set_and_the_data(rt: Runtime, tmp_path: Path) -> None:
    asked = [None, {"num_indexes_to_replace": 9}, {"num_indexes_to_replace": 10}, {"class_to_replace": (1,)},
             {"class_to_replace": (1,), "num_indexes_to_replace": 9}]
    found = [load(rt, forget, **config) for forget in asked for config in ({}, {"val_seed": 4})]
    assert len({data.splits.split_key for data in found}) == len(found)
    # however it was named
    np.save(tmp_path / "index.npy", found[2].splits.forget)
    assert load(rt, {"forget_index": str(tmp_path / "index.npy")}).splits.split_key == found[2].splits.split_key
