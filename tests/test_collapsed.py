"""Broken models: recorded as collapsed with the reason, shown as such, never an error and never forgetting."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from conftest import make_data, quiet_runtime, tiny_net
from pretended import table_of
from torch import nn

from evaluation import accuracy
from evaluation.accuracy import EvaluationConfig
from evaluation.statistics import Number
from report import bygroup, bysparsity, figures
from report.names import Heading
from report.pairs import AnalysisConfig
from report.rows import FLOOR
from unlearn import METHODS
from utils import Run, RunConfig, Saved, find_runs


def outputs(hits: int, count: int, classes: int) -> dict[str, np.ndarray]:
    """Logits of which exactly ``hits`` rows of retain are right; of the other parts all."""
    random, found = np.random.default_rng(hits), {}
    for part in accuracy.PARTS:
        labels = random.integers(0, classes, count)
        told = labels.copy()
        if part == "retain":
            told[hits:] = (told[hits:] + 1) % classes
        found |= {f"{part}_labels": labels, f"{part}_index": np.arange(count),
                  f"{part}_logits": (random.normal(size=(count, classes)) + 20 * np.eye(classes)[told]).astype(np.float32)}
    return found


@pytest.mark.parametrize(("classes", "count", "least"), [(10, 100, 20), (4, 100, 50), (200, 1000, 10), (2, 100, 75)])
def test_retain_accuracy_under_twice_chance_is_a_collapse(classes: int, count: int, least: int) -> None:
    """``least`` right answers are 2/K of all (75 % at two classes): no collapse; one fewer is."""
    for hits, broken in ((least, False), (least - 1, True)):
        found = accuracy.summarise(outputs(hits, count, classes), (), EvaluationConfig(), 1)
        assert found["retain"] == pytest.approx(100 * hits / count)
        assert (found["collapsed"] is not None) == broken
        told = f"retain accuracy {100 * hits / count:.2f} % is under {100 * least / count:g} %"
        assert not broken or found["collapsed"] == told
        assert found["MIA"] is not None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", accuracy.PARTS)
def test_rows_that_are_not_finite_are_wrong_answers(part: str, bad: float) -> None:
    """7 right answers of a part lose their number in one column; accuracy counts them, the attack is not made."""
    arrays = outputs(100, 100, 5)
    before = accuracy.summarise(arrays, (), EvaluationConfig(), 1)
    for i in range(7):
        arrays[f"{part}_logits"][3 * i, arrays[f"{part}_labels"][3 * i]] = bad
    found = accuracy.summarise(arrays, (), EvaluationConfig(), 1)
    assert found[part] == pytest.approx(before[part] - 7)
    assert all(found[other] == before[other] for other in accuracy.PARTS if other != part)
    assert found["UA"] == pytest.approx(100 - found["forget"]) and found["collapsed"] == "outputs are not finite"
    assert found["MIA"] is None and found["privacy"] is None


def nan_weight(model: nn.Module) -> None:
    next(iter(model.parameters()))[0] = torch.nan


def endless_variance(model: nn.Module) -> None:
    """Outputs stay finite: x / inf is 0."""
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).running_var.fill_(torch.inf)


def zeros(model: nn.Module) -> None:
    for p in model.parameters():
        p.zero_()


@pytest.mark.parametrize("spoil", [nan_weight, endless_variance])
def test_weights_that_are_not_finite_are_a_collapse(spoil: Callable[[nn.Module], None], tmp_path: Path) -> None:
    rt = quiet_runtime()
    data, model = make_data(rt), tiny_net(rt)
    with torch.no_grad():
        spoil(model)
    with Run(RunConfig(save_dir=str(tmp_path)), "forget", "toy", {"rt": rt.cfg}) as run:
        accuracy.evaluate(model, data, rt, run, EvaluationConfig())
    record = json.loads((run.folder / "record.json").read_text(), parse_constant=pytest.fail)
    assert record["status"] == "done" and record["collapsed"] is True
    assert record["metrics"]["collapsed"] == "weights are not finite"
    assert "collapsed: weights" in accuracy.line(record["metrics"])
    again = accuracy.metrics_of(run.folder, record, EvaluationConfig(mia="interval"))
    assert again["collapsed"] == "weights are not finite"


# -------------------------------------------------------------------------------------------------------- the stages


def spoiled(patch: pytest.MonkeyPatch, spoil: Callable[[nn.Module], None]) -> None:
    """From here on the method raw breaks its model."""
    def function(task: Any, cfg: Any) -> None:
        with torch.no_grad():
            spoil(task.model)

    patch.setitem(METHODS._entries, "raw", dataclasses.replace(METHODS["raw"], function=function))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original that works, its retrain, FT, and for each way to break a model a folder with a raw that is broken so."""
    root = tmp_path_factory.mktemp("collapsed")
    original = shell.train(root / "base", 1, "--epochs", 10)
    for method in ("retrain", "FT"):
        shell.forget(original, root / "base", method, *shell.FORGET, "--unlearn_epochs", 10)
    for spoil in (nan_weight, zeros):
        shutil.copytree(root / "base", root / spoil.__name__)
        with pytest.MonkeyPatch.context() as patch:
            spoiled(patch, spoil)
            shell.forget(original, root / spoil.__name__, "raw", *shell.FORGET)
    return root


