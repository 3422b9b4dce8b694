"""The original model of a stage: named by --checkpoint, or found among the finished runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dataset import DataConfig
from models.files import ModelConfig
from models.peer import read_safely
from utils import BadInput, RuntimeConfig, Saved, find_runs, read_record, say, sha256

SEEDS = ("seed", "split_seed", "val_seed")  # over which means are taken, or which the data_key tells
STAGES = ("train", "imp", "synflow")  # stages whose runs are models to unlearn


class Original(Saved):
    """The model to unlearn: a run folder with its record, or a published file without one (record {})."""

    @property
    def file(self) -> Path:
        return self.folder / "model.pt" if self.folder.is_dir() else self.folder

    def facts(self) -> dict[str, Any]:
        """What a child's record keeps of it; the training settings tell originals apart that share a seed."""
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
        return {name: self.setting(name) for name in weighty}


def record_inside(path: Path) -> dict[str, Any]:
    """The record that a model file carries itself, as those of main_backdoor.py's --mask do; {} of any other file."""
    content = read_safely(path)
    try:
        found = json.loads(content["record"]) if isinstance(content, dict) else {}
    except (KeyError, TypeError, ValueError):  # somebody else's file
        return {}
    return found if isinstance(found, dict) and "settings" in found else {}


def _clean(found: Original) -> Original:
    """Refuse a poisoned model, which learned from other images than any clean stage has."""
    if found.record.get("stage") == "trojan":
        raise BadInput(f"--checkpoint {found.folder} is a poisoned model; cleanse it by main_backdoor.py --mask {found.folder}")
    return found


def find_original(typed: dict[str, Any], narrow: dict[str, Any]) -> Original:
    """The checkpoint that was named, or the one finished run under the run folders that matches.

    Args:
        typed: flags of the command line; ``checkpoint``, ``save_dir`` and ``seed`` are read here.
        narrow: settings that the original's record must have.

    Raises:
        BadInput: no such file or run, none or several that match (listed).
    """
    named = typed.get("checkpoint")
    if named is not None and Path(named).is_file():
        beside = Path(named).parent / "record.json"
        whole = beside.exists() and Path(named).name == "model.pt"
        return _clean(Original(*read_record(beside.parent)) if whole else Original(Path(named), record_inside(Path(named))))
    if named is not None and (Path(named) / "record.json").exists():
        run = read_record(Path(named))
        if run.record["status"] != "done":
            raise BadInput(f"--checkpoint {named}: that run is not finished ({run.record['status']}); run its command again")
        return _clean(Original(*run))
    if named is not None and not Path(named).is_dir():
        raise BadInput(f"--checkpoint {named}: no such file or folder; main_train.py writes <run>/model.pt")
    if named is None:
        narrow = narrow | {"seed": typed.get("seed", RuntimeConfig().seed)}
    roots = [named] if named is not None else list(dict.fromkeys([typed.get("save_dir", "runs"), "runs"]))
    for root in roots:
        found = find_runs(Path(root), STAGES, **narrow)
        if len(found) > 1 and "seed" in typed:  # in a named folder a seed of its own may unlearn the one original there is
            found = [run for run in found if run.setting("seed") == typed["seed"]] or found
        if len(found) == 1:
            say(f"original: {found[0].folder}")
            return Original(*found[0])
        if found:
            raise BadInput(f"several originals match under {root}: {', '.join(str(f.folder) for f in found)}; "
                           "name one by --checkpoint")
    told = " ".join(f"--{n}" if v is True else f"--no_{n}" if v is False else f"--{n} {v}" for n, v in narrow.items())
    main = "main_train.py" if "sparsity" not in narrow else "main_imp.py"
    raise BadInput(f"no finished original under {' or '.join(roots)} matches {told or 'any settings'}; train one "
                   f"({f'python {main} {told}'.strip()}) or name one by --checkpoint")
