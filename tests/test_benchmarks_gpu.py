"""The table for a GPU runs on a CPU at toy size, keeps what is done, and marks its goals."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import shell
import torch
from conftest import quiet_runtime

from benchmarks import goals, gpu
from benchmarks.gpu import Bench, Size, Way
from utils import BadInput, find_runs


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages in this process; ways without the compiler, which takes minutes, and one that fails."""
    monkeypatch.setattr(gpu, "execute", lambda words, _: shell.STAGES[words[0]].main(words[1:]))
    monkeypatch.setattr(gpu, "WAYS", {"float32, contiguous": Way({"precision": "fp32"}, False),
                                      "float32": Way({"precision": "fp32"}), "broken": Way({"precision": "half"})})
    monkeypatch.setattr(gpu, "METHODS", {name: gpu.METHODS[name] for name in ("retrain", "FT", "RL", "wfisher")})
    monkeypatch.setattr(gpu, "AT_LEAST", dict.fromkeys(gpu.BLOCKS, 0))


def test_every_block_runs_at_toy_size_and_is_written(here: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "RESULTS.md"
    where = ["--save_dir", str(tmp_path / "runs"), "--append", "--out", str(out)]
    gpu.main(["--toy", "--device", "cpu", "--seeds", "1,2", *where])
    text = out.read_text()
    assert [name for name in gpu.BLOCKS if f"**{name}**" in text] == list(gpu.BLOCKS) and len(gpu.BLOCKS) == 7
    assert "Not finished" not in text and "Left out" not in text
    assert text.count("| float32 |") == 2 and text.count("fails: BadInput") == 2
    rows = [row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("| G")]
    marks = {row[0]: row[-1] for row in rows}
    assert set(marks) == {f"G{number}" for number in range(1, 9)}
    assert marks["G1"] == "not measured" and "not measured" not in (marks[f"G{number}"] for number in (2, 3, 4, 5, 6, 8))
    runs = find_runs(tmp_path / "runs", ("forget",))
    assert len(runs) == 4 * 2 and {run.setting("seed") for run in runs} == {1, 2}
    assert len(find_runs(tmp_path / "runs" / "float32", ("train",))) == 2


def test_what_does_not_fit_is_left_out_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(_: Bench) -> str:
        raise BadInput("main_train.py took longer than the 3 s that were left")

    monkeypatch.setattr(gpu, "BLOCKS", {"original": late, "methods": late})
    bench = Bench(quiet_runtime(), Size.of(False), "", tmp_path, (1,), time.monotonic() + 50)
    kept: list[str] = []
    gpu.run(bench, ["original", "methods"], kept.append)
    assert len(kept) == 2 and "Not finished: main_train.py took longer" in kept[0] and "Left out" not in kept[0]
    assert "Left out: 50 s of the budget are left and it takes 60 at least" in kept[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_device_is_one_line_and_code_2(capsys: pytest.CaptureFixture) -> None:
    for words, told in (([], "torch sees no CUDA device"), (["--blocks", "none"], "no block is called none")):
        with pytest.raises(SystemExit) as end:
            gpu.main(words)
        said = capsys.readouterr()
        assert end.value.code == 2 and told in said.err and said.err.count("\n") == 1 and not said.out


def test_goals_are_marked_by_what_was_measured() -> None:
    found = {"G1": 60_000, "G2": 20, "G3": 12.5, "G7 waits": 0, "G8": 0.3, "G8 noise": 0.2}
    rows = [row.strip("| ").split(" | ") for row in goals.on_a_gpu(found).splitlines()[2:]]
    assert [(row[0], row[-1]) for row in rows] == [
        ("G1", "yes"), ("G2", "stretch"), ("G3", "NO"), ("G4", "not measured"), ("G5", "not measured"), ("G6", "not measured"),
        ("G7", "stretch"), ("G7", "not measured"), ("G8", "NO")]


def test_work_of_an_image_is_that_of_the_paper_and_the_roof_adds_it_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-18 at 32 x 32: 0.56 G multiply-adds forward, three times 1.11 GFLOP a step less the first layer's gradient of the
    image; 614,400 outputs of convolutions."""
    bench = Bench(quiet_runtime(), Size.of(False), "", tmp_path, (1,), 0.0)
    flops, values = gpu.work_of(bench)
    assert values == 614_400 and 3.30e9 < flops < 3.34e9
    monkeypatch.setattr(gpu, "fastest", lambda *_: 1e-3)
    product, copy = 2 * 256**3 / 1e-3, 2 * 256 * 256 * 4 * 2 / 1e-3
    assert gpu.roof(bench, 1e9, 1e6, True) == pytest.approx(1 / (1e9 / product + 14 * 1e6 * 2 / copy))