def run_of(root: Path, method: str) -> Saved:
    return shell.only(root, "forget", unlearn=method)


@pytest.mark.parametrize("spoil", [nan_weight, zeros])
def test_a_broken_model_is_a_finished_run_and_stands_in_every_table(spoil: Callable[[nn.Module], None], library: Path,
                                                                   tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Recorded, not deleted; the tables mark it, its ToW is in brackets, and the runs that work are as they were."""
    root = library / spoil.__name__
    broken, works = run_of(root, "raw"), run_of(root, "FT")
    assert broken.record["collapsed"] and not works.record["collapsed"] and works.record["metrics"]["collapsed"] is None
    assert (broken.folder / "model.pt").exists() and broken.record["metrics"]["forget"] < 60
    tables = {}
    for stage, name in (("analysis.py", "tow"), ("analysis_mia.py", "tow_mia")):
        shell.call(stage, "--out", tmp_path, save_dir=root)
        said = capsys.readouterr().out
        lines = [line for line in said.splitlines() if line.startswith("| raw [collapsed]")]
        assert len(lines) == 1 and "A collapsed model is broken" in said and "| FT " in said and "| FT [" not in said
        with open(tmp_path / f"{name}.csv", newline="") as file:
            tables[name] = {line["method"]: line for line in csv.DictReader(file)}
        assert {method: line["collapsed"] for method, line in tables[name].items()} == {"retrain": "0", "raw": "1", "FT": "0"}
        if name == "tow":
            words = [f"({float(tables[name]['raw']['ToW']):.3f})"]
            words += [f"({float(gap):.2f})" for gap in [tables[name]["raw"]["Avg. gap"]] if gap]
            assert [word for word in lines[0].split() if word.startswith("(")] == words
    assert (tables["tow_mia"]["raw"]["MIA"] == "") == (spoil is nan_weight)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert tables["tow"]["raw"]["ToW"] and {"tow.png", "mia.png", "cost.png", "margins.png"} <= drawn


@pytest.mark.parametrize("spoil", [nan_weight, zeros])
def test_another_attack_is_read_from_a_broken_models_outputs(spoil: Callable[[nn.Module], None], library: Path,
                                                            capsys: pytest.CaptureFixture) -> None:
    run = run_of(library / spoil.__name__, "raw")
    found = accuracy.metrics_of(run.folder, run.record, EvaluationConfig(mia="interval"))
    assert found["retain"] == run.record["metrics"]["retain"] and found["collapsed"]
    with pytest.MonkeyPatch.context() as patch:
        spoiled(patch, spoil)
        shell.forget(shell.only(library / "base", "train"), library / spoil.__name__, "raw", *shell.FORGET)
    assert "already done" in (said := capsys.readouterr().out) and "collapsed: " in said


def test_broken_models_are_never_the_best(library: Path) -> None:
    """A collapsed run stands below all, hollow, whatever its ToW, and no front is drawn through it."""
    table = table_of(library / "zeros")
    for row in table:
        if row.method == "raw":
            row.method, row.pairs[0].run.record["settings"]["method"]["unlearn"] = "GA", "GA"
            row.numbers["ToW"] = Number(1.0, None, 1)
    chart = figures.headline(table, Heading("zeros", ""), "ToW")
    assert chart.rows == ("FT", "GA [collapsed]") and chart.note == "hollow: collapsed"
    (dots,) = chart.panels[0].dots.values()
    assert dots["GA [collapsed]"].hollow and not dots["FT"].hollow


def test_one_of_two_seeds_that_collapsed_is_told(library: Path, tmp_path: Path) -> None:
    """A second seed made of the first one's files, whose raw works."""
    root = tmp_path / "seeds"
    shutil.copytree(library / "zeros", root)
    for method in ("retrain", "raw"):
        run = run_of(library / "zeros", "retrain" if method == "retrain" else "FT")
        folder = root / "forget" / f"{method}-other"
        shutil.copytree(run.folder, folder)
        record = json.loads((folder / "record.json").read_text())
        record["settings"]["rt"]["seed"], record["settings"]["method"]["unlearn"] = 9, method
        if method == "raw":
            record["settings"]["cfg"] = run_of(root, "raw").record["settings"]["cfg"]
        (folder / "record.json").write_text(json.dumps(record))
    table = table_of(root, unlearn=("raw",))
    (row,) = [row for row in table if row.method == "raw"]
    assert (row.collapsed, row.told, row.seeds) == (1, "raw [1 of 2 collapsed]", [1, 9])
    assert [row.told for row in table if row.method != "raw"] == ["retrain", FLOOR]


def test_tables_of_a_measure_that_no_model_has_are_left_out(library: Path) -> None:
    """One seed, whose one method's outputs are not finite: no ToW-MIA by group, of plans or by sparsity, and no error."""
    table = table_of(library / "nan_weight", unlearn=("raw",))
    many = [dataclasses.replace(row, setting=f"{level} {row.setting}", pairs=[dataclasses.replace(
        pair, setting=pair.setting._replace(group=level, score="confidence")) for pair in row.pairs])
        for level in ("low", "high") for row in table]
    assert bygroup.mia_tables(AnalysisConfig(), many) == []
    (pivot,) = bygroup.by_group(many, "ToW")
    assert pivot.collapsed == {("raw", "low"), ("raw", "high")}
    sweep = bysparsity._sweep("heading", [(share, [row for row in table]) for share in (0.0, 0.5)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bysparsity, "sweeps", lambda table: [sweep])
        (extra,) = bysparsity.mia_tables(AnalysisConfig(), table)
    assert set(extra.figures) == {"sparsity_mia_mia", "sparsity_mia_seconds"}  # of retrain


def test_a_plan_that_breaks_its_model_is_recorded(library: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spoiled(patch, nan_weight)
        shell.call("main_rum.py", "--checkpoint", shell.only(library / "base", "train").folder, "--plan_name", "vanilla",
                   "--unlearn", "raw", *shell.FORGET, save_dir=tmp_path)
    (run,) = find_runs(tmp_path, ("rum",))
    assert run.record["collapsed"] and run.record["metrics"]["MIA"] is None


# ---------------------------------------------------------------------------------------------------- a loss that is no number


def test_a_method_that_diverges_is_recorded_as_collapsed(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A sweep goes on over it: exit 0, a record with the reason, read again under another attack too."""
    original = shell.only(library / "base", "train")
    for attack in ("threshold", "interval"):
        shell.forget(original, tmp_path, "FT", *shell.FORGET, "--unlearn_lr", 1e30, "--unlearn_epochs", 2, "--mia", attack)
        said = capsys.readouterr().out
        assert "collapsed: the loss became" in said and ("FT broke the model" in said) == (attack == "threshold")
    record = run_of(tmp_path, "FT").record
    assert record["collapsed"] and record["metrics"]["collapsed"] == record["diverged"] and record["metrics"]["retain"] < 67
    assert re.fullmatch(r"the loss became \S+ in epoch \d", record["diverged"])  # the fact; the advice is for the screen


def test_steps_after_one_that_diverged_leave_the_model_alone(library: Path, tmp_path: Path) -> None:
    """Here those of a second request, also where the first one's record was there already."""
    forget = np.load(run_of(library / "base", "FT").folder / "splits.npz")["forget"]
    (tmp_path / "requests.json").write_text(json.dumps([forget[:10].tolist(), forget[10:].tolist()]))
    flags = ["--checkpoint", shell.only(library / "base", "train").folder, "--requests", tmp_path / "requests.json",
             "--plan", "all:FT(unlearn_epochs=2, unlearn_lr=1e30)"]

    def requests() -> list[Saved]:
        shell.call("main_rum.py", *flags, save_dir=tmp_path)
        return sorted(find_runs(tmp_path, ("rum",)), key=lambda run: run.record["request"]["number"])

    first, second = requests()
    assert first.record["diverged"] == second.record["diverged"] == second.record["metrics"]["collapsed"]
    before, after = ({name: value.nan_to_num() for name, value in shell.weights(run).items()} for run in (first, second))
    assert all(torch.equal(before[name], after[name]) for name in before)
    steps = sorted(find_runs(tmp_path, ("step",)), key=lambda run: len(run.record["steps"]))
    assert ["unlearn" in step.record["seconds"] for step in steps] == [True, False]
    for gone in (second, steps[1]):
        shutil.rmtree(gone.folder)
    assert requests()[1].record["metrics"] == second.record["metrics"]


def test_steps_after_one_whose_last_update_broke_the_model_leave_it_alone(library: Path, tmp_path: Path,
                                                                               capsys: pytest.CaptureFixture) -> None:
    """GA's one batch has a finite loss; methods that rank weights would refuse what it leaves, which must not end a plan."""
    forget = np.load(run_of(library / "base", "FT").folder / "splits.npz")["forget"]
    (tmp_path / "requests.json").write_text(json.dumps([forget[:10].tolist(), forget[10:].tolist()]))
    shell.call("main_rum.py", "--checkpoint", shell.only(library / "base", "train").folder, "--requests",
               tmp_path / "requests.json", "--plan", "all:GA(unlearn_epochs=1, unlearn_lr=1e25)", save_dir=tmp_path)
    steps = sorted(find_runs(tmp_path, ("step",)), key=lambda run: len(run.record["steps"]))
    assert ["diverged" in step.record for step in steps] == [False, True] and "unlearn" not in steps[1].record["seconds"]
    assert all(run.record["collapsed"] for run in find_runs(tmp_path, ("rum",)))
    assert "notice: step 1, all, is left out, since the model is broken: outputs were not finite" in capsys.readouterr().out


def test_a_retrain_that_diverges_ends_the_command(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It is what all others are measured by."""
    with pytest.raises(SystemExit) as end:
        shell.forget(shell.only(library / "base", "train"), tmp_path, "retrain", *shell.FORGET, "--unlearn_lr", 1e30,
                     "--unlearn_epochs", 2)
    assert end.value.code == 2 and "the loss became" in capsys.readouterr().err and not find_runs(tmp_path, ("forget",))
