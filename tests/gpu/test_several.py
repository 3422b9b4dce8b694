"""On two CUDA devices: one original by two processes of torchrun and NCCL, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import Saved, find_runs

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
WORDS = ["--dataset", "digits", "--arch", "resnet20s", "--batch_size", "250", "--epochs", "2", "--lr", "0.001",
         "--device", "cuda", "--precision", "fp32", "--deterministic", "--no_progress"]


def trained(folder: Path, *program: str) -> Saved:
    done = subprocess.run([sys.executable, *program, str(ROOT / "main_train.py"), *WORDS, "--save_dir", str(folder)],
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (run,) = find_runs(folder, ("train",))
    return run


def test_two_cards_make_the_run_of_one(tmp_path: Path) -> None:
    """And do so twice to the bit. A ReLU that rounding switches moves weights by a share of the rate, as other threads do."""
    several = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    folders = [tmp_path / name for name in ("one", "two", "again")]
    for folder in folders:
        folder.mkdir()
    one, two, again = trained(folders[0]), trained(folders[1], *several), trained(folders[2], *several)
    assert one.folder.name == two.folder.name and two.record["processes"] == 2
    ours, theirs, repeated = (torch.load(run.folder / "model.pt", weights_only=True)["state_dict"] for run in (one, two, again))
    for name, value in ours.items():
        assert torch.allclose(theirs[name].double(), value.double(), rtol=1e-2, atol=1e-2), name
        assert torch.equal(theirs[name], repeated[name]), name
    events, others = (dict(np.load(run.folder / "events.npz")) for run in (one, two))
    assert np.allclose(others["confidence"], events["confidence"], atol=1e-2, equal_nan=True)
