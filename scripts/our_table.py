"""One table for each forget set as the Reminiscence project prints it: accuracy, membership, time, and the distribution.

python scripts/our_table.py runs/our_class/analysis [--out runs/our_class/table] [--features penultimate] [--space own]

Of the tow.csv of analysis.py and the distribution_means.csv of analysis_distribution.py in that folder; writes OUT.md and
OUT.csv. Every _our stands below its method. Where the published setup is among the runs, its figures stand beside ours.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from evaluation.distribution import METRICS
from report.distribution import COLUMNS, HEADS, WORDS
from report.published import rows_of
from report.rows import FLOOR
from report.table import grid, sentence
from setups import SETUPS
from unlearn import METHODS
from unlearn.over import SUFFIX
from utils import write_atomic

PUBLISHED = ROOT / "benchmarks" / "published"
TOW = {"TA": "TA, %", "UA": "UA, %", "RA": "RA, %", "MIA": "MIA, %", "ToW": "ToW", "seconds": "RTE, s"}
DIGITS = {"seconds": 1, "ToW": 3, "variance": 1, "relative_variance": 2, "silhouette": 3, "silhouette_all": 3, "overlap": 3,
          "overlap_raw": 3}
NAMES = {"raw": "original", "original": "original"}  # of the model as it is, in either file
WHERE = {"own": "in the space of the {} itself",
         "tsne": "in a t-SNE plane of the {}, where the raw sum is the published overlap"}
MEANING = ("TA: accuracy on test images of the remaining classes. UA: 100 - accuracy on the forget set. RA: accuracy on the "
           "retain set. MIA: share of the forget set that the confidence attack calls non-member. RTE: seconds of the method "
           "and its mask. Variance, silhouette, overlap: of the forgotten points, {where}. Healthy is what retrain has. "
           "Mean over n seeds, ± the longer half of the 95 % interval.")
THEIRS = ("Here / published. As published, UA is the accuracy on the forget set (100 - our UA), MIA the share of it that an "
          "attack on the entropy calls member (100 - our MIA_entropy), overlap a raw sum over a grid. Seconds are of another "
          "machine.")

Line = dict[str, str]
Table = dict[str, dict[str, Line]]  # setting -> method -> what both files say of it


def read(folder: Path, features: str, space: str) -> Table:
    """Every method of every setting, without the floor; numbers of the distribution where they are there.

    Raises:
        OSError, KeyError: there is no such file, or it is another table.
    """
    found: Table = {}
    for line in rows_of(folder / "tow.csv"):
        if line["method"] != FLOOR:
            found.setdefault(line["setting"], {})[NAMES.get(line["method"], line["method"])] = line
    for line in rows_of(folder / "distribution_means.csv"):
        if line["setting"] in found and (line["features"], line["space"]) == (features, space):
            there = found[line["setting"]].setdefault(line["method"], {"n": line["n"]})  # what was never seen is no method
            there |= {name: line[name] for name in line if name.removesuffix("_low").removesuffix("_high") in METRICS}
    return {setting: dict(sorted(methods.items(), key=lambda item: order(item[0]))) for setting, methods in found.items()}


def order(method: str) -> tuple[int, str]:
    """The anchors, then methods as the suite lists them, every _our below its method; plans last."""
    name = method.partition(" (")[0].partition(" = ")[0]
    known = ["original", "retrain", *METHODS.names()]
    base = name if name in known else name.removesuffix(SUFFIX)
    return 2 * known.index(base) + (base != name) if base in known else 2 * len(known), method


# ------------------------------------------------------------------------------------------------------------------ tables


def shown(line: Line, name: str) -> str:
    """``mean ±half``; "-" of what is not there."""
    if not line.get(name):
        return "-"
    mean, digits = float(line[name]), DIGITS.get(name, 2)
    if not line.get(f"{name}_low"):
        return f"{mean:.{digits}f}"
    half = max(mean - float(line[f"{name}_low"]), float(line[f"{name}_high"]) - mean)
    return f"{mean:.{digits}f} ±{half:.{digits}f}"


def columns_of(space: str) -> dict[str, str]:
    """Measures and their heads."""
    return TOW | {name: HEADS.get(name, name) for name in COLUMNS[space]}


def table(methods: dict[str, Line], columns: dict[str, str]) -> list[str]:
    """Markdown: a line a method; columns: measures and their heads, of which those are shown that some method has."""
    columns = {name: head for name, head in columns.items() if any(line.get(name) for line in methods.values())}
    body = [["method", "n", *columns.values()]]
    for method, line in methods.items():
        name = f"{method} (collapsed)" if line.get("collapsed", "") not in ("", "0") else method
        body.append([name, line["n"], *(shown(line, column) for column in columns)])
    return grid(body)


def over_settings(found: Table) -> dict[str, dict[str, Line]]:
    """Network and kind of forget set -> method -> means over its settings, where there are several and all have the method."""
    kinds: dict[str, list[dict[str, Line]]] = {}
    for setting, methods in found.items():
        kinds.setdefault(kind_of(setting), []).append(methods)
    means: dict[str, dict[str, Line]] = {}
    for kind, several in kinds.items():
        for method in several[0] if len(several) > 1 else ():
            lines = [methods[method] for methods in several if method in methods]
            if len(lines) == len(several):
                own = {name: [float(line[name]) for line in lines] for name in (*TOW, *METRICS)
                       if all(line.get(name) for line in lines)}
                means.setdefault(f"{kind}, mean over {len(several)} forget sets", {})[method] = {
                    "n": str(len(lines)), "collapsed": str(sum(int(line.get("collapsed") or 0) for line in lines)),
                    **{name: str(sum(values) / len(values)) for name, values in own.items()}}
    return means


def kind_of(setting: str) -> str:
    """``cifar20 resnet18, forget sub-class`` of a setting's words."""
    network, _, forgotten = setting.partition(", forget ")
    kind = next((kind for kind in ("sub-class", "class") if forgotten.startswith(kind)), "images")
    return f"{' '.join(network.split()[:2])}, forget {kind}"


