"""A run folder is finished only while it is whole; repeating one loses nothing; foreign and damaged files are told."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import shell
import torch
from conftest import quiet_runtime
from pretended import table_of

import utils.files
import utils.folders
from trainer import Descent, TrainConfig, resumable
from utils import BadInput, CannotWrite, Run, RunConfig, find_runs, read_record, survey

ROOT = Path(__file__).resolve().parent.parent
nowhere = pytest.fixture(autouse=True)(shell.nowhere)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shell.library(tmp_path_factory)


def toy(root: Path, force: bool = False) -> Run:
    return Run(RunConfig(save_dir=str(root), force=force, resume_every=0), "train", "toy", {"rt": quiet_runtime().cfg})


def finish(root: Path, value: float = 1.0, **how: Any) -> Run:
    """A run of two files, which holds a value."""
    with toy(root, **how) as run:
        if not run.done:
            run.load_state()
            run.log(epoch=0, loss=value)
            run.save_tensors("model.pt", {"value": value})
            run.save_arrays("outputs.npz", value=np.full(100, value))
            run.result(metrics={"train": value})
    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def error_of(capsys: pytest.CaptureFixture[str], stage: str, *words: Any, save_dir: Path) -> str:
    """The one line that a stage ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        shell.call(stage, *words, save_dir=save_dir)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "Traceback" not in said, said
    return said


# -------------------------------------------------------------------------------------------------------- whole or not


