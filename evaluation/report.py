"""From finished records to tables: pair every run with its retrain, average over seeds, write CSV and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from evaluation import tow
from evaluation.accuracy import EvaluationConfig, load_outputs, metrics_of, remaining
from unlearn import METHODS
from utils import BadInput, Saved, digest_of, find_runs, hp, write_atomic

WEAK = 60.0  # AUC in % under which an attack's threshold says little
FLOOR = "retrain vs retrain"  # the row that says how far two retrained models are apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisConfig(EvaluationConfig):
    """Which finished runs to compare; a flag that is not given does not filter."""

    save_dir: str = hp("runs", "folder of the run folders")
    out: str | None = hp(None, "folder of the tables and plots (default: SAVE_DIR/analysis)")
    dataset: str | None = hp(None, "only this data set")
    arch: str | None = hp(None, "only this architecture")
    unlearn: tuple[str, ...] | None = hp(None, "only these methods, by name; retrain is always there")
    num_indexes_to_replace: int | None = hp(None, "only forget sets asked for by this number")
    forget_fraction: float | None = hp(None, "only forget sets asked for by this share")
    class_to_replace: tuple[int, ...] | None = hp(None, "only forget sets of these classes")
    aug: bool | None = hp(None, "only runs with (--aug) or without (--no_aug) augmentation")
    seed: tuple[int, ...] | None = hp(None, "only these seeds")

    @property
    def folder(self) -> Path:
        return Path(self.out or Path(self.save_dir) / "analysis")


@dataclasses.dataclass
class Pair:
    """A run and the retrain of the same split, seed and original; the metrics of both in percent."""

    run: Saved
    retrain: Saved
    metrics: dict[str, Any]
    reference: dict[str, Any]

    @property
    def seed(self) -> int:
        return self.run.setting("seed")

    @property
    def method(self) -> str:
        return self.run.setting("unlearn")


def pairs(cfg: AnalysisConfig) -> list[Pair]:
    """Every finished unlearning run that passes the filters, beside its retrain.

    Raises:
        BadInput: no run passes; a run has no retrain (with the command that makes it), or several.
    """
    wanted = {name: getattr(cfg, name) for name in ("dataset", "arch") if getattr(cfg, name) is not None}
    runs = find_runs(Path(cfg.save_dir), ("forget",), **wanted)
    if cfg.seed is not None:
        runs = [run for run in runs if run.setting("seed") in cfg.seed]
    retrains: dict[str, list[Saved]] = {}
    for run in runs:
        if run.setting("unlearn") == "retrain":
            retrains.setdefault(_pairing(run), []).append(run)
    kept = [run for run in runs if run.setting("unlearn") != "retrain" and _passes(run, cfg)]
    if not kept:
        raise BadInput(f"no finished unlearning run under {cfg.save_dir}/forget passes the filters; main_forget.py makes them")
    for run in kept:
        beside = retrains[_pairing(run)] = _plainest(retrains.get(_pairing(run), []))
        if not beside:
            raise BadInput(f"{run.folder} has no retrain to compare with; make it: {retrain_command(run, cfg.save_dir)}")
        if len(beside) > 1:
            raise BadInput(f"{run.folder} has several retrains: {', '.join(str(b.folder) for b in beside)}; keep one")
    used = [retrains[key][0] for key in dict.fromkeys(map(_pairing, kept))]
    attack = EvaluationConfig(mia=cfg.mia, mia_mode=cfg.mia_mode)
    metrics = {run.folder: metrics_of(run.folder, run.record, attack) for run in [*used, *kept]}
    found = [(run, retrains[_pairing(run)][0]) for run in [*used, *kept]]
    return [Pair(run, ref, metrics[run.folder], metrics[ref.folder]) for run, ref in found]


def _plainest(retrains: list[Saved]) -> list[Saved]:
    """Of several retrains those trained as their original was; all of them if none was."""
    def plain(run: Saved) -> bool:
        training = run.record["parent"].get("training") or {}
        names = METHODS["retrain"].inherits
        return all(run.setting(ours) == training[theirs] for ours, theirs in names.items() if theirs in training)

    return [run for run in retrains if plain(run)] or retrains


def _passes(run: Saved, cfg: AnalysisConfig) -> bool:
    """The filters on method and forget set, which a retrain need not pass: it is found through its run."""
    asked = all(getattr(cfg, name) in (None, run.setting(name))
                for name in ("num_indexes_to_replace", "forget_fraction", "aug"))
    classes = cfg.class_to_replace is None or tuple(run.setting("class_to_replace")) == cfg.class_to_replace
    return asked and classes and (cfg.unlearn is None or run.setting("unlearn") in cfg.unlearn)


def _pairing(run: Saved) -> str:
    return json.dumps([run.record["split_key"], run.setting("seed"), run.record["parent"]["sha256"]])


def retrain_command(run: Saved, save_dir: str) -> str:
    """The command line that makes a run's retrain, to be pasted into a shell."""
    parent, settings = run.record["parent"], run.record["settings"]
    words = ["python", "main_forget.py", "--unlearn", "retrain", "--checkpoint", parent["path"], "--forget_index",
             str(run.folder / "splits.npz"), "--seed", str(run.setting("seed")), "--save_dir", save_dir]
    if parent["training"] is None:  # a published file has no record to take these from
        for name, value in {**settings["protocol"], **settings["data"], **settings["model"]}.items():
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no_{name}")
            elif value is not None:
                words += [f"--{name}", str(value)]
    return shlex.join(words)


