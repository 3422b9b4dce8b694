"""Records: what each says, whether it can be trusted, whether the files it lists are there, and which runs there are."""

from __future__ import annotations

import json
import os
import sys
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from utils.folders import DATA, RECORD, ours
from utils.readers import open_regular
from utils.words import BadInput, Damaged, say

SCHEMA = 1  # of model.pt, record.json and state.pt; raised when a reader of the old form would misread the new one

# A form is a type, a tuple of types, [form] for a list of such, or a dict: name -> form ("name?" may be missing, ... is any
# name). What it does not name is nobody's business here.
NUMBER, TEXT, SWITCH = (int, float), (str,), (bool,)
MAYBE_TEXT, MAYBE_NUMBER = (str, type(None)), (int, float, type(None))
VALUE = (str, bool, int, float, list, dict, type(None))
TRAINING = {...: VALUE, "lr?": NUMBER, "epochs?": (int,), "schedule?": TEXT, "pruning?": {...: VALUE}}
ORIGIN = {"path?": TEXT, "sha256?": TEXT, "training?": (TRAINING, type(None))}
PERCENT = ("train", "val", "retain", "forget", "test", "test_all", "UA", "RA", "TA", "SA", "ASR", "ASR_all")
METRICS = {...: VALUE, **{f"{name}?": NUMBER for name in PERCENT},
           "collapsed?": MAYBE_TEXT, "MIA?": MAYBE_NUMBER, "privacy?": MAYBE_NUMBER, "mia?": {...: VALUE}}
FORM: dict[Any, Any] = {
    "schema": (int,), "stage": TEXT, "label": TEXT, "status": TEXT, "finished": TEXT, "started?": TEXT, "commit?": TEXT,
    "settings": {...: {...: VALUE}, "rt?": {"seed": (int,), ...: VALUE}}, "seconds": {...: NUMBER},
    "images_read?": {...: (int,)}, "files?": {...: (int,)},
    "parent?": ORIGIN, "data_key?": TEXT, "split_key?": TEXT, "images_key?": TEXT,
    "outputs?": {...: VALUE, "parts": [TEXT]},
    "metrics?": METRICS, "before?": (METRICS, [TEXT], [{...: VALUE}], {...: VALUE}), "evaluation?": {...: VALUE},
    "whole_classes?": [(int,)], "whole_subclasses?": [(int,)], "forget_size?": (int,), "train_size?": (int,),
    "groups?": {...: (int,)}, "collapsed?": SWITCH, "diverged?": TEXT,
    "scores?": {"name?": TEXT, "path?": TEXT, "sha256?": TEXT, "seconds?": NUMBER},
    "mask?": {"path?": TEXT, "sha256?": TEXT, "density?": NUMBER, "saliency_mode?": MAYBE_TEXT},
    "plan?": {"name": TEXT, "steps": [{"group": TEXT, ...: VALUE}], "shuffle": SWITCH},
    "request?": {"number": (int,), "parts": {...: TEXT}, "earlier": TEXT},
    "rows?": [{...: VALUE, "group": TEXT, "method": TEXT, "cfg": {...: VALUE}, "retain_size": (int,)}],
    "steps?": [{...: VALUE, "group": TEXT, "method": TEXT, "cfg": {...: VALUE}}],
    "pruning?": {...: VALUE, "shares?": [NUMBER], "synflow?": NUMBER, "rounds?": (int,), "rewind_epoch?": (int,),
                 "file?": MAYBE_TEXT},
    "layers?": {...: [(int,)]}, "remaining?": NUMBER, "rounds?": [{...: VALUE, "metrics": METRICS, "remaining": NUMBER}],
    "models?": (int,), "polarity?": (int,), "figures?": [TEXT], "spearman?": MAYBE_NUMBER, "compared?": (int,),
    "processor?": TEXT, "threads?": (int,), "allocator?": TEXT, "chosen?": {...: VALUE}, "peak_memory_of?": TEXT,
    "device?": TEXT, "processes?": (int,), "peak_memory_mib?": NUMBER, "torch?": TEXT, "numpy?": TEXT, "retain_size?": (int,),
}


