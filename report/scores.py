"""The table of the scores: what each costs, which way it runs, and how well it ranks as memorization does."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation import statistics
from evaluation.statistics import Number
from memorization import SCORES
from memorization.proxies import spearman
from report import names
from report.labels import labels_of
from report.names import Heading
from report.output import Extra
from report.pairs import AnalysisConfig
from report.rows import Row
from report.settings import named
from report.table import Cell, Line, Part, Table
from report.tables import cell
from sources.scores import POLARITY, RECORDED, read_scores
from utils import BadInput, Saved, find_runs, read_arrays, run_of

WORDS = {1: "more memorized", -1: "less memorized", 0: "nothing: it is about groups"}


class Scored(NamedTuple):
    """A score of one original, or of a pool of models; variant: name and settings, as ``rows.labels_of`` has them.

    owner: the original or the pool; of a pool that has grown, several runs have the scores.
    """

    network: str
    name: str
    variant: str
    path: Path
    seconds: float
    key: str
    owner: str


def tables(cfg: AnalysisConfig, table: list[Row]) -> list[Extra]:
    """scores, over main_memorization.py's runs and what the originals in the table recorded; none where nothing uses any."""
    asked = ("dataset", "arch", "ood_classes", "ood_subclass")
    wanted = {name: getattr(cfg, name) for name in asked if getattr(cfg, name) is not None}
    # of one pool grown, the largest stands last and stays
    runs = sorted(find_runs(Path(cfg.save_dir), ("memorization",), **wanted), key=lambda run: run.record.get("models", 0))
    used = [pair.run for row in table for pair in row.pairs]
    if not runs and not any(run.record.get("scores") for run in used):
        return []
    copies = [run for run in runs if _is_copy(run)]  # of what training recorded: their own seconds are those of reading it
    found = [_of_run(run) for run in runs if not _is_copy(run) and _fits(run, cfg)]
    parents = dict.fromkeys(Path(run.record["parent"]["path"]).parent for run in [*used, *copies] if _fits(run, cfg))
    found += [scored for folder in parents for scored in _recorded(folder)]
    found = list({(s.name if s.name == "memorization" else s.variant, s.owner, s.key): s for s in found}.values())
    references = {scored.key: _reference(scored, cfg, runs, used) for scored in found}
    return [_extra(found, references)] if found else []


def _fits(run: Saved, cfg: AnalysisConfig) -> bool:
    return cfg.seed is None or run.setting("seed") in cfg.seed or run.setting("score") == "memorization"


def _is_copy(run: Saved) -> bool:
    return run.setting("score") in RECORDED or run.setting("curvature") == "recorded"


def _of_run(run: Saved) -> Scored:
    name, spent = run.setting("score"), run.record["seconds"]
    weighty = {f.name for f in dataclasses.fields(SCORES[name].config) if f.metadata.get("digest", True)}
    cfg = {setting: value for setting, value in run.record["settings"]["cfg"].items() if setting in weighty}
    variant = json.dumps([name, cfg, None, {}])
    owner = run.record.get("pool", run.record.get("parent", {}).get("sha256", ""))
    return Scored(named(run), name, variant, run.folder / "scores.npz", spent.get("score", 0.0) + spent.get("pool", 0.0),
                  run.record["images_key"], owner)


def _recorded(folder: Path) -> Iterable[Scored]:
    """What the training of an original recorded; a published original has no record."""
    path = folder / "events.npz"
    run = run_of(path) if path.exists() else None
    if run is None:
        return
    arrays = _arrays(path)
    key = str(arrays["images_key"])
    for name in (name for name in (*RECORDED, "loss_curvature") if name in arrays):
        variant = json.dumps([name, {"curvature": "recorded"} if name == "loss_curvature" else {}, None, {}])
        spent = run.record["seconds"].get("curvature" if name == "loss_curvature" else "events", 0.0)
        yield Scored(named(run), name, variant, path, spent, key, str(folder))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return read_arrays(path, {"labels": ("iu", "images"), "images_key": ("U", "")})


def _reference(scored: Scored, cfg: AnalysisConfig, runs: list[Saved], used: list[Saved]) -> Path | None:
    """The memorization scores of a data set: the file that is named, the largest pool, or the file that a run was cut by."""
    if cfg.scores is not None:
        return Path(cfg.scores)
    pools = [run for run in runs if run.setting("score") == "memorization" and run.record["images_key"] == scored.key]
    if pools:
        return pools[-1].folder / "scores.npz"
    cut = [run.record["scores"]["path"] for run in used if run.record.get("scores", {}).get("name") == "memorization"
           and named(run).split()[0] == scored.network.split()[0]]
    return next((path for path in map(Path, cut) if path.exists() and _of_the_data(path, scored)), None)


def _of_the_data(path: Path, scored: Scored) -> bool:
    """Whether a run's file of memorization scores is of these images; it may be of other classes of the same data set."""
    try:
        read_scores(path, "memorization", _arrays(scored.path)["labels"], scored.key)
    except BadInput:
        return False
    return True


def _rho(scored: Scored, reference: Path | None) -> float:
    """Spearman's rho with memorization; NaN where it is not known, or the score orders no examples."""
    if reference is None or scored.name == "memorization" or POLARITY[scored.name] == 0:
        return math.nan
    labels = _arrays(scored.path)["labels"]
    values = read_scores(scored.path, scored.name, labels, scored.key)
    return spearman(values, read_scores(reference, "memorization", labels, scored.key))[0]


def _extra(found: list[Scored], references: dict[str, Path | None]) -> Extra:
    grouped: dict[tuple[str, str, str], list[Scored]] = {}
    for scored in found:
        grouped.setdefault((scored.network, scored.key, scored.variant), []).append(scored)
    labels = labels_of([(network + key, variant) for network, key, variant in grouped])
    lines: list[list[Any]] = [["data", "network", "score", "polarity", "seconds", "seconds_low", "seconds_high", "spearman",
                               "spearman_low", "spearman_high", "n", "compared_with"]]
    text: dict[Heading, list[Line]] = {}
    for (network, key, variant), members in sorted(grouped.items(), key=lambda item: (item[0][:2], _place(item[1][0].name))):
        name, reference = members[0].name, references[key]
        rhos = [rho for rho in (_rho(scored, reference) for scored in members) if math.isfinite(rho)]
        rho: Number | None = statistics.interval(rhos, (-1.0, 1.0)) if rhos else None
        seconds = statistics.interval([scored.seconds for scored in members], (0.0, math.inf))
        label = labels[network + key, variant]
        lines.append([key, network, label, POLARITY[name], *_flat(seconds), *_flat(rho), len(members),
                      reference if rho else None])
        told = f"compared with {reference}" if reference else "memorization itself is not known here: main_memorization.py"
        cells = [Cell(label), Cell(WORDS[POLARITY[name]]), Cell(cell(seconds), seconds.mean),
                 Cell(cell(rho, 3), rho.mean if rho else None), Cell(str(len(members)), len(members))]
        heading = Heading(f"Scores · {names.told(network)}", f"training images {key[:6]}; {told}")
        text.setdefault(heading, []).append(Line(tuple(cells)))
    head = ("score", "larger values mean", "seconds", "Spearman with memorization", "n")
    parts = [Part(heading, (Table("", head, tuple(body)),)) for heading, body in text.items()]
    return Extra("scores", tuple(parts), lines, {})


def _flat(number: Number | None) -> tuple[float | None, ...]:
    """Mean and the ends of its interval."""
    return (number.mean, *(number.ends or (None, None))) if number else (None, None, None)


def _place(name: str) -> int:
    return list(POLARITY).index(name)
