"""What a forgotten class leaves behind, on embedded data: methods with and without replay, tables and t-SNE pictures.

python scripts/demo_privacy.py [--out runs/demo_privacy] [--seeds 1,2,3,4,5]

scikit-learn's digits and a ResNet-8 that never sees the classes 1 and 9; the class 4 is forgotten by four methods, by the same
with over-unlearning and replay, and by orthogonal unlearning and replay. The table shows what outputs tell, and how the
forgotten images lie among the others inside the network. Every stage runs through its ``main(argv)``, in a process a core. Run
again, it only redraws.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from report.draw import NONE
from report.table import grid
from scripts import recipe
from scripts.jobs import LOG, Job, asked, follow
from scripts.our_table import read, shown
from unlearn.over import SUFFIX

DATA = ["--dataset", "digits", "--arch", "resnet8s", "--ood_classes", "1,9", "--batch_size", "64", "--epochs", "20"]
FORGET = ["--class_to_replace", "4"]
METHODS = ("negative_grad", "amnesiac", "badteacher", "ssd_tuning")
RECIPE = ROOT / "scripts" / "recipes" / "digits_privacy_resnet8s.json"
FEATURES = ["--features", "penultimate"]
POINTS = "600"  # of a plane: the forgotten images, and a draw of the others
PICTURE = "picture"  # folder of the planes, which are of the first seed
OUTSIDE = {"ToW": "ToW", "UA": "UA, %", "RA": "RA, %", "TA": "TA, %", "MIA": "MIA, %", "seconds": "s"}
INSIDE = {"relative_variance": "variance", "silhouette_all": "silhouette", "overlap": "overlap"}
EXPLAINED = f"""What outputs tell. ToW: 1 = like a model that never saw the class. UA: 100 - accuracy on the forgotten images.
RA, TA: accuracy on retained and on test images. MIA: share of the forgotten that the attack takes for non-members.
What lies inside, of the features of the forgotten images. variance: over that of other classes. silhouette: how far
they stand apart, 1 = wholly. overlap: with the others. Healthy is what retrain has: with ToW near 1 and the
silhouette of the original, a method has changed the answers and left the class where it was.
s: seconds. NAME{SUFFIX}: over-unlearning and replay. original, never seen: classes 1 and 9 under the original."""


def jobs(out: str, seeds: list[int]) -> list[Job]:
    """Every stage's main with its command line; the planes of the first seed are drawn while the others are trained."""
    tuned, made, todo = recipe.read(RECIPE), [], []
    names = ["retrain", "raw", *(name + end for name in METHODS for end in ("", SUFFIX)), "our"]
    for seed in seeds:
        base, who = ["--save_dir", out, "--no_progress", "--seed", str(seed)], f"seed {seed}"
        original = Job("main_train", [*base, *DATA], f"{who} · original")
        found = [Job("main_forget", [*base, *FORGET, "--unlearn", name, *recipe.flags(tuned.get(name, {}))], f"{who} · {name}",
                     (original,)) for name in names]
        made += [original, *found]
        todo += [original, *found]
        if seed == seeds[0]:
            words = ["--save_dir", out, "--out", f"{out}/{PICTURE}", "--seed", str(seed), *FEATURES, "--space", "tsne",
                     "--tsne_points", POINTS]
            todo.append(Job("analysis_distribution", words, f"{who} · t-SNE planes", tuple(found)))
    tables = ["--save_dir", out, "--out", out, "--venue", NONE]
    return [*todo, Job("analysis", tables, "tables of what outputs tell", tuple(made)),
            Job("analysis_distribution", [*tables, *FEATURES, "--space", "own"], "how the forgotten images lie", tuple(made))]


def report(out: Path) -> str:
    """The one setting of the demo: every method, means of what its outputs tell, and what lies inside with intervals."""
    (methods,) = read(out, "penultimate", "own").values()
    body = [["method", *OUTSIDE.values(), *INSIDE.values()]]
    for method, line in methods.items():
        outside = [f"{float(line[name]):.{2 if name == 'ToW' else 1}f}" if line.get(name) else "-" for name in OUTSIDE]
        body.append([method, *outside, *(shown(line, name) for name in INSIDE)])
    return "\n".join(grid(body))


def main(argv: list[str] | None = None) -> None:
    (out, seeds), start = asked(__doc__, "runs/demo_privacy", argv), time.perf_counter()
    follow(jobs(str(out), seeds), out)
    print(f"""
Digits without the classes 1 and 9, the class 4 forgotten; ResNet-8
means over {len(seeds)} seeds, ± the longer half of the 95 % interval

{report(out)}

{EXPLAINED}

the picture  {out}/{PICTURE}/distribution_penultimate.png: the forgotten images, in black, under every model
tables       {out}/*.md, *.csv, *.tex; the planes' in {out}/{PICTURE}/
the log      {out}/{LOG}
{time.perf_counter() - start:.0f} s""")


if __name__ == "__main__":
    main()
