"""runs.csv holds every number of every run beside retrain's, and --merge joins those of several machines."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import shell
from grouped import csv_lines, grouped, planned
from pretended import LEANS, SEEDS, change, four_methods, pretend

from report import contrasts, long, merge, output
from report.pairs import AnalysisConfig
from utils import BadInput, read_record

nowhere = pytest.fixture(autouse=True)(shell.nowhere)
Lines = list[dict[str, str]]


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_methods(library, tmp_path_factory.mktemp("bench"))


def runs_of(root: Path, out: Path) -> Path:
    output.write(AnalysisConfig(save_dir=str(root), out=str(out)), contrasts.TOW, lambda *_: {})
    return out / "runs.csv"


@pytest.fixture(scope="module")
def whole(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs_of(bench, tmp_path_factory.mktemp("whole"))


def merged(out: Path, *files: Path) -> Lines:
    merge.write(AnalysisConfig(merge=tuple(map(str, files)), out=str(out)))
    return csv_lines(out / "runs.csv")


def test_every_run_and_measure_has_a_line_with_its_retrain_and_where_it_is_from(bench: Path, whole: Path) -> None:
    """Against the records themselves."""
    lines = csv_lines(whole)
    assert tuple(lines[0]) == long.COLUMNS
    assert len({(line["run"], line["metric"]) for line in lines}) == len(lines)
    assert {line["run"] for line in lines} == {str(path) for path in (bench / "forget").iterdir()}
    known = {(Path(line["run"]).name, line["metric"]): line for line in lines}
    for method in LEANS:
        for seed in SEEDS:
            run, retrain = (read_record(bench / "forget" / f"{name}-{seed}") for name in (method, "retrain"))
            for metric in ("forget", "retain", "val", "test", "MIA"):
                line = known[run.folder.name, metric]
                assert float(line["value"]) == run.record["metrics"][metric]  # to the last digit
                assert float(line["retrain"]) == retrain.record["metrics"][metric]
                assert line["method"] == method and int(line["seed"]) == seed and line["retrain_run"] == str(retrain.folder)
            assert line["original"] == f"original of seed {seed}" and line["finished"] == run.record["finished"]
            assert line["split_key"] == run.record["split_key"] and line["data_key"] == run.record["data_key"]
            assert line["commit"] == run.record["commit"] and line["torch"] == run.record["torch"]
            assert line["device"] == run.record["device"] and line["status"] == "done"
            assert line["processor"] == run.record["processor"] and int(line["threads"]) == run.record["threads"]
            assert int(line["split_seed"]) == run.setting("split_seed") and line["val_seed"] != ""


def test_the_means_of_the_table_are_those_of_its_lines(whole: Path) -> None:
    lines = csv_lines(whole)
    for row in csv_lines(whole.parent / "tow.csv"):
        for metric in ("ToW", "forget", "Avg. gap", "seconds") if row["method"] in LEANS else ():
            values = [float(line["value"]) for line in lines if (line["label"], line["metric"]) == (row["method"], metric)]
            assert len(values) == 3 and np.mean(values) == pytest.approx(float(row[metric]), rel=1e-12)


def test_numbers_that_not_every_seed_has_have_lines_too(bench: Path, library: Path, tmp_path: Path) -> None:
    """They are no mean of the table."""
    for method in ("retrain", "FT"):
        for seed in SEEDS[:2]:
            pretend(library, tmp_path, method, seed)
    folder = tmp_path / "forget" / "FT-3"
    record = read_record(folder).record
    change(folder, metrics={name: value for name, value in record["metrics"].items() if name != "val"})
    lines = csv_lines(runs_of(tmp_path, tmp_path / "out"))
    assert [line["seed"] for line in lines if (line["method"], line["metric"]) == ("FT", "val")] == ["5"]


def test_merged_tables_hold_every_run_once(whole: Path, bench: Path, library: Path, tmp_path: Path) -> None:
    """Halves make the whole; what is there twice counts once; merged tables can be merged again."""
    parts = []
    for name, seeds in (("a", (3, 5)), ("b", (5, 8))):
        cfg = AnalysisConfig(save_dir=str(bench), out=str(tmp_path / name), seed=seeds)
        output.write(cfg, contrasts.TOW, lambda *_: {})
        parts.append(tmp_path / name / "runs.csv")

    def numbers(lines: Lines) -> dict[tuple[str, str], tuple[str, str]]:
        assert len({(line["run"], line["metric"]) for line in lines}) == len(lines)
        return {(line["run"], line["metric"]): (line["value"], line["retrain"]) for line in lines}

    known = numbers(csv_lines(whole))
    assert numbers(merged(tmp_path / "out", *parts)) == known
    assert numbers(merged(tmp_path / "out", *reversed(parts))) == known
    assert numbers(merged(tmp_path / "out", tmp_path / "out" / "runs.csv", whole, whole)) == known


def test_of_equal_runs_the_one_that_finished_last_is_taken(whole: Path, tmp_path: Path) -> None:
    def version(name: str, when: str, value: str) -> Path:
        lines = csv_lines(whole)
        for line in lines:
            if Path(line["run"]).name == "FT-5":
                line |= {"finished": when, "run": f"/{name}/FT-5", **({"value": value} if line["metric"] == "forget" else {})}
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "runs.csv", "w", newline="") as file:
            csv.writer(file).writerows([long.COLUMNS, *(line.values() for line in lines)])
        return tmp_path / name / "runs.csv"

    files = [version("new", "2031-01-01T00:00:00Z", "77.5"), version("old", "2001-01-01T00:00:00Z", "11.5")]
    for order in (files, files[::-1]):
        lines = [line for line in merged(tmp_path / "out", *order, whole) if Path(line["run"]).name == "FT-5"]
        assert {line["run"] for line in lines} == {"/new/FT-5"}
        assert [line["value"] for line in lines if line["metric"] == "forget"] == ["77.5"]


def test_means_of_merged_tables_are_those_of_one_analysis(
        whole: Path, bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row a method, n and ToW as in tow.csv, from the shell."""
    shell.call("analysis.py", "--merge", whole, "--out", tmp_path, save_dir=bench)
    said = capsys.readouterr().out
    assert (tmp_path / "merged.md").read_text() in said
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:3]] == ["retrain", "raw"] and len(rows) == 1 + len(LEANS)
    for line in csv_lines(whole.parent / "tow.csv"):
        if line["method"] in LEANS:
            (row,) = [row for row in rows if row[0] == line["method"]]
            assert row[1] == "3" and float(row[2].split()[0]) == pytest.approx(float(line["ToW"]), abs=6e-4)


