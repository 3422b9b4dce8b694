"""The sweeps for a few processor cores: every command is one that its stage takes, and a small one runs to its table."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shell

import arg_parser
import models
from memorization import SCORES
from scripts import evidence

ROOT = Path(evidence.ROOT)
nowhere = pytest.fixture(autouse=True)(shell.nowhere)


def listed(sweep: str, **more: str) -> list[list[str]]:
    """The commands of a sweep, as its script prints them."""
    env = os.environ | {"PYTHON": sys.executable, "SEEDS": "3", "MODELS": "10", **more}
    done = subprocess.run(["bash", str(ROOT / "scripts" / f"{sweep}.sh"), "--list"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line)[1:] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("sweep", "count"), [("cpu_table", 1 + 2 * 13), ("cpu_rum", 2 + 1 + 8 + 4 * 7 + 10)])
def test_every_command_of_a_sweep_is_one_that_its_stage_takes(sweep: str, count: int, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    called = listed(sweep)
    original = tmp_path / "model.pt"
    original.write_bytes(b"x")
    monkeypatch.setattr("models.find_original", lambda typed, narrow, results_only: models.Original(original, {}))
    monkeypatch.setattr("arg_parser.find_scores", lambda *args: tmp_path / "scores.npz")
    stages = {"main_train.py": "train", "main_forget.py": "forget", "main_random.py": "random", "main_rum.py": "rum",
              "generate_mask.py": "mask", "main_memorization.py": "memorization", "analysis.py": "analysis",
              "analysis_mia.py": "analysis_mia"}
    parsed = [arg_parser.parse(stages[words[0]], words[1:]) for words in called]
    assert len(called) == count + 2 and [words[0] for words in called[-2:]] == ["analysis.py", "analysis_mia.py"]
    trained = [args for args in parsed if args.stage == "train"]
    assert [args.rt.seed for args in trained] == [3]
    assert {(args.model.arch, args.cfg.epochs, args.cfg.optimizer, args.data.batch_size) for args in trained} == {
        ("cifarnet", 8, "muon", 500)}
    assert {(args.data.aug, args.cfg.label_smoothing) for args in trained} == {(False, 0.0)}
    asked = {words[words.index("--unlearn") + 1] for words in called if "--unlearn" in words}
    if sweep == "cpu_table":
        assert asked == {*evidence.METHODS, "retrain", "RL"} and len(asked) == 12  # raw, retrain and ten methods
    else:
        assert {args.choice.score for args in parsed if args.stage == "memorization"} == {*SCORES.names()} - {"es"}
        pools = [args for args in parsed if args.stage == "memorization" and args.choice.score == "memorization"]
        assert {args.cfg.shard for args in pools} == {"0/2", "1/2"}
        assert {(args.cfg.models, args.cfg.recipe, args.data.aug) for args in pools} == {(10, "cifar-fast", False)}


def test_a_small_table_runs_to_its_last_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty images a class; its jobs one after another in this process (test_demo.py has them side by side)."""
    random = np.random.default_rng(0)
    arrays = {f"x_{part}": random.integers(0, 256, (n, 32, 32, 3), np.uint8) for part, n in (("train", 200), ("test", 40))}
    np.savez(tmp_path / "cifar10.npz", **arrays, y_train=np.arange(200) % 10, y_test=np.arange(40) % 10)
    monkeypatch.setattr(evidence, "METHODS", ("raw",))
    monkeypatch.setattr(evidence, "follow", lambda jobs, out, workers: [
        importlib.import_module(job.stage).main([*job.words]) for job in jobs if job.stage != "analysis_mia"])
    evidence.main(["table", "--data", str(tmp_path), "--save_dir", str(tmp_path / "runs"), "--arch", "cifarnet_16_64",
                   "--epochs", "1", "--seeds", "1", "--per_class", "20"])
    said = capsys.readouterr().out
    assert "SalUn" in said and "class 3 (18 images)" in said and "random (18 images)" in said
    assert (tmp_path / "runs" / "report.html").exists()
