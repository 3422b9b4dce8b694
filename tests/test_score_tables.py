"""The table of scores: seconds, direction, and Spearman's rho with the memorization that is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
from grouped import SEEDS, equals, grouped
from pretended import change, pretend, table_of
from scipy import stats

from report import scores
from report.pairs import AnalysisConfig
from report.table import markdown
from utils import read_record


def scored(root: Path, name: str, seed: int, values: np.ndarray, original: str = "", **facts: Any) -> Path:
    """A finished run of main_memorization.py, pretended."""
    folder = root / "memorization" / f"{name}-{seed}"
    folder.mkdir(parents=True)
    np.savez(folder / "scores.npz", **{name: values.astype(np.float32)}, labels=np.arange(len(values)) % 3, images_key="images")
    settings = {"data": {"dataset": "digits"}, "model": {"arch": "resnet8s"}, "choice": {"score": name}, "rt": {"seed": seed},
                "cfg": {}}
    record = {"schema": 1, "stage": "memorization", "label": name, "status": "done", "finished": "now", "settings": settings,
              "images_key": "images", "seconds": {}, "files": {"scores.npz": (folder / "scores.npz").stat().st_size}, **facts}
    if original:
        record["parent"] = {"sha256": original, "path": f"{root}/train/none/model.pt", "training": None}
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def test_table_of_scores(library: Path, tmp_path: Path) -> None:
    """Seconds with the pool's, the direction in words, Spearman with the largest pool's memorization over seeds."""
    draw = np.random.default_rng()
    truth = draw.uniform(-1, 1, size=40)
    for method in ("retrain", "FT"):
        pretend(library, tmp_path, method, 3)
    scored(tmp_path, "memorization", 2, truth, seconds={"score": 1.0, "pool": 30.0}, models=20)
    scored(tmp_path, "memorization", 4, -truth, seconds={"score": 1.0, "pool": 3.0}, models=5)
    values = {seed: 9 + truth + draw.normal(size=40) for seed in SEEDS}
    values[5][:4] = np.nan
    for seed in SEEDS:
        scored(tmp_path, "ho_ret", seed, values[seed], f"original {seed}", seconds={"score": 2.0 * seed})
        scored(tmp_path, "es", seed, draw.normal(size=40), f"original {seed}", seconds={"score": 0.5})
    cfg = AnalysisConfig(save_dir=str(tmp_path))
    (extra,) = scores.tables(cfg, table_of(tmp_path))
    head, *body = extra.csv
    lines = {line[2]: dict(zip(head, line, strict=True)) for line in body}
    rhos = [stats.spearmanr(values[3], truth).statistic, stats.spearmanr(values[5][4:], truth[4:]).statistic]
    found = lines["ho_ret"]
    ends = [(found[f"{name}_low"], found[f"{name}_high"]) for name in ("spearman", "seconds")]
    text = markdown(extra.parts)
    assert equals((found["spearman"], ends[0], found["n"]), rhos, top=1, low=-1)
    assert equals((found["seconds"], ends[1], found["n"]), [6.0, 10.0], top=math.inf) and found["polarity"] == 1
    assert lines["es"]["spearman"] is None and "about groups" in text and "| more memorized " in text
    assert lines["memorization"]["spearman"] is None and lines["memorization"]["seconds"] == 31.0
    assert "compared with" in text and "memorization-2" in text and "memorization-4" not in text
    (seeded,) = scores.tables(AnalysisConfig(save_dir=str(tmp_path), seed=(3,)), table_of(tmp_path))
    (line,) = [line for line in seeded.csv if line[2] == "ho_ret"]
    assert line[head.index("n")] == 1 and line[head.index("spearman_low")] is None


def test_recorded_scores_of_the_originals_count_their_recording(library: Path, tmp_path: Path) -> None:
    """What training recorded is in events.npz of the originals that the table uses; its seconds are in their record."""
    run = shell.only(library, "train")
    with np.load(run.folder / "events.npz") as file:
        events = {name: file[name] for name in file.files}
    truth = np.random.default_rng().uniform(-1, 1, size=len(events["labels"]))
    np.savez(tmp_path / "known.npz", memorization=truth)
    for method in ("retrain", "FT"):
        grouped(pretend(library, tmp_path, method, 3), "confidence", mem="low")
    cfg = AnalysisConfig(save_dir=str(tmp_path), scores=str(tmp_path / "known.npz"))
    (extra,) = scores.tables(cfg, table_of(tmp_path))
    head, *body = extra.csv
    assert {line[2] for line in body} == {"confidence", "max_conf", "entropy", "bi_acc", "el2n", "forgetting"}
    for line in (dict(zip(head, line, strict=True)) for line in body):
        values = events[line["score"]]
        known = np.isfinite(values)
        constant = np.ptp(values[known]) == 0
        rho = None if constant else pytest.approx(stats.spearmanr(values[known], truth[known]).statistic)
        assert line["spearman"] == rho and line["seconds"] == run.record["seconds"]["events"]
        assert line["polarity"] == (1 if line["score"] in ("entropy", "el2n", "forgetting") else -1)


def test_scores_are_compared_with_the_file_that_runs_were_cut_by(library: Path, tmp_path: Path) -> None:
    """No pool under the folder, but a published file named by --scores; one of another data set does not count."""
    events = shell.only(library, "train").folder / "events.npz"
    with np.load(events) as file:
        labels, confidence = file["labels"], file["confidence"]
    np.savez(tmp_path / "other.npz", memorization=np.zeros(len(labels) + 1))
    np.savez(tmp_path / "published.npz", tr_mem=-confidence, tr_labels=labels)
    for number, name in enumerate(("other", "published")):
        for method in ("retrain", "FT"):
            folder = grouped(pretend(library, tmp_path, method, 3, name=name), "memorization", mem=("low", "mid")[number])
            change(folder, scores=read_record(folder).record["scores"] | {"path": str(tmp_path / f"{name}.npz")})
    (extra,) = scores.tables(AnalysisConfig(save_dir=str(tmp_path)), table_of(tmp_path))
    head, *body = extra.csv
    (line,) = [dict(zip(head, line, strict=True)) for line in body if line[2] == "confidence"]
    assert line["spearman"] == pytest.approx(-1) and str(line["compared_with"]).endswith("published.npz")


def test_no_scores_make_no_table_of_them(library: Path, tmp_path: Path) -> None:
    for method in ("retrain", "FT"):
        pretend(library, tmp_path, method, 3)
    assert scores.tables(AnalysisConfig(save_dir=str(tmp_path)), table_of(tmp_path)) == []
