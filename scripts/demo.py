"""The main job on embedded data: train, retrain, mask, unlearning methods, memorization, RUM, tables and plots.

python scripts/demo.py [--out runs/demo] [--seeds 1,2,3,4,5]

Data that a network has to learn by heart, so that there is something to forget: the first 80 of scikit-learn's digits of each
class, with a wrong label on 15 % of those that train. A ResNet-8 gets them all right; retrained without some of them, it does
not. Three forget sets: a tenth of the training images at random, all of the class 8, and a third each of the least, middle and
most memorized images. Every stage runs through its ``main(argv)``, in a process a core. Run again, it only redraws.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from report.rows import FLOOR
from scripts import recipe
from scripts.jobs import LOG, Job, asked, follow
from utils import read_record

DATA = ["--dataset", "digits", "--train_per_class", "80", "--label_noise", "0.15", "--batch_size", "64", "--arch", "resnet8s"]
EPOCHS = ["--epochs", "30"]
FORGET_SETS = {"random": ["--forget_fraction", "0.1"], "class": ["--class_to_replace", "8"],
               "mix": ["--mem", "mix", "--num_indexes_to_replace", "72"]}
METHODS = ("raw", "FT", "FT_l1", "GA", "NG", "SCRUB", "RL_og")  # the others are in demo_sparse.py
REFINED = ("FT", "NG", "RL")  # methods that RUM^F, shuffle and vanilla are shown with
SCORES = ("ho_ret", "es")  # the proxies that training itself records need no run
PAGE = "report.html"
POOL = ["--recipe", "fast", "--models", "40", "--engine", "serial"]
SHARDS = 4
PLAN = "low:raw mid:RL(unlearn_lr=0.05,unlearn_epochs=3) high:RL(unlearn_lr=0.05,unlearn_epochs=3)"
RECIPE = ROOT / "scripts" / "recipes" / "digits_noisy_resnet8s.json"


def jobs(out: str, seeds: list[int]) -> list[Job]:
    """Every stage's main with its command line, in an order that keeps all processes busy; the tables at the end."""
    where = ["--save_dir", out, "--no_progress"]
    pool = tuple(Job("main_memorization", [*where, *DATA, *POOL, "--shard", f"{i}/{SHARDS}"],
                     f"memorization · models, part {i + 1} of {SHARDS}") for i in range(SHARDS))
    originals, later = [], []
    for seed in seeds:
        base, who = [*where, "--seed", str(seed)], f"seed {seed}"
        original = Job("main_train", [*base, *DATA, *EPOCHS], f"{who} · original")
        originals.append(original)
        for kind, forget in FORGET_SETS.items():
            after = (original, *pool) if kind == "mix" else (original,)
            later += plain([*base, *forget], f"{who} · {kind}", out, kind, after)
            later += plans([*base, *forget], f"{who} · {kind}", after) if kind == "mix" else []
        later += [Job("main_memorization", [*base, "--score", name], f"{who} · score {name}", (original, *pool))
                  for name in SCORES]
    made = (*pool, *originals, *later)
    tables = ["--save_dir", out, "--out", out]
    return [*made, Job("analysis", [*tables, "--html", f"{out}/{PAGE}"], "tables, figures and the page to send", made),
            Job("analysis_mia", tables, "tables and figures of membership inference", made)]


def plain(base: list[str], who: str, out: str, kind: str, after: tuple[Job, ...], file: Path = RECIPE,
          methods: Sequence[str] = METHODS) -> list[Job]:
    """Retrain, the methods and SalUn on one forget set, with the settings that a recipe has for this kind of set."""
    tuned = recipe.read(file)
    mask = Job("generate_mask", [*base, "--density", "0.5"], f"{who} · mask", after)
    found = [Job("main_forget", [*base, "--unlearn", name, *recipe.flags(tuned.get(name, {}), kind)], f"{who} · {name}", after)
             for name in ("retrain", *methods)]
    salun = [*base, "--unlearn", "RL", "--path", out, *recipe.flags(tuned["RL"], kind)]
    return [mask, *found, Job("main_random", salun, f"{who} · SalUn", (mask,))]


