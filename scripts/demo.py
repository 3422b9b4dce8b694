"""The main job on embedded data: train, retrain, mask, unlearning methods, memorization, RUM, tables and plots.

python scripts/demo.py [--out runs/demo] [--seeds 1,2,3]

scikit-learn's digits, a ResNet-20, three forget sets: a tenth of the training images at random, all of the class 8, and a
third each of the least, middle and most memorized images. Every stage runs through its ``main(argv)`` in this one process
(the pool of models that memorization is measured by takes one process a core). Run again, it says what is already done and
redraws.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

import generate_mask
import main_forget
import main_memorization
import main_random
import main_rum
import main_train
from scripts import recipe
from scripts.jobs import Jobs, follow

EPOCHS = 20
FORGET_SETS = {"random": ["--forget_fraction", "0.1"], "class": ["--class_to_replace", "8"]}
METHODS = ("raw", "FT", "FT_l1", "FT_prune", "GA", "GA_l1", "NG", "SCRUB", "RL_og")  # the others are in demo_sparse.py
REFINED = ("FT", "NG", "RL")  # methods that RUM^F, shuffle and vanilla are shown with
MIXED = ["--mem", "mix", "--num_indexes_to_replace", "120"]
POOL = ["--dataset", "digits", "--arch", "resnet8s", "--recipe", "fast", "--models", "40"]
PLAN = "low:raw mid:RL(unlearn_lr=0.01,unlearn_epochs=3) high:RL(unlearn_lr=0.03,unlearn_epochs=3)"
RECIPE = ROOT / "scripts" / "recipes" / "digits_resnet20s.json"


def jobs(out: str, seeds: list[int]) -> Jobs:
    """Every stage's main with its command line, in order."""
    where = ["--save_dir", out]
    todo: Jobs = []
    for seed in seeds:
        base = [*where, "--seed", str(seed)]
        todo.append((main_train, [*base, "--dataset", "digits", "--arch", "resnet20s", "--epochs", str(EPOCHS)]))
        for kind, forget in FORGET_SETS.items():
            todo += plain([*base, *forget], out, kind, list(METHODS))
    todo.append((main_memorization, [*where, *POOL]))
    for seed in seeds:
        base = [*where, "--seed", str(seed)]
        todo += [(main_memorization, [*base, "--score", name]) for name in ("confidence", "bi_acc", "ho_ret", "es")]
        todo += plain([*base, *MIXED], out, "mix", ["raw", "FT", "NG"]) + plans([*base, *MIXED])
    return todo


def plain(base: list[str], out: str, kind: str, methods: list[str]) -> Jobs:
    """Retrain, the methods and SalUn on one forget set."""
    tuned = recipe.read(RECIPE)
    todo: Jobs = [(generate_mask, [*base, "--density", "0.5"])]
    for name in ["retrain", *methods]:
        todo.append((main_forget, [*base, "--unlearn", name, *recipe.flags(tuned.get(name, {}), kind)]))
    forms = ("mixed", "sequential") if kind != "mix" else ("mixed",)
    salun = ["--unlearn", "RL", "--path", out, *recipe.flags(tuned["RL"], kind)]
    return todo + [(main_random, [*base, *salun, "--rl_form", form]) for form in forms]


def plans(base: list[str]) -> Jobs:
    """RUM, and for each method RUM^F with its controls."""
    tuned = recipe.read(RECIPE)
    todo: Jobs = [(main_rum, [*base, "--plan", PLAN])]
    for name in REFINED:
        own = [*base, "--unlearn", name, *recipe.flags(tuned[name], "mix")]
        todo += [(main_rum, own), (main_rum, [*own, "--shuffle"]), (main_rum, [*own, "--plan_name", "vanilla"])]
    return todo


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/demo")
    parser.add_argument("--seeds", default="1,2,3")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # images this small gain nothing from a second thread, and lose much on a busy machine
    start = time.perf_counter()
    todo = jobs(args.out, [int(seed) for seed in args.seeds.split(",")])
    follow(todo, args.out, start)
    print(f"\n{time.perf_counter() - start:.0f} s; plots and tables: {args.out}/*.png *.md *.csv; the most and least memorized "
          f"images: {args.out}/memorization/digits-resnet8s-memorization-*/grid.png")


if __name__ == "__main__":
    main()
