"""Saliency of weights for a forget set, and the masks of SalUn (Fan et al., ICLR 2024, arXiv:2310.12508, eq. 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from dataset import Data, Loader
from models import read_safely
from models.unwrap import tensors
from pruner.mask import as_mask, largest
from unlearn import persample
from utils import BadInput, Config, Mask, Run, Runtime, Saved, Unfinished, find_runs, hp, read_record, run_of, say, sha256


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaliencyConfig(Config):
    """Saliency masks of a forget set."""

    density: tuple[float, ...] = hp((0.5,), "share of the weights that may change; several from one ranking", above=0, high=1)
    saliency_mode: str = hp("exact", "exact: gradient of the mean loss over the forget set; published: sum of batch "
                            "means, where a short last batch weighs as much as a full one", choices=("exact", "published"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanseMaskConfig(Config):
    """A saliency mask of the stamped images, under which the poisoned model is cleansed."""

    density: float | None = hp(None, "share of the weights that may change: with RL this is SalUn; without the flag all may",
                               above=0, high=1)

    def check(self, method: Any, typed: Mapping[str, Any]) -> None:
        """Refuse a mask that the method does not take."""
        if self.density is not None and not method.masked:
            raise BadInput(f"--unlearn {method.name} takes no saliency mask; leave --density away"
                           + ("" if method.name != "RL_og" else ", or use RL, which is SalUn with --density"))
        if self.density is None and method.needs_mask:
            raise BadInput(f"--unlearn {method.name} needs a saliency mask: give --density, or take relabel, which is the same "
                           "without a mask")
        if self.density is None and method.name == "RL":
            say("notice: RL without --density is RL_og, random labels on all weights")


class Cost(NamedTuple):
    """Seconds, and images read."""

    seconds: float = 0.0
    read: int = 0


def saliency(model: nn.Module, forget: Loader, mode: str = "exact") -> dict[str, Tensor]:
    """|gradient| of the forget loss at the model as it is, in eval mode and full float32; parameter name -> float tensor.

    The gradient is accumulated over the set and its absolute value taken last. No weight moves: two published code
    bases step the optimiser meanwhile, and one of them keeps the smallest gradients instead of the largest.
    """
    exact = mode == "exact"
    total = persample.weighted(model, forget, means=not exact) / (forget.size if exact else 1)
    return {name: part.abs() for name, part in persample.split(model, total).items()}


def own_mask(model: nn.Module, density: float | None, data: Data, rt: Runtime, run: Run, pruned: Mask | None) -> Mask | None:
    """A saliency mask of the data's forget set on the model as it is, its seconds in the run's; None without a density.

    Args:
        pruned: of a pruned model; the density is a share of the weights it has left.
    """
    if density is None:
        return None
    with run.timed(rt, "mask"):
        return largest(saliency(model, data.loader("forget", batch_size=data.batch_size)), (density,), pruned)[density]


def find_mask(named: str, model: nn.Module, data: Data, original: str) -> tuple[Mask, dict[str, Any], Cost]:
    """The mask of ``--path``, its file, hash and density, and what it took to make (nothing where no record tells).

    Args:
        original: sha256 of the model that unlearns; a mask is of one model and one forget set.

    Raises:
        BadInput: no or several masks there, a mask of another model, or of another forget set.
    """
    path, cost, mode = _mask_file(Path(named), data.splits.split_key, original), Cost(), None
    if (run := run_of(path)) is not None:
        record = run.record
        cost = Cost(record["seconds"].get("mask", 0.0), record.get("images_read", {}).get("mask", 0))
        mode = record["settings"]["cfg"]["saliency_mode"]
    mask = mask_in(read_safely(path), model, path)
    share = sum(int(m.sum()) for m in mask.values()) / sum(m.numel() for m in mask.values())
    return mask, {"path": str(path), "sha256": sha256(path), "density": round(share, 4), "saliency_mode": mode}, cost


def mask_in(content: Any, model: nn.Module, path: Path) -> Mask:
    """The mask in a file's content, wrapped or not, for this very model (BadInput as ``as_mask``)."""
    try:
        parts = tensors(content, model.state_dict().keys())
    except BadInput as error:
        raise BadInput(f"{path} is no saliency mask: {error}; generate_mask.py writes with_<density>.pt") from error
    return as_mask(parts, model, path)


def _mask_file(path: Path, split_key: str, original: str) -> Path:
    """The mask file that is meant by a file, a run folder or a folder of run folders."""
    if path.is_dir() and not (path / "record.json").exists():
        path = _one_run(path, split_key, original)
    folder = path if path.is_dir() else path.parent
    if (folder / "record.json").exists():
        _check_run(path, read_record(folder), split_key, original)
    files = sorted(path.glob("with_*.pt")) if path.is_dir() else [path]
    if len(files) != 1:
        raise BadInput(f"--path {path}: name one of its masks: {', '.join(f.name for f in files) or 'there is none'}")
    return files[0]


def _one_run(root: Path, split_key: str, original: str) -> Path:
    """The folder of the one mask run there for this model and forget set."""
    found = find_runs(root, ("mask",))

    def of_this(runs: list[Saved]) -> list[Saved]:
        return [run for run in runs if (run.record["split_key"], run.record["parent"]["sha256"]) == (split_key, original)]

    fits = of_this(found)
    if not fits and (unfinished := of_this(find_runs(root, ("mask",), finished=False))):
        raise Unfinished(f"--path {root}", unfinished[-1])
    if len(fits) != 1:
        raise BadInput(f"--path {root}: {len(fits)} of {len(found)} mask runs there are for this model and forget set "
                       f"({', '.join(str(run.folder) for run in fits) or 'run generate_mask.py with the same flags'})")
    return fits[0].folder


def _check_run(path: Path, run: Saved, split_key: str, original: str) -> None:
    """Refuse a mask file of another stage, forget set or model than these, or of an unfinished run."""
    record = run.record
    if record["stage"] != "mask":
        raise BadInput(f"--path {path} is of a {record['stage']} run, not of generate_mask.py")
    if record["split_key"] != split_key:
        raise BadInput(f"--path {path} was made for another forget set (split_key {record['split_key']}, not {split_key}); "
                       "run generate_mask.py with the same flags")
    if record["parent"]["sha256"] != original:
        raise BadInput(f"--path {path} was made on another model ({record['parent']['path']}); run generate_mask.py with "
                       "the same --checkpoint")
    if record["status"] != "done":
        raise Unfinished(f"--path {path}", run)
