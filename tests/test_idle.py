"""Methods that leave their model as it was: recorded, said and shown as such; raw, which is to do nothing, is none."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import shell
import torch
from conftest import make_data, quiet_runtime, short_config, tiny_net

from unlearn import METHODS
from unlearn.registry import moved
from utils import Run, RunConfig, find_runs


def recorded(tmp_path: Path, name: str, function: Any = None, **values: Any) -> dict[str, Any]:
    """The record of a method on toy data."""
    rt, method = quiet_runtime(), METHODS[name]
    method = method if function is None else dataclasses.replace(method, function=function)
    with Run(RunConfig(save_dir=str(tmp_path)), "forget", name, {"rt": rt.cfg}) as run:
        method.apply(tiny_net(rt), make_data(rt), short_config(name, **values), rt, run)
    return json.loads((run.folder / "record.json").read_text(), parse_constant=pytest.fail)


def nudge(share: float) -> Any:
    """A method that moves each tensor by this share of its norm."""
    def function(task: Any, cfg: Any) -> None:
        for p in task.model.parameters():
            p.data.add_(share * p.norm() / p.numel() ** 0.5)

    return function


@pytest.mark.parametrize(("name", "values", "idle"), [
    ("FT", dict(unlearn_epochs=0), True), ("FT", {}, False), ("ssd", dict(alpha=100.0), True), ("ssd", dict(alpha=1.2), False),
    ("wfisher", dict(alpha=0.0), True), ("wfisher", {}, False), ("raw", {}, False), ("fisher", {}, False), ("GA", {}, False)])
def test_a_method_that_did_nothing_is_recorded(name: str, values: dict[str, Any], idle: bool, tmp_path: Path,
                                              capsys: pytest.CaptureFixture) -> None:
    record = recorded(tmp_path, name, **values)
    assert record["did_nothing"] == idle and (record["moved"] == 0) == (idle or name == "raw")
    assert (f"notice: {name} did nothing" in capsys.readouterr().out) == idle


@pytest.mark.parametrize(("share", "idle"), [(1e-7, True), (1e-5, False)])
def test_a_change_within_rounding_is_none(share: float, idle: bool, tmp_path: Path) -> None:
    """The outputs of float32 weights that differ by less than a millionth are the same to all their digits."""
    assert recorded(tmp_path, "FT", nudge(share))["did_nothing"] == idle


def test_running_statistics_count_as_change() -> None:
    model, other = tiny_net(quiet_runtime()), tiny_net(quiet_runtime())
    assert moved(model.state_dict(), other.state_dict()) == 0
    other.bn.running_var[0] = 1.5
    assert moved(model.state_dict(), other.state_dict()) == pytest.approx(0.25)  # 0.5 of the norm of four ones
    other.bn.running_mean[0] = torch.nan
    assert not moved(model.state_dict(), other.state_dict()) <= 1e-6


def test_a_model_that_is_no_number_did_something(tmp_path: Path) -> None:
    def spoil(task: Any, cfg: Any) -> None:
        task.model.fc.bias.data[0] = torch.nan

    record = recorded(tmp_path, "FT", spoil)
    assert record["did_nothing"] is False and record["moved"] is None


def test_tables_show_what_did_nothing(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Beside raw, whose numbers it has; and a plan of such steps."""
    root = tmp_path / "runs"
    shutil.copytree(library, root)
    original = shell.only(root, "train")
    shell.forget(original, root, "GA", *shell.FORGET, "--unlearn_epochs", 0)
    plan = ["--plan", "all:FT(unlearn_epochs=0)"]
    shell.call("main_rum.py", "--checkpoint", original.folder, *plan, *shell.FORGET, save_dir=root)
    (run,) = find_runs(root, ("rum",))
    assert run.record["did_nothing"] and "did_nothing" not in shell.only(root, "forget", unlearn="retrain").record
    capsys.readouterr()
    shell.call("analysis.py", "--out", tmp_path / "out", save_dir=root)
    said = capsys.readouterr().out
    rows = [line.split(" | ")[0] for line in said.splitlines() if "did nothing" in line and line.startswith("|")]
    assert len(rows) == 2 and any(row.startswith("| plan") for row in rows) and any(row.startswith("| GA (") for row in rows)
    assert "A method that did nothing left its original as it was" in said and "raw [did" not in said
