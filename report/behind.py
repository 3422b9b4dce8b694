"""What stands behind the numbers of a page: the single runs of every row, and the command that makes each run again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from models import whereabouts
from report.page import Facts, Group, Made
from report.pairs import Pair
from report.rows import FLOOR, Row
from report.settings import machine_of, word
from report.table import Cell, Line, Table
from report.tables import digits_of, head_of
from utils import BadInput, Saved, digest_of, read_record

Command = Callable[[Saved], list[str]]  # of a run: the words of the command line that makes it
SEPARATE = " · "
HASH = 12  # letters of a commit or a hash


def run_id(folder: Path) -> str:
    return f"u{digest_of(str(folder))}"


# ---------------------------------------------------------------------------------------------------------------- rows


def group(row: Row, heading: str, names: Iterable[str]) -> Group:
    """The numbers of a row's single runs, whose means its table shows; of a mean over requests those of each request's row.

    Args:
        names: measures, as far as the row has them.
    """
    title = f"{row.told} — {heading}"
    if row.method == FLOOR:
        return Group(row.id, f"{title}: every two of these", _folders(row.pairs))
    keys = {(pair.setting.label, pair.seed): pair for pair in row.pairs}
    if any(label != row.setting for label, _ in keys):
        return Group(row.id, f"{title}: the runs of all requests", _folders(row.pairs))
    shown = [name for name in names if name in row.values]
    lines = []
    for pair in sorted(row.pairs, key=lambda pair: pair.seed):
        numbers = [row.values[name][pair.seed] for name in shown]
        lines.append(Line((Cell(pair.run.folder.name), Cell(str(pair.seed), pair.seed),
                           *(Cell(f"{x:.{digits_of(name)}f}", x) for name, x in zip(shown, numbers, strict=True))),
                          run_id(pair.run.folder)))
    return Group(row.id, title, Table("", ("run", "seed", *map(head_of, shown)), tuple(lines)))


def _folders(pairs: Iterable[Pair]) -> Table:
    there = {pair.run.folder: pair for pair in pairs}
    lines = [Line((Cell(folder.name), Cell(str(pair.seed), pair.seed)), run_id(folder)) for folder, pair in there.items()]
    return Table("", ("run", "seed"), tuple(lines))


# ---------------------------------------------------------------------------------------------------------------- runs


def runs(pairs: Iterable[Pair], save_dir: Path, command_of: Command) -> tuple[Made, ...]:
    """Every run of these, its retrain, and all that they were made from, by folder."""
    found: dict[Path, tuple[Saved, Mapping[str, Any], dict[str, Path]]] = {}
    places = _Places(save_dir)
    waiting: list[tuple[Saved, Mapping[str, Any], dict[str, Path]]] = []
    for pair in pairs:
        beside = {} if pair.is_reference else {"compared with": pair.retrain.folder}
        waiting += [(pair.run, pair.metrics, beside), (pair.retrain, pair.reference, {})]
    while waiting:
        run, metrics, beside = waiting.pop()
        if run.folder in found:
            found[run.folder][2].update(beside)
            continue
        made_from = places.of(run)
        found[run.folder] = run, metrics, made_from | beside
        waiting += [(other, other.record.get("metrics", {}), {}) for path in made_from.values()
                    if (other := places.run_in(path)) is not None]
    order = sorted(found, key=lambda folder: (folder.parent, folder.name))
    return tuple(_made(*found[folder], known=found.keys(), command_of=command_of) for folder in order)


class _Places:
    """Where the files of records lie now; each is looked for once."""

    def __init__(self, save_dir: Path) -> None:
        self.save_dir = save_dir
        self.files: dict[str, Path] = {}
        self.read: dict[Path, Saved | None] = {}

    def of(self, run: Saved) -> dict[str, Path]:
        """What a run was made from: the folder of each where it is a run, else the file."""
        record, found = run.record, {}
        for name, what in (("parent", "original"), ("mask", "saliency mask"), ("scores", "scores")):
            about = record.get(name) or {}
            if about.get("path"):
                key = about["path"] + about.get("sha256", "")
                if key not in self.files:
                    self.files[key] = Path(whereabouts(about, self.save_dir) if name == "parent" else about["path"])
                file = self.files[key]
                found[what] = file.parent if self.run_in(file.parent) is not None else file
        return found

    def run_in(self, folder: Path) -> Saved | None:
        if folder not in self.read:
            try:
                self.read[folder] = read_record(folder)
            except BadInput:  # somebody else's file, or a run that is gone
                self.read[folder] = None
        return self.read[folder]


def _made(run: Saved, metrics: Mapping[str, Any], parents: Mapping[str, Path], *, known: Iterable[Path],
          command_of: Command) -> Made:
    command, absent = "", "It is part of another run, and has no command of its own."
    try:
        command = shlex.join(command_of(run))
    except BadInput as error:  # its original is gone, or its record is of a method that there is no more
        absent = f"Its command cannot be told here: {error}"
    told = tuple((what, run_id(path) if path in known else "", str(path)) for what, path in sorted(parents.items()))
    return Made(run_id(run.folder), str(run.folder), command, facts_of(run, metrics), told, "" if command else absent)


def facts_of(run: Saved, metrics: Mapping[str, Any]) -> Facts:
    """What the record says of a run, and its own metrics."""
    record = run.record
    facts = {"seed": run.setting("seed"), "finished": record.get("finished"), "commit": record.get("commit", "")[:HASH],
             "machine": machine_of(record), "torch": record.get("torch"), "forget set": record.get("split_key"),
             "data": record.get("data_key"), "weights": record.get("weights", "")[:HASH]}
    seconds = {f"seconds, {name}": f"{value:.2f}" for name, value in record["seconds"].items()}
    numbers = {head_of(name): f"{value:.{digits_of(name)}f}" for name, value in metrics.items()
               if isinstance(value, (int, float)) and not isinstance(value, bool)}
    facts |= {"collapsed": record.get("collapsed"), "did nothing": record.get("did_nothing")}
    named = {name: word(value) for name, value in facts.items() if value not in (None, "", False)}
    return tuple((named | numbers | seconds).items())
