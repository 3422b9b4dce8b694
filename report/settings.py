"""What runs share that stand in one table: network, the original's and the retrain's training, forget set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from models.originals import LEFT_OUT
from sources.kept import classes_of
from unlearn import METHODS
from utils import Saved, digest_of


class Setting(NamedTuple):
    """What the runs share that are averaged over seeds: network, original's training, forget set, reference.

    group: of a forget set that was cut by scores, ``low``, ``mid``, ``high``, ``mix`` or ``chunk 3``; else "".
    score: which scores; ``es chunks`` where the chunk was asked for by its number.
    request: from 1 in a stream of deletion requests, else 0.
    data: the data_key; origin: of the original's training, in hexadecimal; key: of the forget set; all equal over seeds.
    drawn: how the forget set was drawn at random, the same for every draw (``--split_seed``); "" of any other.
    trained: what tells the original's training from that of others here; reference: how retrain was trained, where that
        was not as its original.
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
    drawn: str = ""
    trained: str = ""
    reference: str = ""

    @property
    def tag(self) -> str:
        """Letters and digits that no other setting has, for the names of files."""
        own = f"-{digest_of(self.reference)[:4]}" if self.reference else ""
        return f"{self.key}-{self.origin}{own}"

    @property
    def model(self) -> str:
        """The network, and what tells its training from others'."""
        return f"{self.network} trained with {self.trained}" if self.trained else self.network

    @property
    def against(self) -> str:
        """Of which retrain, where that is not the one trained as its original."""
        return f" against {self.reference}" if self.reference else ""

    @property
    def compared(self) -> str:
        """What is the same in all columns of a table across forget sets."""
        return f"{self.model}{self.against}"

    @property
    def label(self) -> str:
        by = f" ({self.group} by {self.score})" if self.group else ""
        request = f", request {self.request}" if self.request else ""
        return f"{self.model}, forget {self.what}{by}{self.against}{request}, {self.tag}"


def name_of(run: Saved) -> str:
    """The method's name, or that of the plan which main_rum.py followed."""
    if is_plan(run):
        return run.record["plan"]["name"]
    return run.setting("unlearn") + (", own pruning" if run.setting("own_pruning") else "")


def is_plan(run: Saved) -> bool:
    return "plan" in run.record


def pairing(run: Saved) -> str:
    """What a run and its retrain have in common: forget set, seed and original."""
    return digest_of([run.record["split_key"], run.setting("seed"), run.record["parent"]["sha256"]])


def pruned_share(pruning: Mapping[str, Any]) -> float:
    """The share of the prunable weights that an original lacks, of the ``pruning`` in its record; 0 of a dense one."""
    return 1 - pruning["shares"][-1] if pruning.get("shares") else float(pruning.get("synflow", 0))


def way_of(pruning: Mapping[str, Any]) -> str:
    """How an original was pruned, but for how much; "" of a dense one."""
    if "shares" in pruning:
        name = "random pruning" if pruning["random_prune"] else "OMP" if len(pruning["shares"]) == 2 else "IMP"
        told = [str(pruning[key]) for key in ("prune_type", "rewind_epoch", "rewind_schedule", "prune_scope")]
        return " ".join([name, *told, *([pruning["file"][:6]] if pruning["file"] else [])])
    if "synflow" in pruning:
        kept = " keep_shortcuts" if pruning["keep_shortcuts"] else ""
        return f"SynFlow {pruning['rounds']} rounds{kept}"
    return ""


def network_of(run: Saved) -> dict[str, Any]:
    """The settings of the network, which a published file's children alone record."""
    return {name: value for name, value in run.record["settings"].get("model", {}).items() if name != "num_classes"}


def left_out(run: Saved) -> str:
    """Which classes and sub-classes its original was not trained on, as they are out of distribution; "" where none is."""
    found = []
    for name, one, more in (("ood_classes", "class", "classes"), ("ood_subclass", "sub-class", "sub-classes")):
        if numbers := run.setting(name):
            found.append(f"{one if len(numbers) == 1 else more} {','.join(map(str, numbers))}")
    return f"without {' and '.join(found)}" if found else ""


def named(run: Saved) -> str:
    """The data set, the architecture, and what was left out of the original's training."""
    return " ".join(filter(None, [run.setting("dataset"), run.setting("arch"), left_out(run)]))


def departures(retrain: Saved) -> str:
    """Settings of a retrain that are not those of its original's training, in words; "" where it was trained as that was.

    Of an original without a record nothing is known.
    """
    parent = retrain.record["parent"]
    training = parent.get("training") or {}
    wanted = {ours: training[theirs] for ours, theirs in METHODS["retrain"].inherits.items() if theirs in training}
    wanted |= parent.get("setup") or {}
    told = [f"{name} {word(retrain.setting(name))} (original: {word(value)})" for name, value in wanted.items()
            if retrain.setting(name) != value]
    return " and ".join(told)


