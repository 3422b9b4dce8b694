"""Prepared npz files: their hashes are never those of other content, and they follow the files that they were made from."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import loaded
import numpy as np
import pytest
import shell
from conftest import quiet_runtime
from loaded import refused

import sources
from dataset import DataConfig
from dataset import load as load_data
from sources import prepared

rng = pytest.fixture(loaded.rng)
BATCHES = [*(f"train_data_batch_{number}" for number in range(1, 11)), "val_data"]


def batch(rng: np.random.Generator, count: int = 3) -> bytes:
    """A downsampled ImageNet batch as published."""
    rows = rng.integers(0, 256, (count, 3 * 64 * 64), np.uint8)
    return pickle.dumps({"data": rows, "labels": rng.integers(1, 1001, count).tolist()}, protocol=2)


@pytest.fixture
def published(tmp_path: Path, rng: np.random.Generator) -> Path:
    for name in BATCHES:
        (tmp_path / name).write_bytes(batch(rng))
    return tmp_path


def by_hand(x: np.ndarray, y: np.ndarray) -> str:
    return hashlib.sha256(repr(x.shape).encode() + x.tobytes() + y.astype("<i8").tobytes()).hexdigest()


def hashes_of(arrays: sources.Arrays) -> tuple[str, str]:
    return by_hand(arrays.x_train, arrays.y_train), by_hand(arrays.x_test, arrays.y_test)


# ------------------------------------------------------------------------------------------------------------- hashes


def test_hashes_are_of_every_pixel_and_label_and_are_taken_once(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = loaded.read("imagenet64", published)
    assert first.hashes == hashes_of(first)
    monkeypatch.setattr(sources, "part_hash", None)
    assert loaded.read("imagenet64", published).hashes == first.hashes


@pytest.mark.parametrize("part", ["x_train", "y_train", "x_test", "y_test"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["plain", "compressed"])
def test_hashes_do_not_outlive_a_change_of_the_file(part: str, save: Callable, published: Path) -> None:
    """Whoever rewrites the arrays and keeps all else that is in the file, its size and its time of change."""
    first, path = loaded.read("imagenet64", published), published / "imagenet64.npz"
    before = path.stat()
    with np.load(path) as file:
        content = dict(file)
    content[part].flat[-1] ^= 1
    save(path, **content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = loaded.read("imagenet64", published)
    assert found.hashes == hashes_of(found)
    changed = part.endswith("test")
    assert [a != b for a, b in zip(found.hashes, first.hashes, strict=True)] == [not changed, changed]


def test_a_bit_that_flips_in_place_is_an_error(published: Path) -> None:
    path = published / "imagenet64.npz"
    loaded.read("imagenet64", published)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 3] ^= 1
    path.write_bytes(whole)
    refused("imagenet64", published, str(path), "cannot be read")


def test_a_file_of_somebody_else_is_hashed_and_left_as_it_is(tmp_path: Path, rng: np.random.Generator) -> None:
    x, y = rng.integers(0, 256, (9, 32, 32, 3), np.uint8), rng.integers(0, 10, 9).astype(np.int16)
    np.savez(tmp_path / "cifar10.npz", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])
    before = (tmp_path / "cifar10.npz").read_bytes()
    for about in ("", "[1]", '{"sha256": ["a", "b"]}', '{"sha256": ["a", "b"], "made_from": "", "members": {}}'):
        found = loaded.read("cifar10", tmp_path)
        assert found.hashes == hashes_of(found) == (by_hand(x, y), by_hand(x[:4], y[:4]))
        assert (tmp_path / "cifar10.npz").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
        np.savez(tmp_path / "cifar10.npz", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4], about=np.array(about))
        before = (tmp_path / "cifar10.npz").read_bytes()


# ---------------------------------------------------------------------------------------------- what it was made from


def test_changed_files_make_the_prepared_file_anew(published: Path, rng: np.random.Generator,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    """In place and of the same size too; and only then."""
    path, changed = published / "imagenet64.npz", published / BATCHES[3]
    rows = rng.integers(0, 256, (3, 3 * 64 * 64), np.uint8)
    changed.write_bytes(pickle.dumps({"data": rows, "labels": [1, 2, 3]}, protocol=4))
    first = loaded.read("imagenet64", published)
    written = path.stat().st_mtime_ns
    loaded.read("imagenet64", published)
    assert path.stat().st_mtime_ns == written and "made anew" not in capsys.readouterr().out
    content = bytearray(changed.read_bytes())
    content[content.index(rows.tobytes())] ^= 255
    changed.write_bytes(content)
    found = loaded.read("imagenet64", published)
    assert "made anew" in capsys.readouterr().out and path.stat().st_mtime_ns != written
    differ = np.argwhere(found.x_train != first.x_train)
    assert differ.tolist() == [[9, 0, 0, 0]] and found.hashes == hashes_of(found) != first.hashes
    assert loaded.read("imagenet64", published).hashes == found.hashes and "made anew" not in capsys.readouterr().out


def test_a_prepared_file_outlives_the_files_it_was_made_from(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gone, they are not missed; gone in part, that is said."""
    first = loaded.read("imagenet64", published)
    (published / BATCHES[3]).unlink()
    assert loaded.read("imagenet64", published).hashes == first.hashes
    said = capsys.readouterr().out
    assert "have changed since and cannot be read now" in said and f"{BATCHES[3]} " in said
    for name in BATCHES:
        (published / name).unlink(missing_ok=True)
    assert loaded.read("imagenet64", published).hashes == first.hashes and not capsys.readouterr().out


