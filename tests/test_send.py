"""What the page says of real and pretended runs: every number with its runs, their commands, and what was forgotten."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import io
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pretended
import pytest
import shell
from grouped import grouped, levels_and_plans, share_tow
from PIL import Image

import arg_parser
import commands
import dataset
from report import contrasts, figures, send
from report.behind import run_id
from report.forgotten import Album
from report.page import Page, render
from report.pairs import AnalysisConfig, gather
from report.rows import rows
from utils import Runtime, RuntimeConfig, read_record

nowhere = pytest.fixture(autouse=True)(shell.nowhere)
SHARE = {"forget, %": "forget", "retain, %": "retain", "test, %": "test", "MIA, %": "MIA"}


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretended.four_methods(library, tmp_path_factory.mktemp("send"))


@pytest.fixture(scope="module")
def levels(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return levels_and_plans(library, tmp_path_factory.mktemp("levels"))


def plain(patch: pytest.MonkeyPatch) -> None:
    """No figures, which take their time."""
    patch.setattr(figures, "tow_charts", lambda *_: {})
    patch.setattr(figures, "mia_charts", lambda *_: {})


def page_of(root: Path, patch: pytest.MonkeyPatch | None = None, **asked: Any) -> Page:
    """The page of a folder of runs; with ``patch`` without figures."""
    cfg = AnalysisConfig(save_dir=str(root), **asked)
    found = gather(cfg)
    if patch is not None:
        plain(patch)
    return send.page_of(cfg, rows(found.pairs), found.notes, commands.command_of)


def by_head(table: Any, line: Any) -> dict[str, Any]:
    return dict(zip(table.head, line.cells, strict=True))


def test_every_number_is_the_mean_of_the_runs_that_its_row_leads_to(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand from the records, through the links of the page."""
    page = page_of(bench, monkeypatch)
    groups, made = {group.id: group for group in page.groups}, {run.id: run for run in page.runs}
    (section,) = page.sections
    checked = 0
    for table in section.tables[0], section.tables[2]:
        for line in table.lines:
            told, seen = by_head(table, line), [made[single.run] for single in groups[line.run].table.lines]
            records = [read_record(Path(run.folder)).record for run in seen]
            method = told["method"].text
            assert sorted(r["settings"]["rt"]["seed"] for r in records) == list(pretended.SEEDS)
            assert {r["settings"]["method"]["unlearn"] for r in records} == {method.split(" vs ")[0]}
            for head, name in SHARE.items():
                if head in told and "vs" not in method:
                    assert told[head].value == pytest.approx(np.mean([r["metrics"][name] for r in records]))
                    checked += 1
    assert checked == 4 * 5  # retrain, raw, FT, NG: forget, retain and test, then MIA and test