# ---------------------------------------------------------------------------------------------------------------- rows


def _shares(metrics: Mapping[str, Any]) -> dict[str, float]:
    names = ("forget", "retain", "test", "MIA")
    return {"mia" if name == "MIA" else name: metrics[name] / 100 for name in names if metrics[name] is not None}


def measures(pair: Pair) -> dict[str, float]:
    """Every number of one run: its own metrics, its distance to retrain, its cost."""
    own, ref = pair.metrics, pair.reference
    numbers = {name: own[name] for name in ("forget", "retain", "val", "test", "UA", "RA", "TA", "MIA", "privacy")
               if own.get(name) is not None}
    numbers |= {f"MIA_{feature}": value for feature, value in own["mia"]["forget"].items()}
    numbers |= {f"AUC_{feature}": value for feature, value in own["mia"]["auc"].items()}
    numbers["ToW"] = tow.tow(_shares(own), _shares(ref))
    if own["MIA"] is not None and ref["MIA"] is not None:
        numbers["ToW-MIA"] = tow.tow_mia(_shares(own), _shares(ref))
        numbers["Avg. gap"] = tow.average_gap(own, ref)
    ours, theirs = load_outputs(pair.run.folder), load_outputs(pair.retrain.folder)
    counted = {"forget": slice(None), "test": remaining(ours, pair.run.record["whole_classes"])}
    for part, rows in counted.items():
        a, b = (torch.from_numpy(outputs[f"{part}_logits"][rows]) for outputs in (ours, theirs))
        if torch.isfinite(a).all() and torch.isfinite(b).all():
            numbers[f"disagreement_{part}"] = 100 * tow.disagreement(a, b)
    spent = pair.run.record["seconds"]
    numbers["seconds"] = spent.get("unlearn", 0.0) + spent.get("mask", 0.0)
    return numbers


@dataclasses.dataclass
class Row:
    """A method under one setting over its seeds; ``numbers``: name -> (mean, half width of the interval or None, n)."""

    setting: str
    method: str
    pairs: list[Pair]
    numbers: dict[str, tuple[float, float | None, int]]

    @property
    def collapsed(self) -> int:
        """How many of its runs are broken models."""
        return sum(bool(pair.run.record.get("collapsed")) for pair in self.pairs) if self.method != FLOOR else 0

    @property
    def told(self) -> str:
        """The method, and that its low forget accuracy is no forgetting where a run collapsed."""
        every = "collapsed" if self.collapsed == len(self.pairs) else f"{self.collapsed} of {len(self.pairs)} collapsed"
        return f"{self.method} [{every}]" if self.collapsed else self.method

    @property
    def seeds(self) -> list[int]:
        return sorted(pair.seed for pair in self.pairs)


