"""CIFAR and SVHN through torchvision, on small files of the published layouts made here; nothing is fetched."""

from __future__ import annotations

import hashlib
import http.client
import pickle
import shutil
import tarfile
import urllib.error
from collections.abc import Sequence
from pathlib import Path

import loaded
import numpy as np
import pytest
from loaded import refused
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

import sources
from sources import prepared as prepared_files
from utils import BadInput

# fine -> coarse label of some CIFAR-100 classes, as published
COARSE = {4: 0, 30: 0, 1: 1, 54: 2, 9: 3, 51: 4, 83: 4, 40: 5, 2: 14, 69: 19, 12: 9, 71: 10, 99: 13, 98: 14}


rng = pytest.fixture(loaded.rng)


def images(rng: np.random.Generator, train: int, test: int, labels: Sequence[int]) -> dict[str, np.ndarray]:
    x = rng.integers(0, 256, (train + test, 32, 32, 3), np.uint8)
    y = rng.choice(np.array(labels), train + test)
    return {"x_train": x[:train], "y_train": y[:train], "x_test": x[train:], "y_test": y[train:]}


def rows_of(x: np.ndarray) -> np.ndarray:
    """[N, H, W, 3] as published rows: all red, then all green, then all blue."""
    return np.stack([np.concatenate([image[:, :, c].ravel() for c in range(3)]) for image in x])


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def same(a: sources.Arrays, b: sources.Arrays) -> None:
    """Equal in every field, and of the same types."""
    for key, value in vars(a).items():
        other = vars(b)[key]
        assert getattr(value, "dtype", type(value)) == getattr(other, "dtype", type(other)), key
        assert np.array_equal(value, other), key


@pytest.fixture
def cifar(rng, monkeypatch):
    """Writes small batches in the published layout and gives torchvision their checksums."""

    def write(name: str, folder: Path) -> dict[str, np.ndarray]:
        cls = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
        home = folder / cls.base_folder
        home.mkdir(parents=True)
        wanted = images(rng, 20, 6, range(10) if name == "cifar10" else list(COARSE))
        kinds = ["labels"] if name == "cifar10" else ["fine_labels", "coarse_labels"]
        lists = {}
        for part in ("train", "test"):
            listed = []
            files = [file for file, _ in getattr(cls, f"{part}_list")]
            pieces = np.array_split(np.arange(len(wanted[f"y_{part}"])), len(files))
            for file, piece in zip(files, pieces, strict=True):
                y = wanted[f"y_{part}"][piece].tolist()
                labels = dict(zip(kinds, (y, [COARSE.get(c) for c in y]), strict=False))
                content = {"data": rows_of(wanted[f"x_{part}"][piece]), **labels}
                (home / file).write_bytes(pickle.dumps(content, protocol=2))
                listed.append([file, md5(home / file)])
            lists[f"{part}_list"] = listed
        meta = home / cls.meta["filename"]
        meta.write_bytes(pickle.dumps({cls.meta["key"]: [str(c) for c in range(100)]}))
        for key, value in lists.items():
            monkeypatch.setattr(cls, key, value)
        monkeypatch.setattr(cls, "meta", cls.meta | {"md5": md5(meta)})
        return wanted

    return write


@pytest.mark.parametrize(("name", "below"), [("cifar10", ""), ("cifar10", "cifar10"), ("cifar100", "cifar100")])
def test_cifar_is_read_as_published_and_kept_for_the_next_load(name, below, cifar, tmp_path):
    wanted = cifar(name, tmp_path / below)
    first = loaded.read(name, tmp_path, download=False)
    for key, value in wanted.items():
        assert np.array_equal(getattr(first, key), value), key
    assert first.classes[3] == {"cifar10": "cat", "cifar100": "bear"}[name]
    for folder in tmp_path.rglob("cifar-*"):
        shutil.rmtree(folder)
    assert np.load(tmp_path / f"{name}.npz").files[0] == "x_train"
    same(first, loaded.read(name, tmp_path, download=False))


def test_cifar20_has_the_official_super_classes_and_keeps_the_fine_labels(cifar, tmp_path):
    wanted = cifar("cifar100", tmp_path)
    first = loaded.read("cifar20", tmp_path, download=False)
    assert np.array_equal(first.x_test, wanted["x_test"])
    for part in ("train", "test"):
        fine = wanted[f"y_{part}"]
        assert np.array_equal(getattr(first, f"fine_{part}"), fine)
        assert getattr(first, f"y_{part}").tolist() == [COARSE[c] for c in fine]
    assert first.classes[:2] == ("aquatic_mammals", "fish")
    shutil.rmtree(tmp_path / "cifar-100-python")
    same(first, loaded.read("cifar20", tmp_path))


def test_cifar20_is_derived_from_a_prepared_cifar100_without_the_network(tmp_path, rng, monkeypatch):
    fetch = "torchvision.datasets.cifar.download_and_extract_archive"
    monkeypatch.setattr(fetch, lambda *a, **k: pytest.fail("fetched"))
    a = images(rng, 9, 4, list(COARSE))
    np.savez(tmp_path / "cifar100.npz", **a)
    found = loaded.read("cifar20", tmp_path, download=True)
    assert found.y_train.tolist() == [COARSE[c] for c in a["y_train"]]
    assert np.array_equal(found.fine_test, a["y_test"])
    assert np.array_equal(found.x_train, a["x_train"])
    assert len(found.classes) == 20


