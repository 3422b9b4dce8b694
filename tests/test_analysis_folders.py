"""Where an analysis writes: a folder for each choice of runs, in which nothing stale stays and nothing of others is lost."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import shell
from grouped import csv_lines
from pretended import copied, four_methods

from report import contrasts, folders, output
from report.pairs import AnalysisConfig
from utils import CannotWrite

nowhere = pytest.fixture(autouse=True)(shell.nowhere)


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_methods(library, tmp_path_factory.mktemp("bench"))


def write(root: Path, study: contrasts.Study = contrasts.TOW, **filters: object) -> Path:
    """A folder with tables alone."""
    cfg = AnalysisConfig(save_dir=str(root), **filters)
    output.write(cfg, study, lambda *_: {})
    return cfg.folder


def name_of(**filters: object) -> str:
    return folders.name_of(AnalysisConfig(save_dir="x", **filters))


def test_a_filtered_analysis_leaves_the_full_one_as_it_was(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    whole = write(root)
    before = (whole / "tow.csv").read_bytes()
    one = write(root, seed=(3,))
    assert one == root / "analysis" / "seed=3" and whole == root / "analysis"
    assert (whole / "tow.csv").read_bytes() == before
    assert {line["seeds"] for line in csv_lines(one / "tow.csv")} == {"3"}


def test_every_setting_but_those_of_places_and_looks_is_in_the_folders_name() -> None:
    """So that no two analyses of other runs, or of another attack, meet in a folder."""
    other = {"dataset": "digits", "arch": "vgg16_bn", "unlearn": ("FT",), "num_indexes_to_replace": 7, "forget_fraction": 0.1,
             "class_to_replace": (1,), "mem": "low", "mem_proxy": "confidence", "group_index": 2, "aug": False, "seed": (4,),
             "delta": 2.0, "delta_tow": 0.1, "mia": "svc", "mia_mode": "published", "mia_draws": 3, "mia_fits": 4,
             "scores": "a/b.npz", "ood_classes": (3,), "ood_subclass": (4,), "subclass_to_replace": (5,)}
    fields = {field.name for field in dataclasses.fields(AnalysisConfig)} - set(folders.SILENT)
    assert other.keys() <= fields
    assert name_of() == ""
    named = [name_of(**{name: value}) for name, value in other.items()]
    assert len(set(named)) == len(other) and all(name in told for name, told in zip(other, named, strict=True))
    assert not [name for name in fields - other.keys() if name not in ("best",)], "a new setting: say where it is in the name"


def test_a_folders_name_is_safe_bounded_and_of_one_choice_alone() -> None:
    same = [name_of(seed=(2, 1), unlearn=("NG", "FT")), name_of(seed=(1, 2, 2), unlearn=("FT", "NG"))]
    assert same == ["unlearn=FT,NG_seed=1,2"] * 2
    assert name_of(class_to_replace=(1, 3)) != name_of(class_to_replace=(3, 1))
    odd = [name_of(unlearn=("RUM^F NG",)), name_of(unlearn=("RUM-F-NG",)), name_of(unlearn=("RUM/F NG",))]
    assert len(set(odd)) == 3 and all(set(name) <= set("RUMFNGunlearn=-0123456789abcdef") for name in odd)
    long = [name_of(seed=tuple(range(500))), name_of(seed=tuple(range(501)))]
    assert len(set(long)) == 2 and max(map(len, long)) < 100
    assert AnalysisConfig(save_dir="x", out="y", seed=(1,)).folder == Path("y")


def test_stale_files_go_and_those_of_others_stay(bench: Path, tmp_path: Path) -> None:
    """One's own, of the other study, and what was changed since are not the analysis's to remove."""
    root, out = copied(bench, tmp_path), tmp_path / "out"
    folders.keep(out, "tow", {"tow.csv": b"old", "tow-a.png": b"a", "tow-b.png": b"b", "both.csv": b"1", "edited.md": b"old"})
    folders.keep(out, "tow_mia", {"tow_mia.csv": b"1", "both.csv": b"1"})
    (out / "notes.txt").write_text("mine")
    (out / "tow-mine.png").write_bytes(b"mine")
    (out / "edited.md").write_bytes(b"mine")
    write(root, out=str(out))
    there = {path.name for path in out.iterdir()}
    assert not there & {"tow-a.png", "tow-b.png"} and (out / "edited.md").read_bytes() == b"mine"
    assert there >= {"tow.csv", "tow.md", "pairs.csv", "tow_mia.csv", "both.csv", "notes.txt", "tow-mine.png", "edited.md"}
    assert (out / "tow.csv").read_bytes() != b"old"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"files": {"../outside.txt": "%s"}}', '{"files": 3}'])
def test_a_list_of_files_that_is_none_of_ours_removes_nothing(content: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folders.keep(out, "tow", {"a.csv": b"1"})
    (tmp_path / "outside.txt").write_bytes(b"1")
    known = json.loads((out / "tow.files.json").read_text())["files"]["a.csv"]
    (out / "tow.files.json").write_text(content.replace("%s", known))
    folders.keep(out, "tow", {"b.csv": b"2"})
    assert {path.name for path in out.iterdir()} == {"a.csv", "b.csv", "tow.files.json"}
    assert (tmp_path / "outside.txt").exists()


def test_an_analysis_that_breaks_off_removes_nothing_and_the_next_one_tidies_up(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real = tmp_path / "out", folders.write_atomic
    folders.keep(out, "tow", {"a.csv": b"1", "old.png": b"2"})

    def full(path: Path, write: object, flag: str) -> None:
        if path.name == "c.csv":
            raise CannotWrite("full")
        real(path, write, flag)

    monkeypatch.setattr(folders, "write_atomic", full)
    with pytest.raises(CannotWrite):
        folders.keep(out, "tow", {"b.csv": b"3", "c.csv": b"4"})
    assert {path.name for path in out.iterdir()} == {"a.csv", "old.png", "b.csv", "tow.files.json"}
    monkeypatch.undo()
    folders.keep(out, "tow", {"d.csv": b"5"})
    assert {path.name for path in out.iterdir()} == {"d.csv", "tow.files.json"}


def test_two_seeds_then_one_keep_figures_and_tables_apart(
        bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As from the shell; and figures of a setting that is gone go with the next analysis."""
    root = copied(bench, tmp_path)
    shell.call("analysis.py", save_dir=root)
    whole = {path.name for path in (root / "analysis").iterdir()}
    shell.call("analysis.py", "--seed", "3", save_dir=root)
    assert {path.name for path in (root / "analysis").iterdir()} == whole | {"seed=3"}
    assert {line["seeds"] for line in csv_lines(root / "analysis" / "tow.csv")} == {"3 5 8"}
    shutil.rmtree(root / "forget" / "NG-3")
    shell.call("analysis.py", "--seed", "3", save_dir=root)
    assert "NG" not in {line["method"] for line in csv_lines(root / "analysis" / "seed=3" / "tow.csv")}
