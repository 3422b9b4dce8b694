"""Put a sparsity sweep beside the published table, and name every difference above two published standard deviations.

python scripts/beside_published.py runs/sparsity_table/analysis/sparsity.csv [--out FILE.md]

The table is that of Jia et al., NeurIPS 2023, arXiv:2304.04934 (CIFAR-10, ResNet-18, ten trials; dense and 95 % OMP, one
class and a random tenth). Its MIA is the support-vector attack: run analysis.py with ``--mia svc --mia_mode published`` for it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from report.published import LIMIT, MEASURES, NETWORK, Cell, beside, rows_of
from report.table import grid
from utils import write_atomic


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
