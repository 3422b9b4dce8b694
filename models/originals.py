"""The original model of a stage: named by --checkpoint, or found among the finished runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dataset import DataConfig
from models.files import ModelConfig, load_file
from models.peer import Unreadable, read_safely
from utils import (
    BadInput,
    Damaged,
    Mask,
    Runtime,
    RuntimeConfig,
    Saved,
    Unfinished,
    damage,
    find_runs,
    flag_words,
    open_regular,
    read_record,
    reading,
    require,
    say,
    sha256,
    survey,
    unusable,
)

SEEDS = ("seed", "split_seed", "val_seed")  # over which means are taken, or which the data_key tells
LEFT_OUT = ("ood_classes", "ood_subclass")
STAGES = ("train", "imp", "synflow")  # stages whose runs are models to unlearn
LISTED = 4  # runs that an error shows


class Original(Saved):
    """The model to unlearn: a run folder with its record, or a published file without one (record {})."""

    @property
    def file(self) -> Path:
        return self.folder / "model.pt" if self.folder.is_dir() else self.folder

    def facts(self) -> dict[str, Any]:
        """What a child's record keeps of it; the training settings tell originals apart that share a seed."""
        if self.folder.is_dir() and not self.file.is_file():
            raise Damaged(self.file, self)
        return {"path": str(self.file), "sha256": sha256(self.file), "training": self.training, "setup": self.setup}

    @property
    def training(self) -> dict[str, Any] | None:
        """The settings of the training it goes back to, through however many unlearning runs; None of a bare file.

        A pruned original's also say how it was pruned (``pruning``), which tells it apart from the dense one.
        """
        own = self.record.get("settings", {}).get("cfg")
        if own is not None and self.record.get("pruning"):
            own = own | {"pruning": self.record["pruning"]}
        return self.record.get("parent", {}).get("training") or own

    @property
    def setup(self) -> dict[str, Any] | None:
        """What else its weights depend on, but for seeds: data set, batch size, augmentation, network, device, precision.

        None of a bare file, and of one that goes back to a run whose record is of an older form.
        """
        parent, settings = self.record.get("parent", {}), self.record.get("settings")
        if parent.get("training"):
            return parent.get("setup")
        if settings is None:
            return None
        weighty = [field.name for config in (DataConfig, ModelConfig, RuntimeConfig) for field in dataclasses.fields(config)
                   if field.metadata["digest"] and field.name not in SEEDS]
        told = {name: self.setting(name) for name in weighty}
        # nothing left out is as if nobody had asked, which is how earlier versions recorded it
        return {name: value for name, value in told.items() if name not in LEFT_OUT or value is not None}


def load_original(original: Original, cfg: ModelConfig, data: Any,
                  rt: Runtime) -> tuple[nn.Module, Mask | None, dict[str, Any]]:
    """The model that a stage starts from, its pruned weights' mask, and how it normalises (for the record).

    Args:
        data: Data.

    Raises:
        BadInput: as ``load``; weights that are not finite, or all 0: the original itself is broken.
        Damaged: the file of a run is, which its command mends.
    """
    try:
        model, mask, own = load_file(original.file, cfg, data, rt)
    except Unreadable as error:
        raise Damaged(original.file, original) if original.folder.is_dir() else error from None
    check_whole(original.file, model)
    mean, std = model.normalize.mean.tolist(), model.normalize.std.tolist()
    told = {"mean": [round(value, 6) for value in mean], "std": [round(value, 6) for value in std]}
    if not own and not cfg.typed:
        say(f"notice: {original.file} holds no normalisation; assumed the mean {_short(mean)} and std {_short(std)} of "
            f"{data.source.name}; --mean and --std give others, --normalize none takes pixels in [0, 1] as they are")
    origin = "the file" if own else "the command line" if cfg.typed else f"assumed, those of {data.source.name}"
    return model, mask, {"normalize": told | {"from": origin}}


def check_whole(path: Path, model: nn.Module, what: str = "the original") -> None:
    """Refuse a model whose weights are not finite, or that has none but 0: nothing can be unlearned from it, nor measured."""
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    lost = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise BadInput(f"{path}: {what} itself is broken: its weights are not finite ({lost[0]}{more}); train it again, "
                       "at a lower rate, or name another --checkpoint")
    if not any(bool(value.any()) for value in model.parameters() if value.dim() > 1):
        raise BadInput(f"{path}: {what} itself is broken: all its weights are 0; train it again, or name another "
                       "--checkpoint")


