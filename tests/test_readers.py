"""Files that somebody names: whatever lies there, every reader gives values or one true line, and none waits or runs code."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

import groups
import sources
from groups import Candidates, ForgetConfig
from memorization import pool
from models import read_safely
from pruner.plan import Plan, PruneConfig
from sources.imagenet import _picture
from sources.pickled import load_plain
from sources.scores import read_scores
from unlearn import plan
from utils import BadInput, open_regular, read_json, read_whole_numbers, sha256

TRAIN = np.arange(0, 90)
CANDIDATES = Candidates(np.arange(100) % 5, TRAIN, 5, "key")


def chosen(**flags: Any) -> np.ndarray:
    return groups.choose_forget(ForgetConfig(**flags), CANDIDATES).forget


def of_folder(name: str, path: Path) -> Any:
    """A data set whose one file is the given one."""
    path.rename(path.with_name(name))
    return sources.load(Path(name).stem, path.parent, download=False)


def rewound(path: Path) -> Plan:
    return Plan.of(PruneConfig(prune_type="rewind_lt", rewind_pth=str(path)), 2, "constant")


# every flag that takes a file -> what reads it
READERS: dict[str, Callable[[Path], Any]] = {
    "--forget_index": lambda path: chosen(forget_index=str(path)),
    "--scores": lambda path: chosen(scores=str(path), mem="high", num_indexes_to_replace=9),
    "--scores of chunks": lambda path: chosen(scores=str(path), group_index=1, num_indexes_to_replace=9),
    "--scores of analysis.py": lambda path: read_scores(path, "memorization"),
    "--requests": lambda path: plan.read_requests(path, TRAIN),
    "--subsets": lambda path: pool._read_subsets(path, 2, 100),
    "--checkpoint": read_safely,
    "--path": read_safely,
    "--rewind_pth": rewound,
    "--data, prepared": functools.partial(of_folder, "digits.npz"),
    "--data, prepared cifar100": functools.partial(of_folder, "cifar100.npz"),
    "--data, pickled": load_plain,
    "a picture of --data": _picture,
    "any file with a hash": sha256,
}
# no readers of arrays
PLAIN = ("a picture of --data", "--checkpoint", "--path", "--rewind_pth", "--data, pickled", "any file with a hash")


class Waits(BaseException):
    """No reader takes this for an error of its file."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Whoever waits for a pipe longer than this is told so."""
    def stop(number: int, frame: FrameType | None) -> None:
        raise Waits("it waits for something that never comes")

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def refused(reader: str, path: Path) -> str:
    """What a reader says of a file, in one line that no other library wrote."""
    with at_most(3), pytest.raises(BadInput) as caught:
        READERS[reader](path)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 500 + 2 * len(str(path)), said
    assert not [word for word in ("allow_pickle", "unsafely", "Errno", "object_", "maximum recursion") if word in said], said
    return said


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as own, contextlib.chdir(path.parent):  # its name may have 108 letters
        own.bind(path.name)


NO_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pipe": (os.mkfifo, "is a pipe"), "a socket": (make_socket, "is a pipe"), "a folder": (Path.mkdir, "is a folder"),
    # of /dev/zero and /dev/full the same is asked below, without a reader that would fill the memory
    "a device": (lambda path: path.symlink_to("/dev/null"), "is a pipe, a device"),
    "a link to itself": (lambda path: path.symlink_to(path), "symbolic links"),
}


@pytest.mark.parametrize("what", NO_FILES)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_before_it_is_opened(reader: str, what: str, tmp_path: Path) -> None:
    make, told = NO_FILES[what]
    make(tmp_path / "named.npz")
    if what == "a link to itself" and reader.startswith("--data, prepared"):
        pytest.skip("renamed, it leads nowhere, which is no file at all")
    said = refused(reader, tmp_path / "named.npz")
    assert told in said or "symbolic" in told and "too many levels" in said.lower(), said


@pytest.mark.parametrize("reader", [name for name in READERS if not name.startswith("--data, prepared")])
def test_what_is_not_there_or_has_no_possible_name_is_said(reader: str, tmp_path: Path) -> None:
    assert "does not exist" in (said := refused(reader, tmp_path / "none.npz")) or "No such file" in said or "no such" in said
    assert "too long" in refused(reader, tmp_path / ("x" * 300))


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/null"])
def test_devices_are_never_opened(device: str) -> None:
    with pytest.raises(OSError, match="is a pipe, a device or a socket"):
        open_regular(Path(device))


def dump(content: Any) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(pickle.dumps(content))


def text(content: str) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content.encode())


