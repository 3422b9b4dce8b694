"""Readers of the public data sets, prepared files, declarations and digits."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import loaded
import numpy as np
import pytest
from loaded import refused

import sources

ROOT = Path(__file__).resolve().parent.parent
# CIFAR-100's coarse label of each fine label, as everyone writes it down: independent of the names in sources
FINE_TO_COARSE = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8,
    14, 13,
]


rng = pytest.fixture(loaded.rng)


def small(rng: np.random.Generator, name: str, train: int = 12, test: int = 5) -> dict[str, np.ndarray]:
    """Random contents of a prepared npz."""
    source = sources.SOURCES[name]
    shape = (source.size, source.size, 3)
    x, y = rng.integers(0, 256, (train + test, *shape), np.uint8), rng.integers(0, source.num_classes, train + test)
    return {"x_train": x[:train], "y_train": y[:train], "x_test": x[train:], "y_test": y[train:]}


# ---------------------------------------------------------------------------------------------------- prepared files


@pytest.mark.parametrize("name", sources.SOURCES.names())
def test_a_prepared_file_of_every_data_set_is_read_as_written(name, tmp_path, rng):
    wanted = small(rng, name)
    np.savez(tmp_path / f"{name}.npz", **{k: v.astype(np.uint16) if k[0] == "y" else v for k, v in wanted.items()})
    found = sources.load(name, tmp_path, download=False)
    for key, value in wanted.items():
        assert np.array_equal(getattr(found, key), value)
    assert found.y_train.dtype == found.y_test.dtype == np.int64
    assert found.fine_train is None
    assert found.classes == ()


def test_a_prepared_file_may_hold_a_subset_of_the_classes_with_names_and_fine_labels(tmp_path, rng):
    a = small(rng, "cifar20")
    a["fine_train"], a["fine_test"] = rng.choice([4, 30, 55, 1], 12), rng.choice([72, 95, 32], 5)
    a["y_train"], a["y_test"] = np.array(FINE_TO_COARSE)[a["fine_train"]], np.array(FINE_TO_COARSE)[a["fine_test"]]
    np.savez(tmp_path / "cifar20.npz", **a, classes=np.array(["mammals", "fish"]))
    found = sources.load("cifar20", tmp_path)
    assert np.array_equal(found.fine_train, a["fine_train"])
    assert np.array_equal(found.fine_test, a["fine_test"])
    assert found.fine_test.dtype == np.int64
    assert found.classes == ("mammals", "fish")


def test_prepared_files_that_do_not_fit_are_refused(tmp_path, rng):
    good = small(rng, "cifar10")
    bad = {
        "float images": ({"x_train": good["x_train"] / 255.0}, "x_train is float64 [12, 32, 32, 3]"),
        "channel first": ({"x_test": good["x_test"].transpose(0, 3, 1, 2)}, "x_test is uint8 [5, 3, 32, 32]"),
        "grey": ({"x_train": good["x_train"][..., 0]}, "x_train is uint8 [12, 32, 32]"),
        "not square": ({"x_train": good["x_train"][:, :, :30]}, "[12, 32, 30, 3]"),
        "other size": ({"x_train": good["x_train"][:, ::2, ::2]}, "[12, 16, 16, 3]"),
        "no images": ({"x_test": good["x_test"][:0], "y_test": good["y_test"][:0]}, "at least one image"),
        "fewer labels": ({"y_train": good["y_train"][1:]}, "each of the 12 images"),
        "float labels": ({"y_test": good["y_test"] * 1.0}, "y_test is float64"),
        "two-column labels": ({"y_test": np.eye(5, dtype=int)}, "y_test is int64 [5, 5]"),
        "label 10": ({"y_train": np.arange(12) % 11}, "y_train holds 0 to 10; labels must be 0 to 9"),
        "label -1": ({"y_test": np.arange(5) - 1}, "y_test holds -1 to 3"),
        "a label without a name": ({"classes": np.array(["a", "b"]), "y_test": np.full(5, 2)}, "0 to 1"),
        "eleven names": ({"classes": np.array(list("abcdefghijk"))}, "11 class names"),
        "numbered names": ({"classes": np.arange(10)}, "classes is int64"),
        "pickled names": ({"classes": np.array(["a"] * 10, object)}, "cannot be read: it holds Python objects"),
        "pickled images": ({"x_train": np.array([None])}, "cannot be read: it holds Python objects"),
        "one fine part": ({"fine_train": good["y_train"]}, "belong together"),
        "negative fine": ({"fine_train": good["y_train"] - 10, "fine_test": good["y_test"]}, "0 or more"),
    }
    for change, words in bad.values():
        np.savez(tmp_path / "cifar10.npz", **(good | change))
        refused("cifar10", tmp_path, "cifar10.npz", words)
    del good["y_test"]
    np.savez(tmp_path / "cifar10.npz", **good)
    refused("cifar10", tmp_path, "no y_test in it")


def test_fine_labels_of_another_super_class_are_refused(tmp_path, rng):
    a = small(rng, "cifar20") | {"fine_train": np.zeros(12, int), "fine_test": np.zeros(5, int)}
    a["y_train"], a["y_test"] = np.full(12, 4), np.array([4, 4, 4, 4, 3])
    np.savez(tmp_path / "cifar20.npz", **a)
    refused("cifar20", tmp_path, "fine_test and y_test disagree")
    np.savez(tmp_path / "cifar20.npz", **(a | {"y_test": np.full(5, 4), "fine_test": np.full(5, 100)}))
    refused("cifar20", tmp_path, "holds 100 to 100")


def test_broken_prepared_files_are_refused_whole(tmp_path, rng):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **small(rng, "cifar10"))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    for content in (b"", whole[: len(whole) // 2], whole[:-1], bytes(flipped), array.getvalue(), b"x" * 500,
                    pickle.dumps({"x_train": 1})):
        path.write_bytes(content)
        refused("cifar10", tmp_path, str(path), "cannot be read", "x_train y_train x_test y_test")
    path.unlink()
    path.mkdir()
    refused("cifar10", tmp_path, str(path), "cannot be read")


# ------------------------------------------------------------------------------------------------------- declarations


def test_a_misspelt_data_set_is_named_with_the_right_one(tmp_path):
    refused("cifar-10", tmp_path, "did you mean 'cifar10'", "svhn")


def test_the_table_has_a_row_for_every_data_set():
    rows = {row[0]: row[1:] for row in sources.table()}
    assert list(rows) == ["digits", "cifar10", "cifar100", "cifar20", "svhn", "TinyImagenet", "imagenet64"]
    assert rows["svhn"] == ("10", "32", "73,257 / 26,032", "train_32x32.mat and test_32x32.mat")
    assert {len(row) for row in sources.table()} == {5}


def test_the_published_statistics_and_augmentations_are_declared():
    s = {name: sources.SOURCES[name] for name in sources.SOURCES.names()}
    assert (s["cifar10"].mean, s["cifar10"].std) == ((.4914, .4822, .4465), (.2470, .2435, .2616))
    assert (s["cifar20"].mean, s["cifar20"].std) == ((.5071, .4866, .4409), (.2673, .2564, .2762))
    assert (s["svhn"].mean, s["svhn"].std) == ((.4377, .4438, .4728), (.1980, .2010, .1970))
    assert (s["imagenet64"].mean, s["TinyImagenet"].std) == ((.485, .456, .406), (.229, .224, .225))
    assert {name: (v.size, v.pad, v.flip) for name, v in s.items()} == {
        "digits": (8, 1, False), "cifar10": (32, 4, True), "cifar100": (32, 4, True), "cifar20": (32, 4, True),
        "svhn": (32, 0, False), "TinyImagenet": (64, 4, True), "imagenet64": (64, 4, True)}


def test_every_super_class_holds_its_five_classes():
    coarse = sources.SOURCES["cifar20"].coarse
    assert list(coarse) == FINE_TO_COARSE
    assert (np.bincount(coarse) == 5).all()
    assert [c for c in range(100) if coarse[c] == 0] == [4, 30, 55, 72, 95]
    assert [c for c in range(100) if coarse[c] == 4] == [0, 51, 53, 57, 83]
    named = dict(rocket=69, mushroom=51, baby=2, lamp=40, sea=71)  # their fine labels, as published
    assert {name: sources.small.CIFAR100_NAMES.index(name) for name in named} == named


def test_importing_the_readers_imports_no_torchvision_sklearn_or_pillow():
    code = "import sources, sys; print(*{'torchvision', 'sklearn', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_channel_statistics_equal_numpys_on_a_ragged_number_of_images(rng):
    x = (rng.integers(0, 256, (131, 7, 7, 3)) * [1, 0.5, 0.1]).astype(np.uint8)
    mean, std = sources.channel_statistics(x)
    assert np.allclose(mean, (x / 255.0).mean((0, 1, 2)), rtol=0, atol=1e-12)
    assert np.allclose(std, (x / 255.0).std((0, 1, 2)), rtol=0, atol=1e-12)
    assert sources.channel_statistics(np.full((70, 2, 2, 3), 255, np.uint8)) == ((1, 1, 1), (0, 0, 0))


def test_full_data_with_other_statistics_are_reported_and_parts_are_not(tmp_path, rng, monkeypatch):
    a = small(rng, "svhn")
    np.savez(tmp_path / "svhn.npz", **a)
    source = sources.SOURCES["svhn"]
    mean, std = sources.channel_statistics(a["x_train"])

    def pretend(shift: float, counts: tuple[int, int] = (12, 5)) -> list[str]:
        changed = vars(source) | {"counts": counts, "mean": mean, "std": (std[0], std[1] + shift, std[2])}
        monkeypatch.setattr(sources, "SOURCES", {"svhn": sources.Source(**changed)})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sources.load("svhn", tmp_path)
        return [str(w.message) for w in caught]

    assert pretend(0.0019) == []
    assert len(pretend(0.0021)) == len(pretend(-0.0021)) == 1
    assert "0.0021 from the published" in pretend(0.0021)[0]
    assert pretend(0.5, counts=(13, 5)) == []


def test_digits_are_scikit_learns_in_three_equal_channels_and_a_stratified_split(tmp_path):
    from sklearn.datasets import load_digits

    a = sources.load("digits", tmp_path / "nowhere")
    assert a.x_train.shape == (1437, 8, 8, 3)
    assert a.x_test.shape == (360, 8, 8, 3)
    assert (a.x_train == a.x_train[..., :1]).all()
    original = load_digits()
    spread = [round(v * 255 / 16) for v in range(17)]
    places = {tuple(spread[int(v)] for v in image.ravel()): i for i, image in enumerate(original.images)}
    assert len(places) == 1797  # all images differ, so that a place can be looked up
    found = {part: [places[tuple(image[..., 0].ravel().tolist())] for image in x]
             for part, x in (("train", a.x_train), ("test", a.x_test))}
    assert sorted(found["train"] + found["test"]) == list(range(1797))
    for part, where in found.items():
        assert where == sorted(where)
        assert np.array_equal(getattr(a, f"y_{part}"), original.target[where])
    assert abs(np.bincount(a.y_test) / np.bincount(original.target) * 1797 / 360 - 1).max() < 0.03
    assert np.array_equal(a.x_test, sources.load("digits", tmp_path).x_test)
    assert not list(tmp_path.iterdir())  # nothing is kept of what comes with a package
    source = sources.SOURCES["digits"]
    assert np.allclose(source.mean, (a.x_train / 255.0).mean((0, 1, 2)), rtol=0, atol=1e-6)
    assert np.allclose(source.std, (a.x_train / 255.0).std((0, 1, 2)), rtol=0, atol=1e-6)
