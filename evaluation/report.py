"""From pairs of runs to tables: average over seeds, write CSV and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from evaluation import accuracy, separation, tow
from evaluation.accuracy import load_outputs, remaining
from evaluation.pairs import FilterConfig, Pair, gather, is_plan, name_of, needs_scores
from evaluation.settings import Setting
from groups import LEVELS
from utils import BadInput, Saved, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEAK = 60.0  # AUC in % under which an attack's threshold says little
FLOOR = "retrain vs retrain"  # the row that says how far two retrained models are apart
Number = tuple[float, float | None, int]  # mean, half width of the interval (None with one seed), how many


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
    numbers |= apart(pair)
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
    if (distance := _margin_distance(ours, theirs)) is not None:
        numbers["KS_forget"] = distance
    spent, scores = pair.run.record["seconds"], pair.run.record.get("scores", {})
    numbers["seconds"] = spent.get("unlearn", 0.0) + spent.get("mask", 0.0)
    numbers["seconds_scores"] = scores["seconds"] if needs_scores(pair.run) else 0.0
    numbers["seconds_total"] = numbers["seconds"] + numbers["seconds_scores"]
    return numbers | by_group(pair, ours)


def apart(pair: Pair) -> dict[str, float]:
    """What stands beside the membership attack, in percent: its Monte-Carlo error, forget against test without a threshold."""
    own, ref = pair.metrics, pair.reference
    found = {name: own[name] for name in ("AUC_forget", *separation.LEVELS) if isinstance(own[name], float)}
    found |= {f"AUC_forget_{feature}": value for feature, value in own["mia"]["auc_forget"].items() if feature != "confidence"}
    if "AUC_forget" in found and ref["AUC_forget"] is not None:
        found["AUC_difference"] = found["AUC_forget"] - ref["AUC_forget"]
    error = own["mia"].get("error", {}).get("forget", {}).get("confidence")
    return found if error is None else found | {"MIA_error": error}


def _margin_distance(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float | None:
    """KS_forget of two runs' outputs in percent; None where one is not finite, or where they forget other examples."""
    there = [outputs["forget_logits"] for outputs in (ours, theirs)]
    same = np.array_equal(ours["forget_index"], theirs["forget_index"])
    if not same or not all(np.isfinite(logits).all() for logits in there):
        return None
    return 100 * separation.margin_distance(*(accuracy.outputs_of(outputs, "forget") for outputs in (ours, theirs)))