def beside(methods: dict[str, Line], setup: str) -> list[str]:
    """The published figures of a setup, as published, beside the same of ours; no lines where there are none."""
    theirs: dict[str, Line] = {}
    for name in ("reminiscence", "reminiscence_distribution"):
        for line in rows_of(PUBLISHED / f"{name}.csv"):
            if line["setup"] == setup:
                theirs.setdefault(NAMES.get(line["method"], line["method"]), {}).update(line)
    heads = ["TA", "UA", "RA", "MIA", "RTE", "variance", "silhouette", "overlap_raw"]
    body = [["method", *heads[:-1], "overlap"]]
    for method, line in methods.items():
        there = theirs.get(method.partition(" (")[0])
        if there is not None:
            own = as_published(line)
            body.append([method, *(f"{own.get(name, '-')} / {there.get(name, '-')}" for name in heads)])
    return [*grid(body), ""] if len(body) > 1 else []


def as_published(line: Line) -> Line:
    """Our means under the published definitions."""
    found = {name: line.get(name, "") for name in ("TA", "RA", "variance", "silhouette", "overlap_raw")}
    found |= {"UA": line.get("forget", ""), "RTE": line.get("seconds", "")}
    found["MIA"] = str(100 - float(line["MIA_entropy"])) if line.get("MIA_entropy") else ""
    digits = {"silhouette": 4, "overlap_raw": 4}
    return {name: f"{float(value):.{digits.get(name, 2)}f}" for name, value in found.items() if value}


def setup_of(setting: str) -> str | None:
    """The published setup of a setting, if any: a dense ResNet-18, its classes left out and its class forgotten."""
    network, _, forgotten = setting.partition(", forget ")
    for name in ("cifar20_5", "cifar100_5"):
        data, forget = SETUPS[name].data, SETUPS[name].forget
        gone, whole = (",".join(map(str, classes)) for classes in (data["ood_classes"], forget["class_to_replace"]))
        if network == f"{data['dataset']} resnet18 without classes {gone}" and forgotten.startswith(f"class {whole} ("):
            return name
    return None


def report(found: Table, features: str, space: str) -> str:
    """Markdown: means over several forget sets first, a table for each setting, published figures below it."""
    lines: list[str] = []
    for setting, methods in {**over_settings(found), **found}.items():
        lines += [f"## {setting}", "", *table(methods, columns_of(space)), ""]
        setup = setup_of(setting) if setting in found else None
        published = beside(methods, setup) if setup is not None and (features, space) == ("logits", "tsne") else []
        lines += [*published, *(sentence(THEIRS) if published else [])]
    lines += sentence(MEANING.format(where=WHERE[space].format(WORDS[features])))
    return "\n".join(lines)


def numbers(found: Table) -> list[Sequence[str]]:
    """Lines of a CSV: every mean with the ends of its interval, as the two files have them."""
    names = [f"{name}{end}" for name in (*TOW, "MIA_entropy", *METRICS) for end in ("", "_low", "_high")]
    return [["setting", "method", "n", *names],
            *([setting, method, line["n"], *(line.get(name, "") for name in names)]
              for setting, methods in found.items() for method, line in methods.items())]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the tables of analysis.py and analysis_distribution.py")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.csv too")
    parser.add_argument("--features", choices=tuple(WORDS), default="logits", help="of the distribution (default: logits)")
    parser.add_argument("--space", choices=tuple(WHERE), default="tsne", help="where it is measured (default: tsne)")
    args = parser.parse_args(argv)
    try:
        found = read(args.folder, args.features, args.space)
    except (OSError, KeyError) as error:
        parser.error(f"{args.folder} has not both tables, tow.csv of analysis.py and distribution_means.csv of "
                     f"analysis_distribution.py: {type(error).__name__}: {error}")
    text = report(found, args.features, args.space)
    print(text)
    if args.out is not None:
        table = io.StringIO()
        csv.writer(table).writerows(numbers(found))
        for ending, content in (("md", f"{text}\n"), ("csv", table.getvalue())):
            write_atomic(args.out.with_name(f"{args.out.name}.{ending}"), lambda file, it=content: file.write(it.encode()))


if __name__ == "__main__":
    main()
