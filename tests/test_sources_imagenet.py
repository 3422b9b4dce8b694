"""TinyImageNet, ImageNet64 and pickles, on small files of the published layouts made here."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
from pathlib import Path

import loaded
import numpy as np
import pytest
from loaded import refused
from PIL import Image

import sources
from sources.pickled import load_plain
from utils import BadInput

rng = pytest.fixture(loaded.rng)


def rows_of(x: np.ndarray) -> np.ndarray:
    """[N, H, W, 3] as published rows: all red, then all green, then all blue."""
    return np.stack([np.concatenate([image[:, :, c].ravel() for c in range(3)]) for image in x])


def same(a: sources.Arrays, b: sources.Arrays) -> None:
    """Equal in every field, and of the same types."""
    for key, value in vars(a).items():
        other = vars(b)[key]
        assert getattr(value, "dtype", type(value)) == getattr(other, "dtype", type(other)), key
        assert np.array_equal(value, other), key


@pytest.fixture
def tiny(tmp_path, rng) -> tuple[Path, dict[str, list[tuple[int, int]]]]:
    """tiny-imagenet-200 with 200 classes, each image of one colour; part -> (grey level, label) in expected order."""
    home = tmp_path / "tiny-imagenet-200"
    wnids = [f"n{number:08d}" for number in rng.choice(10**6, 200, replace=False)]
    order = sorted(wnids)
    (home / "val" / "images").mkdir(parents=True)
    (home / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (home / "words.txt").write_text("".join(f"{wnid}\tname of {wnid}, thing\n" for wnid in [*wnids, "n99999999"]))
    expected: dict[str, list[tuple[int, int]]] = {"train": [], "test": []}

    def draw(path: Path, mode: str) -> int:
        level = int(rng.integers(256))
        Image.new(mode, (64, 64), level if mode == "L" else (level,) * 3).save(path, "JPEG", quality=95)
        return level

    for number, wnid in enumerate(order):
        (home / "train" / wnid / "images").mkdir(parents=True)
        for i in range(1 + number % 3):
            mode = "L" if number % 7 == 0 else "RGB"
            level = draw(home / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", mode)
            expected["train"].append((level, number))
    notes = []
    for i, label in enumerate(rng.integers(0, 200, 30)):
        expected["test"].append((draw(home / "val" / "images" / f"val_{i}.JPEG", "RGB"), int(label)))
        notes.append(f"val_{i}.JPEG\t{order[label]}\t0\t0\t63\t63\n")
    (home / "val" / "val_annotations.txt").write_text("".join(notes))
    return home, expected


@pytest.mark.parametrize("inside", [True, False])
def test_tinyimagenet_gives_every_image_in_order_and_moves_nothing(tiny, inside, monkeypatch):
    home, expected = tiny
    monkeypatch.setattr("sources.imagenet.CHUNK", 1 if inside else 250)
    before = sorted(home.rglob("*"))
    root = home if inside else home.parent
    first = loaded.read("TinyImagenet", root)
    for part, wanted in expected.items():
        x, y = getattr(first, f"x_{part}"), getattr(first, f"y_{part}")
        levels = np.array([level for level, _ in wanted])
        assert x.shape == (len(wanted), 64, 64, 3)
        assert np.abs(x.astype(int) - levels[:, None, None, None]).max() <= 2  # a JPEG of one colour
        assert y.tolist() == [label for _, label in wanted]
    assert len(first.classes) == 200
    assert first.classes[0] == f"name of {sorted(p.name for p in (home / 'train').iterdir())[0]}, thing"
    assert sorted(p for p in home.rglob("*") if p.name != "TinyImagenet.npz") == before
    shutil.rmtree(home / "train")
    same(first, loaded.read("TinyImagenet", root))


def test_hidden_files_are_no_pictures(tiny):
    """Those that other systems leave beside each file, in every folder; where one is among them the images stay the same."""
    home, _ = tiny
    first = loaded.read("TinyImagenet", home.parent)
    (home.parent / "TinyImagenet.npz").unlink()
    for image in [*home.glob("train/*/images/*.JPEG"), *home.glob("val/images/*.JPEG")]:
        (image.parent / f"._{image.name}").write_bytes(b"\0\5\x16\7" * 5)
        (image.parent / ".DS_Store").write_bytes(b"Bud1")
    same(first, loaded.read("TinyImagenet", home.parent))


def test_tinyimagenet_folders_that_are_not_whole_are_refused(tiny):
    home, _ = tiny
    notes, image = home / "val" / "val_annotations.txt", home / "val" / "images" / "val_3.JPEG"
    wnid = max(p.name for p in (home / "train").iterdir())
    grey = next((home / "train" / wnid / "images").iterdir())

    def changed(path: Path, content: bytes | None, *words: str) -> None:
        kept = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        refused("TinyImagenet", home.parent, *words, "npack the archive again")
        path.write_bytes(kept)

    changed(image, None, "29 images", "lists 30")
    changed(image, image.read_bytes()[:200], "val_3.JPEG cannot be read")
    changed(image, b"", "val_3.JPEG cannot be read")
    changed(notes, None, "val_annotations.txt is missing")
    changed(notes, notes.read_bytes().split(b"\n", 1)[1], "30 images", "lists 29")
    changed(notes, notes.read_bytes() + b"val_30.JPEG\tn77\n", "'val_30.JPEG n77'")
    changed(home / "wnids.txt", b"n1\nn2\n", "lists 2 classes, not 200")
    Image.new("RGB", (65, 64)).save(home / "other.jpg")
    changed(grey, (home / "other.jpg").read_bytes(), grey.name, "65 x 64 pixels, not 64 x 64")
    shutil.rmtree(grey.parent)
    refused("TinyImagenet", home, f"{grey.parent} holds no *.JPEG")
    assert not list(home.parent.rglob("*.npz"))


def imagenet64(root: Path, rng: np.random.Generator, form: str) -> dict[str, np.ndarray]:
    wanted: dict[str, list] = {"x_train": [], "y_train": [], "x_test": [], "y_test": []}
    for name in [*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"]:
        part = "test" if name == "val_data" else "train"
        folder = root if form == "npz" else root / ("Imagenet64_val" if part == "test" else "Imagenet64_train")
        folder.mkdir(exist_ok=True)
        x, y = rng.integers(0, 256, (int(rng.integers(1, 4)), 64, 64, 3), np.uint8), rng.integers(0, 1000, 4)
        wanted[f"x_{part}"] += list(x)
        wanted[f"y_{part}"] += y[: len(x)].tolist()
        content = {"data": rows_of(x), "labels": (y[: len(x)] + 1).tolist(), "mean": np.zeros(12288)}
        if form == "npz":
            np.savez(folder / f"{name}.npz", **content)
        elif form == "python2":
            (folder / name).write_bytes(python2_pickle(content["data"], content["labels"]))
        else:
            (folder / name).write_bytes(pickle.dumps(content, protocol=int(form)))
    return {key: np.array(value) for key, value in wanted.items()}


def python2_pickle(rows: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2 and numpy 1 write for {'data': rows, 'labels': labels}, opcode by opcode."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + b"\x87R(" + integer(3) + text(b"|") + b"NNN"
    dtype += integer(-1) + integer(-1) + integer(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + text(b"b") + b"\x87R("
    array += integer(1) + integer(rows.shape[0]) + integer(rows.shape[1]) + b"\x86" + dtype + b"\x89"
    array += text(rows.tobytes()) + b"tb"
    numbers = b"](" + b"".join(map(integer, labels)) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


@pytest.mark.parametrize("form", ["npz", "python2", "2", "3", "4", "5"])
def test_imagenet64_batches_become_images_with_labels_from_zero(form, tmp_path, rng):
    wanted = imagenet64(tmp_path, rng, form)
    first = loaded.read("imagenet64", tmp_path)
    for key, value in wanted.items():
        assert np.array_equal(getattr(first, key), value), key
    for path in [*tmp_path.glob("train_*"), *tmp_path.glob("Imagenet64_*/train_*")]:
        path.unlink()
    same(first, loaded.read("imagenet64", tmp_path))


def test_imagenet64_batches_that_do_not_fit_are_refused(tmp_path, rng):
    imagenet64(tmp_path, rng, "4")
    path = tmp_path / "Imagenet64_train" / "train_data_batch_7"
    data = rng.integers(0, 256, (3, 12288), np.uint8)
    for content, words in [
        ({"data": data, "labels": [1, 2, 1001]}, "0 to 1000"), ({"data": data, "labels": [0, 1, 2]}, "-1 to 1"),
        ({"data": data, "labels": [1, 2]}, "each of the 3 images"), ({"data": data}, "no dictionary with data"),
        ({"data": data[:, :3072], "labels": [1, 2, 3]}, "data is uint8 [3, 3072]"), ([data], "no dictionary"),
        ({"data": data / 255, "labels": [1, 2, 3]}, "is float64"), ({"data": data[:0], "labels": []}, "[0, 12288]"),
    ]:
        path.write_bytes(pickle.dumps(content))
        refused("imagenet64", tmp_path, str(path), words)
    whole = pickle.dumps({"data": data, "labels": [1, 2, 3]})
    for content in (b"", whole[:100], whole[:-1], b"\x00" * 100, b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(content)
        refused("imagenet64", tmp_path, str(path), "cannot be read safely")
    path.unlink()
    refused("imagenet64", tmp_path, "train_data_batch_7 (or train_data_batch_7.npz) is missing", "val_data (pickled")


class Malicious:
    def __init__(self, call, *args) -> None:
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_asks_for_anything_but_arrays_is_refused_and_not_run(protocol, tmp_path, rng):
    imagenet64(tmp_path, rng, "4")
    path, mark = tmp_path / "Imagenet64_val" / "val_data", tmp_path / "ran"
    data = rng.integers(0, 256, (2, 12288), np.uint8)
    for evil in (Malicious(os.mkdir, str(mark)), Malicious(eval, f"__import__('os').mkdir({str(mark)!r})"),
                 Malicious(np.fromfile, str(path)), Malicious(getattr, data, "tofile"), Path("x")):
        for nested in (evil, [{"deep": evil}], np.array([evil, None], dtype=object)):
            path.write_bytes(pickle.dumps({"data": data, "labels": [1, 2], "mean": nested}, protocol=protocol))
            refused("imagenet64", tmp_path, str(path), "cannot be read safely (it asks for ")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malicious(os.mkdir, str(mark)), protocol=protocol))
    assert mark.exists()  # the ordinary unpickler runs it


def test_text_codecs_are_not_reachable_from_a_pickle(tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": b"\x80\xff"}, protocol=2))
    assert load_plain(path) == {"data": b"\x80\xff"}
    path.write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.")
    with pytest.raises(BadInput, match="text encoded as 'rot13'"):
        load_plain(path)
