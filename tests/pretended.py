"""Finished runs with outputs of our own making, and the tables of analysis.py over them."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell

from evaluation import accuracy
from evaluation.accuracy import EvaluationConfig
from report import contrasts, output
from report.contrasts import Study
from report.pairs import AnalysisConfig, gather
from report.rows import Row, in_order, rows
from report.table import markdown
from report.tables import part_of
from utils import BadInput, files_of, read_record

SEEDS = (3, 5, 8)
SIZES = {"retain": 90, "forget": 24, "val": 30, "test": 60}
# method -> how far its logits lean to the true class on retain, forget, val and test
LEANS = {"retrain": (3.0, 1.0, 1.2, 1.2), "raw": (3.0, 3.0, 1.1, 1.2), "FT": (2.5, 2.0, 1.0, 1.1),
         "NG": (2.0, 0.5, 0.7, 0.8)}


def pretend(library: Path, root: Path, method: str, seed: int, name: str = "", **changed: Any) -> Path:
    """A finished run of other outputs: those of a seed, whose original is another one for each seed.

    Args:
        changed: settings by flag; ``split_key``, ``parent`` (a hash) and ``seconds`` go to their place in the record.
    """
    run = shell.only(library, "forget", unlearn=method)
    folder = root / "forget" / f"{method}-{seed}{name}"
    shutil.copytree(run.folder, folder)
    draw = np.random.default_rng([seed, *method.encode(), *name.encode()])
    arrays = {}
    for (part, size), lean in zip(SIZES.items(), LEANS[method], strict=True):
        labels = np.random.default_rng([seed, size]).integers(0, 3, size)
        logits = draw.normal(size=(size, 3)) * 2 + lean * np.eye(3)[labels]
        arrays |= {f"{part}_labels": labels, f"{part}_logits": logits.astype(np.float32),
                   f"{part}_index": np.arange(size)}
    np.savez(folder / "outputs.npz", **arrays)
    record = json.loads(json.dumps(run.record))
    record["settings"]["rt"]["seed"] = seed
    record["parent"]["sha256"] = changed.pop("parent", f"original of seed {seed}")
    record["split_key"] = changed.pop("split_key", record["split_key"])
    record["forget_size"] = SIZES["forget"]
    record["seconds"] = changed.pop("seconds", {"mask": 0.25, "unlearn": 1.0 + seed, "evaluate": 99.0})
    record["metrics"] = accuracy.summarise(arrays, (), EvaluationConfig(), seed)
    record["collapsed"] = False  # some of the toy runs of one epoch are
    for flag, value in changed.items():
        next(group for group in record["settings"].values() if flag in group)[flag] = value
    record["files"] = files_of(folder)
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def four_methods(library: Path, root: Path) -> Path:
    """Four methods on three seeds below ``root``; not to be changed."""
    for method, seed in itertools.product(LEANS, SEEDS):
        pretend(library, root, method, seed)
    return root


def copied(bench: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bench, tmp_path / "runs"))


def change(run: Path, **fields: Any) -> None:
    """Other fields in a run's record, and the sizes of its files as they are now."""
    record = read_record(run).record
    (run / "record.json").write_text(json.dumps(record | fields | {"files": files_of(run)}))


def table_of(root: Path, **filters: Any) -> list[Row]:
    return rows(gather(AnalysisConfig(save_dir=str(root), **filters)).pairs)


def row_of(table: Iterable[Row], method: str) -> Row:
    (row,) = [row for row in table if row.method == method]
    return row


def text_of(table: list[Row], study: Study = contrasts.TOW, **flags: Any) -> str:
    """What the screen shows of rows, setting by setting."""
    told, cfg = output.headings_of(table), AnalysisConfig(**flags)
    table = in_order(table, study.headline)
    return markdown(part_of(there, told[setting], cfg, study) for setting, there in output.by_setting(table).items())


def notes_of(root: Path, **filters: Any) -> str:
    """What is said below the tables of runs that are in none."""
    return "\n".join(gather(AnalysisConfig(save_dir=str(root), **filters)).notes)


def refused(root: Path, *words: str) -> None:
    with pytest.raises(BadInput) as caught:
        table_of(root)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


def outputs_of(root: Path, method: str, seed: int) -> dict[str, np.ndarray]:
    with np.load(root / "forget" / f"{method}-{seed}" / "outputs.npz") as file:
        return dict(file)


def of_csv(line: dict[str, str], name: str) -> tuple[float, tuple[float, float] | None]:
    """Mean and the ends of its interval; None where the cells are empty."""
    ends = line[f"{name}_low"], line[f"{name}_high"]
    return float(line[name]), (float(ends[0]), float(ends[1])) if all(ends) else None