def _short(values: list[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


def record_inside(path: Path) -> dict[str, Any]:
    """The record that a model file carries itself, as those of main_backdoor.py's --mask do; {} of any other file."""
    content = read_safely(path)
    try:
        found = json.loads(content["record"]) if isinstance(content, dict) else {}
    except (KeyError, TypeError, ValueError):  # somebody else's file
        return {}
    return found if unusable(found) is None else {}


def _clean(found: Original) -> Original:
    """Refuse a poisoned model, which learned from other images than any clean stage has, and a file that is not whole."""
    if found.record.get("stage") == "trojan":
        raise BadInput(f"--checkpoint {found.folder} is a poisoned model; cleanse it by main_backdoor.py --mask {found.folder}")
    if found.folder.is_dir():
        require(found, "model.pt")
    return found


def find_original(typed: dict[str, Any], narrow: dict[str, Any], results_only: bool = False) -> Original:
    """The checkpoint that was named, or the one finished run of the folder of run folders that matches.

    A folder that was named, by ``checkpoint`` or by ``save_dir``, is searched alone. Without a seed the only original there
    is taken, whatever its seed.

    Args:
        typed: flags of the command line; ``checkpoint``, ``save_dir`` and ``seed`` are read here.
        narrow: settings that the original's record must have.
        results_only: ``save_dir`` says where results go (the published ``--save``), so that where no original ever was the
            one in ``runs`` is meant.

    Raises:
        BadInput: no such file or run, none or several that match (listed).
        Unfinished: the one that matches is not finished.
    """
    named = typed.get("checkpoint")
    if named is not None and not (Path(named).is_dir() and not (Path(named) / "record.json").exists()):
        return _named(Path(named))
    root = Path(typed.get("save_dir", "runs") if named is None else named)
    if results_only and named is None and not any(list(root.glob(f"{stage}/*")) for stage in STAGES):
        root = Path("runs")
    if named is None and "seed" in typed:
        narrow = narrow | {"seed": typed["seed"]}
    found = find_runs(root, STAGES, files=("model.pt",), **narrow)
    if len(found) > 1 and "seed" in typed:  # in a named folder a seed of its own may unlearn the one original there is
        found = [run for run in found if run.setting("seed") == typed["seed"]] or found
    if len(found) == 1:
        say(f"original: {found[0].folder}")
        return Original(*found[0])
    if found:
        raise BadInput(f"several originals match under {root}: {_listed(found)}; choose by --seed or another flag that they "
                       "differ in, or name one by --checkpoint")
    raise _missing(root, narrow, named is None)


def whereabouts(parent: Mapping[str, Any], save_dir: Path) -> str:
    """The file of a record's parent, wherever it lies now; the recorded path where it is nowhere."""
    return str(locate(parent, save_dir) or parent["path"])


def locate(parent: Mapping[str, Any], save_dir: Path) -> Path | None:
    """The file with the hash of a record's parent: at its old place, or below ``save_dir``, whatever was moved or renamed.

    A folder of the old name is looked into first, then all that originals lie in, then raw's copies of them.
    """
    path = Path(parent["path"])
    if os.path.isfile(path) and _hash(path) == parent["sha256"]:  # as nearly always; a save_dir may hold ten thousand others
        return path
    again = [folder / path.parent.name / path.name for folder in sorted(save_dir.glob("*"))]
    stages = (*STAGES, "trojan", path.parts[-3] if len(path.parts) > 2 else "")
    below = sorted(save_dir.glob("*/*/model.pt"))
    rest = [*(file for file in below if file.parts[-3] in stages), *(file for file in below if "-raw-" in file.parts[-2])]
    tried = dict.fromkeys([*again, save_dir / path.name, *rest])
    return next((file for file in tried if os.path.isfile(file) and _hash(file) == parent["sha256"]), None)


def _hash(file: Path) -> str:
    with contextlib.suppress(BadInput, OSError):  # closed to us
        known = file.stat()
        return _hash_of(str(file), known.st_size, known.st_mtime_ns)
    return ""


@functools.lru_cache(maxsize=4096)
def _hash_of(file: str, size: int, changed: int) -> str:
    """Of a file as it is at this size and time; an analysis asks for the same originals again and again."""
    return sha256(Path(file))


def _named(path: Path) -> Original:
    """The original in a file or in a run folder."""
    if not path.is_dir():
        with reading(f"--checkpoint {path}", "main_train.py writes <run>/model.pt"):
            open_regular(path).close()
        if path.name != "model.pt" or not (path.parent / "record.json").exists():
            return _clean(Original(path, record_inside(path)))
    run = read_record(path if path.is_dir() else path.parent)
    if run.record["status"] != "done":
        raise Unfinished(f"--checkpoint {path}", run)
    return _clean(Original(*run))


def _missing(root: Path, narrow: dict[str, Any], by_save_dir: bool) -> BadInput:
    """Why there is no original: it is not finished or not whole, others are, it lies elsewhere, or none was trained."""
    told = " ".join(word for name, value in narrow.items() for word in flag_words(name, value))
    nothing = f"no finished original under {root} matches {told or 'any settings'}"
    if begun := survey(root, STAGES, finished=False, **narrow)[0]:
        last = begun[-1]
        others = f"; so are {_listed(begun[:-1])}" if begun[:-1] else ""
        return Unfinished(nothing, last, others)
    # whatever of their files is whole: the search passed over those whose model.pt is not
    for run in survey(root, STAGES, files=("record.json",), **narrow)[0]:
        if (error := damage(run, "model.pt")) is not None:
            return error
    there, _ = survey(root, STAGES)  # what it passes over was told
    also = f", but there {'is' if len(there) == 1 else 'are'} {_listed(there)}" if there else ""
    elsewhere = [] if root == Path("runs") or there else find_runs(Path("runs"), STAGES, **narrow)
    if not there and list((root / "round").glob("*")):
        also += f", but {root / 'round'} holds trainings of a pruning that was not finished; repeat its command"
    also += f", but runs holds one: --checkpoint {elsewhere[0].folder}" if len(elsewhere) == 1 else ""
    main = "main_train.py" if "sparsity" not in narrow else "main_imp.py"
    told += f" --save_dir {root}" if by_save_dir and root != Path("runs") else ""
    return BadInput(f"{nothing}{also}; train one ({f'python {main} {told.strip()}'.strip()}) or name one by --checkpoint")


def _listed(runs: list[Saved]) -> str:
    """Folders and seeds of some runs."""
    shown = [f"{run.folder} (seed {run.setting('seed')})" for run in runs[:LISTED]]
    return ", ".join(shown) + (f" and {len(runs) - LISTED} more" if len(runs) > LISTED else "")