def plans(base: list[str], who: str, after: tuple[Job, ...], file: Path = RECIPE, plan: str = PLAN) -> list[Job]:
    """RUM, and for each method RUM^F with its controls."""
    tuned = recipe.read(file)
    found = [Job("main_rum", [*base, "--plan", plan, "--plan_label", "RUM"], f"{who} · RUM", after)]
    for name in REFINED:
        own = [*base, "--unlearn", name, *recipe.flags(tuned[name], "mix")]
        for label, more in (("RUM^F", []), ("shuffle", ["--shuffle"]), ("vanilla", ["--plan_name", "vanilla"])):
            found.append(Job("main_rum", [*own, *more], f"{who} · {label} {name}", after))
    return found


# ---------------------------------------------------------------------------------------------------------- the last screen


def report(out: Path) -> str:
    """ToW of every method on every forget set, of the whole table that analysis.py wrote."""
    with (out / "tow.csv").open(encoding="utf-8", newline="") as file:
        return screen(list(csv.DictReader(file)))


def screen(lines: list[dict[str, str]]) -> str:
    """Of the lines of tow.csv: methods below one another, forget sets side by side; one without headroom is only told."""
    sets = {line["setting"]: heading(line) for line in lines if line["method"] == "retrain"}
    found = {(short(line["method"]), line["setting"]): line for line in lines if line["method"] != "retrain"}
    # too few seeds to say so, where --seeds names few, hides no set
    full = {name: reason for name in sets if (reason := found["raw", name]["nobody_best"]).startswith("no ")}
    shown = sorted(set(sets) - set(full), key=lambda name: ([place for _, place in found].count(name), sets[name]))
    rows = {method: [found.get((method, name)) for name in shown] for method, name in found if name in shown}
    table = [["", *(sets[name] for name in shown)]]
    table += [[method, *map(number, rows[method])] for method in sorted(rows, key=lambda method: order(method, rows[method]))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    text = ["   ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in table]
    text += [f"not shown: {sets[name]}: {reason.partition(' (')[0]}" for name, reason in full.items()]
    return "\n".join(text)


def order(method: str, row: list[dict[str, str] | None]) -> tuple[bool, bool, int, float]:
    """The anchors first, then methods that are on more of the sets, each nearest to retrain first."""
    known = [float(line["ToW"]) for line in row if line is not None]
    return method != FLOOR, method != "raw", -len(known), -sum(known)


def heading(line: dict[str, str]) -> str:
    """What was forgotten, of a run's record."""
    run = read_record(Path(line["runs"].split()[0]))
    size, classes = run.record["forget_size"], run.record["whole_classes"]
    if classes:
        return f"class {','.join(map(str, classes))} ({size} images)"
    return f"{'mix by memorization' if run.setting('mem') else 'random'} ({size} images)"


def short(method: str) -> str:
    """The name without its settings, which the whole tables have."""
    name = method.partition(" (")[0]
    return "SalUn" if name == "RL" else name


def number(line: dict[str, str] | None) -> str:
    if line is None:
        return ""
    ends = f" [{float(line['ToW_low']):.2f}, {float(line['ToW_high']):.2f}]" if line["ToW_low"] else ""
    return f"{float(line['ToW']):.2f}{ends}"


def main(argv: list[str] | None = None) -> None:
    (out, seeds), start = asked(__doc__, "runs/demo", argv), time.perf_counter()
    follow(jobs(str(out), seeds), out)
    print(f"""
Digits, 80 images a class, 15 % of the labels to train on wrong; ResNet-8
Tug-of-War against retrain, 1 = like a model that never saw the forget set; means over {len(seeds)} seeds [95 %]

{report(out)}

{FLOOR} [least, most]: as near as one can come; raw: the original as it is; SalUn: RL under a mask;
RUM: a method for each group of memorization; RUM^F, shuffle, vanilla: one method group by group, and its controls

all of it    {out}/{PAGE}: one page to send
tables       {out}/*.md, *.csv, *.tex
figures      {out}/*.png, *.pdf
memorized    {out}/memorization/digits-resnet8s-memorization-*/grid.png
the log      {out}/{LOG}
{time.perf_counter() - start:.0f} s""")


if __name__ == "__main__":
    main()
