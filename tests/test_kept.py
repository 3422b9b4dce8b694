"""The map from classes to outputs, and what is left out of training, against plain loops over the raw arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import loaded
import numpy as np
import pytest
from conftest import quiet_runtime
from loaded import load

import dataset
import sources
from sources.kept import ClassNumbers, classes_of, output_map
from utils import BadInput, Runtime

digits = pytest.fixture(scope="module")(loaded.digits)
OOD = [(0, 2), (3, 7), (8, 9), (0, 5, 9), (4,)]  # below, around, above and on both sides of the forgotten class 6


def plain_map(count: int, gone: tuple[int, ...]) -> dict[int, int]:
    found: dict[int, int] = {}
    for label in range(count):
        if label not in gone:
            found[label] = len(found)
    return found


@pytest.mark.parametrize("gone", OOD)
def test_every_part_goes_by_the_one_map(gone: tuple[int, ...], rt: Runtime, digits: sources.Arrays) -> None:
    """Train, validation, retain, forget, test and both parts out of distribution, image for image."""
    data, wanted = load(rt, {"class_to_replace": (6,)}, ood_classes=gone), plain_map(10, gone)
    assert data.num_classes == len(wanted) and data.outputs.dtype == np.int64
    assert data.outputs.tolist() == [wanted.get(label, -1) for label in range(10)]
    pools = {"train": (digits.x_train, digits.y_train), "test": (digits.x_test, digits.y_test)}
    raw = {name: [(x[i], int(y[i])) for i in range(len(y)) if (int(y[i]) in gone) == out]
           for part, (x, y) in pools.items() for name, out in ((part, False), ("ood" if part == "train" else "ood_test", True))}
    seen = []
    for part in ("train", "val", "retain", "forget", "test", "ood", "ood_test"):
        source = raw["train" if part in ("train", "val", "retain", "forget") else part]
        for batch in data.loader(part):
            for x, y, i in zip(batch.x, batch.y.tolist(), batch.index.tolist(), strict=True):
                image, label = source[i]
                assert np.array_equal((x * 255).round().byte().permute(1, 2, 0).numpy(), image)
                assert y == (label if part.startswith("ood") else wanted[label]), (part, i)
                assert part != "forget" or label == 6
                seen.append((part, i))
    assert len(set(seen)) == len(seen)
    assert data.splits.whole_classes == (wanted[6],) and classes_of(data.splits.whole_classes, gone) == [6]
    count = {part: sum(1 for p, _ in seen if p == part) for part in {p for p, _ in seen}}
    assert count["retain"] + count["forget"] == count["train"] and count["train"] + count["val"] == len(raw["train"])
    assert (count["ood"], count["ood_test"], count["test"]) == tuple(len(raw[part]) for part in ("ood", "ood_test", "test"))


@pytest.mark.parametrize("gone", [(), *OOD])
def test_classes_of_turns_the_map_around(gone: tuple[int, ...]) -> None:
    outputs = output_map(10, gone)
    kept = [label for label in range(10) if label not in gone]
    assert classes_of(outputs[kept], gone) == kept == classes_of(range(len(kept)), gone)


def test_figures_name_classes_as_the_data_set_does(
    rt: Runtime, digits: sources.Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memorization import figures

    data = load(rt, ood_classes=(0, 3))
    kept = [y for y in digits.y_train.tolist() if y not in (0, 3)]
    assert data.classes(data.images.y.numpy()).tolist() == kept
    drawn = []
    monkeypatch.setattr(figures, "grid", lambda images, labels, scores, names, **more: drawn.append((names, labels)))
    monkeypatch.setattr(figures, "histogram", lambda *words: None)
    figures.figures("memorization", {"memorization": np.linspace(0, 1, len(kept))}, data, None)
    ((names, labels),) = drawn
    assert [names[label] for label in labels] == [f"class {y}" for y in kept]


def test_classes_out_of_distribution_are_numbered_as_after_the_kept_ones(rt: Runtime, digits: sources.Arrays) -> None:
    data = load(rt, {"class_to_replace": (3,)}, classes="1,5,7,9", ood_classes=(0, 2))
    assert data.outputs.tolist() == [-1, 0, -1, 1]
    assert data.ood.y.tolist() == [{1: 0, 7: 2}[y] for y in digits.y_train.tolist() if y in (1, 7)]
    assert data.images.y.tolist() == [{5: 0, 9: 1}[y] for y in digits.y_train.tolist() if y in (5, 9)]
    assert (data.images.y[data.splits.forget] == 1).all()


def test_noise_and_validation_are_of_the_classes_that_train(rt: Runtime, digits: sources.Arrays) -> None:
    """The same draws as of a data set that never had the others."""
    asked = {"label_noise": 0.2, "train_per_class": 40, "val_seed": 3, "val_fraction": 0.2}
    ours, alone = load(rt, ood_classes=(8, 9), **asked), load(rt, classes="0-7", **asked)
    for part in ("train", "val", "mislabelled"):
        assert np.array_equal(getattr(ours.splits, part), getattr(alone.splits, part))
    assert np.array_equal(ours.images.y, alone.images.y) and int(ours.images.y.max()) == 7
    assert len(ours.images.y) == 8 * 40 and len(ours.ood.y) == (digits.y_train >= 8).sum()
    assert ours.ood.y.tolist() == [y for y in digits.y_train.tolist() if y >= 8]  # theirs are the given labels


def test_keys_tell_what_is_left_out_and_are_as_before_where_nothing_is(rt: Runtime, digits: sources.Arrays) -> None:
    def keys(**config: Any) -> tuple[str, ...]:
        splits = load(rt, **config).splits
        return splits.data_key, splits.images_key, splits.test_key

    plain = keys()
    wanted = [dataset._key(json.dumps(["digits", list(range(10)), part])) for part in digits.hashes]
    assert plain[1:] == tuple(wanted)  # what earlier versions wrote
    others = [keys(ood_classes=(9,)), keys(ood_classes=(8,)), keys(ood_classes=(8, 9)), keys(classes="0-8"),
              keys(classes="0-8", ood_classes=(8,)), keys(classes="1-9", ood_classes=(8,))]
    for place in range(3):
        assert len({found[place] for found in (plain, *others)}) == 7
    assert keys(ood_classes=(9, 8, 9)) == keys(ood_classes=(8, 9)) and keys(ood_classes=()) == plain


def test_a_training_that_leaves_classes_out_goes_by_no_label_of_them() -> None:
    cfg = dataset.DataConfig(ood_classes=(16, 12))
    assert cfg.of_labels()["ood_classes"] == (12, 16) and dataset.DataConfig(ood_classes=()).ood_classes is None
    assert dataset.DataConfig(ood_classes=[3]).ood_classes == (3,)


@pytest.mark.parametrize(("text", "wanted"), [("12,16-19", (12, 16, 17, 18, 19)), ("4", (4,)), ("9,0,9", (0, 9))])
def test_lists_of_classes_are_numbers(text: str, wanted: tuple[int, ...]) -> None:
    assert ClassNumbers(text) == wanted


@pytest.mark.parametrize("text", ["", "x", "3-", "-1", "5-2", "0-99999999999"])
def test_wrong_lists_of_classes_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        ClassNumbers(text)


@pytest.mark.parametrize(("config", "forget", "words"), [
    ({"ood_classes": (10,)}, None, "--ood_classes 10: the data set has the classes 0-9"),
    ({"ood_classes": (3,), "classes": "0-2"}, None, "--ood_classes 3: the data set has the classes 0-2"),
    ({"ood_classes": tuple(range(9))}, None, "leaves 1 of 10 classes"),
    ({"ood_classes": (3, 4)}, {"class_to_replace": (4,)}, "--class_to_replace 4: this class is out of distribution"),
    ({"ood_classes": (3, 4)}, {"class_to_replace": (2, 10)}, "--class_to_replace 10: the data set has the classes 0-9"),
    ({"ood_subclass": (3,)}, None, "--ood_subclass: digits has no sub-classes; cifar20 has"),
])
def test_wrong_classes_are_refused(config: dict[str, Any], forget: dict[str, Any] | None, words: str, rt: Runtime) -> None:
    with pytest.raises(BadInput, match=words):
        load(rt, forget, **config)


def test_nothing_is_out_of_distribution_where_nothing_was_left_out(rt: Runtime) -> None:
    data = load(rt)
    assert len(data.index("ood")) == len(data.index("ood_test")) == 0 and data.outputs.tolist() == list(range(10))
    with pytest.raises(BadInput, match="--ood_classes"):
        data.loader("ood")


def test_files_of_the_data_set_count_with_what_is_left_out(tmp_path: Path, digits: sources.Arrays) -> None:
    """Another image of a class out of distribution is other data: attacks are measured on it."""
    found = {name: getattr(digits, name) for name in sources.PARTS}
    rt, key = quiet_runtime(), load(quiet_runtime(), ood_classes=(9,)).splits.data_key
    x = found["x_train"].copy()
    x[np.flatnonzero(digits.y_train == 9)[0], 0, 0, 0] += 1
    np.savez(tmp_path / "digits.npz", **found | {"x_train": x})
    assert load(rt, data=str(tmp_path), ood_classes=(9,)).splits.data_key != key