def misfit(value: Any, form: Any, name: str = "") -> str | None:
    """Where a value of JSON is not of a form, and what it is there; None where it is."""
    if isinstance(form, tuple) and any(isinstance(one, (dict, list)) for one in form):
        found = [misfit(value, one, name) for one in form]
        return None if None in found else found[0]
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{name} is {_told(value)}, not a list"
        return next((why for place, item in enumerate(value) if (why := misfit(item, form[0], f"{name}[{place}]"))), None)
    if not isinstance(form, dict):
        kinds = form if isinstance(form, tuple) else (form,)
        right = type(value) in kinds  # a bool is no whole number here
        return None if right else f"{name} is {_told(value)}, not {_named(kinds)}"
    if not isinstance(value, dict):
        return f"{name or 'it'} is {_told(value)}, not a group of fields"
    known = {str(key).removesuffix("?"): inner for key, inner in form.items() if key is not ...}
    lost = [key for key in form if key is not ... and not key.endswith("?") and key not in value]
    if lost:
        return f"{f'{name}.' if name else ''}{lost[0]} is missing"
    inside = ((key, known.get(key, form.get(...))) for key in value)
    return next((why for key, inner in inside if inner is not None
                 and (why := misfit(value[key], inner, f"{name}.{key}" if name else key))), None)


def _compiled(form: Any) -> Callable[[Any], bool]:
    """Whether a value is of a form, as ``misfit`` has it, ten times as fast: an analysis asks it of every record."""
    if isinstance(form, tuple) and any(isinstance(one, (dict, list)) for one in form):
        each = [_compiled(one) for one in form]
        return lambda value: any(fits(value) for fits in each)
    if isinstance(form, list):
        inner = _compiled(form[0])
        return lambda value: isinstance(value, list) and all(map(inner, value))
    if not isinstance(form, dict):
        kinds = frozenset(form if isinstance(form, tuple) else (form,))
        return lambda value: type(value) in kinds
    known = {str(key).removesuffix("?"): _compiled(inner) for key, inner in form.items() if key is not ...}
    needed = {key for key in form if key is not ... and not key.endswith("?")}
    other = None if form.get(..., VALUE) == VALUE else _compiled(form[...])  # VALUE is whatever JSON knows
    named = tuple(known.items())

    def fits(value: Any) -> bool:
        if not isinstance(value, dict) or not needed <= value.keys():
            return False
        if other is None:
            return all(inner(value[key]) for key, inner in named if key in value)
        return all(known.get(key, other)(inner) for key, inner in value.items())

    return fits


_FITS = _compiled(FORM)


def _told(value: Any) -> str:
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."


def _named(kinds: Iterable[type]) -> str:
    names = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null", list: "a list",
             dict: "a group of fields"}
    kinds = [kind for kind in kinds if not (kind is int and float in kinds)]
    return " or ".join(names.get(kind, kind.__name__) for kind in kinds)


class Saved(typing.NamedTuple):
    """A run folder and its record."""

    folder: Path
    record: dict[str, Any]

    def setting(self, name: str) -> Any:
        """A setting by its flag's name, whichever group holds it; None where the run has none of that name."""
        return next((group[name] for group in self.record["settings"].values() if name in group), None)


