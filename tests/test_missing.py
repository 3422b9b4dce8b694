"""What an analysis does with comparisons that are not whole: it shows the others, and gives commands that work."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import shell
from pretended import SEEDS, change, copied, four_methods, notes_of, pretend, table_of

from report import contrasts, output
from report.pairs import AnalysisConfig, gather
from utils import BadInput, Saved, program, read_record, sha256

ROOT = Path(__file__).parents[1]
nowhere = pytest.fixture(autouse=True)(shell.nowhere)


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_methods(library, tmp_path_factory.mktemp("bench"))


def ends(code: int, *words: object, save_dir: Path) -> None:
    """The analysis ends with this code."""
    if code == 0:
        shell.call("analysis.py", *words, save_dir=save_dir)
        return
    with pytest.raises(SystemExit) as end:
        shell.call("analysis.py", *words, save_dir=save_dir)
    assert end.value.code == code


def short(library: Path, root: Path, *methods: str) -> Saved:
    """Copies of the library's original and of some of its runs; the original."""
    for stage, method in [("train", None), *(("forget", name) for name in methods)]:
        run = shell.only(library, stage, **({"unlearn": method} if method else {}))
        shutil.copytree(run.folder, root / stage / run.folder.name)
    return shell.only(root, "train")


def test_whole_comparisons_are_shown_and_the_missing_retrain_is_listed_below(
        bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copied(bench, tmp_path)
    shutil.rmtree(root / "forget" / "retrain-5")
    ends(1, save_dir=root)
    said = capsys.readouterr().out
    assert said.index("| retrain") < said.index("without a retrain") and said.count("make it: ") == 1
    assert (root / "analysis" / "tow.csv").exists() and (root / "analysis" / "tow.png").exists()
    ends(0, "--partial", save_dir=root)
    assert "without a retrain" in capsys.readouterr().out
    ends(0, "--seed", "3,8", save_dir=root)  # nothing is missing of what is asked for


def test_one_line_stands_for_each_missing_retrain_however_many_runs_wait(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    for seed in (3, 8):
        shutil.rmtree(root / "forget" / f"retrain-{seed}")
    lines = notes_of(root).splitlines()
    assert len(lines) == 2 and [re.search(r"--seed (\d)", line)[1] for line in lines] == ["3", "8"]
    assert all(f"FT-{seed}" in line and f"raw-{seed}" in line for seed, line in zip((3, 8), lines, strict=True))


def test_without_any_retrain_every_command_is_given_and_nothing_is_written(
        bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copied(bench, tmp_path)
    for folder in (root / "forget").glob("retrain-*"):
        shutil.rmtree(folder)
    ends(1, "--partial", save_dir=root)
    said = capsys.readouterr().out
    assert said.count("make it: ") == len(SEEDS) and "|" not in said and "nothing was compared" in said
    assert not (root / "analysis").exists()


def test_the_command_works_after_the_folder_was_moved_and_from_another_one(
        library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The original is found by its hash below the new name; the program by the path that analysis.py was called by."""
    short(library, tmp_path / "two words", "FT")
    run = shell.only(tmp_path / "two words", "forget")
    old = {**run.record["parent"], "path": str(tmp_path / "old" / "train" / "x" / "model.pt")}
    change(run.folder, parent=old)
    monkeypatch.setattr(sys, "argv", [os.path.relpath(ROOT / "analysis.py")])
    ends(1, save_dir=Path("two words"))
    command = shlex.split(re.search(r"make it: (.*)", capsys.readouterr().out)[1])
    assert command[:2] == ["python", os.path.relpath(ROOT / "main_forget.py")]
    ran = subprocess.run([sys.executable, *command[1:], *shell.QUIET, "--unlearn_epochs", "1"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    ends(0, save_dir=Path("two words"))
    assert "| retrain" in capsys.readouterr().out


def test_a_program_is_named_by_the_path_of_the_one_that_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for called, named in (("analysis.py", "main_forget.py"), (str(ROOT / "analysis.py"), str(ROOT / "main_forget.py")),
                          ("/nowhere/pytest", "main_forget.py")):
        monkeypatch.setattr(sys, "argv", [called])
        assert program("main_forget.py") == ["python", named]


def test_an_original_of_the_same_path_and_another_hash_is_not_taken(library: Path, tmp_path: Path) -> None:
    """It was trained anew there; the one that was unlearned lies under another name."""
    original = short(library, tmp_path, "FT")
    moved = shutil.copytree(original.folder, tmp_path / "train" / "elsewhere")
    with open(original.folder / "model.pt", "ab") as file:
        file.write(b"another")
    run = shell.only(tmp_path, "forget")
    change(run.folder, parent={**run.record["parent"], "path": str(original.folder / "model.pt")})
    (line,) = notes_of(tmp_path).splitlines()
    assert f"--checkpoint {moved / 'model.pt'}" in line and "bring it back" not in line
    assert sha256(moved / "model.pt") == run.record["parent"]["sha256"]


def test_an_original_that_is_nowhere_is_told_by_its_hash(library: Path, tmp_path: Path) -> None:
    original = short(library, tmp_path, "FT")
    run = shell.only(tmp_path, "forget")
    change(run.folder, parent={**run.record["parent"], "path": str(tmp_path / "gone" / "model.pt")})
    shutil.rmtree(original.folder)
    (line,) = notes_of(tmp_path).splitlines()
    assert run.record["parent"]["sha256"][:12] in line and str(tmp_path / "gone" / "model.pt") in line


@pytest.mark.parametrize(("name", "code"), [("FT-5", 1), ("retrain-5", 1), ("FT-8", 0), ("retrain-8", 0)])
def test_a_damaged_run_counts_where_it_is_asked_for(name: str, code: int, bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    with open(root / "forget" / name / "outputs.npz", "ab") as file:
        file.write(b"more")
    found = gather(AnalysisConfig(save_dir=str(root), seed=(3, 5)))
    assert found.whole == (code == 0)
    assert (f"remove {root / 'forget' / name}" in "\n".join(found.notes)) == (name == "retrain-5")


@pytest.mark.parametrize("status", ["running", "failed: MemoryError: "])
def test_runs_that_are_not_finished_or_of_an_older_form_end_in_0(status: str, bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    change(root / "forget" / "FT-5", status=status)
    record = read_record(root / "forget" / "NG-3").record
    del record["forget_size"]
    (root / "forget" / "NG-3" / "record.json").write_text(json.dumps(record))
    written = output.write(AnalysisConfig(save_dir=str(root)), contrasts.TOW, lambda *_: {})
    assert written.whole and "did not finish" in written.text and "earlier version" in written.text


def emptied(root: Path, **filters: object) -> str:
    with pytest.raises(BadInput) as caught:
        table_of(root, **filters)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_empty_result_tells_which_filter_left_nothing_and_what_there_is(
        bench: Path, library: Path, tmp_path: Path) -> None:
    """In the order of the filters; what earlier ones took away is not offered."""
    told = emptied(bench, seed=(7,))
    assert "9 runs there" in told and told.endswith("--seed 7: 0 of 9 runs; seed here: 3, 5, 8")
    told = emptied(bench, dataset="digits", unlearn=("FT", "raw"), seed=(7, 9), num_indexes_to_replace=20)
    assert "--dataset digits: 9 of 9 runs; --num_indexes_to_replace 20: 9 of 9 runs; --unlearn FT,raw: 6 of 9 runs; " in told
    assert told.endswith("--seed 7,9: 0 of 6 runs; seed here: 3, 5, 8")
    assert emptied(bench, dataset="cifar10", seed=(3,)).endswith("--dataset cifar10: 0 of 9 runs; dataset here: digits")
    assert emptied(bench, unlearn=("GA",)).endswith("--unlearn GA: 0 of 9 runs; unlearn here: FT, NG, raw")
    assert emptied(bench, class_to_replace=(1, 3)).endswith("class_to_replace here: -1")
    assert emptied(bench, mem="low").endswith("--mem low: 0 of 9 runs; mem here: none")
    root = copied(bench, tmp_path)
    pretend(library, root, "NG", 11)
    assert emptied(root, unlearn=("FT",), seed=(11,)).endswith("--seed 11: 0 of 3 runs; seed here: 3, 5, 8")
    assert "there is none" in emptied(tmp_path / "nothing")