def test_single_numbers_are_those_of_their_run(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(bench, monkeypatch)
    made = {run.id: run for run in page.runs}
    for group in page.groups:
        for line in group.table.lines:
            told, run = by_head(group.table, line), made[line.run]
            record = read_record(Path(run.folder)).record
            assert told["run"].text == Path(run.folder).name and told["seed"].value == record["settings"]["rt"]["seed"]
            assert dict(run.facts)["seed"] == told["seed"].text and dict(run.facts)["commit"] == record["commit"][:12]
            for head, name in SHARE.items():
                if head in told:
                    assert told[head].value == pytest.approx(record["metrics"][name])
                    assert dict(run.facts)[head] == told[head].text == f"{record['metrics'][name]:.2f}"


def test_every_table_of_both_analyses_is_on_the_page(levels: Path, tmp_path: Path) -> None:
    for stage in ("analysis_mia.py", "analysis.py"):
        shell.call(stage, "--venue", "none", "--out", tmp_path / "out", "--html", tmp_path / "page.html", save_dir=levels)
    text, heads = html.unescape((tmp_path / "page.html").read_text()), set()
    for file in (tmp_path / "out").glob("*.md"):
        heads |= {line.removeprefix("## ") for line in file.read_text().splitlines() if line.startswith("## ")}
    assert len(heads) > 5 and not [head for head in heads if f">{head}</h2>" not in text]


def test_cells_across_settings_lead_to_their_own_runs(levels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tables by group and of plans: a cell is the mean ToW of the runs it leads to, by hand from their records."""
    plain(monkeypatch)
    page = page_of(levels, venue="none")
    groups, made = {group.id: group for group in page.groups}, {run.id: run for run in page.runs}
    checked = 0
    for section in page.sections:
        for cell in [cell for table in section.tables for line in table.lines for cell in line.cells if cell.run]:
            seen = [made[line.run] for line in groups[cell.run].table.lines]
            beside = [{what: folder for what, _, folder in run.parents}.get("compared with", run.folder) for run in seen]
            mia = "ToW-MIA" in section.heading
            each = [share_tow(Path(a.folder), Path(b), mia) for a, b in zip(seen, beside, strict=True)]
            if "vs" not in groups[cell.run].name:
                assert cell.value == pytest.approx(np.mean(each)), (section.heading, cell)
                checked += 1
    assert checked > 20


def test_rows_and_csv_name_the_same_runs(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain(monkeypatch)
    shell.call("analysis.py", "--out", tmp_path, save_dir=bench)
    page = page_of(bench, monkeypatch)
    lead = {line.cells[0].text: line.run for line in page.sections[0].tables[0].lines}
    groups = {group.id: {line.run for line in group.table.lines} for group in page.groups}
    with open(tmp_path / "tow.csv", newline="") as file:
        for line in csv.DictReader(file):
            assert groups[lead[line["method"]]] == {run_id(Path(folder)) for folder in line["runs"].split()}


def test_every_command_parsed_is_its_run(library: Path, bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root in (library, bench):
        page = page_of(root, monkeypatch)
        stages_seen = set()
        for run in page.runs:
            record = read_record(Path(run.folder)).record
            words = shlex.split(run.command)
            args = arg_parser.parse(record["stage"], words[2:])
            settings = {group: dataclasses.asdict(config) for group, config in args.settings.items()}
            assert json.loads(json.dumps(settings)) == record["settings"], run.folder
            assert args.run.save_dir == str(Path(run.folder).parent.parent)
            stages_seen.add(record["stage"])
        assert stages_seen >= {"train", "forget"}


def test_parents_are_linked_and_a_run_stands_beside_the_retrain_of_its_seed(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {run.id: run for run in page_of(bench, monkeypatch).runs}
    for run in made.values():
        parents = {what: (made[id].folder, folder) for what, id, folder in run.parents}
        assert all(a == b for a, b in parents.values())
        record = read_record(Path(run.folder)).record
        if record["stage"] == "train":
            assert not parents
            continue
        assert parents["original"][0] == str(Path(record["parent"]["path"]).parent)
        retrained = record["settings"]["method"]["unlearn"] == "retrain"
        beside = str(bench / "forget" / f"retrain-{record['settings']['rt']['seed']}")
        assert parents.get("compared with", (None,))[0] == (None if retrained else beside)


def test_a_run_whose_original_is_gone_says_so(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("retrain", "FT"):
        folder = pretended.pretend(library, tmp_path, method, 3)
        parent = read_record(folder).record["parent"] | {"path": str(tmp_path / "gone" / "model.pt"), "sha256": "0"}
        pretended.change(folder, parent=parent)
    for run in page_of(tmp_path, monkeypatch).runs:
        assert not run.command and "cannot be told here" in run.absent and "gone" in run.absent
        assert [(what, id) for what, id, _ in run.parents if what == "original"] == [("original", "")]


def test_notes_of_runs_in_no_table_are_on_the_page(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("retrain", "FT", "NG"):
        pretended.pretend(library, tmp_path, method, 3)
    pretended.pretend(library, tmp_path, "FT", 5)
    last = page_of(tmp_path, monkeypatch).sections[-1]
    assert last.heading == "What is in no table" and "FT-5" in " ".join(last.absent)
    assert "--unlearn retrain" in " ".join(last.absent)


def test_names_that_are_markup_stay_text(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("retrain", "FT"):
        folder = pretended.pretend(library, tmp_path, method, 3, name="<i>")
        pretended.change(folder, device="<b>x</b>", commit="<u>")
    text = render(page_of(tmp_path, monkeypatch))
    assert "&lt;i&gt;" in text and "&lt;b&gt;" in text and not {"<i>", "<b>", "<u>"} & set(text.split())
    assert "<i>" not in text and "<b>" not in text and "<u>" not in text


def test_the_page_says_both_studies_and_why_none_is_best(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (section,) = page_of(bench, monkeypatch).sections
    assert [table.title.split(": ")[0] for table in section.tables] == [
        "ToW", "ToW, method - retrain", "ToW-MIA", "ToW-MIA, method - retrain"]
    assert len(section.verdicts) == 2 and "none is the best" in section.verdicts[0]
    assert section.brief == "ToW: too few seeds · ToW-MIA: no headroom"
    facts = dict(page_of(bench, monkeypatch).facts)
    assert facts["seeds"] == "3, 5, 8" and facts["runs"] == "12" and facts["methods"] == "3, beside retrain"
    newest = max(read_record(path).record["finished"] for path in (bench / "forget").iterdir())
    assert facts["newest run"] == newest
    assert dict(section.facts)["lr"] == "0.1" and dict(section.facts)["epochs"] == "1"


def test_the_best_is_named_in_the_contents_and_at_its_section(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrasts, "nobody_best", lambda *_: "")
    (section,) = page_of(bench, monkeypatch).sections
    values = {line.cells[0].text: line.cells[2].value for line in section.tables[0].lines[1:] if "vs" not in line.cells[0].text}
    best = max(values, key=values.get)
    assert section.verdicts[0].startswith(f"ToW: Nearest to retrain by ToW: {best}, {values[best]:.3f}")
    assert section.brief.startswith(f"ToW: nearest to retrain: {best} · ToW-MIA: ")


# ---------------------------------------------------------------------------------------------------------- what was forgotten


def test_pictures_are_the_forgotten_images_with_their_labels(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shell.only(library, "forget", unlearn="retrain")
    (grid,) = next(section for section in page_of(library, monkeypatch).sections if section.grids).grids
    with np.load(run.folder / "outputs.npz") as outputs:  # the labels that the run itself saw
        labels = dict(zip(outputs["forget_index"].tolist(), outputs["forget_labels"].tolist(), strict=True))
    rt = Runtime(RuntimeConfig(device="cpu", progress=False))
    data = dataset.load(dataset.DataConfig(dataset="digits", classes="0-2"), rt)
    assert {shot.index: shot.label for shot in grid.shots} == {index: str(label) for index, label in labels.items()}
    assert len(grid.shots) == 20 and grid.title == "What was forgotten: all 20 images"
    for shot in grid.shots:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shot.png))))
        assert np.array_equal(pixels, data.images.x[shot.index].numpy())


def test_few_of_many_are_drawn_alike_each_time_a_grid_for_each_group(library: Path, tmp_path: Path) -> None:
    for method in ("retrain", "FT"):
        grouped(pretended.pretend(library, tmp_path, method, 3), "confidence", mem="mix")
    pair = gather(AnalysisConfig(save_dir=str(tmp_path))).pairs[0]
    (low, mid, high), _ = Album(12).of(pair)
    for grid, name in ((low, "low"), (mid, "mid"), (high, "high")):
        assert {shot.index for shot in grid.shots} <= set(pair.groups[name].tolist())
        assert grid.title == f"What was forgotten, {name}: 4 of 8 images, drawn at random"
    assert Album(12).of(pair) == Album(12).of(pair) and Album(0).of(pair) == ((), "")


def test_data_that_are_not_here_are_said_in_a_sentence(bench: Path) -> None:
    pair = gather(AnalysisConfig(save_dir=str(bench))).pairs[0]
    for change in ({"data": {"dataset": "cifar10", "data": "nosuch"}}, {}):
        record = pair.run.record | {"settings": pair.run.record["settings"] | change, "data_key": "another"}
        grids, said = Album(40).of(dataclasses.replace(pair, run=pair.run._replace(record=record)))
        assert grids == () and said.startswith("The forgotten images are not shown: ") and said.count("\n") == 0


# --------------------------------------------------------------------------------------------------------------------- file


def test_figures_beyond_the_budget_are_left_out_and_it_says_so(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "BUDGET", 60_000)
    (section,) = page_of(bench).sections
    assert send.ELSEWHERE in section.absent and section.figures
    assert sum(len(f.svg) for f in section.figures) + sum(len(s.png) for g in section.grids for s in g.shots) <= 60_000


def test_the_page_is_the_same_byte_for_byte_from_either_analysis(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain(monkeypatch)
    for stage in ("analysis", "analysis_mia"):
        shell.call(f"{stage}.py", "--out", tmp_path / stage, "--html", f"here/{stage}.html", save_dir=bench)
    assert (tmp_path / "here" / "analysis.html").read_bytes() == (tmp_path / "here" / "analysis_mia.html").read_bytes()
    assert "here/analysis.html" in capsys.readouterr().out
