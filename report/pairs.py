"""Which finished runs are compared: every run beside its retrain, under the setting that it shares with other seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.accuracy import EvaluationConfig, metrics_of
from evaluation.style import VENUES
from groups import LEVELS
from report.filters import OF_ANY, emptied, passes, passes_all, without
from report.folders import folder_of
from report.missing import listed, missing
from report.settings import Setting, departures, name_of, pairing, places, told_apart
from report.variants import variant_of
from sources.kept import ClassNumbers
from sources.scores import PROXIES
from utils import BadInput, Config, Saved, damage, hp, read_arrays, survey

Groups = Mapping[str, np.ndarray]
NEEDED = {"parent", "data_key", "split_key", "metrics", "evaluation", "whole_classes", "forget_size", "seconds"}
PICKING = ("ToW_val", "gap_val")  # measures that no test image enters, by which settings may be picked
READ = ("outputs.npz", "splits.npz")  # a model.pt may stay on the machine that it was made on


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunsConfig(Config):
    """Which finished runs to compare; a flag that is not given does not filter."""

    save_dir: str = hp("runs", "folder of the run folders")
    out: str | None = hp(None, "folder of the tables and plots (default: SAVE_DIR/analysis, and in it for each choice by the "
                         "other flags a folder named after it, such as seed=1)")
    dataset: str | None = hp(None, "only this data set")
    ood_classes: ClassNumbers | None = hp(None, "only originals that were not trained on these classes, and on all others")
    ood_subclass: ClassNumbers | None = hp(None, "the same of sub-classes")
    arch: str | None = hp(None, "only this architecture")
    unlearn: tuple[str, ...] | None = hp(None, "only these methods, by name, and the plans of main_rum.py by them; or plans by "
                                         "their kind (RUM, RUM^F, shuffle, vanilla) or whole name; retrain is always there")
    num_indexes_to_replace: int | None = hp(None, "only forget sets asked for by this number")
    forget_fraction: float | None = hp(None, "only forget sets asked for by this share")
    class_to_replace: tuple[int, ...] | None = hp(None, "only forget sets of these classes")
    subclass_to_replace: ClassNumbers | None = hp(None, "only forget sets of these sub-classes")
    mem: str | None = hp(None, "only forget sets of this group", choices=(*LEVELS, "mix"))
    mem_proxy: str | None = hp(None, "only forget sets cut by this score", choices=("memorization", *PROXIES))
    group_index: int | None = hp(None, "only forget sets of this chunk of the entanglement experiment", low=-1)
    aug: bool | None = hp(None, "only runs with (--aug) or without (--no_aug) augmentation")
    seed: tuple[int, ...] | None = hp(None, "only these seeds")
    venue: str = hp("plain", "widths and fonts of the figures, which are written as PNG and PDF: plain fits a column and a "
                    "screen; none: no figures", choices=(*VENUES, "none"))
    partial: bool = hp(False, "exit with 0 though retrains are missing or runs damaged, which are listed below the tables and "
                       "else end in 1; runs that are not finished, or of an older form, never do")

    @property
    def folder(self) -> Path:
        return folder_of(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterConfig(RunsConfig, EvaluationConfig):
    """Which finished runs to compare; a flag that is not given does not filter."""

    best: str | None = hp(None, "show of each method the one setting that this measure picks, which no test image enters: "
                          "ToW_val (validation for test), gap_val (mean distance to retrain in forget, retain, validation)",
                          choices=PICKING)
    columns: tuple[str, ...] | None = hp(None, "measures in the main table, by name, or all (default: those that fit a screen)")
    delta: float = hp(1.0, "points of accuracy, MIA and gap within which a method counts as equivalent to retrain; to be "
                      "chosen before the runs are seen", above=0)
    delta_tow: float = hp(0.02, "the same for ToW and ToW-MIA", above=0, below=1)
    figures: bool = hp(False, "draw the figures of every setting, even of more than 12")
    html: str | None = hp(None, "write all of it as one page too, with both studies, to this file; it needs no network")
    pictures: int = hp(40, "images of each forget set that --html shows", low=0, high=1000)

    @property
    def page(self) -> Path | None:
        """The file of ``--html``.

        Raises:
            BadInput: it is a folder.
        """
        found = None if self.html is None else Path(self.html)
        if found is not None and found.is_dir():
            raise BadInput(f"--html {self.html}: this is a folder; name a file, such as {found / 'report.html'}")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisConfig(FilterConfig):
    """Which finished runs to compare; a flag that is not given does not filter."""

    merge: tuple[str, ...] | None = hp(None, "analyse no runs, but join these runs.csv of several machines and show the "
                                       "means; written to --out, else SAVE_DIR/analysis/merged")
    scores: str | None = hp(None, "file of memorization scores (.npz) to compare other scores with; without it, found by its "
                            "record")


@dataclasses.dataclass
class Pair:
    """A run and the retrain of the same split, seed and original; the metrics of both in percent.

    names: of the method, and of runs that are the same computation again and stand back for this one.
    groups: name -> int64 indices of the forget set's parts, where there are several; attack: as the metrics have it.
    """

    run: Saved
    retrain: Saved
    metrics: dict[str, Any]
    reference: dict[str, Any]
    setting: Setting
    names: tuple[str, ...] = ()
    groups: Groups = dataclasses.field(default_factory=dict)
    attack: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)

    @property
    def seed(self) -> int:
        return self.run.setting("seed")

    @property
    def is_reference(self) -> bool:
        """Whether the run is the retrain itself that runs here are compared with."""
        return self.run.folder == self.retrain.folder

    @property
    def method(self) -> str:
        """The method's name, or that of the plan which main_rum.py followed."""
        return name_of(self.run)


