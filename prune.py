"""Train, prune, rewind, train again: the trainings of OMP, IMP and random pruning, each with a record of its own."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

import models
from dataset import Data, Loader
from evaluation import accuracy, sparsity
from pruner import magnitude
from pruner.plan import Plan, SynFlowConfig
from trainer import Descent, TrainConfig, cross_entropy, resumable
from utils import BadInput, Mask, Run, Runtime, run_of, say, sha256


def fit(model: nn.Module, loader: Loader, cfg: TrainConfig, rt: Runtime, run: Run, mask: Mask | None = None, first: int = 0,
        epochs: int | None = None, snapshot: int = 0, purpose: str = "train") -> None:
    """Train ``epochs`` epochs (all that are left by default) with the schedule standing at epoch ``first``.

    Args:
        snapshot: before this epoch (not 0) the weights go to rewind.pt of the run's folder.
        purpose: names the random streams of this training, as it does the loader's.
    """
    opt = Descent(model, cfg, lr=cfg.lr, epochs=cfg.epochs, rt=rt, purpose=purpose, mask=mask, l1=cfg.alpha)
    for epoch in resumable(cfg.epochs - first if epochs is None else epochs, opt, rt, run):
        if epoch == snapshot > 0:
            state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
            run.save_tensors("rewind.pt", {"state_dict": state, "data_key": run.values["data_key"],
                                           **models.about(model)})
        opt.at = first + epoch
        run.log(epoch=epoch, loss=opt.epoch(loader, partial(cross_entropy, smoothing=cfg.label_smoothing)), lr=opt.rate(1))


@dataclasses.dataclass
class Rounds:
    """The trainings of a plan, each a run of stage ``round``: found where it is done, resumed where it was stopped.

    args: of a stage, with groups data, model, run and rt. train: of every training. part, purpose: the examples to train on
    and the random streams; ``train, train`` makes the dense model that main_train.py makes of the same settings.
    """

    plan: Plan
    train: TrainConfig
    args: SimpleNamespace
    data: Data
    rt: Runtime
    part: str = "train"
    purpose: str = "train"
    rewind_pth: str | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    read: dict[str, int] = dataclasses.field(default_factory=dict)
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def follow(self) -> tuple[nn.Module, Mask | None]:
        """Train, prune and rewind as often as the plan says: the last training's model and mask.

        Raises:
            BadInput: a share or a rewind file that cannot be, before any training; a layer of which pruning leaves no weight.
        """
        self.plan.check(self._fresh())
        if self.rewind_pth is not None:
            self._check_file(Path(self.rewind_pth))
        runs: list[Run] = []
        for number in range(len(self.plan.shares)):
            with self._open(number, runs) as run:
                if not run.done:
                    self._round(number, runs, run)
            say(f"training {number + 1} of {len(self.plan.shares)}: {run.summary()}  {accuracy.line(run.values['metrics'])}")
            runs.append(run)
            self.rows.append({"run": str(run.folder), **{k: run.values[k] for k in ("metrics", "remaining")}})
            seconds, read = run.spent()
            self.seconds = {name: self.seconds.get(name, 0.0) + seconds.get(name, 0.0) for name in ("train", "prune")}
            self.read = {name: self.read.get(name, 0) + read.get(name, 0) for name in ("train", "prune")}
        return models.load(runs[-1].folder / "model.pt", self.args.model, self.data, self.rt)

    def _open(self, number: int, runs: list[Run]) -> Run:
        settings = {name: self.args.settings[name] for name in ("protocol", "data", "model", "rt")} | {"cfg": self.train}
        splits = self.data.splits
        facts: dict[str, Any] = {"pruning": self.plan.facts(number), "data_key": splits.data_key}
        if self.part != "train":
            facts |= {"split_key": splits.split_key, "purpose": self.purpose}
        if number:
            file = runs[-1].folder / "model.pt"
            facts["parent"] = {"path": str(file), "sha256": sha256(file)}
        else:
            facts["snapshot"] = self.plan.snapshot()
        name = f"round{number}" if number == 0 else f"round{number}-{100 * (1 - self.plan.shares[number]):.4g}"
        return Run(self.args.run, "round", f"{self.args.label}-{name}", settings, **facts)

    def _round(self, number: int, runs: list[Run], run: Run) -> None:
        model, mask, first, epochs = self._fresh(), None, 0, None
        if number:
            with run.timed(self.rt, "prune"):
                mask = self._mask(number, runs)
                model = self._rewound(runs, model)
                magnitude.apply_mask(model, mask)
            first = self.plan.rewind_epoch
            epochs = self.train.epochs if self.plan.rewind_schedule == "published" else None
        purpose = f"{self.purpose}/{number}" if number else self.purpose
        with run.timed(self.rt, "train"):
            fit(model, self.data.loader(self.part, self.rt, purpose), self.train, self.rt, run, mask, first, epochs,
                0 if number else self.plan.snapshot(), purpose)
        finish(run, model, mask, self.data, self.rt)

    def _fresh(self) -> nn.Module:
        return models.new(self.args.model, self.data, self.rt, self.purpose)

    def _load(self, file: Path) -> nn.Module:
        return models.load(file, self.args.model, self.data, self.rt)[0]

    def _check_file(self, file: Path) -> None:
        """Refuse to rewind to a pruned model, or to one that is known to have learned from other data."""
        model, mask = models.load(file, self.args.model, self.data, self.rt)
        models.check_whole(file, model, "the model to rewind to")
        if mask is not None:
            raise BadInput(f"{file} is pruned itself, so kept weights would be rewound to 0; name weights of a dense model")
        key, mine = models.read_safely(file).get("data_key"), self.data.splits.data_key
        if key is None and file.name == "model.pt" and (run := run_of(file)) is not None:
            key = run.record.get("data_key")
        if key not in (None, mine):
            raise BadInput(f"--rewind_pth {file}: those weights learned from other data (data_key {key}, not {mine}); use the "
                           "same --dataset, --data, --classes, --val_seed and --val_fraction")

    def _mask(self, number: int, runs: list[Run]) -> Mask:
        """The weights that stay, by those of the training before."""
        model, before = models.load(runs[-1].folder / "model.pt", self.args.model, self.data, self.rt)
        weights, plan = magnitude.prunable(model, self.plan.prune_scope), self.plan
        if plan.random_prune:
            found = magnitude.random_scores(weights, self.rt.generator(f"{self.purpose}/random_prune/{number}"))
        else:
            found = magnitude.magnitudes(weights)
        mask = magnitude.keep_largest(found, plan.rate, plan.prune_scope, before)
        if lost := magnitude.gone(mask):
            helps = "prune less, or use --prune_scope layerwise_conv" if self.part == "train" else "leave --own_pruning away"
            raise BadInput(f"{100 * (1 - plan.shares[number]):.8g} % sparsity leaves no weight in {', '.join(lost)}: {helps}; "
                           f"what was trained stays in {runs[-1].folder}")
        return mask

    def _rewound(self, runs: list[Run], fresh: nn.Module) -> nn.Module:
        if self.rewind_pth is not None:
            return self._load(Path(self.rewind_pth))
        if self.plan.prune_type == "lt":
            return fresh
        return self._load(runs[0].folder / ("model.pt" if self.plan.prune_type == "pt" else "rewind.pt"))


def finish(run: Run, model: nn.Module, mask: Mask | None, data: Data, rt: Runtime) -> None:
    """Accuracies and sparsity into the record, the model and its mask into the folder."""
    accuracy.evaluate_original(model, data, rt, run)
    sparsity.report(run, model, mask)
    models.save(run, model, mask)
    run.result(**rt.facts())


def synflow(run: Run, cfg: SynFlowConfig, model: nn.Module, data: Data, rt: Runtime) -> Mask:
    """Prune the model by SynFlow, in place; a resumed run takes the mask that it began with."""
    file = run.folder / "mask.pt"
    with run.timed(rt, "prune"):
        if not file.exists():
            height, width, colours = data.images.x.shape[1:]
            run.save_tensors(file.name, {"mask": cfg.mask(model, (colours, height, width))})
        mask = {name: part.to(rt.device) for name, part in models.read_safely(file)["mask"].items()}
        magnitude.apply_mask(model, mask)
    return mask


def again(args: SimpleNamespace, data: Data, rt: Runtime, run: Run) -> tuple[nn.Module, Mask | None]:
    """Retrain with a mask of its own: the trainings and prunes of the original's record, all on the retain set.

    The mask of a pruned original was chosen with the forget set's help, and the weights it was rewound to have seen it.
    """
    cfg = args.cfg
    if not cfg.unlearn_epochs:
        raise BadInput("--own_pruning ranks the weights of a training; give it --unlearn_epochs of at least 1")
    names = {field.name for field in dataclasses.fields(TrainConfig)} - {"lr", "epochs"}
    train = TrainConfig(lr=cfg.unlearn_lr, epochs=cfg.unlearn_epochs, **{name: getattr(cfg, name) for name in names})
    plan = Plan.of_record(args.original.record, train.epochs, train.schedule)
    rounds = Rounds(plan, train, args, data, rt, part="retain", purpose="retrain")
    found = rounds.follow()
    run.seconds["unlearn"], run.read["unlearn"] = sum(rounds.seconds.values()), sum(rounds.read.values())
    run.result(rounds=rounds.rows)
    return found
