"""The main job on embedded data: train, retrain, mask, every unlearning method, tables and plots.

python scripts/demo.py [--out runs/demo] [--seeds 1,2,3]

scikit-learn's digits, a ResNet-20, two forget sets: a tenth of the training images at random, and all of the class 8.
Every stage runs through its ``main(argv)`` in this one process. Run again, it says what is already done and redraws.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import analysis
import analysis_mia
import generate_mask
import main_forget
import main_random
import main_train
from unlearn import METHODS

EPOCHS = 20
FORGET_SETS = {"random": ["--forget_fraction", "0.1"], "class": ["--class_to_replace", "8"]}
# found by a few trials on this data; the published values are for CIFAR-10, thirty times as many images
TUNED = {
    "random": {"GA": "--unlearn_lr 0.002", "GA_l1": "--unlearn_lr 0.002", "RL": "--unlearn_lr 0.005 --unlearn_epochs 3",
               "RL_og": "--unlearn_lr 0.005 --unlearn_epochs 3"},
    "class": {"GA": "--unlearn_lr 0.004 --unlearn_epochs 6", "GA_l1": "--unlearn_lr 0.004 --unlearn_epochs 6",
              "SCRUB": "--msteps 2", "RL": "--unlearn_lr 0.02 --unlearn_epochs 5",
              "RL_og": "--unlearn_lr 0.02 --unlearn_epochs 5"},
}


def jobs(out: str, seeds: list[int]) -> list[tuple[object, list[str]]]:
    """Every stage's main with its command line, in order."""
    where = ["--save_dir", out]
    todo: list[tuple[object, list[str]]] = []
    for seed in seeds:
        base = [*where, "--seed", str(seed)]
        todo.append((main_train, [*base, "--dataset", "digits", "--arch", "resnet20s", "--epochs", str(EPOCHS)]))
        for kind, forget in FORGET_SETS.items():
            tuned = {name: flags.split() for name, flags in TUNED[kind].items()}
            todo.append((generate_mask, [*base, *forget, "--density", "0.5"]))
            for name in ["retrain", *(n for n in METHODS.names() if n not in ("retrain", "RL"))]:
                todo.append((main_forget, [*base, *forget, "--unlearn", name, *tuned.get(name, [])]))
            for form in ("mixed", "sequential"):
                salun = [*base, *forget, "--unlearn", "RL", "--path", out, "--rl_form", form, *tuned["RL"]]
                todo.append((main_random, salun))
    return todo


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/demo")
    parser.add_argument("--seeds", default="1,2,3")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # images this small gain nothing from a second thread, and lose much on a busy machine
    start = time.perf_counter()
    todo = jobs(args.out, [int(seed) for seed in args.seeds.split(",")])
    for number, (stage, command) in enumerate(todo, 1):
        spent = time.perf_counter() - start
        print(f"[{number}/{len(todo)}, {spent:.0f} s] {stage.__name__}.py {' '.join(command)}", flush=True)
        stage.main(command)
    print("\nTug-of-War against retrain (1 = like a model that never saw the forget set)\n")
    analysis.main(["--save_dir", args.out, "--out", args.out])
    print("\nMembership inference\n")
    analysis_mia.main(["--save_dir", args.out, "--out", args.out])
    print(f"\n{time.perf_counter() - start:.0f} s; plots and tables: {args.out}/*.png *.md *.csv")


if __name__ == "__main__":
    main()