SPOIL = {
    "another version's column": (lambda text: text.replace("setting,dataset", "setting,data set", 1), ["line 1", "'data set'"]),
    "a cut line": (lambda text: text.rstrip().rpartition(",")[0], ["line ", "values in place of"]),
    "no number": (lambda text: re.sub(r",forget,(?=\d)", ",forget,x", text, count=1), ["line ", "value is 'x"]),
    "infinity": (lambda text: re.sub(r",forget,[\d.]+", ",forget,inf", text, count=1), ["line ", "value is 'inf'"]),
    "empty": (lambda text: "", ["line 1"]),
    "binary": (lambda text: "\0" + text, ["line 1"]),
}


@pytest.mark.parametrize("how", SPOIL)
def test_files_that_are_none_of_ours_are_refused_by_name_and_line(
        how: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, words = SPOIL[how]
    (tmp_path / "bad.csv").write_text(spoil(whole.read_text()))
    with pytest.raises(SystemExit) as end:
        shell.call("analysis.py", "--merge", f"{whole},bad.csv", "--out", tmp_path / "out", save_dir=tmp_path)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and not (tmp_path / "out").exists()
    assert not [word for word in ["bad.csv", *words] if word not in said], said


def test_filters_and_missing_files_are_refused_beside_merge(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="seed=3"):
        merge.write(AnalysisConfig(merge=(str(whole),), seed=(3,), out=str(tmp_path)))
    with pytest.raises(BadInput, match=r"nowhere\.csv"):
        merged(tmp_path, tmp_path / "nowhere.csv")
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="no text"):
        merged(tmp_path, tmp_path / "latin.csv")


def test_plans_that_two_machines_numbered_alike_are_two_rows(library: Path, tmp_path: Path) -> None:
    """plan 1 of one is another plan than plan 1 of the other; a plan that both have is one, whatever they called it."""
    files = []
    for machine, plans in enumerate((("low:raw mid:NG high:NG",), ("low:GA mid:NG high:NG", "low:raw mid:NG high:NG"))):
        root = tmp_path / f"m{machine}"
        for seed in (3, 5) if machine else (8,):
            pretend(library, root, "retrain", seed)
            for place, text in enumerate(plans):
                planned(grouped(pretend(library, root, "NG", seed, f"-{place}"), "confidence"), f"plan {text}")
        files.append(runs_of(root, root / "out"))
    assert [{line["label"] for line in csv_lines(file) if "plan" in line["label"]} for file in files] == [
        {"plan 1"}, {"plan 1", "plan 2"}]
    merged(tmp_path, *files)
    counts = {cells[1]: cells[2] for line in (tmp_path / "merged.md").read_text().splitlines() if line.startswith("| plan")
              for cells in [[word.strip() for word in line.split("|")]]}
    assert counts == {"plan low:GA mid:NG high:NG": "2", "plan low:raw mid:NG high:NG": "3"}
    assert (tmp_path / "merged.tex").read_text().count(r"\begin{tabular}") == 1
