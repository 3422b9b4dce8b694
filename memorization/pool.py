"""A pool of models: its settings, which model sees what, and the files that are kept of each.

Shapes: T models, N training images (the validation split's included), M test images, C classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from dataset import Data, DataConfig
from evaluation import mia
from memorization.engines import Recipe, Setup, Trained, naming
from models import ModelConfig
from utils import UNREADABLE, BadInput, Runtime, digest_of, hp, load_arrays, reading, say, shown, write_atomic

PARTS = ("train", "test")
FORM = 1  # of the models' files
HALF = 65504.0  # the largest float16


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolConfig(Recipe):
    """How many models, on which subsets, trained how and where."""

    models: int = hp(400, "models in the pool; more can be added later", low=2)
    subset: str = hp("fraction", "what each model sees: a random share; half, where of the models 2j and 2j + 1 each sees what "
                     "the other does not; or the --subsets given", choices=("fraction", "half", "given"))
    fraction: float = hp(0.7, "share of the training images that a model sees", above=0, below=1)
    subsets: str | None = hp(None, "npz with bool masks [models, training images], for --subset given", digest=False)
    recipe: str = hp("paper", "defaults: paper (30 epochs, steps), fast (a few epochs, the rate a triangle) or cifar-fast (8 "
                     "epochs of muon, of a cifarnet without the flag)", choices=("paper", "fast", "cifar-fast"), digest=False)
    engine: str = hp("auto", "how to train: one model after another, a stack of models at once, a process for each core or "
                     "GPU; auto: processes on a CPU, a stack on a GPU", choices=("auto", "serial", "stack", "processes"),
                     digest=False)
    stack: int | None = hp(None, "models at once in a stack", low=1, digest=False)
    graphs: bool = hp(False, "stack on a GPU: replay the steps from CUDA graphs", digest=False)
    pool_workers: int | None = hp(None, "processes; without the flag, one for each core or GPU", low=1, digest=False)
    shard: str = hp("0/1", "i/n: train the models i, i + n, i + 2n, ... here, and the others elsewhere", digest=False)
    keep_logits: bool = hp(False, "keep all logits too, as float16", digest=False)
    influence: bool = hp(False, "also write influence.npz, the influence of training on test images")
    influence_above: float = hp(0.15, "keep pairs whose influence is larger than this, either way", low=0, high=1)
    influence_whole: bool = hp(False, "also write influence.npy, float32 of all test by all training images")

    # what a recipe's name sets where the flag was not typed; the paper's are the defaults themselves
    PRESETS: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {"recipe": {
        "paper": {},
        "fast": {"pool_epochs": 8, "pool_lr": 0.1, "pool_batch": 128, "schedule": "linear", "warmup": 2},
        "cifar-fast": {"pool_epochs": 8, "pool_lr": 0.12, "pool_batch": 500, "schedule": "linear", "optimizer": "muon",
                       "momentum": 0.6, "weight_decay": 1e-3, "early_epochs": 3},
    }}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.part_of()
        if (self.subset == "given") != (self.subsets is not None):
            raise BadInput("--subset given and --subsets FILE go together; give both or neither")
        if self.subset != "fraction" and self.fraction != 0.7:
            raise BadInput(f"--fraction is of --subset fraction; leave it away with --subset {self.subset}")
        if not self.influence and self.influence_above != 0.15:
            raise BadInput("--influence_above says which pairs --influence keeps; give --influence, or leave it away")
        if self.engine not in ("auto", "processes") and self.pool_workers is not None:
            raise BadInput(f"--pool_workers is of --engine processes; leave it away with --engine {self.engine}")
        self.check_stack(self.engine)
        if self.subset == "half" and self.models % 2:
            raise BadInput(f"--models {self.models}: with --subset half models come in pairs; give an even number")

    def check_stack(self, engine: str) -> None:
        """Refuse the stack's flags with another engine; ``auto`` is one of them once it has been resolved."""
        if engine not in ("auto", "stack") and (self.stack is not None or self.graphs):
            raise BadInput(f"--stack and --graphs are of --engine stack; leave them away with --engine {self.engine}"
                           + ("" if engine == self.engine else f", which is {engine} here, or say --engine stack"))

    @classmethod
    def named(cls, recipe: str, **values: Any) -> PoolConfig:
        """The settings of a recipe, where ``values`` say nothing else; as the command line makes them."""
        return cls(**{**cls.PRESETS["recipe"].get(recipe, {}), "recipe": recipe, **values})

    def part_of(self) -> tuple[int, int]:
        """The shard as (i, n)."""
        i, slash, n = self.shard.partition("/")
        if not (slash and i.isdecimal() and n.isdecimal()):
            raise BadInput(f"--shard takes i/n such as 0/4; got {shown(self.shard)}")
        if int(i) >= int(n):
            raise BadInput(f"--shard {self.shard} counts from 0: the shards of {n} are 0/{n} to {int(n) - 1}/{n}"
                           if int(n) else f"--shard {self.shard}: there are no 0 shards; 0/1 is all")
        return int(i), int(n)