def rows(found: list[Pair], level: float = 0.95) -> list[Row]:
    """One row a method and setting, means and t-intervals over seeds; then the retrain-vs-retrain floor of each setting."""
    grouped: dict[tuple[str, str], list[Pair]] = {}
    for pair in found:
        grouped.setdefault((_setting(pair.run), _variant(pair.run)), []).append(pair)
    for (setting, _), members in grouped.items():
        seeds = [pair.seed for pair in members]
        if len(set(seeds)) < len(seeds):
            raise BadInput(f"{setting}, {members[0].method}: several runs of one seed cannot be told apart: "
                           f"{', '.join(str(p.run.folder) for p in members)}; keep one, or filter")
    labels = _labels(grouped)
    table = []
    for key, members in grouped.items():
        each = [measures(pair) for pair in members]
        numbers = {name: tow.t_interval([m[name] for m in each], level) for name in each[0] if all(name in m for m in each)}
        table.append(Row(key[0], labels[key], members, numbers))
    order = {"retrain": -2, "raw": -1}
    table.sort(key=lambda row: (row.setting, order.get(row.pairs[0].method, 0), row.method))
    return [row for setting in dict.fromkeys(r.setting for r in table) for row in
            [*(r for r in table if r.setting == setting), *_floor(setting, table, level)]]


def _floor(setting: str, table: list[Row], level: float) -> Iterable[Row]:
    retrained = next((r.pairs for r in table if r.setting == setting and r.pairs[0].method == "retrain"), [])
    if len(retrained) > 1:
        shares = [_shares(pair.metrics) for pair in retrained]
        numbers = {name: tow.t_interval(tow.noise_floor(shares, distance), level)
                   for name, distance in (("ToW", tow.tow), ("ToW-MIA", tow.tow_mia))
                   if name == "ToW" or all("mia" in share for share in shares)}
        # pairs of models are not independent: the mean stands, an interval over them would be too narrow
        yield Row(setting, FLOOR, retrained, {k: (mean, None, n) for k, (mean, _, n) in numbers.items()})


def _setting(run: Saved) -> str:
    """Data set, architecture, forget set and training of the original, as one label; equal over seeds."""
    record = run.record
    tail = digest_of([record["parent"].get("training"), run.setting("imagenet_arch")])[:4]
    whole = ",".join(map(str, record["whole_classes"]))
    what = f"class {whole} ({record['forget_size']} images)" if whole else f"{record['forget_size']} images"
    return f"{run.setting('dataset')} {run.setting('arch')}, forget {what}, {record['split_key'][:6]}-{tail}"


def _variant(run: Saved) -> str:
    made = run.record.get("mask", {})
    density = made.get("density")
    cfg = run.record["settings"]["cfg"] | {name: run.setting(name) for name in ("batch_size", "aug")}
    return json.dumps([run.setting("unlearn"), cfg, density, run.setting("mask_mode"), made.get("saliency_mode"),
                       *(run.setting(name) for name in ("precision", "device", "compile", "deterministic"))])


def _labels(grouped: Mapping[tuple[str, str], list[Pair]]) -> dict[tuple[str, str], str]:
    """Method names, with the hyper-parameters that tell several rows of one method apart."""
    labels = {}
    for setting, variant in grouped:
        name, cfg, density, *_ = json.loads(variant)
        rivals = [json.loads(v) for s, v in grouped if s == setting and json.loads(v)[0] == name]
        # originals of other seeds may have given retrain other defaults; those are in the setting
        told = [f"{k}={cfg[k]}" for k in cfg if any(r[1].get(k) != cfg[k] for r in rivals)]
        if density is not None:
            told.insert(0, f"mask {density:g}")
        if len({json.dumps(r[3:]) for r in rivals}) > 1:
            told += [str(word) for word in json.loads(variant)[3:]]
        labels[setting, variant] = f"{name} ({', '.join(told)})" if told else name
    return labels


# -------------------------------------------------------------------------------------------------------------- output

TOW_COLUMNS = ("ToW", "Avg. gap", "forget", "retain", "val", "test", "disagreement_forget", "disagreement_test", "seconds")
MIA_COLUMNS = ("ToW-MIA", "MIA", "MIA_correctness", "MIA_entropy", "MIA_m_entropy", "MIA_m_entropy_published", "MIA_prob",
               "privacy", "AUC_confidence", "retain", "test", "seconds")