def test_an_edited_prepared_file_is_never_overwritten(published: Path, rng: np.random.Generator) -> None:
    loaded.read("imagenet64", published)
    path = published / "imagenet64.npz"
    with np.load(path) as file:
        content = dict(file)
    content["y_train"] = (content["y_train"] + 1) % 1000
    np.savez(path, **content)
    (published / BATCHES[0]).write_bytes(batch(rng))
    assert np.array_equal(loaded.read("imagenet64", published).y_train, content["y_train"])


def test_every_published_layout_says_which_files_it_is() -> None:
    """But for what comes with a package: a data set without it would never be made anew."""
    given = {name: sources.SOURCES[name].files for name in sources.SOURCES.names()}
    assert [name for name, files in given.items() if files is sources.Source.files] == ["digits"]


def test_a_listing_knows_names_sizes_and_times(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("12")
    b.write_text("3")
    seen = [prepared.listing([a, b], tmp_path)]
    assert prepared.listing([a, b], tmp_path) == seen[0] and prepared.listing([], tmp_path) == ""
    os.utime(a, ns=(1, 1))
    seen.append(prepared.listing([a, b], tmp_path))
    a.write_text("123")
    os.utime(a, ns=(1, 1))
    seen += [prepared.listing([a, b], tmp_path), prepared.listing([a], tmp_path)]
    a.rename(tmp_path / "c")
    seen.append(prepared.listing([tmp_path / "c", b], tmp_path))
    assert len(set(seen)) == 5


# ---------------------------------------------------------------------------------------------------------- their size


def test_published_files_of_another_size_are_refused_unless_meant(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(sources.BadInput, match="holds 30 training and 3 test images.*1,281,167 and 50,000.*--any_size"):
        sources.load("imagenet64", published)
    assert not (published / "imagenet64.npz").exists()
    loaded.read("imagenet64", published)
    assert not capsys.readouterr().out
    sources.load("imagenet64", published)  # what is prepared may be a part, which is said
    assert "notice: " in (said := capsys.readouterr().out) and "holds 30 training and 3 test images" in said
    assert "--any_size" in said and said.count("\n") == 1


def test_the_whole_data_set_is_taken_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    sources.load("digits", Path("nowhere"))
    assert not capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("part", ["x_train", "y_train", "x_test", "y_test"])
def test_a_single_pixel_or_label_changes_the_key_that_it_belongs_to(part: str, tmp_path: Path) -> None:
    """The last of an image in the middle: nothing is sampled. Scores, which are of training images, go by those alone."""
    found = {name: getattr(loaded.digits(), name) for name in sources.PARTS}
    kept = load_data(DataConfig(dataset="digits"), quiet_runtime()).splits
    changed = found[part].copy()
    middle = len(changed) // 2
    changed[middle] = 9 - changed[middle] if part[0] == "y" else np.where(np.arange(192).reshape(8, 8, 3) == 191,
                                                                           changed[middle] ^ 1, changed[middle])
    np.savez(tmp_path / "digits.npz", **found | {part: changed})
    other = load_data(DataConfig(dataset="digits", data=str(tmp_path)), quiet_runtime()).splits
    assert other.data_key != kept.data_key
    assert (other.images_key != kept.images_key) == part.endswith("train")
    assert (other.test_key != kept.test_key) == part.endswith("test")


def test_a_model_is_not_tested_on_other_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inverted test images beside the same training images: refused, and the right data are not done by it."""
    shell.write_digits(tmp_path / "right")
    with np.load(tmp_path / "right" / "digits.npz") as file:
        content = dict(file)
    (tmp_path / "wrong").mkdir()
    np.savez(tmp_path / "wrong" / "digits.npz", **content | {"x_test": 255 - content["x_test"]})
    words = ["--dataset", "digits", "--arch", "resnet8s", "--classes", "0-2", "--seed", 1]
    shell.call("main_train.py", *words, "--data", tmp_path / "right", "--epochs", 1, save_dir=tmp_path)
    ask = ["--seed", 1, "--unlearn", "raw", "--num_indexes_to_replace", 9]
    with pytest.raises(SystemExit) as end:
        shell.call("main_forget.py", *ask, "--data", tmp_path / "wrong", save_dir=tmp_path)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "data differ" in said and "--data" in said
    shell.call("main_forget.py", *ask, "--data", tmp_path / "right", save_dir=tmp_path)
    assert "already done" not in capsys.readouterr().out
