"""Which finished runs are compared: every run beside its retrain, under the setting that it shares with other seeds."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.accuracy import EvaluationConfig, metrics_of
from groups import LEVELS
from models import whereabouts
from report.settings import Setting, departures, pairing, places, told_apart
from sources.scores import PROXIES
from utils import BadInput, Saved, flag_words, hp, read_arrays, survey

Groups = Mapping[str, np.ndarray]
NEEDED = {"parent", "data_key", "split_key", "metrics", "evaluation", "whole_classes", "forget_size", "seconds"}
LISTED = 3  # runs that are named where many are left out


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterConfig(EvaluationConfig):
    """Which finished runs to compare; a flag that is not given does not filter."""

    save_dir: str = hp("runs", "folder of the run folders")
    out: str | None = hp(None, "folder of the tables and plots (default: SAVE_DIR/analysis)")
    dataset: str | None = hp(None, "only this data set")
    arch: str | None = hp(None, "only this architecture")
    unlearn: tuple[str, ...] | None = hp(None, "only these methods, by name, and the plans of main_rum.py by them; or plans by "
                                         "their kind (RUM, RUM^F, shuffle, vanilla) or whole name; retrain is always there")
    num_indexes_to_replace: int | None = hp(None, "only forget sets asked for by this number")
    forget_fraction: float | None = hp(None, "only forget sets asked for by this share")
    class_to_replace: tuple[int, ...] | None = hp(None, "only forget sets of these classes")
    mem: str | None = hp(None, "only forget sets of this group", choices=(*LEVELS, "mix"))
    mem_proxy: str | None = hp(None, "only forget sets cut by this score", choices=("memorization", *PROXIES))
    group_index: int | None = hp(None, "only forget sets of this chunk of the entanglement experiment", low=-1)
    aug: bool | None = hp(None, "only runs with (--aug) or without (--no_aug) augmentation")
    seed: tuple[int, ...] | None = hp(None, "only these seeds")
    best: str | None = hp(None, "show of each method the one setting that this measure picks, which no test image enters: "
                          "ToW_val (validation for test), gap_val (mean distance to retrain in forget, retain, validation)",
                          choices=("ToW_val", "gap_val"))
    columns: tuple[str, ...] | None = hp(None, "measures in the main table, by name, or all (default: those that fit a screen)")
    delta: float = hp(1.0, "points of accuracy, MIA and gap within which a method counts as equivalent to retrain; to be "
                      "chosen before the runs are seen", above=0)
    delta_tow: float = hp(0.02, "the same for ToW and ToW-MIA", above=0, below=1)

    @property
    def folder(self) -> Path:
        return Path(self.out or Path(self.save_dir) / "analysis")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisConfig(FilterConfig):
    """Which finished runs to compare; a flag that is not given does not filter."""

    scores: str | None = hp(None, "file of memorization scores (.npz) to compare other scores with; without it, found by its "
                            "record")


@dataclasses.dataclass
class Pair:
    """A run and the retrain of the same split, seed and original; the metrics of both in percent.

    groups: name -> int64 indices of the forget set's parts, where there are several; attack: as the metrics have it.
    """

    run: Saved
    retrain: Saved
    metrics: dict[str, Any]
    reference: dict[str, Any]
    setting: Setting
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
    """What is compared, and what is to be said of runs that are not."""

    pairs: list[Pair]
    notes: list[str]


def name_of(run: Saved) -> str:
    if is_plan(run):
        return run.record["plan"]["name"]
    return run.setting("unlearn") + (", own pruning" if run.setting("own_pruning") else "")


def is_plan(run: Saved) -> bool:
    return "plan" in run.record


def needs_scores(run: Saved) -> bool:
    """Whether the method itself cannot do without scores: a plan refines by them, at random groups and vanilla nothing."""
    return is_plan(run) and not run.record["plan"]["shuffle"] and [s["group"] for s in run.record["plan"]["steps"]] != ["all"]


def gather(cfg: FilterConfig) -> Found:
    """Every finished unlearning run that passes the filters, beside its retrain; under each setting that it belongs to.

    Several retrains of one original, forget set and seed are told apart by their training. The one that was trained as its
    original is the reference, the others are methods beside it; if none was, each is a reference of a setting of its own.

    Raises:
        BadInput: no run passes, or none has a retrain (with the command that makes it); two retrains were trained alike.
    """
    wanted = {name: getattr(cfg, name) for name in ("dataset", "arch") if getattr(cfg, name) is not None}
    stages = ("forget", "rum")
    read = ("outputs.npz", "splits.npz")  # a model.pt may stay on the machine that it was made on
    finished, problems = survey(Path(cfg.save_dir), stages, files=read, **wanted)
    every = [run for run in finished if _of_seed(run, cfg)]
    older = [run for run in every if NEEDED - run.record.keys()]
    runs = [run for run in every if not NEEDED - run.record.keys()]
    retrains: dict[str, list[Saved]] = {}
    for run in runs:
        if name_of(run) == "retrain":
            retrains.setdefault(pairing(run), []).append(run)
    kept = [run for run in runs if name_of(run) != "retrain" and _passes(run, cfg)]
    if not kept:
        raise BadInput(f"no finished unlearning run under {cfg.save_dir}/forget or {cfg.save_dir}/rum passes the filters; "
                       f"main_forget.py and main_rum.py make them{_passed_over(problems)}")
    alone = [run for run in kept if pairing(run) not in retrains]
    if len(alone) == len(kept):
        raise BadInput(f"{alone[0].folder} has no retrain to compare with; make it: {retrain_command(alone[0], cfg.save_dir)}"
                       f"{_passed_over(problems)}")
    kept = [run for run in kept if pairing(run) in retrains]
    references = {key: _references(retrains[key]) for key in dict.fromkeys(map(pairing, kept))}
    used = [run for there in references.values() for run in there.values()]
    if cfg.unlearn is None or "retrain" in cfg.unlearn:
        folders = {run.folder for run in used}
        kept += [run for key in references for run in retrains[key] if run.folder not in folders]
    late = [run for run in survey(Path(cfg.save_dir), stages, finished=False, **wanted)[0] if _of_seed(run, cfg)]
    late = [run for run in late if _passes(run, dataclasses.replace(cfg, unlearn=None) if name_of(run) == "retrain" else cfg)]
    notes = [*_without_retrain(alone, cfg.save_dir), *_unfinished(late), *_of_older_form(older, [*used, *kept]),
             *(f"passed over: {problem}" for problem in problems)]
    return Found(_beside(used, kept, references, cfg), notes)


def _passed_over(problems: list[str]) -> str:
    """The end of an error: a run that cannot be used, which may be the one that is missed."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"; passed over: {problems[0]}{more}" if problems else ""