def cell(number: tuple[float, float | None, int] | None, digits: int = 2) -> str:
    """``mean ±half width``; n=1 shows no interval."""
    if number is None:
        return "-"
    mean, half, _ = number
    return f"{mean:.{digits}f}" + ("" if half is None else f" ±{half:.{digits}f}")


def _marked(row: Row, name: str) -> str:
    text = cell(row.numbers.get(name), 3 if name.startswith("ToW") else 2)
    return f"({text})" if row.collapsed and name.startswith("ToW") and name in row.numbers else text


def markdown(table: list[Row], columns: tuple[str, ...]) -> str:
    lines = []
    for setting in dict.fromkeys(row.setting for row in table):
        part = [row for row in table if row.setting == setting]
        present = [c for c in columns if any(c in row.numbers for row in part)]
        body = [["method", "n", *present]]
        for row in part:
            n = max(n for _, _, n in row.numbers.values())
            body.append([row.told, f"{n} pair{'s'[: n - 1]}" if row.method == FLOOR else f"{n}",
                         *(_marked(row, c) for c in present)])
        widths = [max(len(line[i]) for line in body) for i in range(len(body[0]))]
        text = ["| " + " | ".join(word.ljust(w) for word, w in zip(line, widths, strict=True)) + " |" for line in body]
        text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        lines += [f"{setting}", "", *text, "", *_notes(part, columns)]
    return "\n".join(lines)


def _notes(part: list[Row], columns: tuple[str, ...]) -> list[str]:
    """What a reader of this table must know to not misread it."""
    notes = []
    if any(row.collapsed for row in part):
        notes += ["note: a collapsed model is broken (see metrics.collapsed of its record): its low forget accuracy is no",
                  "forgetting, and its ToW, in brackets, is not to be ranked.", ""]
    aucs = [row.numbers["AUC_confidence"][0] for row in part if "AUC_confidence" in row.numbers]
    if {"MIA", "Avg. gap"} & set(columns) and aucs and max(aucs) < WEAK:
        notes += [f"note: the confidence attack hardly tells members from non-members here (AUC at most {max(aucs):.1f} %), so",
                  "its threshold is arbitrary: MIA, and ToW-MIA and Avg. gap with it, are mostly noise.", ""]
    return notes


def write_csv(path: Path, table: list[Row]) -> None:
    """One line a row, full precision: <metric>, <metric>_ci (half width, empty with one seed), seeds, run folders."""
    names = list(dict.fromkeys(name for row in table for name in row.numbers))
    out = io.StringIO()
    writer = csv.writer(out)
    numbers = [x for name in names for x in (name, f"{name}_ci")]
    writer.writerow(["setting", "method", "n", "seeds", "collapsed", *numbers, "runs"])
    for row in table:
        numbers = [row.numbers.get(name, (None, None, 0)) for name in names]
        values = [x for mean, half, _ in numbers for x in (mean, half)]
        writer.writerow([row.setting, row.method, max(n for *_, n in row.numbers.values()), " ".join(map(str, row.seeds)),
                         row.collapsed, *values, " ".join(str(pair.run.folder) for pair in row.pairs)])
    write_atomic(path, lambda file: file.write(out.getvalue().encode()))


def write(cfg: AnalysisConfig, name: str, columns: tuple[str, ...], draw: Callable[[list[Row]], dict[str, Any]]) -> str:
    """Tables and figures of the runs that pass the filters; returns the table for the screen."""
    table = rows(pairs(cfg))
    try:
        cfg.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write {cfg.folder}: {error.strerror}; choose another --out") from error
    text = markdown(table, columns)
    write_csv(cfg.folder / f"{name}.csv", table)
    write_atomic(cfg.folder / f"{name}.md", lambda file: file.write(text.encode()))
    settings = list(dict.fromkeys(row.setting for row in table))
    written = [f"{name}.csv", f"{name}.md"]
    for setting in settings:
        figures = draw([row for row in table if row.setting == setting])
        for figure, drawing in figures.items():
            key = setting.rpartition(", ")[2]
            file_name = f"{figure}.png" if len(settings) == 1 else f"{figure}-{key}.png"
            write_atomic(cfg.folder / file_name, lambda file, drawing=drawing: drawing.savefig(file, format="png", dpi=130))
            written.append(file_name)
    return f"{text}\n{cfg.folder}: {', '.join(written)}"