def by_group(pair: Pair, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """acc_<group> and MIA_<group>, in percent, of every group of the forget set; ``outputs`` are the run's."""
    if not pair.groups or pair.metrics["MIA"] is None:  # a model whose outputs are not finite has no attack
        return {}
    right = outputs["forget_logits"].argmax(1) == outputs["forget_labels"]
    gone = accuracy.nonmembers(outputs, tuple(pair.run.record["whole_classes"]), pair.attack, pair.seed)
    found: dict[str, float] = {}
    for name, index in pair.groups.items():
        rows = np.isin(outputs["forget_index"], index)
        assert rows.sum() == len(index), f"{pair.run.folder}: examples of the group {name} are not among the outputs"
        found |= {f"acc_{name}": 100 * float(right[rows].mean()), f"MIA_{name}": 100 * float(gone[rows].mean())}
    return found


@dataclasses.dataclass
class Row:
    """A method under one setting over its seeds.

    method: its name and what tells it from others of that name; variant: all that its runs have in common, as JSON.
    """

    setting: str
    method: str
    variant: str
    pairs: list[Pair]
    numbers: dict[str, Number]

    @property
    def place(self) -> Setting:
        return self.pairs[0].setting

    @property
    def is_reference(self) -> bool:
        """Whether it is the retrain that the setting's runs are compared with."""
        return self.method != FLOOR and self.pairs[0].is_reference

    @property
    def collapsed(self) -> int:
        """How many of its runs are broken models."""
        return sum(bool(pair.run.record.get("collapsed")) for pair in self.pairs) if self.method != FLOOR else 0

    @property
    def told(self) -> str:
        """The method, and that its low forget accuracy is no forgetting where a run collapsed."""
        every = "collapsed" if self.collapsed == len(self.pairs) else f"{self.collapsed} of {len(self.pairs)} collapsed"
        return f"{self.method} [{every}]" if self.collapsed else self.method

    def missing(self, name: str) -> str | None:
        """Why a run has no such metric, where its record says so."""
        reasons = [pair.metrics.get(name) for pair in self.pairs]
        return next((reason for reason in reasons if isinstance(reason, str)), None)

    @property
    def seeds(self) -> list[int]:
        return sorted(pair.seed for pair in self.pairs)


def rows(found: list[Pair], level: float = 0.95) -> list[Row]:
    """One row a method and setting, means and t-intervals over seeds; then the retrain-vs-retrain floor of each setting."""
    grouped: dict[tuple[str, str], list[Pair]] = {}
    for pair in found:
        grouped.setdefault((pair.setting.label, _variant(pair.run)), []).append(pair)
    for (setting, _), members in grouped.items():
        seeds = [pair.seed for pair in members]
        if len(set(seeds)) < len(seeds):
            raise BadInput(f"{setting}, {members[0].method}: several runs of one seed cannot be told apart: "
                           f"{', '.join(str(p.run.folder) for p in members)}; keep one, or filter")
    labels = labels_of(grouped)
    table = []
    for key, members in grouped.items():
        each = [measures(pair) for pair in members]
        numbers = {name: tow.t_interval([m[name] for m in each], level) for name in each[0] if all(name in m for m in each)}
        table.append(Row(key[0], labels[key], key[1], members, numbers))
    table.sort(key=lambda row: (row.setting, not row.is_reference, row.pairs[0].method != "raw", row.method))
    return [row for setting in dict.fromkeys(r.setting for r in table) for row in
            [*(r for r in table if r.setting == setting), *_floor(setting, table, level)]]


def _floor(setting: str, table: list[Row], level: float) -> Iterable[Row]:
    retrained = next((r.pairs for r in table if r.setting == setting and r.is_reference), [])
    if len(retrained) > 1:
        shares = [_shares(pair.metrics) for pair in retrained]
        numbers = {name: tow.t_interval(tow.noise_floor(shares, distance), level)
                   for name, distance in (("ToW", tow.tow), ("ToW-MIA", tow.tow_mia))
                   if name == "ToW" or all("mia" in share for share in shares)}
        outputs = [load_outputs(pair.run.folder) for pair in retrained]
        apart = [_margin_distance(*both) for both in itertools.combinations(outputs, 2)]
        if None not in apart:
            numbers["KS_forget"] = tow.t_interval(apart, level)
        # pairs of models are not independent: the mean stands, an interval over them would be too narrow
        yield Row(setting, FLOOR, "", retrained, {k: (mean, None, n) for k, (mean, _, n) in numbers.items()})


def _variant(run: Saved) -> str:
    """Name, settings, mask and all else that must be equal in runs that are averaged over, as JSON."""
    record = run.record
    made = record.get("mask", {})
    cfg, density = _plan_settings(record["plan"]) if is_plan(run) else (record["settings"]["cfg"], made.get("density"))
    cfg = cfg | {name: run.setting(name) for name in ("batch_size", "aug")}
    rest = {name: run.setting(name) for name in ("mask_mode", "rum_retain", "precision", "device", "compile", "deterministic")}
    rest["saliency_mode"] = made.get("saliency_mode")
    if is_plan(run):
        rest["after"] = record["request"]["earlier"][:6]
    if needs_scores(run):
        rest["by"] = record["scores"].get("name")
        # proxies differ by seed
        rest["file"] = record["scores"].get("sha256", "")[:6] if rest["by"] == "memorization" else None
    return json.dumps([name_of(run), cfg, density, rest])


def _plan_settings(plan: Mapping[str, Any]) -> tuple[dict[str, Any], float | None]:
    """Those of the one method that takes every step, and its mask's density; else each step's under its group's name."""
    steps = plan["steps"]
    if all((step["cfg"], step["density"]) == (steps[0]["cfg"], steps[0]["density"]) for step in steps):
        return steps[0]["cfg"], steps[0]["density"]
    return {f"{step['group']}.{name}": value for step in steps
            for name, value in {**step["cfg"], "density": step["density"]}.items()}, None


def labels_of(grouped: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(setting, variant) -> method's name, with the hyper-parameters that tell several variants in one setting apart."""
    labels = {}
    keys = [(setting, variant, json.loads(variant)) for setting, variant in grouped]
    for setting, variant, (name, cfg, density, rest) in keys:
        rivals = [theirs for s, _, theirs in keys if s == setting and theirs[0] == name]
        # originals of other seeds may have given retrain other defaults; those are in the setting
        told = [f"{k}={cfg[k]}" for k in cfg if any(r[1].get(k) != cfg[k] for r in rivals)]
        if density is not None:
            told.insert(0, f"mask {density:g}")
        told += [f"{k} {rest[k]}" for k in rest if any(r[3].get(k) != rest[k] for r in rivals)]
        labels[setting, variant] = f"{name} ({', '.join(told)})" if told else name
    return labels


# -------------------------------------------------------------------------------------------------------------- output

TOW_COLUMNS = ("ToW", "Avg. gap", "forget", *(f"acc_{name}" for name in LEVELS), "retain", "val", "test", "disagreement_forget",
               "disagreement_test", "seconds", "seconds_total")
MIA_COLUMNS = ("ToW-MIA", "MIA", *(f"MIA_{name}" for name in LEVELS), "AUC_forget", "AUC_difference", *separation.LEVELS,
               "KS_forget", "MIA_correctness", "MIA_entropy", "MIA_m_entropy", "MIA_m_entropy_published", "MIA_prob", "privacy",
               "AUC_confidence", "retain", "test", "seconds", "seconds_total")


@dataclasses.dataclass(frozen=True)
class Pivot:
    """One measure of several settings beside one another: ``cells[method][column]``, where there is one.

    collapsed: (method, column) of the cells in which runs are broken models. tuned: methods whose settings are not the same
    in all columns.
    """

    heading: str
    columns: tuple[str, ...]
    cells: dict[str, dict[str, Number]]
    collapsed: frozenset[tuple[str, str]] = frozenset()
    tuned: tuple[str, ...] = ()


class Extra(NamedTuple):
    """A table beside the main one, and its figures by file name."""

    name: str
    text: str
    csv: list[list[Any]]
    figures: dict[str, Figure]


def digits_of(name: str) -> int:
    """Decimals in a table; ToW and ToW-MIA lie between 0 and 1."""
    return 3 if name.startswith("ToW") else 2


BROKEN = ["note: a collapsed model is broken (see metrics.collapsed of its record): its low forget accuracy is no",
          "forgetting, and its ToW and gap, in brackets, are not to be ranked.", ""]
NO_REFERENCE = ["note: retrain itself is broken here, so that ToW and gaps to it say nothing of the methods.", ""]
AGAINST_RETRAIN = ("ToW", "ToW-MIA", "Avg. gap")  # measures whose reference is retrain


def costs_scores(part: Iterable[Row]) -> bool:
    """Whether a method there needs scores, so that the seconds with and without them differ."""
    return any(row.numbers["seconds_scores"][0] > 0 for row in part if "seconds_scores" in row.numbers)


def cell(number: Number | None, digits: int = 2) -> str:
    """``mean ±half width``; n=1 shows no interval."""
    if number is None:
        return "-"
    mean, half, _ = number
    return f"{mean:.{digits}f}" + ("" if half is None else f" ±{half:.{digits}f}")


def _marked(row: Row, name: str) -> str:
    text = cell(row.numbers.get(name), digits_of(name))
    return f"({text})" if row.collapsed and name in AGAINST_RETRAIN and name in row.numbers else text


def markdown(table: list[Row], columns: tuple[str, ...]) -> str:
    lines = []
    for setting in dict.fromkeys(row.setting for row in table):
        part = [row for row in table if row.setting == setting]
        present = [c for c in columns if any(c in row.numbers or row.missing(c) for row in part)]
        present = [c for c in present if c != "seconds_total" or costs_scores(part)]
        body = [["method", "n", *present]]
        for row in part:
            n = max(n for _, _, n in row.numbers.values())
            body.append([row.told, f"{n} pair{'s'[: n - 1]}" if row.method == FLOOR else f"{n}",
                         *(_marked(row, c) for c in present)])
        lines += [setting, "", *grid(body), "", *_notes(part, columns)]
    return "\n".join(lines)


def grid(body: list[list[str]]) -> list[str]:
    """The lines of a Markdown table, columns of equal width; the first line is the head."""
    widths = [max(len(line[i]) for line in body) for i in range(len(body[0]))]
    text = ["| " + " | ".join(word.ljust(w) for word, w in zip(line, widths, strict=True)) + " |" for line in body]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return text


def _notes(part: list[Row], columns: tuple[str, ...]) -> list[str]:
    """What a reader of this table must know to not misread it."""
    notes = []
    if any(row.collapsed for row in part):
        notes += BROKEN
    if any(row.collapsed for row in part if row.is_reference):
        notes += NO_REFERENCE
    for name in separation.LEVELS:
        reason = next((row.missing(name) for row in part if name in columns and row.missing(name)), None)
        notes += [f"note: there is no {name}: it {reason}.", ""] if reason else []
    aucs = [row.numbers["AUC_confidence"][0] for row in part if "AUC_confidence" in row.numbers]
    if {"MIA", "Avg. gap"} & set(columns) and aucs and max(aucs) < WEAK:
        notes += [f"note: the confidence attack hardly tells members from non-members here (AUC at most {max(aucs):.1f} %), so",
                  "its threshold is arbitrary: MIA, and ToW-MIA and Avg. gap with it, are mostly noise.", ""]
    return notes


def csv_of(table: list[Row]) -> list[list[Any]]:
    """A line a row, full precision: <metric>, <metric>_ci (half width, empty with one seed), seeds, run folders."""
    names = list(dict.fromkeys(name for row in table for name in row.numbers))
    numbers = [x for name in names for x in (name, f"{name}_ci")]
    lines = [["setting", "method", "n", "seeds", "collapsed", *numbers, "runs"]]
    for row in table:
        numbers = [row.numbers.get(name, (None, None, 0)) for name in names]
        values = [x for mean, half, _ in numbers for x in (mean, half)]
        lines.append([row.setting, row.method, max(n for *_, n in row.numbers.values()), " ".join(map(str, row.seeds)),
                      row.collapsed, *values, " ".join(str(pair.run.folder) for pair in row.pairs)])
    return lines


def _keep(cfg: FilterConfig, table: Extra) -> list[str]:
    """Write a table and its figures; the names of the files."""
    out = io.StringIO()
    csv.writer(out).writerows(table.csv)
    write_atomic(cfg.folder / f"{table.name}.csv", lambda file: file.write(out.getvalue().encode()))
    write_atomic(cfg.folder / f"{table.name}.md", lambda file: file.write(table.text.encode()))
    for name, drawing in table.figures.items():
        write_atomic(cfg.folder / f"{name}.png", lambda file, it=drawing: it.savefig(file, format="png", dpi=130))
    return [f"{table.name}.csv", f"{table.name}.md", *(f"{name}.png" for name in table.figures)]


def write(cfg: FilterConfig, name: str, columns: tuple[str, ...], draw: Callable[[list[Row]], dict[str, Figure]],
          more: Sequence[Callable[[Any, list[Row]], Iterable[Extra]]] = ()) -> str:
    """Tables and figures of the runs that pass the filters; returns the tables for the screen.

    Args:
        draw: the figures of one setting by name; more: what gives the tables beside the main one, which may be none.
    """
    found = gather(cfg)
    table = rows(found.pairs)
    try:
        cfg.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write {cfg.folder}: {error.strerror}; choose another --out") from error
    settings = {row.setting: row.place.tag for row in table}
    figures: dict[str, Figure] = {}
    for setting, tag in settings.items():
        drawn = draw([row for row in table if row.setting == setting])
        figures |= {figure if len(settings) == 1 else f"{figure}-{tag}": it for figure, it in drawn.items()}
    extras = [Extra(name, markdown(table, columns), csv_of(table), figures), *(e for make in more for e in make(cfg, table))]
    written = [file for extra in extras for file in _keep(cfg, extra)]
    return "\n".join([*(extra.text for extra in extras), *found.notes, f"{cfg.folder}: {', '.join(written)}"])