def word(value: Any) -> str:
    """A setting's value as a person reads it."""
    if isinstance(value, (list, tuple)):
        return "/".join(map(word, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {word(inner)}" for name, inner in value.items())
    if value is None or isinstance(value, bool):
        return {None: "unset", True: "on", False: "off"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def machine_of(record: Mapping[str, Any]) -> str:
    """The GPU, or the processor with its threads, that a run was made on; "" where no record tells."""
    device, processor, threads = record.get("device", ""), record.get("processor"), record.get("threads", 0)
    if not device.startswith("cpu") or not processor:
        return device
    return f"{processor}, {threads} thread{'s' if threads != 1 else ''}"


# ---------------------------------------------------------------------------------------------------------------- of a run


def by_split(run: Saved, drawn: Mapping[str, str]) -> Setting:
    """The setting of a run by its forget set itself, however that was asked for; drawn: split_key -> how it was drawn."""
    record = run.record
    network = (named(run),)
    pruning = (record["parent"].get("training") or {}).get("pruning") or {}
    told = [record["parent"].get("training"), record["parent"].get("setup"), network_of(run)]
    origin = digest_of([*told, run.setting("dataset"), run.setting("arch")])[:4]
    network += tuple(f"{100 * share:.4g} % pruned" for share in [pruned_share(pruning)] if share)
    size = record["forget_size"]
    whole = {"class": classes_of(record["whole_classes"], run.setting("ood_classes")),
             "sub-class": record.get("whole_subclasses", [])}
    told = " and ".join(f"{kind} {','.join(map(str, numbers))}" for kind, numbers in whole.items() if numbers)
    what = f"{told} ({size} images)" if told else f"{size} images"
    return Setting(" ".join(network), what, size, "", "", 0, record["data_key"], origin, record["split_key"][:6],
                   drawn.get(record["split_key"], ""))


def _drawn(run: Saved) -> str:
    """How a run's forget set was drawn at random, the same for every --split_seed; "" where it was not, or whole classes."""
    chosen = [run.setting(name) for name in ("forget_index", "mem", "group_index", "requests")]
    if any(value is not None for value in chosen) or run.record["whole_classes"] or run.record.get("whole_subclasses"):
        return ""
    classes, fine = run.setting("class_to_replace"), run.setting("subclass_to_replace")
    among = "" if list(classes) == [-1] else f" of class {','.join(map(str, classes))}"
    among = f" of sub-class {','.join(map(str, fine))}" if fine else among
    kind = "mislabelled" if run.setting("forget_mislabelled") else "random"
    return f"{run.record['forget_size']} {kind} images{among}"


def _asked(run: Saved, drawn: Mapping[str, str]) -> Setting | None:
    """The setting of a forget set that was asked for by scores, or by a stream of requests; None for any other."""
    mem, chunk = run.setting("mem"), run.setting("group_index")
    record = run.record
    if mem is None and chunk is None:
        stream = run.setting("requests") is not None
        return by_split(run, drawn)._replace(request=record["request"]["number"] + 1, drawn="") if stream else None
    name = record["scores"]["name"]
    group, score = (mem, name) if chunk is None else ("mix" if chunk == -1 else f"chunk {chunk}", "es chunks")
    setting = by_split(run, drawn)._replace(what=f"{record['forget_size']} images", group=group, score=score, drawn="")
    if name == "memorization":
        return setting
    # each original has scores of its own, and so has each seed its own forget set; what was asked for is the same
    return setting._replace(key=digest_of([setting.data, group, score, setting.size])[:6])


def places(retrains: list[Saved], kept: list[Saved]) -> dict[Path, list[Setting]]:
    """The settings of every run, but for what is said of originals and references.

    A run that names its forget set by a file stands with those that asked for the same set by group, so that the command
    given for a missing retrain serves; unless another seed has the set by file alone, which then would be torn apart. A
    retrain stands wherever a run is compared with it.
    """
    runs = [*retrains, *kept]
    drawn = {run.record["split_key"]: told for run in runs if (told := _drawn(run))}
    asked: dict[str, dict[Setting, None]] = {}
    for run in runs:
        if (own := _asked(run, drawn)) is not None:
            asked.setdefault(pairing(run), {})[own] = None
    by_file = {run.record["split_key"] for run in kept if pairing(run) not in asked}
    found: dict[Path, list[Setting]] = {}
    compared: dict[str, dict[Setting, None]] = {}
    for run in kept:
        own, split = _asked(run, drawn), run.record["split_key"]
        mates = [] if split in by_file else list(asked.get(pairing(run), ()))
        found[run.folder] = [own] if own is not None else mates or [by_split(run, drawn)]
        compared.setdefault(pairing(run), {}).update(dict.fromkeys(found[run.folder]))
    return found | {run.folder: list(compared[pairing(run)]) for run in retrains}


def told_apart(origins: Iterable[tuple[Setting, Saved]]) -> dict[str, str]:
    """origin -> the settings by which originals of one network differ, in words; "" where all were trained alike."""
    known: dict[str, dict[str, dict[str, Any]]] = {}
    for setting, run in origins:
        parent = run.record["parent"]
        training = {name: value for name, value in (parent.get("training") or {}).items() if name != "pruning"}
        network = named(run)
        facts = training | (parent.get("setup") or {}) | network_of(run)
        facts = {name: value for name, value in facts.items() if name not in LEFT_OUT}  # which the network's name tells
        known.setdefault(network, {})[setting.origin] = facts
    found = {}
    for family in known.values():
        names = dict.fromkeys(name for facts in family.values() for name in facts)
        differ = [name for name in names if len({str(facts.get(name)) for facts in family.values()}) > 1]
        for origin, facts in family.items():
            found[origin] = " and ".join(f"{name} {word(facts.get(name))}" for name in differ)
    return found
