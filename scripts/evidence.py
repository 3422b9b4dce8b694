"""Full CIFAR-10 on a few processor cores: ten methods against retrain, and what memorization has to do with it.

python scripts/evidence.py table --data ./data --seeds 1,2,3      (scripts/cpu_table.sh)
python scripts/evidence.py rum --data ./data --models 100         (scripts/cpu_rum.sh)

table: original, retrain and ten methods on a tenth of the images at random and on one class. rum: memorization scores from a
pool, eight proxies of them, the methods on the least, middle and most memorized images and on a mix, and RUM with its controls
on the mix. A process a core, on one thread each; stopped at any time, the same command goes on.

As RUM trains its originals, without augmentation, and without label smoothing: with both a short training leaves next to
nothing to forget (85 % on training images, 82 % on others, after 4 epochs of cifarnet_16_64).
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from report.rows import FLOOR
from scripts import demo, recipe
from scripts.jobs import LOG, Job, follow

RECIPE = ROOT / "scripts" / "recipes" / "cifar10_cifarnet.json"
# and SalUn, which is RL by a mask
METHODS = ("raw", "FT", "FT_prune", "GA", "NG", "SCRUB", "RL_og", "amnesiac", "wfisher", "ssd")
GROUPED = ("raw", "FT", "NG", "SCRUB")
PROXIES = ("confidence", "max_conf", "entropy", "bi_acc", "el2n", "forgetting", "ho_ret", "loss_curvature")
MODELS_IN_A_JOB = 5
TRAINING = ["--no_aug", "--label_smoothing", "0"]


def table(args: argparse.Namespace) -> list[Job]:
    """Two requests: a tenth of the training images, and one class whole."""
    found: list[Job] = []
    for seed in args.seeds:
        original = trained(args, seed)
        found.append(original)
        for kind, request in (("random", ["--forget_fraction", "0.1"]), ("class", ["--class_to_replace", "3"])):
            base = [*where(args), "--seed", str(seed), *request]
            found += demo.plain(base, f"seed {seed} · {kind}", args.save_dir, kind, (original,), RECIPE, METHODS)
    return found


def rum(args: argparse.Namespace) -> list[Job]:
    """Scores first, then all that is chosen by them."""
    shards = max(1, args.models // MODELS_IN_A_JOB)
    pool = tuple(Job("main_memorization", [*where(args), *network(args), "--models", str(args.models), "--pool_epochs",
                                           str(args.epochs), "--engine", "serial", "--shard", f"{i}/{shards}"],
                     f"memorization · models, part {i + 1} of {shards}") for i in range(shards))
    originals = [trained(args, seed) for seed in args.seeds]
    found: list[Job] = [*originals, *pool]
    for seed, original in zip(args.seeds, originals, strict=True):
        after, base, who = (original, *pool), [*where(args), "--seed", str(seed)], f"seed {seed}"
        found += [Job("main_memorization", [*base, "--mem_proxy", name, *(["--ft_epochs", "2"] if name == "ho_ret" else [])],
                      f"{who} · proxy {name}", after) for name in PROXIES]
        for kind in ("low", "mid", "high", "mix"):
            chosen = [*base, "--mem", kind, "--num_indexes_to_replace", str(args.group * (3 if kind == "mix" else 1))]
            found += demo.plain(chosen, f"{who} · {kind}", args.save_dir, kind, after, RECIPE, GROUPED)
            plan = recipe.plan("RL", recipe.read(RECIPE)["RL"]).split()
            if kind == "mix":
                found += demo.plans(chosen, f"{who} · mix", after, RECIPE, " ".join(["low:raw", *plan[1:]]))
    return found


def where(args: argparse.Namespace) -> list[str]:
    return ["--save_dir", args.save_dir, "--data", args.data, "--no_progress"]


def network(args: argparse.Namespace) -> list[str]:
    sized = ["--train_per_class", str(args.per_class), "--any_size"] if args.per_class else []
    return ["--dataset", "cifar10", "--arch", args.arch, *sized]


def trained(args: argparse.Namespace, seed: int) -> Job:
    words = [*where(args), *network(args), *TRAINING, "--seed", str(seed), "--epochs", str(args.epochs)]
    words += ["--record_curvature"] if args.what == "rum" else []
    return Job("main_train", words, f"seed {seed} · original")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "rum"))
    parser.add_argument("--data", default="./data", help="folder with the data set's files or a prepared cifar10.npz")
    parser.add_argument("--save_dir", help="runs/cpu_table or runs/cpu_rum without the flag")
    parser.add_argument("--arch", default="cifarnet")
    parser.add_argument("--epochs", type=int, default=8, help="of originals, retrained models and the pool's")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1, 2, 3])
    parser.add_argument("--models", type=int, default=100, help="in the pool")
    parser.add_argument("--group", type=int, default=1500, help="images in a group of memorization")
    parser.add_argument("--per_class", type=int, help="only the first images of each class: to try it out")
    parser.add_argument("--workers", type=int, help="processes; one a core without the flag")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    args, start = parser.parse_args(argv), time.perf_counter()
    args.save_dir = args.save_dir or f"runs/cpu_{args.what}"
    found = {"table": table, "rum": rum}[args.what](args)
    tables = ["--save_dir", args.save_dir, "--out", args.save_dir]
    page = [*tables, "--html", f"{args.save_dir}/report.html"]
    ends = [Job("analysis", page, "tables, figures and the page to send", (*found,)),
            Job("analysis_mia", tables, "tables and figures of membership inference", (*found,))]
    if args.list:
        print("\n".join(job.command for job in [*found, *ends]))
        return
    follow([*found, *ends], Path(args.save_dir), args.workers)
    with (Path(args.save_dir) / "tow.csv").open(encoding="utf-8", newline="") as file:
        print(f"""
CIFAR-10, {args.arch}, {args.epochs} epochs; Tug-of-War against retrain, means over {len(args.seeds)} seeds [95 %]

{demo.screen(list(csv.DictReader(file)))}

{FLOOR}: as near as one can come; raw: the original as it is; SalUn: RL under a mask
all of it {args.save_dir}/report.html; the log {args.save_dir}/{LOG}
{time.perf_counter() - start:.0f} s""")


if __name__ == "__main__":
    main()
