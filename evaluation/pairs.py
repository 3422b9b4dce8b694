"""Which finished runs are compared: every run beside its retrain, under the setting that it shares with other seeds."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.accuracy import EvaluationConfig, metrics_of
from groups import LEVELS
from sources.arrays import UNREADABLE
from sources.scores import PROXIES
from unlearn import METHODS
from utils import BadInput, Saved, digest_of, find_runs, hp

Groups = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisConfig(EvaluationConfig):
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
    scores: str | None = hp(None, "file of memorization scores (.npz) to compare other scores with; without it, found by its "
                            "record")
    aug: bool | None = hp(None, "only runs with (--aug) or without (--no_aug) augmentation")
    seed: tuple[int, ...] | None = hp(None, "only these seeds")

    @property
    def folder(self) -> Path:
        return Path(self.out or Path(self.save_dir) / "analysis")


class Setting(NamedTuple):
    """What the runs share that are averaged over seeds: network, original's training, forget set.

    group: of a forget set that was cut by scores, ``low``, ``mid``, ``high``, ``mix`` or ``chunk 3``; else "".
    score: which scores; ``es chunks`` where the chunk was asked for by its number.
    request: from 1 in a stream of deletion requests, else 0.
    data: the data_key; origin: of the original's training, in hexadecimal; key: of the forget set; all equal over seeds.
    """

    network: str
    what: str
    size: int
    group: str
    score: str
    request: int
    data: str
    origin: str
    key: str

    @property
    def tag(self) -> str:
        """Letters and digits that no other setting has, for the names of files."""
        return f"{self.key}-{self.origin}"

    @property
    def label(self) -> str:
        by = f" ({self.group} by {self.score})" if self.group else ""
        request = f", request {self.request}" if self.request else ""
        return f"{self.network}, forget {self.what}{by}{request}, {self.tag}"


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
    def method(self) -> str:
        """The method's name, or that of the plan which main_rum.py followed."""
        return name_of(self.run)


def name_of(run: Saved) -> str:
    if is_plan(run):
        return run.record["plan"]["name"]
    return run.setting("unlearn") + (", own pruning" if run.setting("own_pruning") else "")


def is_plan(run: Saved) -> bool:
    return "plan" in run.record


def needs_scores(run: Saved) -> bool:
    """Whether the method itself cannot do without scores: a plan refines by them, at random groups and vanilla nothing."""
    return is_plan(run) and not run.record["plan"]["shuffle"] and [s["group"] for s in run.record["plan"]["steps"]] != ["all"]


def pairs(cfg: AnalysisConfig) -> list[Pair]:
    """Every finished unlearning run that passes the filters, beside its retrain; under each setting that it belongs to.

    Raises:
        BadInput: no run passes; a run has no retrain (with the command that makes it), or several.
    """
    wanted = {name: getattr(cfg, name) for name in ("dataset", "arch") if getattr(cfg, name) is not None}
    runs = find_runs(Path(cfg.save_dir), ("forget", "rum"), **wanted)
    if cfg.seed is not None:
        runs = [run for run in runs if run.setting("seed") in cfg.seed]
    retrains: dict[str, list[Saved]] = {}
    for run in runs:
        if name_of(run) == "retrain":
            retrains.setdefault(_pairing(run), []).append(run)
    kept = [run for run in runs if name_of(run) != "retrain" and _passes(run, cfg)]
    if not kept:
        raise BadInput(f"no finished unlearning run under {cfg.save_dir}/forget or {cfg.save_dir}/rum passes the filters; "
                       "main_forget.py and main_rum.py make them")
    for run in kept:
        beside = retrains[_pairing(run)] = _plainest(retrains.get(_pairing(run), []))
        if not beside:
            raise BadInput(f"{run.folder} has no retrain to compare with; make it: {retrain_command(run, cfg.save_dir)}")
        if len(beside) > 1:
            raise BadInput(f"{run.folder} has several retrains: {', '.join(str(b.folder) for b in beside)}; keep one")
    used = [retrains[key][0] for key in dict.fromkeys(map(_pairing, kept))]
    attack = EvaluationConfig(**{field.name: getattr(cfg, field.name) for field in dataclasses.fields(EvaluationConfig)})
    metrics = {run.folder: metrics_of(run.folder, run.record, attack) for run in [*used, *kept]}
    places = _places(used, kept)
    parts = _parts([*used, *kept])
    found = [(run, retrains[_pairing(run)][0], setting) for run in [*used, *kept] for setting in places[run.folder]]
    return [Pair(run, ref, metrics[run.folder], metrics[ref.folder], setting, parts[run.folder], attack)
            for run, ref, setting in found]


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
                for name in ("num_indexes_to_replace", "forget_fraction", "aug", "mem", "group_index"))
    classes = cfg.class_to_replace is None or tuple(run.setting("class_to_replace")) == cfg.class_to_replace
    score = cfg.mem_proxy in (None, run.record.get("scores", {}).get("name"))
    name = name_of(run)
    names = {name, run.setting("unlearn"), *([name.split()[0]] if is_plan(run) else [])}
    return asked and classes and score and (cfg.unlearn is None or bool(names & set(cfg.unlearn)))


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


