"""Which models are looked at side by side: of each setting the original, retrain, every unlearned model, and of the original
the classes it never saw; what each makes of the points, seed by seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import dataset
import models
from dataset import Data, DataConfig
from models import ModelConfig
from report.embedded import Asked, Numbers, Scene, Seen, look, mean_of, never_seen, scene_of
from report.labels import labels_of, shown_names
from report.pairs import Pair
from report.rows import by_variant
from report.variants import computation
from utils import BadInput, Runtime, damage, read_arrays, say

ORIGINAL, RETRAIN, METHOD, NEVER_SEEN = range(4)  # in the order of a table
Space = tuple[str, str]  # features and space


class Job(NamedTuple):
    """A model that is to be looked at: the file, None where it is nowhere; any pair of its original, forget set and seed."""

    file: Path | None
    pair: Pair


@dataclasses.dataclass
class Entry:
    """One kind of model of a setting over its seeds.

    jobs: seed -> what is to be looked at; seen: seed -> what was; lost: why some were not, in a line each.
    """

    setting: str
    method: str
    role: int
    jobs: dict[int, Job]
    seen: dict[int, Seen] = dataclasses.field(default_factory=dict)

    def values(self, space: Space, measure: str) -> dict[int, float]:
        """Seed -> number, of the mean over groups where there are several."""
        each = {seed: self.of_seed(seed, space) for seed in self.seen}
        return {seed: numbers[measure] for seed, numbers in each.items() if measure in numbers}

    def of_seed(self, seed: int, space: Space) -> Numbers:
        return mean_of(list(self.by_group(seed, space).values()))

    def by_group(self, seed: int, space: Space) -> dict[str, Numbers]:
        """Name of the group -> its numbers."""
        return {group: own for (group, *there), own in self.seen[seed].numbers.items() if tuple(there) == space}

    @property
    def place(self) -> tuple[int, str]:
        return self.role, self.method


def entries_of(found: Iterable[Pair], save_dir: Path) -> list[Entry]:
    """The models of every setting, none looked at yet; runs of the method that does nothing are the original itself."""
    found = list(found)
    grouped, names = by_variant(found), shown_names(found)
    labels, entries = labels_of(grouped, names), []
    for (setting, variant), members in grouped.items():
        if computation(members[0].run) == "raw":
            continue
        role = RETRAIN if members[0].is_reference else METHOD
        jobs = {pair.seed: Job(pair.run.folder / "model.pt", pair) for pair in members}
        entries.append(Entry(setting, labels[setting, variant], role, jobs))
    for setting in dict.fromkeys(pair.setting.label for pair in found):
        there = [pair for pair in found if pair.setting.label == setting]
        copies = {pair.seed: pair.run.folder / "model.pt" for pair in there if computation(pair.run) == "raw"}
        jobs = {pair.seed: Job(models.locate(pair.run.record["parent"], save_dir) or copies.get(pair.seed), pair)
                for pair in there if pair.is_reference}
        entries.append(Entry(setting, "original", ORIGINAL, jobs))
        if any(pair.run.setting(name) is not None for pair in there for name in ("ood_classes", "ood_subclass")):
            entries.append(Entry(setting, "original, never seen", NEVER_SEEN, dict(jobs)))
    return sorted(entries, key=lambda entry: (entry.setting, *entry.place))


class Looker:
    """Looks at models, each forget set's points and each data set read once."""

    def __init__(self, asked: Asked, kept: Path, rt: Runtime, data: str | None) -> None:
        self.asked, self.kept, self.rt, self.root = asked, kept, rt, data
        self._data: tuple[str, Data] | None = None  # one at a time, since several may not fit

    def all(self, entries: list[Entry]) -> list[str]:
        """Look at all, telling of each; why some could not be.

        Raises:
            BadInput: the data are not here, or are others than the models were trained on.
        """
        lost, total, place = [], sum(len(entry.jobs) for entry in entries), 0
        for entry in entries:
            for seed, job in sorted(entry.jobs.items()):
                place += 1
                told = f"[{place}/{total}] {entry.method}, seed {seed}"
                if (why := absent(entry, job)) is not None:
                    lost.append(f"{entry.method}, seed {seed}: {why}")
                    continue
                scene = self.scene(job.pair, entry.role == NEVER_SEEN)
                cfg = ModelConfig(**_known(ModelConfig, job.pair.run.record["settings"]["model"]))
                try:
                    entry.seen[seed] = look(job.file, cfg, scene, self.asked, self.kept, self.rt)
                except BadInput as error:
                    if not str(error).startswith(str(job.file)):
                        raise
                    lost.append(f"{entry.method}, seed {seed}: {error}")
                    continue
                say(f"{told}: {entry.seen[seed].told}")
        return lost

    def scene(self, pair: Pair, ood: bool) -> Scene:
        """The points of a pair's forget set, or of the classes that its original never saw."""
        record = pair.retrain.record
        known = _known(DataConfig, record["settings"]["data"])
        known |= {} if self.root is None else {"data": self.root}
        key = f"{sorted(known.items())} {record['data_key']}"
        if self._data is None or self._data[0] != key:
            self._data = key, dataset.load(DataConfig(**known), self.rt, data_key=record["data_key"])
        parts = read_arrays(pair.retrain.folder / "splits.npz", {"retain": ("iu", "n"), "forget": ("iu", "m")})
        data, retain, forget = self._data[1], parts["retain"], parts["forget"]
        found = never_seen(data, retain) if ood else scene_of(data, retain, forget)
        assert found is not None, "an original with classes out of distribution has images of them"
        return found


def absent(entry: Entry, job: Job) -> str | None:
    """Why there is no model to look at; None where there is."""
    if job.file is None:
        parent = job.pair.run.record["parent"]
        return f"{parent['path']} is nowhere here, by its hash {parent['sha256'][:10]}; copy it below --save_dir"
    if entry.role in (RETRAIN, METHOD) and (error := damage(job.pair.run, "model.pt")) is not None:
        return str(error)
    return None if job.file.is_file() else f"{job.file} is missing; copy it from where the run was made"


def _known(config: type, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded settings that this version has; lists as the tuples that they were."""
    names = {field.name for field in dataclasses.fields(config)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items() if name in names}