def test_a_cifar_batch_that_fails_the_true_checksum_is_refused(tmp_path):
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    for file in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (home / file).write_bytes(pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [0]}))
    refused("cifar10", tmp_path, str(home / "data_batch_1"), "is damaged", "checksum", download=True)
    (home / "test_batch").unlink()
    refused("cifar10", tmp_path, f"{home / 'test_batch'} is missing", "cifar-10-python.tar.gz", download=True)


def test_the_one_damaged_batch_is_named(cifar, tmp_path):
    cifar("cifar10", tmp_path)
    damaged = tmp_path / "cifar-10-batches-py" / "data_batch_4"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    refused("cifar10", tmp_path, f"{damaged} is damaged")


def test_an_archive_that_is_there_is_unpacked_without_the_network(cifar, tmp_path, monkeypatch):
    wanted = cifar("cifar10", tmp_path)
    cls = CIFAR10
    archive = tmp_path / cls.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / cls.base_folder, cls.base_folder)
    shutil.rmtree(tmp_path / cls.base_folder)
    refused("cifar10", tmp_path, "data_batch_1 is missing")  # not the published archive
    monkeypatch.setattr(cls, "tgz_md5", md5(archive))
    assert np.array_equal(loaded.read("cifar10", tmp_path, download=False).x_train, wanted["x_train"])


def test_an_unwritable_folder_is_a_warning_and_the_data_are_still_read(cifar, tmp_path, monkeypatch):
    expected = cifar("cifar10", tmp_path)

    def deny(path, write):
        raise BadInput("cannot write") from PermissionError(13, "Permission denied")

    monkeypatch.setattr(prepared_files, "write_atomic", deny)
    with pytest.warns(UserWarning, match="cifar10.npz could not be written .*Permission denied"):
        found = loaded.read("cifar10", tmp_path)
    assert np.array_equal(found.x_train, expected["x_train"])
    assert not (tmp_path / "cifar10.npz").exists()


def test_svhn_digits_keep_their_pixels_and_ten_means_zero(rng, tmp_path, monkeypatch):
    x, y, listed = {}, {"train": [10, 1, 9, 10], "test": [3, 10, 2]}, dict(SVHN.split_list)
    for part, labels in y.items():
        x[part] = rng.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
        path = tmp_path / "svhn" / f"{part}_32x32.mat"
        path.parent.mkdir(exist_ok=True)
        savemat(path, {"X": np.stack(list(x[part]), axis=-1), "y": np.array(labels, np.uint8)[:, None]})
        listed[part] = [listed[part][0], path.name, md5(path)]
    refused("svhn", tmp_path, str(tmp_path / "svhn" / "train_32x32.mat"), "is damaged", download=True)  # the true md5
    monkeypatch.setattr(SVHN, "split_list", listed)
    first = loaded.read("svhn", tmp_path, download=False)
    assert first.y_train.tolist() == [0, 1, 9, 0]
    assert first.y_test.tolist() == [3, 0, 2]
    assert np.array_equal(first.x_train, x["train"])
    assert np.array_equal(first.x_test, x["test"])
    shutil.rmtree(tmp_path / "svhn")
    same(first, loaded.read("svhn", tmp_path))


@pytest.mark.parametrize("error", [
    urllib.error.URLError("no route\nto host"), RuntimeError("File not found or corrupted."), TimeoutError("timed out"),
    http.client.IncompleteRead(b""), tarfile.ReadError("cut")])
def test_a_failed_download_says_what_to_put_where(error, tmp_path, monkeypatch):
    def fail(url, root, filename, md5):
        Path(root).mkdir(parents=True, exist_ok=True)
        (Path(root) / filename).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.svhn.download_url", fail)
    for name, layout in {"cifar10": "cifar-10-batches-py/", "cifar100": "cifar-100-python/", "cifar20": "cifar100.npz",
                         "svhn": "train_32x32.mat and test_32x32.mat"}.items():
        refused(name, tmp_path / "data", "could not be fetched", layout, str(tmp_path), f"prepared {name}.npz",
                "x_train y_train x_test y_test", download=True)
    assert not list(tmp_path.iterdir())


def test_without_download_nothing_is_fetched_and_the_files_wanted_are_named(tmp_path, monkeypatch):
    for where in ("cifar.download_and_extract_archive", "svhn.download_url"):
        monkeypatch.setattr(f"torchvision.datasets.{where}", lambda *a, **k: pytest.fail("fetched"))
    for name in sources.SOURCES.names()[1:]:
        refused(name, tmp_path / "none", "is missing", f"put {sources.SOURCES[name].layout} under {tmp_path / 'none'}")
    assert not list(tmp_path.iterdir())


def test_absent_files_are_fetched_once(cifar, tmp_path, monkeypatch):
    wanted = cifar("cifar10", tmp_path / "server")
    fetched = []

    def fetch(url, root, filename, md5):
        fetched.append(filename)
        shutil.copytree(tmp_path / "server" / "cifar-10-batches-py", Path(root) / "cifar-10-batches-py")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fetch)
    for _ in range(2):
        assert np.array_equal(loaded.read("cifar10", tmp_path / "home").x_test, wanted["x_test"])
    assert fetched == ["cifar-10-python.tar.gz"]