class Found(NamedTuple):
    """What is compared, what is to be said of runs that are not, and whether all that the filters take is compared.

    whole: no retrain is missing and no run is damaged; what has not finished or is of an older form does not count.
    """

    pairs: list[Pair]
    notes: list[str]
    whole: bool


def gather(cfg: RunsConfig) -> Found:
    """Every finished unlearning run that passes the filters, beside its retrain; under each setting that it belongs to.

    Several retrains of one original, forget set and seed are told apart by their training. The one that was trained as its
    original is the reference, the others are methods beside it; if none was, each is a reference of a setting of its own.

    Raises:
        BadInput: no run passes (with what each filter left).
    """
    # which are damaged is asked of those alone that anybody wants
    there, problems = survey(Path(cfg.save_dir), ("forget", "rum"), finished=None, files=("record.json",))
    finished = [run for run in there if run.record["status"] == "done"]
    older = [run for run in finished if NEEDED - run.record.keys() and passes_all(run, cfg, OF_ANY)]
    every = [run for run in finished if not NEEDED - run.record.keys()]
    asked = [run for run in every if passes(run, cfg)]
    lost = {run.folder: error for run in asked if (error := damage(run, *READ)) is not None}
    whole = [run for run in asked if run.folder not in lost]
    problems += map(str, lost.values())
    retrains: dict[str, list[Saved]] = {}
    for run in whole:
        if name_of(run) == "retrain":
            retrains.setdefault(pairing(run), []).append(run)
    kept = [run for run in whole if name_of(run) != "retrain"]
    if not kept:
        raise BadInput(_nothing(every, cfg) + _passed_over(problems))
    alone = [run for run in kept if pairing(run) not in retrains]
    kept = [run for run in kept if pairing(run) in retrains]
    references = {key: _references(retrains[key]) for key in dict.fromkeys(map(pairing, kept))}
    used = [run for there in references.values() for run in there.values()]
    if cfg.unlearn is None or "retrain" in cfg.unlearn:
        folders = {run.folder for run in used}
        kept += [run for key in references for run in retrains[key] if run.folder not in folders]
    spoiled = [run for run in asked if run.folder in lost and name_of(run) == "retrain"]
    pairs, twice = once(_beside(used, kept, references, cfg))
    notes = [*twice, *missing(alone, spoiled, cfg.save_dir), *_unfinished(_late(there, cfg)),
             *_of_older_form(older, [*used, *kept]), *(f"passed over: {problem}" for problem in problems)]
    return Found(pairs, notes, not alone and not problems)


def _late(there: list[Saved], cfg: RunsConfig) -> list[Saved]:
    """Runs that the filters take and that did not finish; of retrains, those of a forget set that they take."""
    late = [run for run in there if run.record["status"] != "done"]
    return [run for run in late if passes(run, cfg) and passes_all(run, without(cfg, "unlearn"))]


def _nothing(every: list[Saved], cfg: RunsConfig) -> str:
    """Why nothing is left to compare."""
    there = [run for run in every if name_of(run) != "retrain"]
    where = f"under {cfg.save_dir}/forget or {cfg.save_dir}/rum"
    if not there:
        only = f" but {len(every)} of retrain" if every else ""
        return (f"no finished unlearning run {where} passes the filters: there is none{only}; main_forget.py and "
                "main_rum.py make them")
    return f"no finished unlearning run {where} passes the filters: {emptied(there, cfg)}"