def array(**arrays: Any) -> Callable[[Path], Any]:
    def save(path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(file, **arrays) if "" not in arrays else np.save(file, arrays[""])
    return save


def absurd(path: Path) -> None:
    """An array whose head promises 8 EB."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**18,)})


NAMES = ("forget", "masks", "memorization", "es", "group", "distance", "levels", "chunk_es", "x_train", "y_train", "x_test",
         "y_test")
ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (text(""), "empty|no whole|not a whole|damaged"),
    "a file of torch": (lambda path: torch.save(torch.arange(5), path), "torch.save"),
    "an old file of torch": (lambda path: torch.save(torch.arange(5), path, _use_new_zipfile_serialization=False), "pickle"),
    "a pickle": (dump([1, 2]), "pickle"),
    "objects": (array(**{"": np.array([Path("here")], dtype=object)}), "pickle"),
    "named objects": (array(**{name: np.array([None, 3], dtype=object) for name in NAMES}), "pickle"),
    "a head of 8 EB": (absurd, "memory|too large|allocate|exceeds|Maximum allowed"),
    "half an npz": (lambda path: (array(a=np.arange(99))(path), path.write_bytes(path.read_bytes()[:200])), "damaged|cut"),
    "nested JSON": (text("[" * 100_000), "nested"),
    "bytes": (lambda path: path.write_bytes(bytes(range(129, 256)) * 9), "neither|text|cut off"),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("reader", [name for name in READERS if name not in PLAIN])
def test_foreign_content_is_refused_for_its_own_reason(reader: str, what: str, tmp_path: Path) -> None:
    make, told = ODD[what]
    make(tmp_path / "named.npz")
    said = refused(reader, tmp_path / "named.npz")
    if reader == "--requests":
        assert "JSON" in said or "nested" in said, said
    elif reader.startswith("--data"):
        assert "whole npz" in said, said
    else:
        assert any(word in said for word in told.split("|")), said


@pytest.mark.parametrize("reader", ["--checkpoint", "--data, pickled"])
@pytest.mark.parametrize("what", ODD)
def test_foreign_checkpoints_and_batches_are_refused(reader: str, what: str, tmp_path: Path) -> None:
    if (reader, what) in (("--checkpoint", "a file of torch"), ("--checkpoint", "an old file of torch"),
                          ("--data, pickled", "an old file of torch"),
                          ("--data, pickled", "a pickle"), ("--checkpoint", "a pickle")):
        return  # which they read
    ODD[what][0](tmp_path / "named.npz")
    refused(reader, tmp_path / "named.npz")


# --------------------------------------------------------------------------------------------------- lists of whole numbers

INDEX = [3, 41, 7]
GOOD: dict[str, Callable[[Path], Any]] = {
    "npy": array(**{"": np.array(INDEX)}), "npy of bytes": array(**{"": np.array(INDEX, np.uint8)}),
    "npz": array(forget=np.array(INDEX), val=np.arange(90, 95)),
    "json": text(json.dumps(INDEX)), "json after a mark": text("\ufeff" + json.dumps(INDEX)), "lines": text("3\n41\n7\n"),
    "lines of Windows": text("3\r\n41\r\n7\r\n"), "one line": text("3, 41, 7"),
    "blanks and a comment": text("# mine\n\n3\n41\n\n7"),
    "np.savetxt": lambda path: np.savetxt(path, INDEX), "whole floats of json": text("[3.0, 41.0, 7.0]"),
}


@pytest.mark.parametrize("form", GOOD)
@pytest.mark.parametrize("suffix", [".npy", ".csv", ""])
def test_indices_are_read_in_every_form_whatever_the_name(form: str, suffix: str, tmp_path: Path) -> None:
    GOOD[form](tmp_path / f"index{suffix}")
    found = chosen(forget_index=str(tmp_path / f"index{suffix}"))
    assert found.dtype == np.int64 and found.tolist() == sorted(INDEX)
    assert read_whole_numbers(tmp_path / f"index{suffix}", "forget").tolist() == INDEX


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "halves": (text("1\n2.5\n"), "whole numbers; got float64"),
    "floats of numpy": (array(**{"": np.array([1.0, 2.0])}), "whole numbers; got float64"),
    "complex": (array(**{"": np.array([1 + 0j])}), "whole numbers; got complex128"),
    "words of numpy": (array(**{"": np.array(["1", "2"])}), "whole numbers; got <U1"),
    "dates": (array(**{"": np.array(["2020-01-01"], "datetime64[D]")}), "whole numbers; got datetime64"),
    "a scalar": (array(**{"": np.array(3)}), "got int64 ()"),
    "true and false": (text("[true, 1]"), "need a list"),
    "null": (text("[null]"), "need a list"),
    "a list of lists": (text("[[1], [2]]"), "need a list"),
    "an object": (text('{"forget": [1]}'), "need a list"),
    "a name twice": (text('{"a": 1, "a": 2}'), "'a' twice"),
    "NaN": (text("[1, NaN]"), "NaN is no number of JSON"),
    "infinity": (text("[1, -Infinity]"), "no number of JSON"),
    "1e999": (text("[1, 1e999]"), "whole numbers; got float64"),
    "309 digits": (text("[1, " + "9" * 309 + "]"), "too large"),
    "5000 digits": (text("[1, " + "9" * 5000 + "]"), "cannot read --forget_index"),
    "309 digits a line": (text("1\n" + "9" * 309), "too large"),
    "2^63": (text("9223372036854775808"), "too large"),
    "2^63 of numpy": (array(**{"": np.array([2**63], np.uint64)}), "too large"),
    "below zero": (text("-1\n4"), "0 to 99; got -1"),
    "beyond": (text("100"), "0 to 99; got 100"),
    "twice": (text("4\n4"), "more than once"),
    "no index": (text("index\n4\n5"), "line 1 holds 'index'"),
    "two columns": (text("0,4\n1,5"), "line 1 holds 2 values"),
    "nothing but a comment": (text("# none\n"), "one or more"),
    "a long word": (text("x" * 100_000), "100000 characters"),
    "json cut off": (text("[1, 2"), "no JSON"),
    "of validation": (text("90\n91\n1"), "2 of the indices are in the validation split"),
    "npz without it": (array(indices=np.arange(3)), "no 'forget' (it has indices)"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_list_of_indices_is_told(what: str, tmp_path: Path) -> None:
    make, told = BAD[what]
    make(tmp_path / "index.csv")
    assert told in (said := refused("--forget_index", tmp_path / "index.csv")), said


@pytest.mark.parametrize(("content", "told"), [
    ("[" * 100_000, "nested"), ("[[1, 2], [3, NaN]]", "NaN is no number"), ('{"a": 1, "a": 2}', "'a' twice"),
    ("[[1, 2]", "no JSON"), (f"[[1], [{'9' * 309}]]", "1 examples of request 2 are no training examples"),
    ("[[1.0]]", "other things than whole numbers"), ("[[true]]", "other things than whole numbers"),
    ("[1, 2]", "list of one or more lists"), ("[[]]", "list of one or more lists"), ("null", "list of one or more lists"),
    ("\x00", "no JSON"), (f"[[{'9' * 5000}]]", "cannot read --requests")])
def test_what_are_no_requests_is_told(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "requests.json").write_text(content)
    assert told in (said := refused("--requests", tmp_path / "requests.json")), said


def test_requests_of_an_editor_of_windows_are_read(tmp_path: Path) -> None:
    (tmp_path / "requests.json").write_bytes("\ufeff[[1, 2],\r\n [5]]\r\n".encode())
    assert [index.tolist() for index in plan.read_requests(tmp_path / "requests.json", TRAIN)] == [[1, 2], [5]]
    assert read_json(tmp_path / "requests.json") == [[1, 2], [5]]


def test_scores_without_a_name_are_refused_with_the_line_that_names_them(tmp_path: Path) -> None:
    """A table of numbers may be any score; the advice that is given works."""
    values = np.random.default_rng(0).random(100)
    np.savetxt(tmp_path / "s.csv", values)
    said = refused("--scores", tmp_path / "s.csv")
    assert "without a name" in said and "np.savez(FILE, memorization=values)" in said
    np.savez(tmp_path / "s.npz", memorization=np.loadtxt(tmp_path / "s.csv"))
    found = chosen(scores=str(tmp_path / "s.npz"), mem="high", num_indexes_to_replace=9)
    assert found.tolist() == np.sort(TRAIN[np.argsort(-values[TRAIN])[:9]]).tolist()


# ----------------------------------------------------------------------------------------------------- rights


@contextlib.contextmanager
def ordinary_user() -> Iterator[Path]:
    """A folder that is ours, while we are nobody: to root no file is closed."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o777)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield Path(place)
        finally:
            if root:
                os.seteuid(0)
            for path in [Path(place), *Path(place).rglob("*")]:
                path.chmod(0o700)


@pytest.mark.parametrize("reader", [name for name in READERS if not name.startswith("--data, prepared")])
def test_a_file_that_is_closed_to_us_is_said(reader: str) -> None:
    with ordinary_user() as place:
        (place / "shut.npz").write_bytes(b"PK")
        (place / "shut.npz").chmod(0)
        (place / "folder").mkdir(mode=0)
        assert "Permission denied" in refused(reader, place / "shut.npz")
        assert "Permission denied" in refused(reader, place / "folder" / "inside.npz")


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar20", "svhn", "TinyImagenet", "imagenet64"])
def test_a_data_folder_that_is_closed_to_us_is_said(name: str) -> None:
    with ordinary_user() as place:
        (place / "data").mkdir(mode=0)
        with pytest.raises(BadInput, match="Permission denied"):
            sources.load(name, place / "data", download=False)