def spoil(how: str, path: Path) -> None:
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["gone", "cut", "empty"])
@pytest.mark.parametrize("name", ["model.pt", "outputs.npz", "record.json"])
def test_a_run_that_is_not_whole_is_not_done_and_force_repairs_it(name: str, how: str, tmp_path: Path) -> None:
    folder = finish(tmp_path).folder
    spoil(how, folder / name)
    before = content(folder)
    if (name, how) == ("record.json", "gone"):
        assert not finish(tmp_path, 2.0).done  # nothing says that it ever ended
    else:
        with pytest.raises(BadInput, match=rf"{name}.*--force"):
            finish(tmp_path)
        assert content(folder) == before
        finish(tmp_path, 2.0, force=True)
    assert find_runs(tmp_path, ("train",))[0].record["metrics"] == {"train": 2.0}
    assert finish(tmp_path).done and sorted(content(folder)) == ["log.jsonl", "model.pt", "outputs.npz", "record.json"]


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_every_stage_finds_the_original_that_is_not_whole(
    how: str, library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its folder, by its file, by search, and in its own training; the training with --force is what helps."""
    known = shell.only(library, "train")
    folder = Path(shutil.copytree(known.folder, tmp_path / "train" / known.folder.name))
    spoil(how, folder / "model.pt")
    one = ["--unlearn", "FT", "--unlearn_epochs", 1, *shell.FORGET]
    told = [error_of(capsys, "main_train.py", *shell.THREE, "--epochs", 1, "--seed", 1, save_dir=tmp_path),
            error_of(capsys, "main_forget.py", "--checkpoint", folder, *one, save_dir=tmp_path),
            error_of(capsys, "generate_mask.py", "--checkpoint", folder, *shell.FORGET, save_dir=tmp_path)]
    if how == "cut":
        told.append(error_of(capsys, "main_forget.py", "--checkpoint", folder / "model.pt", *one, save_dir=tmp_path))
    assert all("model.pt" in line and "--force" in line for line in told), told
    capsys.readouterr()
    with pytest.raises(SystemExit):
        shell.call("main_forget.py", "--seed", 1, *one, save_dir=tmp_path)
    assert "model.pt" in (said := capsys.readouterr()).out and "model.pt" in said.err and "--force" in said.err
    shell.call("main_train.py", *shell.THREE, "--epochs", 1, "--seed", 1, "--force", save_dir=tmp_path)
    assert all(torch.equal(value, shell.weights(known)[name])
               for name, value in shell.weights(shell.only(tmp_path, "train")).items())


def test_arrays_that_lack_or_differ_are_told(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though the record knows no better: outputs without a part, and with fewer rows of one array than of another."""
    known = shell.only(library, "forget", unlearn="FT")
    words = ["--checkpoint", shell.only(library, "train").folder, "--unlearn", "FT", "--unlearn_epochs", 1, *shell.FORGET,
             "--mia", "interval"]
    for change in ({"test_logits": None}, {"test_logits": lambda x: x[:-1]}, {"forget_labels": lambda x: x.astype(float)},
                   {"retain_logits": lambda x: x[:, :2]}):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        folder = Path(shutil.copytree(known.folder, root / "forget" / known.folder.name))
        with np.load(known.folder / "outputs.npz") as file:
            arrays = dict(file)
        for name, how in change.items():
            kept = arrays.pop(name)
            arrays |= {name: how(kept)} if how else {}
        np.savez(folder / "outputs.npz", **arrays)
        record = json.loads((folder / "record.json").read_text())
        record["files"]["outputs.npz"] = (folder / "outputs.npz").stat().st_size
        (folder / "record.json").write_text(json.dumps(record))
        said = error_of(capsys, "main_forget.py", *words, save_dir=root)
        told = "forget_logits" if "retain_logits" in change else next(iter(change))  # the first that does not fit
        assert "outputs.npz" in said and told in said and "--force" in said


# ------------------------------------------------------------------------------------------------------------- --force


def test_repeating_a_run_leaves_what_the_user_put_into_its_folder(tmp_path: Path) -> None:
    folder = finish(tmp_path).folder
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")
    (folder / "plot.pdf").write_bytes(b"mine")
    finish(tmp_path, 2.0, force=True)
    assert {"notes/a.txt", "plot.pdf"} < set(content(folder)) and not (folder / ".before").exists()
    assert torch.load(folder / "model.pt")["value"] == 2.0 and read_record(folder).record["metrics"] == {"train": 2.0}


@pytest.mark.parametrize("error", [BadInput("the loss became nan"), CannotWrite("no room")])
def test_a_repeat_that_is_refused_brings_the_finished_run_back(error: BadInput, tmp_path: Path) -> None:
    folder = finish(tmp_path).folder
    (folder / "notes").mkdir()
    before = content(folder)
    with pytest.raises(type(error)), toy(tmp_path, force=True) as run:
        run.log(epoch=0, loss=9.0)
        run.save_tensors("model.pt", {"value": 9.0})
        raise error
    assert content(folder) == before and (folder / "notes").is_dir() and finish(tmp_path).done


def test_a_repeat_that_cannot_begin_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk at the very first write, and the process killed at each of the moves before it."""
    before = content(folder := finish(tmp_path).folder)
    with monkeypatch.context() as patch, pytest.raises(CannotWrite):
        patch.setattr(os, "fsync", full)
        finish(tmp_path, 2.0, force=True)
    assert content(folder) == before
    for stop in range(1, len(before) + 1):
        real, moved = os.replace, []

        def replace(source: Path, target: Path, stop: int = stop, moved: list[Path] = moved, real: Any = real) -> None:
            moved.append(target)
            if len(moved) == stop:
                raise KeyboardInterrupt  # as a kill: nothing is mended on the way out
            real(source, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", replace)
            finish(tmp_path, 2.0, force=True)
        assert finish(tmp_path).done and content(folder) == before


def test_an_interrupted_repeat_goes_on_without_force(tmp_path: Path) -> None:
    folder = finish(tmp_path).folder
    with pytest.raises(KeyboardInterrupt), toy(tmp_path, force=True) as run:
        assert run.load_state() is None
        run.save_state(at=1)
        raise KeyboardInterrupt
    assert not find_runs(tmp_path, ("train",))
    with toy(tmp_path) as run:
        assert run.load_state()["at"] == 1
        run.save_tensors("model.pt", {"value": 3.0})
    assert finish(tmp_path).done and not (folder / ".before").exists()


def test_bad_input_in_a_folder_with_files_of_the_user_keeps_them(tmp_path: Path) -> None:
    folder = toy(tmp_path).folder
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BadInput), toy(tmp_path) as run:
        run.save_tensors("model.pt", {})
        raise BadInput("no")
    assert list(content(tmp_path)) == [f"train/{folder.name}/notes.txt"]


# --------------------------------------------------------------------------------------------------------------- state


def numbers(run: Run, root: Path) -> list[int]:
    """The epochs that a small training of a run has to do."""
    rt = quiet_runtime()
    opt = Descent(torch.nn.Linear(2, 2), TrainConfig(epochs=3), lr=0.1, epochs=3, rt=rt, purpose="train")
    return list(resumable(3, opt, rt, run))


def states() -> Iterator[tuple[str, Callable[[Path], None]]]:
    def changed(**fields: Any) -> Callable[[Path], None]:
        return lambda path: torch.save(torch.load(path) | fields, path)

    yield "foreign", lambda path: path.write_text("hello\n")
    yield "empty", lambda path: path.write_bytes(b"")
    yield "cut", lambda path: path.write_bytes(path.read_bytes()[:-300])
    yield "a tensor", lambda path: torch.save(torch.zeros(3), path)
    yield "an object", lambda path: torch.save(Path("x"), path)
    yield "other schema", changed(schema=2)
    yield "no schema", changed(schema=None)
    yield "other run", changed(run="toy-0123456789")
    yield "seconds of a text", changed(seconds="long")
    yield "rows of a number", changed(rows=3)
    yield "epoch of a text", changed(epoch="one")
    yield "no optimiser", changed(opt={})
    yield "no streams", changed(streams=None)
    yield "other weights", changed(opt={
        "moments": [[torch.zeros(3, 2), torch.zeros(2)]], "count": 0, "anchor": [], "passes": 1, "model": {}})


@pytest.mark.parametrize(("how", "spoil"), list(states()), ids=[how for how, _ in states()])
def test_a_state_that_cannot_be_used_is_told_and_the_run_starts_anew(
    how: str, spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), toy(tmp_path) as run:
        rt = quiet_runtime()
        opt = Descent(torch.nn.Linear(2, 2), TrainConfig(epochs=3), lr=0.1, epochs=3, rt=rt, purpose="train")
        for epoch in resumable(3, opt, rt, run):
            run.log(epoch=epoch)
            if epoch:
                raise KeyboardInterrupt
    path = run.folder / "state.pt"
    assert torch.load(path)["epoch"] == 1
    spoil(path)
    with toy(tmp_path) as run:
        assert numbers(run, tmp_path) == [0, 1, 2]
        run.log(epoch=9)
    said = capsys.readouterr().out
    assert "state.pt" in said and "starts anew" in said and said.count("\n") == 1
    assert finish(tmp_path).done and (run.folder / "log.jsonl").read_text() == '{"epoch": 9}\n'


# -------------------------------------------------------------------------------------------------------------- records


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every field of a record; of settings, those that every run has."""
    inside = value.items() if isinstance(value, dict) else ()
    for key, item in inside:
        yield (*at, key)
        yield from places(item, (*at, key))


def changed(record: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    record = json.loads(json.dumps(record))
    inner = record
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return record


def test_hand_edited_records_end_in_one_line(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every field of a finished run, with values of other types, through the analysis: a table, or what is wrong."""
    folders = {name: Path(shutil.copytree(run.folder, tmp_path / "forget" / run.folder.name))
               for name in ("FT", "retrain") for run in [shell.only(library, "forget", unlearn=name)]}
    path = folders["FT"] / "record.json"
    whole = json.loads(path.read_text())
    spots = [at for at in places(whole) if at[0] not in ("settings", "metrics") or len(at) < 3]
    refused = 0
    for at in spots:
        for value in ("a text", 3, None, [], {}, True):
            path.write_text(json.dumps(changed(whole, at, value)))
            found, problems = survey(tmp_path, ("forget",))
            refused += len(problems)
            assert len(found) + len(problems) >= 1 and all(str(path.parent) in problem for problem in problems)
    assert refused > 2 * len(spots)
    for at in spots[::5]:
        for value in ("a text", None):
            path.write_text(json.dumps(changed(whole, at, value)))
            with contextlib.suppress(BadInput):  # and nothing else
                table_of(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff\xfe\x00", b"[" * 100_000, b'{"schema": 1, "metrics": NaN}',
                                  b'{"schema": 1, "seed": ' + b"9" * 5000 + b"}"])
def test_a_record_of_anything_else_is_told_and_repaired(text: bytes, tmp_path: Path) -> None:
    folder = finish(tmp_path).folder
    (folder / "record.json").write_bytes(text)
    with pytest.raises(BadInput, match=r"record\.json .*--force"):
        finish(tmp_path)
    found, problems = survey(tmp_path, ("train",))
    assert not found and len(problems) == 1 and str(folder) in problems[0]
    finish(tmp_path, force=True)
    assert len(find_runs(tmp_path, ("train",))) == 1


def test_records_of_another_version_say_so(tmp_path: Path) -> None:
    path = finish(tmp_path).folder / "record.json"
    whole = json.loads(path.read_text())
    for change, told in (({"schema": 2}, "schema 2"), ({"files": None}, "files"), ({"status": 3}, "status is 3, not a text"),
                         ({"settings": {"rt": {"seed": "one"}}}, r'settings\.rt\.seed is "one", not a whole number')):
        path.write_text(json.dumps({k: v for k, v in (whole | change).items() if v is not None}))
        with pytest.raises(BadInput, match=f"{told}.*--force"):
            read_record(path.parent)


def test_a_damaged_record_hides_no_other_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = finish(tmp_path).folder
    other = Path(shutil.copytree(whole, whole.parent / "other"))
    (other / "record.json").write_bytes(b"{")
    assert [run.folder for run in find_runs(tmp_path, ("train",))] == [whole]
    assert f"{other / 'record.json'} is damaged" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- writing, and a full disk


def full(*args: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 kB, where this account may mount one."""
    place = tmp_path / "tiny"
    place.mkdir()
    if shutil.which("mount") is None or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_told_at_every_write(tiny: Path) -> None:
    """The log, tensors, arrays and a figure: each ends in one line, and no half file stays."""
    def log(run: Run) -> None:
        for _ in range(2000):
            run.log(text="x" * 100)

    arrays = {"value": np.random.default_rng(0).random(20_000)}
    for write in (log, lambda run: run.save_tensors("model.pt", {"value": torch.zeros(20_000)}),
                  lambda run: run.save_arrays("outputs.npz", **arrays),
                  lambda run: run.write("grid.png", lambda file: file.write(bytes(100_000)))):
        with pytest.raises(CannotWrite, match="No space left.*--save_dir"), toy(tiny) as run:
            write(run)
        assert not list(tiny.rglob("*.part"))
        shutil.rmtree(tiny / "train")


def test_a_full_disk_while_the_log_grows_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("utils.runs.append", lambda path, text: utils.files.append(Path("/dev/full"), text))
    said = error_of(capsys, "main_train.py", *shell.THREE, "--epochs", 1, save_dir=tmp_path)
    assert "No space left" in said and "--save_dir" in said


def test_the_exported_trojan_on_a_full_disk_names_its_flag(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="/dev/full/trojan.pt.*choose another --mask"):
        utils.files.write_tensors(Path("/dev/full/trojan.pt"), {}, "--mask")
    with pytest.raises(CannotWrite, match="choose another --mask"):
        utils.files.make_folder(Path("/dev/full/folder"), "--mask")


def test_every_write_of_a_model_goes_through_one_place() -> None:
    """torch's and numpy's own writers answer a full disk with other errors, or leave half a file."""
    places = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py")
              if not {".venv", "tests", "benchmarks", "scripts"} & set(path.relative_to(ROOT).parts)
              and "torch.save(" in path.read_text()}
    assert places == {"utils/files.py", "utils/ranks.py"}  # the second into memory, for other processes


def test_half_written_files_do_not_stay_for_ever(tmp_path: Path) -> None:
    """Those of a killed writer go with the next write of the same file, once nobody can be at it any more."""
    old, young, other = (tmp_path / f".{name}.part" for name in ("model.pt.1", "model.pt.2", "other.pt.1"))
    for path in (old, young, other):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * utils.files.STALE))
    utils.files.write_atomic(tmp_path / "model.pt", lambda file: file.write(b"whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.pt.2.part", ".other.pt.1.part", "model.pt"]


# ------------------------------------------------------------------------------------------------ locks, and folders


def test_a_file_system_without_flock_locks_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("fcntl.flock", missing)
    with toy(tmp_path) as run:
        held = filelock.SoftFileLock(run.folder / ".lock.soft")
        with pytest.raises(filelock.Timeout):
            held.acquire(timeout=0)
        run.save_tensors("model.pt", {})
    assert sorted(path.name for path in run.folder.iterdir()) == ["model.pt", "record.json"]


def test_nothing_that_only_some_systems_have_is_imported(tmp_path: Path) -> None:
    """fcntl and resource are missing on Windows."""
    script = ("import sys\nsys.modules['fcntl'] = sys.modules['resource'] = None\nimport utils\n"
              "from utils import Runtime, RuntimeConfig\n"
              "assert Runtime(RuntimeConfig(device='cpu')).facts()['torch']")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["file", "fifo", "device", "long", "below a file"])