# ------------------------------------------------------------------------------------------------------------ settings


def _places(used: list[Saved], kept: list[Saved]) -> dict[Path, list[Setting]]:
    """The settings of every run.

    A run that names its forget set by a file stands with those that asked for the same set by group, so that the command
    given for a missing retrain serves; unless another seed has the set by file alone, which then would be torn apart. A
    retrain stands wherever a run is compared with it.
    """
    asked: dict[str, dict[Setting, None]] = {}
    for run in [*used, *kept]:
        if (own := _asked(run)) is not None:
            asked.setdefault(_pairing(run), {})[own] = None
    by_file = {run.record["split_key"] for run in kept if _pairing(run) not in asked}
    found: dict[Path, list[Setting]] = {}
    compared: dict[str, dict[Setting, None]] = {}
    for run in kept:
        own, split = _asked(run), run.record["split_key"]
        mates = [] if split in by_file else list(asked.get(_pairing(run), ()))
        found[run.folder] = [own] if own is not None else mates or [_by_split(run)]
        compared.setdefault(_pairing(run), {}).update(dict.fromkeys(found[run.folder]))
    return found | {run.folder: list(compared[_pairing(run)]) for run in used}


def _asked(run: Saved) -> Setting | None:
    """The setting of a forget set that was asked for by scores, or by a stream of requests; None for any other."""
    mem, chunk = run.setting("mem"), run.setting("group_index")
    record = run.record
    if mem is None and chunk is None:
        stream = run.setting("requests") is not None
        return _by_split(run)._replace(request=record["request"]["number"] + 1) if stream else None
    name = record["scores"]["name"]
    group, score = (mem, name) if chunk is None else ("mix" if chunk == -1 else f"chunk {chunk}", "es chunks")
    setting = _by_split(run)._replace(what=f"{record['forget_size']} images", group=group, score=score)
    if name == "memorization":
        return setting
    # each original has scores of its own, and so has each seed its own forget set; what was asked for is the same
    return setting._replace(key=digest_of([setting.data, group, score, setting.size])[:6])


def _by_split(run: Saved) -> Setting:
    record = run.record
    network = (run.setting("dataset"), run.setting("arch"))
    training = record["parent"].get("training") or {}
    origin = digest_of([record["parent"].get("training"), run.setting("imagenet_arch"), *network])[:4]
    network += tuple(f"{100 * share:.4g} % pruned" for share in [pruned_share(training.get("pruning") or {})] if share)
    size, whole = record["forget_size"], ",".join(map(str, record["whole_classes"]))
    what = f"class {whole} ({size} images)" if whole else f"{size} images"
    return Setting(" ".join(network), what, size, "", "", 0, record["data_key"], origin, record["split_key"][:6])


def pruned_share(pruning: Mapping[str, Any]) -> float:
    """The share of the prunable weights that an original lacks, of the ``pruning`` in its record; 0 of a dense one."""
    return 1 - pruning["shares"][-1] if pruning.get("shares") else float(pruning.get("synflow", 0))


def _parts(runs: list[Saved]) -> dict[Path, Groups]:
    """The groups of every run's forget set; of a run without them those of its mates, where all of these have the same."""
    own = {run.folder: _groups(run) for run in runs}
    known: dict[str, list[Groups]] = {}
    for run in runs:
        there = known.setdefault(_pairing(run), [])
        if own[run.folder] and not any(_same(own[run.folder], other) for other in there):
            there.append(own[run.folder])
    alone = {pairing: there[0] for pairing, there in known.items() if len(there) == 1}
    return {run.folder: own[run.folder] or alone.get(_pairing(run), {}) for run in runs}


def _same(a: Groups, b: Groups) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def _groups(run: Saved) -> Groups:
    """The run's own groups; none where the forget set is of one group alone."""
    if len(run.record.get("groups", {})) < 2:
        return {}
    try:
        with np.load(run.folder / "splits.npz", allow_pickle=False) as file:
            return {name: file[f"group_{name}"] for name in run.record["groups"]}
    except UNREADABLE as error:
        raise BadInput(f"no groups in {run.folder / 'splits.npz'} ({error}); repeat that run with --force") from None