def as_kept(value: Any) -> Any:
    """A setting's value as a record has it: JSON knows lists alone."""
    return list(value) if isinstance(value, tuple) else value


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _group(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A group of fields; names and texts that other records have too are held once, which halves what ten thousand take."""
    return {sys.intern(name): sys.intern(value) if type(value) is str else value for name, value in pairs}


def read_record(folder: Path) -> Saved:
    """The record of a run folder.

    Raises:
        BadInput: missing, damaged, of another version, or with a field of a wrong type; what to do is said.
    """
    path, help = folder / RECORD, "repeat that run with --force, or remove the folder"
    try:
        with open_regular(path) as file:
            content = file.read()
        record = json.loads(content, parse_constant=_no_constant, object_pairs_hook=_group)
    except FileNotFoundError:
        raise BadInput(f"{folder} holds no {RECORD}; {help}") from None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise BadInput(f"{path} is damaged; {help}") from None
    if (why := unusable(record)) is not None:
        raise BadInput(f"{path} cannot be used: {why}; {help}")
    return Saved(folder, record)


def unusable(record: Any) -> str | None:
    """Why the content of a record is none of this version; None of one that is."""
    if isinstance(record, dict) and record.get("schema") != SCHEMA:
        return f"it is of schema {_told(record.get('schema'))}, not {SCHEMA}, so of another version"
    why = None if _FITS(record) else misfit(record, FORM)
    if why is None and record["status"] == "done" and "files" not in record:
        return "it does not list its files, so it is of an older version"
    return why


def files_of(folder: Path) -> dict[str, int]:
    """What a finished run lists of its files, arrays and tensors: name -> bytes."""
    return {path.name: path.stat().st_size for path in sorted(ours(folder, DATA))}


def damage(run: Saved, *names: str) -> Damaged | None:
    """Which file of a finished run is not as it was written; None where all (or those named) are. A cheap look: by size."""
    for name, size in run.record.get("files", {}).items():
        path = run.folder / name
        if names and name not in names:
            continue
        try:
            found = path.stat().st_size
        except OSError:
            return Damaged(path, run, "is missing")
        if found != size:
            return Damaged(path, run, f"is damaged ({found:,} bytes in place of {size:,})")
    return None


def require(run: Saved, *names: str) -> Saved:
    """The run, where the named files of it (all by default) are as they were written; else Damaged."""
    if (error := damage(run, *names)) is not None:
        raise error
    return run


def run_of(file: Path) -> Saved | None:
    """The run that wrote a file, where it lies in a run's folder; else None. Damaged where it is not as it was written."""
    # os.path.exists is False where we may not look, which whoever reads the file then says
    return require(read_record(file.parent), file.name) if os.path.exists(file.parent / RECORD) else None


def survey(root: Path, stages: tuple[str, ...], *, finished: bool | None = True, files: tuple[str, ...] = (),
           **wanted: Any) -> tuple[list[Saved], list[str]]:
    """The finished (or the unfinished; None: all) runs of the stages whose settings equal all that is wanted, oldest first.

    Args:
        root: a ``save_dir``; one that is not there has no runs.
        files: those that have to be whole; all by default.

    Returns:
        The runs, and one line for each folder that was passed over because it cannot be used.
    """
    runs, problems = [], []
    for folder in (folder for stage in stages for folder in _folders(root / stage)):
        try:
            run = read_record(folder)
        except BadInput as error:
            problems.append(str(error))
            continue
        done = run.record["status"] == "done"
        if finished not in (None, done) or any(run.setting(name) != as_kept(value) for name, value in wanted.items()):
            continue
        lost = damage(run, *files) if done else None
        if lost is None:
            runs.append(run)
        else:
            problems.append(str(lost))
    return sorted(runs, key=lambda run: run.record["finished"]), problems


def _folders(root: Path) -> list[Path]:
    """The folders with a record, by name."""
    try:
        return sorted(folder for folder in root.iterdir() if (folder / RECORD).is_file()) if root.is_dir() else []
    except OSError as error:
        raise BadInput(f"cannot read {error.filename or root}: {error.strerror}") from None


def find_runs(root: Path, stages: tuple[str, ...], *, finished: bool = True, files: tuple[str, ...] = (),
              **wanted: Any) -> list[Saved]:
    """As ``survey``; what a search for finished runs passes over is told on the screen."""
    runs, problems = survey(root, stages, finished=finished, files=files, **wanted)
    for problem in problems if finished else ():
        say(f"notice: passed over: {problem}")
    return runs