def _beside(used: list[Saved], kept: list[Saved], references: Mapping[str, Mapping[str, Saved]],
            cfg: FilterConfig) -> list[Pair]:
    """The references, then the runs beside theirs.

    Args:
        references: pairing -> how the retrain departs from its original's training, in words -> retrain.
    """
    attack = EvaluationConfig(**{field.name: getattr(cfg, field.name) for field in dataclasses.fields(EvaluationConfig)})
    metrics = {run.folder: metrics_of(run.folder, run.record, attack) for run in [*used, *kept]}
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
                found.append(Pair(run, reference, metrics[run.folder], metrics[reference.folder], setting, parts[run.folder],
                                  attack))
    return found


def _references(retrains: list[Saved]) -> dict[str, Saved]:
    """By how they depart from their original's training: the one that does not, or all."""
    found: dict[str, list[Saved]] = {}
    for run in retrains:
        found.setdefault(departures(run), []).append(run)
    taken = {"": found[""]} if "" in found else found
    for same in taken.values():
        if len(same) > 1:
            raise BadInput(f"several retrains were trained alike: {', '.join(str(run.folder) for run in same)}; keep one")
    return {words: same[0] for words, same in taken.items()}


def _of_seed(run: Saved, cfg: FilterConfig) -> bool:
    return cfg.seed is None or run.setting("seed") in cfg.seed