def _passed_over(problems: list[str]) -> str:
    """The end of an error: a run that cannot be used, which may be the one that is missed."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"; passed over: {problems[0]}{more}" if problems else ""


def _beside(used: list[Saved], kept: list[Saved], references: Mapping[str, Mapping[str, Saved]],
            cfg: RunsConfig) -> list[Pair]:
    """The references, then the runs beside theirs.

    Args:
        references: pairing -> how the retrain departs from its original's training, in words -> retrain.
    """
    asked = {field.name: getattr(cfg, field.name, field.default) for field in dataclasses.fields(EvaluationConfig)}
    attack = EvaluationConfig(**asked)
    # of an analysis that knows no attack, as recorded
    metrics = {run.folder: metrics_of(run.folder, run.record, attack) if isinstance(cfg, EvaluationConfig)
               else run.record["metrics"] for run in [*used, *kept]}
    where = places(used, kept)
    trained = told_apart((setting, run) for run in [*used, *kept] for setting in where[run.folder])
    parts = _parts([*used, *kept])
    found, folders = [], {run.folder for run in used}
    for run in [*used, *kept]:
        for words, reference in references[pairing(run)].items():
            if run.folder in folders and run.folder != reference.folder:
                continue
            told = f"retrain with {words}" if words else ""
            for setting in where[run.folder]:
                setting = setting._replace(trained=trained[setting.origin], reference=told)
                found.append(Pair(run, reference, metrics[run.folder], metrics[reference.folder], setting, (name_of(run),),
                                  parts[run.folder], attack))
    return found


def _references(retrains: list[Saved]) -> dict[str, Saved]:
    """By how they depart from their original's training: the one that does not, or all; of several the first to finish."""
    found: dict[str, Saved] = {}
    for run in retrains:
        found.setdefault(departures(run), run)
    return {"": found[""]} if "" in found else found


def once(found: list[Pair]) -> tuple[list[Pair], list[str]]:
    """Of runs of one original, forget set and seed that are one computation the first to finish; what is said of the others.

    So it is where a method has two names, or where a retrain that had stopped goes on after it was made by the command for a
    missing one.
    """
    groups: dict[tuple[str, str, str], list[Pair]] = {}
    for pair in found:
        groups.setdefault((pair.setting.label, variant_of(pair.run), pairing(pair.run)), []).append(pair)
    taken, told = [], {}
    for there in groups.values():
        first = min(there, key=lambda pair: (not pair.is_reference, pair.run.record["finished"]))
        taken.append(dataclasses.replace(first, names=tuple(dict.fromkeys(pair.method for pair in (first, *there)))))
        if len(there) > 1:
            told[first.run.folder] = [first.run, *(pair.run for pair in there if pair is not first)]
    return taken, [f"note: one computation, so that the first to finish is taken: {listed(runs)}" for runs in told.values()]


def _unfinished(runs: list[Saved]) -> list[str]:
    many = f"{len(runs)} run{'s'[: len(runs) - 1]}"
    return [f"note: {many} that the filters take did not finish and {'are' if len(runs) > 1 else 'is'} in no table: "
            f"{listed(runs, 'status')}; the same commands go on"] if runs else []


def _of_older_form(left_out: list[Saved], shown: list[Saved]) -> list[str]:
    """What is said of records that lack what is needed, and of those that tell less of their original than it takes."""
    lines = [f"note: left out, since an earlier version of this suite made their records: {listed(left_out)}; repeat them "
             "with --force"] if left_out else []
    parents = [(run, run.record["parent"]) for run in shown]
    silent = [run for run, parent in parents if parent.get("training") is not None and not parent.get("setup")]
    return lines + [f"note: an earlier version made the records of {listed(silent)}, which do not tell the batch size, "
                    "augmentation, precision and device of their original: other originals may share their rows; repeat them "
                    "with --force"] if silent else lines


def _parts(runs: list[Saved]) -> dict[Path, Groups]:
    """The groups of every run's forget set; of a run without them those of its mates, where all of these have the same."""
    own: dict[Path, Groups] = {}
    known: dict[str, list[Groups]] = {}
    for run in runs:
        there, groups = known.setdefault(pairing(run), []), _groups(run)
        same = next((other for other in there if _same(groups, other)), None)
        own[run.folder] = groups if same is None else same  # held once, however many methods forget them
        if groups and same is None:
            there.append(groups)
    alone = {key: there[0] for key, there in known.items() if len(there) == 1}
    return {run.folder: own[run.folder] or alone.get(pairing(run), {}) for run in runs}


def _same(a: Groups, b: Groups) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def _groups(run: Saved) -> Groups:
    """The run's own groups; none where the forget set is of one group alone."""
    if len(run.record.get("groups", {})) < 2:
        return {}
    found = read_arrays(run.folder / "splits.npz", {f"group_{name}": ("iu", name) for name in run.record["groups"]})
    return {name: found[f"group_{name}"] for name in run.record["groups"]}
