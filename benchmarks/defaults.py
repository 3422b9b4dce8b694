"""What each method's settings do: forget, retain and test accuracy beside the original's and the retrain's.

    python -m benchmarks.defaults digits --seeds 1,2
    python -m benchmarks.defaults cifar10 --data FOLDER --epochs 20 --batch_size 64 --seeds 1,2 --only GA,RL,SCRUB

A random tenth and one class of the training images are forgotten. Means over the seeds, in percent.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import dataset
import models
from dataset import Data, DataConfig
from evaluation import tow
from groups import ForgetConfig
from models import ModelConfig
from models.modes import NORMS
from trainer import Descent, Diverged, TrainConfig, cross_entropy, predict
from unlearn import METHODS
from utils import Runtime, RuntimeConfig, say

PARTS = ("forget", "retain", "test")
REQUESTS = {"random 10 %": ForgetConfig(forget_fraction=0.1), "one class": ForgetConfig(class_to_replace=(3,))}
BY_NORM = {"GA": {"unlearn_lr": (1e-4, 3e-4, 1e-3)}, "RL": {"rl_form": ("sequential",), "unlearn_lr": (0.013,)},
           "SCRUB": {}, "NG": {}}
SECOND = {"wfisher": {}, "fisher": {}, "fisher_new": {}, "ssd": {}}


def trials(only: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Method and what is not its default."""
    for name, grid in {**{name: {**values, "bn": NORMS} for name, values in BY_NORM.items()}, **SECOND}.items():
        if not only or name in only:
            for values in itertools.product(*grid.values()):
                yield name, dict(zip(grid, values, strict=True))


def train(model: nn.Module, data: Data, part: str, purpose: str, cfg: TrainConfig, rt: Runtime) -> nn.Module:
    opt = Descent(model, cfg, lr=cfg.lr, epochs=cfg.epochs, rt=rt, purpose=purpose)
    for opt.at in range(cfg.epochs):
        opt.epoch(data.loader(part, rt, purpose), cross_entropy)
    return model


def accuracies(model: nn.Module, data: Data, rt: Runtime) -> list[float]:
    """In percent, of the forget set, retain, and the test images of the classes that are left."""
    found = []
    for part in PARTS:
        logits, labels = predict(model, data.loader(part), rt)
        keep = ~torch.isin(labels, torch.tensor(data.splits.whole_classes)) if part == "test" else slice(None)
        found.append(100 * tow.accuracy(logits[keep].nan_to_num(), labels[keep]))
    return found


def measure(args: argparse.Namespace, seed: int) -> Iterator[tuple[str, str, list[float]]]:
    """(request, method with its settings, accuracies) of one seed."""
    rt = Runtime(RuntimeConfig(seed=seed, device="cpu", progress=False))
    cfg, arch = TrainConfig(epochs=args.epochs, lr=args.lr), ModelConfig(arch=args.arch)
    settings = DataConfig(dataset=args.dataset, data=args.data, batch_size=args.batch_size)
    original = None
    for told, forget in REQUESTS.items():
        data = dataset.load(settings, rt, forget)
        original = original or train(models.new(arch, data, rt, "train"), data, "train", "train", cfg, rt)
        yield told, "raw", accuracies(original, data, rt)
        fresh = models.new(arch, data, rt, "retrain")
        yield told, "retrain", accuracies(train(fresh, data, "retain", "retrain", cfg, rt), data, rt)
        for name, values in trials(args.only):
            model, method = copy.deepcopy(original), METHODS[name]
            try:
                method.apply(model, data, method.config(**values), Runtime(rt.cfg))
            except Diverged as error:
                say(f"{name}: {error}")
            told_values = ", ".join(f"{key} {value}" for key, value in values.items())
            yield told, f"{name} ({told_values})" if values else name, accuracies(model, data, rt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    for flag, default in (("data", "data"), ("arch", "resnet8s"), ("epochs", 20), ("lr", 0.1), ("batch_size", 64)):
        parser.add_argument(f"--{flag}", default=default, type=type(default))
    parser.add_argument("--seeds", default=(1, 2), type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--only", default=(), type=lambda text: tuple(text.split(",")))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for seed in args.seeds:
        for told, method, values in measure(args, seed):
            found[method][told].append(values)
            say(f"seed {seed}, {told}, {method}: " + "  ".join(f"{p} {v:.1f}" for p, v in zip(PARTS, values, strict=True)))
    requests = list(next(iter(found.values())))
    say("| method | " + " | ".join(f"{told}: {part}" for told in requests for part in PARTS) + " |")
    say("| --- |" + " ---: |" * (len(requests) * len(PARTS)))
    for method, by in found.items():
        cells = [f"{sum(column) / len(column):.1f}" for told in requests for column in zip(*by[told], strict=True)]
        say(f"| {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