def _listed(runs: list[Saved], told: str = "") -> str:
    shown = [f"{run.folder}{f' ({run.record[told]})' if told else ''}" for run in runs[:LISTED]]
    return ", ".join(shown) + (f" and {len(runs) - LISTED} more" if len(runs) > LISTED else "")


def _without_retrain(runs: list[Saved], save_dir: str) -> list[str]:
    """A line for each retrain that is missing, with the command that makes it."""
    missing: dict[str, list[Saved]] = {}
    for run in runs:
        missing.setdefault(pairing(run), []).append(run)
    return [f"note: without a retrain to compare with, and left out: {_listed(there)}; make it: "
            f"{retrain_command(there[0], save_dir)}" for there in missing.values()]


def _unfinished(runs: list[Saved]) -> list[str]:
    many = f"{len(runs)} run{'s'[: len(runs) - 1]}"
    return [f"note: {many} that the filters take did not finish and {'are' if len(runs) > 1 else 'is'} in no table: "
            f"{_listed(runs, 'status')}; the same commands go on"] if runs else []


def _of_older_form(left_out: list[Saved], shown: list[Saved]) -> list[str]:
    """What is said of records that lack what is needed, and of those that tell less of their original than it takes."""
    lines = [f"note: left out, since an earlier version of this suite made their records: {_listed(left_out)}; repeat them "
             "with --force"] if left_out else []
    parents = [(run, run.record["parent"]) for run in shown]
    silent = [run for run, parent in parents if parent.get("training") is not None and not parent.get("setup")]
    return lines + [f"note: an earlier version made the records of {_listed(silent)}, which do not tell the batch size, "
                    "augmentation, precision and device of their original: other originals may share their rows; repeat them "
                    "with --force"] if silent else lines


def _passes(run: Saved, cfg: FilterConfig) -> bool:
    """The filters on method and forget set, which a retrain need not pass: it is found through its run."""
    asked = all(getattr(cfg, name) in (None, run.setting(name))
                for name in ("num_indexes_to_replace", "forget_fraction", "aug", "mem", "group_index"))
    classes = cfg.class_to_replace is None or tuple(run.setting("class_to_replace")) == cfg.class_to_replace
    # what the scores were stands in the record of a finished run alone
    score = run.record["scores"].get("name") if "scores" in run.record else run.setting("mem_proxy")
    name = name_of(run)
    names = {name, run.setting("unlearn"), *([name.split()[0]] if is_plan(run) else [])}
    return asked and classes and cfg.mem_proxy in (None, score) and (cfg.unlearn is None or bool(names & set(cfg.unlearn)))


def retrain_command(run: Saved, save_dir: str) -> str:
    """The command line that makes a run's retrain, to be pasted into a shell."""
    parent, settings = run.record["parent"], run.record["settings"]
    words = ["python", "main_forget.py", "--unlearn", "retrain", "--checkpoint", whereabouts(parent, Path(save_dir)),
             "--forget_index", str(run.folder / "splits.npz"), "--seed", str(run.setting("seed")), "--save_dir", save_dir]
    if parent["training"] is None:  # a published file has no record to take these from
        for name, value in {**settings["protocol"], **settings["data"], **settings["model"]}.items():
            words += flag_words(name, value)
    return shlex.join(words)


def _parts(runs: list[Saved]) -> dict[Path, Groups]:
    """The groups of every run's forget set; of a run without them those of its mates, where all of these have the same."""
    own = {run.folder: _groups(run) for run in runs}
    known: dict[str, list[Groups]] = {}
    for run in runs:
        there = known.setdefault(pairing(run), [])
        if own[run.folder] and not any(_same(own[run.folder], other) for other in there):
            there.append(own[run.folder])
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
