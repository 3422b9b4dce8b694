"""Put a sparsity sweep beside the published table, and name every difference above two published standard deviations.

python scripts/beside_published.py runs/sparsity_table/analysis/sparsity.csv [--out FILE.md]

The table is that of Jia et al., NeurIPS 2023, arXiv:2304.04934 (CIFAR-10, ResNet-18, ten trials; dense and 95 % OMP, one
class and a random tenth). Its MIA is the support-vector attack: run analysis.py with ``--mia svc --mia_mode published`` for it.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from report.table import grid
from utils import write_atomic

PUBLISHED = ROOT / "benchmarks" / "published" / "model_sparsity.csv"
MEASURES = ("UA", "RA", "TA", "MIA")
NETWORK, PRUNING, LIMIT = "cifar10 resnet18", "pruned by OMP ", 2.0
SPREAD = 0.01  # of a cell that is printed without one, or with 0: its last digit
SETS = {"forget class 0 (4500 images)": "class", "forget 4500 images": "random"}


class Cell(NamedTuple):
    """One measure of one method, ours and theirs, in %."""

    where: str
    measure: str
    ours: float
    theirs: float
    spread: float

    @property
    def deviations(self) -> float:
        return (self.ours - self.theirs) / self.spread

    @property
    def apart(self) -> bool:
        return abs(self.deviations) > LIMIT

    def __str__(self) -> str:
        return f"{self.ours:.2f} / {self.theirs:.2f} ±{self.spread:.2f}{' !' if self.apart else ''}"


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def published() -> dict[tuple[str, str, float], dict[str, str]]:
    """(class or random, method, sparsity) -> the row of the published table."""
    return {(row["forget"], row["method"], float(row["sparsity"])): row for row in rows_of(PUBLISHED)}


def beside(table: list[dict[str, str]]) -> dict[str, dict[str, list[Cell]]]:
    """class or random -> method with sparsity and number of seeds -> cells, for what both tables have; collapsed is said."""
    theirs, found = published(), {}
    for row in table:
        words = row["setting"].split(", ")  # network, pruning, forget set, what else tells it from others
        kind = SETS.get(words[2].split(" against ")[0]) if len(words) == 4 else None
        method = row["method"].split(" (")[0]
        there = theirs.get((kind, method, float(row["sparsity"])))
        if there is None or words[0].split(" trained with ")[0] != NETWORK or not words[1].startswith(PRUNING):
            continue
        name = f"{row['method']}, {100 * float(row['sparsity']):g} %, n={row['n']}"
        name += f", {row['collapsed']} collapsed" if int(row["collapsed"]) else ""
        if name in found.get(kind, {}):  # another recipe, or other images
            name += f", {words[1]}, {words[3]}"
        where = f"{kind}, {name}"
        found.setdefault(kind, {})[name] = [
            Cell(where, key, float(row[key]), float(there[key]), max(SPREAD, float(there[f"{key}_sd"] or 0)))
            for key in MEASURES if row[key]]
    return found


def report(found: dict[str, dict[str, list[Cell]]]) -> str:
    """Markdown: a table for each forget set, then a line for each difference above the limit."""
    lines = []
    for kind, methods in found.items():
        body = [["method", *MEASURES]]
        for name, cells in methods.items():
            shown = {cell.measure: str(cell) for cell in cells}
            body.append([name, *(shown.get(measure, "-") for measure in MEASURES)])
        lines += [f"{'one class' if kind == 'class' else 'a random tenth'}: ours / published ±standard deviation, %", "",
                  *grid(body), ""]
    every = [cell for methods in found.values() for cells in methods.values() for cell in cells]
    apart = [cell for cell in every if cell.apart]
    lines.append(f"{len(apart)} of {len(every)} cells differ by more than {LIMIT:g} published standard deviations"
                 + (":" if apart else "."))
    lines += [f"- {cell.where}: {cell.measure} {cell.ours:.2f}, published {cell.theirs:.2f} ±{cell.spread:.2f} "
              f"({cell.deviations:+.1f} deviations)" for cell in apart]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="sparsity.csv of analysis.py")
    parser.add_argument("--out", type=Path, help="write it there too")
    args = parser.parse_args(argv)
    try:
        found = beside(rows_of(args.file))
    except (OSError, KeyError, ValueError) as error:
        parser.error(f"cannot read {args.file} as the sparsity.csv of analysis.py: {type(error).__name__}: {error}")
    if not found:
        parser.error(f"{args.file} has no run that the published table has: {NETWORK}, class 0 or 4500 random images, at 0 % "
                     "or 95 % sparsity by OMP")
    text = report(found)
    print(text)
    if args.out is not None:
        write_atomic(args.out, lambda file: file.write(f"{text}\n".encode()))


if __name__ == "__main__":
    main()
