"""What is to run first on a GPU runs: every block at toy size, and every line of its script is one that the suite takes."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import arg_parser
import models
from benchmarks import first_minutes

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "first_minutes.sh"
STAGE_OF = {prog: stage for stage, (prog, _) in arg_parser.STAGES.items()}


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A compiler that notes what it is asked for and leaves the model as it is; the real one takes half a minute."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: asked.append(how))
    return asked


@pytest.mark.parametrize("block", first_minutes.BLOCKS)
def test_every_attempt_goes_well_at_toy_size(block: str, modes: list[dict[str, Any]],
                                             capsys: pytest.CaptureFixture[str]) -> None:
    """Each says a number; cudnn.benchmark is as it was."""
    first_minutes.main([block, "--toy"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2 and not [line for line in lines if not re.search(r": .*\d.*  \[\d+\.\d s\]$", line)]
    assert not torch.backends.cudnn.benchmark
    assert [how["mode"] for how in modes] == (["default", "reduce-overhead"] if block == "compiled" else [])


def test_an_attempt_that_fails_is_said_and_the_next_goes_on(capsys: pytest.CaptureFixture[str],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> str:
        raise RuntimeError("no kernel\nand a trace")

    monkeypatch.setitem(first_minutes.BLOCKS, "probe", lambda size: [("one", fails), ("two", lambda: "well")])
    with pytest.raises(SystemExit) as end:
        first_minutes.main(["probe"])
    said = capsys.readouterr().out
    assert end.value.code == 1 and "one: FAILS RuntimeError: no kernel  [" in said and "two: well" in said


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The words of every program that the script starts, by running it with a stand-in for Python that notes its own."""
    place = tmp_path_factory.mktemp("script")
    note = place / "note"
    note.write_text(f"#!{sys.executable}\nimport json, sys\nwith open({str(place / 'log')!r}, 'a') as file:\n"
                    "    file.write(json.dumps(sys.argv[1:]) + '\\n')\n")
    note.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(note), "DATA": str(place / "data"), "RUNS": str(place / "runs")}
    subprocess.run(["bash", str(SCRIPT)], cwd=place, env=environment, capture_output=True, timeout=60, check=False)
    return [json.loads(line) for line in (place / "log").read_text().splitlines()]


def test_script_starts_what_is_there(started: list[list[str]]) -> None:
    """All stages but two, all blocks, code that compiles; nothing of it was left out by a failing line."""
    mains = {words[0] for words in started if words[0].endswith(".py")}
    assert mains <= set(STAGE_OF) and len(mains) == 7 and all((ROOT / name).is_file() for name in mains)
    assert [words[2] for words in started if words[:2] == ["-m", "benchmarks.first_minutes"]] == list(first_minutes.BLOCKS)
    assert [words[2] for words in started if words[:2] == ["-m", "pytest"]] == ["tests/gpu"] and (ROOT / "tests/gpu").is_dir()
    codes = [words[1] for words in started if words[0] == "-c"]
    assert len(codes) == 2 and all(ast.parse(code) for code in codes)
    assert len(started) == SCRIPT.read_text().count("$PYTHON ") + 3 + 4 + 2 + 2  # loops of four, five, three and three


def test_every_line_of_the_script_parses(started: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"x")
    monkeypatch.setattr("models.find_original", lambda typed, narrow, results_only: models.Original(file, {}))
    lines = [words for words in started if words[0] in STAGE_OF]
    for words in lines:
        arg_parser.parse(STAGE_OF[words[0]], words[1:])
    seeds = sorted(words[words.index("--seed") + 1] for words in lines if words[-2:] == ["--epochs", "3"])
    assert seeds == ["11", "12", "13"] and not [words for words in lines if words.count("--seed") > 1]