@dataclasses.dataclass(frozen=True)
class Record:
    """What is kept of a model: ``correct``, ``margins`` and ``logits`` of all "train" and all "test" images.

    mask: bool [N], the images it saw. correct: bool. margins: float16, ``evaluation.mia.margin`` cut to the float16 range.
    logits: float16 [., C], empty unless asked for. seconds: of its training and evaluation.
    """

    number: int
    mask: np.ndarray
    correct: dict[str, np.ndarray]
    margins: dict[str, np.ndarray]
    logits: dict[str, np.ndarray]
    seconds: float


class Pool:
    """The pool of these settings under ``save_dir``; making the object reads and writes nothing but --subsets.

    Args:
        data_config: how a process of its own reads the same data; without it engine ``processes`` is refused.

    Raises:
        BadInput: subsets that cannot be read or do not fit the data, or a share that leaves nothing to see.
    """

    def __init__(self, save_dir: Path, cfg: PoolConfig, data: Data, model: ModelConfig, rt: Runtime,
                 data_config: DataConfig | None = None) -> None:
        self.cfg, self.data, self.rt, self.data_config = cfg, data, rt, data_config
        self.setup = Setup(data, model, cfg, rt)
        self.sizes = {"train": len(data.images.y), "test": len(data.test.y)}
        self.given = None if cfg.subsets is None else _read_subsets(Path(cfg.subsets), cfg.models, self.sizes["train"])
        self.save_dir, self.identity = Path(save_dir), self._identity()
        self.digest = digest_of(self.identity)
        self.folder = self.save_dir / "pool" / f"{data.source.name}-{model.label}-s{rt.cfg.seed}-{self.digest}"
        smallest = min(len(self.subset(0)), self.sizes["train"] - len(self.subset(0)))
        if self.given is None and smallest < 2:
            raise BadInput(f"--fraction {cfg.fraction:g} of {self.sizes['train']} images leaves fewer than two seen or unseen")

    def _identity(self) -> dict[str, Any]:
        """All that decides what model number m becomes, and nothing that does not."""
        cfg, model, rt = self.cfg, self.setup.model, self.rt.cfg
        rule: dict[str, Any] = {"rule": cfg.subset}
        if cfg.subset == "fraction":
            rule["fraction"] = cfg.fraction
        if self.given is not None:
            rule["sha256"] = hashlib.sha256(np.packbits(self.given, axis=1).tobytes()).hexdigest()
        return {"form": FORM, "dataset": self.data.source.name, "classes": self.data.num_classes,
                "images_key": self.data.splits.images_key, "test_key": self.data.splits.test_key, "aug": self.data.aug,
                **({"aug_form": "alternate"} if self.data.aug and self.data.images.reflect else {}),
                "arch": model.arch, "imagenet_arch": model.imagenet_arch, "seed": rt.seed,
                "precision": rt.precision, "subset": rule, **_start(model),
                "recipe": {field.name: getattr(cfg, field.name) for field in dataclasses.fields(Recipe)}}

    # ------------------------------------------------------------------------------------------------------- subsets

    def subset(self, number: int) -> np.ndarray:
        """The training images that a model sees: int64, ascending."""
        if self.given is not None:
            return np.flatnonzero(self.given[number])
        total, half = self.sizes["train"], self.cfg.subset == "half"
        purpose = f"subset/pool/{'pair' if half else 'model'}/{number // 2 if half else number}"
        order = np.random.default_rng(self.rt.seed_of(purpose)).permutation(total)
        if half:
            return np.sort(order[total // 2 :] if number % 2 else order[: total // 2])
        return np.sort(order[: round(self.cfg.fraction * total)])

    def mask(self, number: int) -> np.ndarray:
        seen = np.zeros(self.sizes["train"], bool)
        seen[self.subset(number)] = True
        return seen

    # --------------------------------------------------------------------------------------------------------- files

    def path(self, number: int) -> Path:
        return self.folder / f"model-{number:05d}.npz"

    def read(self, number: int) -> Record | None:
        """A model's record; None where there is none, or none that can be used, which is said."""
        path = self.path(number)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                return self._record(number, dict(file))
        except UNREADABLE as error:
            say(f"notice: {path} is damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
                "that model is trained anew")
            return None

    def _record(self, number: int, found: dict[str, np.ndarray]) -> Record:
        if str(found["pool"]) != self.digest or int(found["number"]) != number:
            raise ValueError("it belongs to another pool or number")
        bits = {part: np.unpackbits(found[f"correct_{part}"], count=self.sizes[part]).astype(bool) for part in PARTS}
        mask = np.unpackbits(found["mask"], count=self.sizes["train"]).astype(bool)
        margins = {part: found[f"margin_{part}"] for part in PARTS}
        if not np.array_equal(mask, self.mask(number)) or any(margins[part].shape != (self.sizes[part],) for part in PARTS):
            raise ValueError("its arrays are not of this pool")
        logits = {part: found[f"logits_{part}"] for part in PARTS if f"logits_{part}" in found}
        return Record(number, mask, bits, margins, logits, float(found["seconds"]))

    def save(self, trained: Trained) -> float:
        """Write a model's file; its seconds."""
        keep: dict[str, Any] = {"pool": np.array(self.digest), "number": np.array(trained.number),
                                "mask": np.packbits(self.mask(trained.number)), "seconds": np.array(trained.seconds)}
        for part, images in (("train", self.data.images), ("test", self.data.test)):
            logits = trained.logits[part]
            labels = images.y.to(logits.device)
            keep[f"correct_{part}"] = np.packbits((logits.argmax(1) == labels).cpu().numpy())
            with naming([trained.number]):
                keep[f"margin_{part}"] = _float16(mia.margin(mia.Outputs(logits, labels)))
            if self.cfg.keep_logits:
                keep[f"logits_{part}"] = _float16(logits)
        write_atomic(self.path(trained.number), lambda file: np.savez(file, **keep))
        return trained.seconds

    def present(self) -> list[int]:
        """The models that are there and whole, of the first ``cfg.models``."""
        found = (self.read(number) for number in range(self.cfg.models))
        return [record.number for record in found if record is not None and (record.logits or not self.cfg.keep_logits)]

    def missing(self, shard: tuple[int, int] = (0, 1)) -> list[int]:
        """The models still to be trained, of the shard (i, n); with --keep_logits those without logits too."""
        there = set(self.present())
        return [number for number in range(shard[0], self.cfg.models, shard[1]) if number not in there]

    def records(self) -> Iterator[Record]:
        """The first ``cfg.models`` models in order, one at a time.

        Raises:
            BadInput: one is missing or damaged.
        """
        for number in range(self.cfg.models):
            record = self.read(number)
            if record is None:
                raise BadInput(f"model {number} is missing in {self.folder}; run the same command again, which trains it")
            yield record

    def masks(self) -> np.ndarray:
        """bool [T, N]: which training images each model saw."""
        return self._stacked(lambda record: record.mask)

    def correct(self, part: str) -> np.ndarray:
        """bool [T, N] or [T, M]: whether each model is right on each image of "train" or "test"."""
        return self._stacked(lambda record: record.correct[part])

    def margins(self, part: str) -> np.ndarray:
        """float16 [T, N] or [T, M]; ``records`` gives them model by model, where that is too much at once."""
        return self._stacked(lambda record: record.margins[part])

    def _stacked(self, of: Callable[[Record], np.ndarray]) -> np.ndarray:
        found = np.empty(0)
        for place, record in enumerate(self.records()):
            row = of(record)
            found = np.empty((self.cfg.models, *row.shape), row.dtype) if place == 0 else found
            found[place] = row
        return found

    def seconds(self) -> float:
        """What training and evaluating the models took, each on its own share of its machine."""
        return sum(record.seconds for record in self.records())

    def interval(self) -> float:
        """Half the 95 % interval of a score at worst, where a model is right on half of its draws, seen and unseen.

        The normal approximation of a difference of two proportions, at the expected numbers of models in and out.
        """
        share = len(self.subset(0)) / self.sizes["train"] if self.given is None else float(self.given.mean())
        n_in, n_out = self.cfg.models * share, self.cfg.models * (1 - share)
        return min(1.0, 1.96 * math.sqrt(0.25 / n_in + 0.25 / n_out)) if n_in and n_out else 1.0


def _start(model: ModelConfig) -> dict[str, Any]:
    """What else a network of a library depends on; nothing where it is left to its defaults, as in every older pool."""
    return {name: value for name in ("input_size", "pretrained") if (value := getattr(model, name)) is not None}


def _float16(values: Tensor) -> np.ndarray:
    return values.clamp(-HALF, HALF).half().cpu().numpy()


def _read_subsets(path: Path, count: int, total: int) -> np.ndarray:
    advice = "it takes an npz with bool 'masks' [models, images]"
    with reading(f"cannot read --subsets {path}", advice):
        masks = load_arrays(path, ["masks"])[0].get("masks")
    if masks is None:
        raise BadInput(f"--subsets {path} holds no 'masks'; {advice}")
    if masks.dtype != bool or masks.ndim != 2 or masks.shape[1] != total:
        raise BadInput(f"--subsets {path}: need bool masks [models, {total}]; got {masks.dtype} {list(masks.shape)}")
    if len(masks) < count:
        raise BadInput(f"--subsets {path} has {len(masks)} masks; give --models {len(masks)} or fewer")
    small = np.flatnonzero(masks[:count].sum(1) < 2)
    if len(small):
        raise BadInput(f"--subsets {path}: mask {small[0]} has fewer than two images; a model needs some to train on")
    return masks