def test_a_save_dir_that_is_no_folder_is_told_in_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    where = {"device": Path("/dev/full"), "long": tmp_path / "new" / ("x" * 300), "below a file": tmp_path / "file" / "runs"}
    before = shell.listing(tmp_path)
    said = error_of(capsys, "main_train.py", *shell.THREE, "--epochs", 1, save_dir=where.get(kind, tmp_path / kind))
    assert "cannot write" in said and "--save_dir" in said and shell.listing(tmp_path) == before
    with pytest.raises(SystemExit) as end:  # nothing is found there, and nothing breaks
        shell.call("main_forget.py", "--unlearn", "FT", *shell.FORGET, save_dir=where.get(kind, tmp_path / kind))
    assert end.value.code == 2


def as_nobody(script: str, *words: Any) -> subprocess.CompletedProcess[str]:
    """Python as an account that may not everything, as root may: permissions do not bite a root."""
    if os.getuid() != 0:
        return subprocess.run([sys.executable, "-c", script, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    return subprocess.run([sys.executable, "-c", f"import os\nimport torch, filelock, utils\nos.setegid(65534)\n"
                                                 f"os.seteuid(65534)\n{script}", *map(str, words)],
                          cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_folders_without_permission_are_told_in_one_line(open_place: Path) -> None:
    """As nobody: a save_dir that cannot be entered, and one that cannot be written, where a finished run lies."""
    finish(open_place / "shared")
    closed = open_place / "closed"
    closed.mkdir(mode=0o000)
    script = ("import sys, pathlib\nsys.path.insert(0, 'tests')\nfrom utils import *\n"
              "cfg = RunConfig(save_dir=sys.argv[1])\n"
              "rt = RuntimeConfig(seed=5, device='cpu', precision='fp32', progress=False)\n"
              "for act in (lambda: Run(cfg, 'train', 'toy', {'rt': rt}).__enter__().done, "
              "lambda: find_runs(pathlib.Path(sys.argv[1]), ('train',))):\n"
              "    try:\n        print(bool(act()))\n"
              "    except BadInput as error:\n        print(error)\n")
    refused, shared = as_nobody(script, closed), as_nobody(script, open_place / "shared")
    closed.chmod(0o700)
    assert refused.returncode == 0 and shared.returncode == 0, refused.stderr + shared.stderr
    assert [f"{closed}" in line and "Permission denied" in line for line in refused.stdout.splitlines()] == [True, True]
    assert shared.stdout.splitlines() == ["True", "True"]
