"""Trojans: a trigger planted in training images, models that learned it, and how often it still works.

Gu, Dolan-Gavitt and Garg, arXiv:1708.06733 (BadNets); cleansed by unlearning the stamped images as Jia et al., NeurIPS 2023,
arXiv:2304.04934, section 5, do. Shapes: N images uint8 [N, H, W, C], K classes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import models
import prune
from dataset import Data
from evaluation import accuracy, sparsity
from groups import LAST_SEED, ForgetConfig, choose_forget, labels_of
from models import Original, record_inside
from pruner.plan import Plan, PruneConfig, SynFlowConfig
from trainer import TrainConfig, predict
from utils import (
    BadInput,
    Config,
    Mask,
    Run,
    Runtime,
    Unfinished,
    digest_of,
    find_runs,
    hp,
    make_folder,
    read_record,
    require,
    say,
    write_tensors,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REWIND = 8  # epoch of the published OMP recipe whose weights it goes back to
SHARE = 0.1  # of the training images that is poisoned unless a number is given; of CIFAR-10's 45,000 the published 4,500


@dataclasses.dataclass(frozen=True, kw_only=True)
class TriggerConfig(Config):
    """The trigger, and which training images carry it."""

    trigger_size: int = hp(4, "side of the square in pixels", low=1)
    trigger_margin: int = hp(2, "pixels between the square and the lower and right edges", low=0)
    trigger_value: int = hp(0, "what its pixels are, in every colour (0 to 255)", low=0, high=255)
    # these three are in a run's identity through the keys of the poisoned data
    class_to_replace: int = hp(0, "target: the class that stamped images are to be taken for", low=0, digest=False)
    num_indexes_to_replace: int | None = hp(None, "number of training images to poison, drawn over all classes, the target's "
                                            "own too (as published); without the flag a tenth", low=1, digest=False)
    split_seed: int = hp(1, "owns the choice of the images to poison", low=0, high=LAST_SEED, digest=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlantConfig(TriggerConfig):
    """The trigger, and the training of the model that learns it."""

    lr: float = hp(0.1, "learning rate of the poisoned model's training", above=0)
    epochs: int = hp(182, "epochs of that training, by protocol", low=1)
    prune: str = hp("omp", "how the poisoned model is pruned", choices=("omp", "synflow"))
    rate: float = hp(0.95, "share of its convolutions' weights that is pruned; 0: a dense model", low=0, below=1)
    rewind_epoch: int | None = hp(None, f"epoch whose weights OMP goes back to; without it {REWIND}, or the middle of a "
                                  "training that is not twice as long", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rewind_epoch is not None and (not self.rate or self.prune != "omp"):
            raise BadInput("--rewind_epoch is for --prune omp with a --rate above 0; leave it away")

    def training(self, schedule: str) -> TrainConfig:
        return TrainConfig(lr=self.lr, epochs=self.epochs, schedule=schedule)

    def plan(self, schedule: str) -> Plan:
        """The trainings of a dense or OMP model (BadInput where they contradict one another)."""
        if not self.rate:
            return Plan.of(PruneConfig(sparsity=0.0), self.epochs, schedule)
        at = min(REWIND, self.epochs // 2) if self.rewind_epoch is None else self.rewind_epoch
        how = {"prune_type": "rewind_lt", "rewind_epoch": at} if at else {"prune_type": "lt"}
        return Plan.of(PruneConfig(rate=self.rate, **how), self.epochs, schedule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrojanConfig(Config):
    """The poisoned model; without --mask it goes to a run folder alone."""

    checkpoint: str | None = hp(None, "a poisoned model of this suite (file, run folder, or folder of run folders where one "
                                "is); where nothing is, it is trained and written there", digest=False)


class Case(NamedTuple):
    """data: retain, validation and test as they are, and the stamped forget set under the target label.

    stamped: every test image with the trigger, under its own label.
    """

    data: Data
    stamped: Data
    target: int


def stamp(x: Tensor, cfg: TriggerConfig) -> Tensor:
    """A copy of images (uint8 [N, H, W, C]) with the trigger: rows and columns [-margin - size, -margin) of every colour."""
    height, width = x.shape[1:3]
    if cfg.trigger_size + cfg.trigger_margin > min(height, width):
        raise BadInput(f"a trigger of --trigger_size {cfg.trigger_size} at --trigger_margin {cfg.trigger_margin} does not fit "
                       f"into images of {height} x {width} pixels; make either smaller")
    x, size, margin = x.clone(), cfg.trigger_size, cfg.trigger_margin
    x[:, height - margin - size : height - margin, width - margin - size : width - margin] = cfg.trigger_value
    return x


def poison(data: Data, cfg: TriggerConfig) -> Case:
    """Stamp randomly chosen training images and give them the target label; nothing of ``data`` is changed.

    The images are stamped before they are augmented, as published: in training the square moves with crop and mirroring.
    The keys of the splits are of the poisoned data, so that no clean run is taken for one of these.

    Raises:
        BadInput: the trigger does not fit, no such class, or more images than there are.
    """
    target = int(labels_of([cfg.class_to_replace], data.outputs)[0])
    test = data.test.replaced(stamp(data.test.x, cfg), data.test.y)
    number = cfg.num_indexes_to_replace
    many = {"forget_fraction": SHARE} if number is None else {"num_indexes_to_replace": number}
    asked = ForgetConfig(split_seed=cfg.split_seed, **many)
    data = data.forgetting(choose_forget(asked, data.candidates))
    gone = torch.from_numpy(data.splits.forget).to(data.images.home)
    x, y = data.images.x.clone(), data.images.y.clone()
    x[gone], y[gone] = stamp(x[gone], cfg), target
    facts = [cfg.trigger_size, cfg.trigger_margin, cfg.trigger_value, cfg.class_to_replace]
    key = digest_of([data.splits.split_key, *facts])
    keys = dict.fromkeys(("data_key", "split_key", "images_key"), key)
    splits = dataclasses.replace(data.splits, whole_classes=(), whole_subclasses=(), **keys)
    data = dataclasses.replace(data, images=data.images.replaced(x, y), splits=splits)
    return Case(data, dataclasses.replace(data, test=test), target)


# ---------------------------------------------------------------------------------------------------------- measuring


class Measured(NamedTuple):
    """metrics in %; arrays: test_index, test_labels, test_logits, stamped_logits float32 [N, K]."""

    metrics: dict[str, float]
    arrays: dict[str, np.ndarray]


def success(logits: Tensor, labels: Tensor, target: int) -> dict[str, float]:
    """Attack success in % of stamped images that are not of the target class (``ASR``), and of all (``ASR_all``).

    The published figure is the latter: a clean model, right about the target's own images, scores 1/K by it.

    Args:
        logits: float [N, K]; a row that is not finite is no success. labels: int64 [N], the images' own.
    """
    hit = (logits.nan_to_num().argmax(1) == target) & torch.isfinite(logits).all(1)
    others = labels != target
    if not others.any():
        raise BadInput("all test images are of the target class, so the attack has nothing to succeed on; choose another")
    return {"ASR": 100 * hit[others].double().mean().item(), "ASR_all": 100 * hit.double().mean().item()}


def measure(model: nn.Module, case: Case, rt: Runtime) -> Measured:
    """SA (accuracy on clean test images), attack success, and accuracy on the clean retain and the poisoned forget set.

    ``forget`` is the share of the poisoned training images that are still taken for the target.
    """
    logits, labels = predict(model, case.data.loader("test"), rt)
    stamped, _ = predict(model, case.stamped.loader("test"), rt)
    metrics = {"SA": accuracy.of(logits, labels), **success(stamped, labels, case.target)}
    metrics |= {part: accuracy.of(*predict(model, case.data.loader(part), rt)) for part in ("retain", "forget")}
    arrays = {"test_index": case.data.index("test"), "test_labels": labels, "test_logits": logits, "stamped_logits": stamped}
    return Measured(metrics, {name: np.asarray(torch.as_tensor(value).cpu()) for name, value in arrays.items()})


def report(run: Run, model: nn.Module, before: Measured, after: Measured, case: Case) -> None:
    """Metrics before and after into the record, logits and a picture into the folder; a broken model is ``collapsed``."""
    finite = all(np.isfinite(a).all() for name, a in after.arrays.items() if name.endswith("logits"))
    why = accuracy.broken(model, run) or accuracy.collapse(after.metrics["retain"], case.data.num_classes, finite)
    run.save_arrays("outputs.npz", **after.arrays)
    draw(run, case)
    run.result(metrics=after.metrics | {"collapsed": why}, before=before.metrics, collapsed=why is not None)


def line(values: Mapping[str, Any]) -> str:
    """Before and after a cleanse, for the screen."""
    before, after = values["before"], values["metrics"]
    told = "  ".join(f"{name} {before[name]:.2f} -> {after[name]:.2f}" for name in ("SA", "ASR", "ASR_all", "retain"))
    broken = f"  collapsed: {after['collapsed']}" if after["collapsed"] else ""
    return f"{told}  (%; ASR without the target's own images){broken}"


def draw(run: Run, case: Case, count: int = 8) -> None:
    """trigger.png: some test images as they are, and stamped."""
    figure = picture(case, count)
    run.write("trigger.png", lambda file: figure.savefig(file, format="png", dpi=110))


def picture(case: Case, count: int) -> Figure:
    from matplotlib.figure import Figure  # the object interface: no global state, no display

    clean, stamped = case.data.test, case.stamped.test
    figure = Figure(figsize=(1.3 * count, 3.2), layout="constrained")
    panels = figure.subplots(2, count, squeeze=False)
    for place in range(count):
        for row, images in enumerate((clean, stamped)):
            panels[row, place].set_axis_off()
            if place < len(images.y):
                panels[row, place].imshow(images.x[place].cpu().numpy(), interpolation="nearest")
                panels[row, place].set_title(f"class {int(images.y[place])}" if row == 0 else f"as {case.target}?", fontsize=9)
    figure.suptitle("test images: as they are, and stamped", fontsize=10)
    return figure


# ----------------------------------------------------------------------------------------------------------- planting


def find(named: str | None) -> Original | None:
    """The poisoned model that is there already; None where nothing is.

    Raises:
        BadInput: something else is there, or several poisoned models.
    """
    if named is None or not Path(named).exists():
        return None
    path = Path(named)
    if path.is_dir() and not (path / "record.json").exists():
        runs, begun = find_runs(path, ("trojan",), files=("model.pt",)), find_runs(path, ("trojan",), finished=False)
        if begun and not runs:
            raise Unfinished(f"--mask {path}", begun[-1])
        if len(runs) != 1:
            listed = ", ".join(str(run.folder) for run in runs)
            raise BadInput(f"--mask {path}: {len(runs)} finished poisoned models there{f' ({listed})' if runs else ''}; name "
                           "one, or a file that is not there yet, to train one")
        return Original(*runs[0])
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or (path.name == "model.pt" and (folder / "record.json").exists()):
        found = Original(*read_record(folder))
        if found.record["stage"] == "trojan" and found.record["status"] != "done":
            raise Unfinished(f"--mask {path}", found)
    else:
        found = Original(path, record_inside(path))
    if found.folder.is_dir():
        require(found, "model.pt")
    if not _names_trigger(found.record):
        raise BadInput(f"--mask {named} is no poisoned model of this suite: its record names no trigger; name one that "
                       "main_backdoor.py wrote, or a file that is not there yet, to train one")
    return found


def _names_trigger(record: dict[str, Any]) -> bool:
    """Whether this is the record of a finished poisoned model."""
    if (record.get("stage"), record.get("status")) != ("trojan", "done"):
        return False
    plant = (record.get("settings") or {}).get("plant") or {}
    # split_seed is not in older records, which the command line refuses by what they lack
    return {field.name for field in dataclasses.fields(TriggerConfig)} - {"split_seed"} <= plant.keys()


def planted(args: SimpleNamespace, case: Case, rt: Runtime) -> Original:
    """The poisoned model: the one that was named, else trained here (or found done) and written where --mask says.

    Raises:
        BadInput: the one that was named learned from other images than these.
    """
    if args.original is not None:
        if args.original.record["data_key"] != case.data.splits.data_key:
            raise BadInput(f"the poisoned images differ from those that {args.original.file} was trained on: use the same "
                           "--dataset, --data, --classes, --val_seed and --val_fraction")
        say(f"poisoned model: {args.original.file}")
        return args.original
    cfg = args.training
    if args.parent.checkpoint is not None:
        _check_place(Path(args.parent.checkpoint))
    settings = {name: args.settings[name] for name in ("protocol", "data", "model", "plant", "rt")} | {"cfg": cfg}
    own = SimpleNamespace(settings=settings, run=args.run, model=args.model,
                          label=f"{args.data.dataset}-{args.model.label}-trojan-s{args.rt.seed}")
    with Run(args.run, "trojan", own.label, settings, **case.data.splits.keys()) as run:
        if not run.done:
            model, mask = _trained(own, cfg, case.data, rt, run, args.plant)
            accuracy.evaluate_original(model, case.data, rt, run)
            measured = measure(model, case, rt)
            sparsity.report(run, model, mask)
            draw(run, case)
            models.save(run, model, mask)
            run.save_arrays("splits.npz", **case.data.splits.arrays())
            run.result(metrics=run.values["metrics"] | measured.metrics, **rt.facts())
    told = "  ".join(f"{name} {run.values['metrics'][name]:.2f}" for name in ("SA", "ASR", "ASR_all"))
    say(f"{run.summary()}  {told}  (%)")
    return Original(*read_record(run.folder)) if args.parent.checkpoint is None else _export(run.folder, args.parent.checkpoint)


def _check_place(path: Path) -> None:
    """Refuse, before the training that it is for, a file that cannot be written; nothing is made yet."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise BadInput(f"cannot write {path}: {there} is no folder that can be written; choose another --mask")


def _trained(own: SimpleNamespace, cfg: TrainConfig, data: Data, rt: Runtime, run: Run,
             how: PlantConfig) -> tuple[nn.Module, Mask | None]:
    if how.rate and how.prune == "synflow":
        amount = SynFlowConfig(rate=how.rate).settings()
        model = models.new(own.model, data, rt, "train")
        mask = prune.synflow(run, amount, model, data, rt)
        run.result(pruning=amount.facts())
        with run.timed(rt, "train"):
            prune.fit(model, data.loader("train", rt, "train"), cfg, rt, run, mask)
        return model, mask
    plan = how.plan(cfg.schedule)
    rounds = prune.Rounds(plan, cfg, own, data, rt)
    found = rounds.follow()
    run.seconds.update(rounds.seconds)
    run.result(pruning=plan.facts(), rounds=rounds.rows)
    return found


def _export(folder: Path, named: str) -> Original:
    """A copy of the model as one file that holds its record too."""
    path = Path(named)
    content = models.read_safely(folder / "model.pt") | {"record": json.dumps(read_record(folder).record)}
    make_folder(path.parent, "--mask")
    write_tensors(path, content, "--mask")
    say(f"poisoned model: {path}")
    return Original(path, read_record(folder).record)
