"""Write the README's generated tables (methods, models, data sets, metrics) anew.

python scripts/tables.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import models
import setups
import sources
from evaluation import distribution
from evaluation.accuracy import METRICS
from memorization import SCORES
from unlearn import METHODS, method_rows


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def tables() -> dict[str, str]:
    """Name of the place in the README -> Markdown."""
    methods = [(f"`{name}`", text, flags, source) for name, text, flags, source in method_rows(METHODS.names())]
    departs = [(f"`{name}`", METHODS[name].departs) for name in METHODS.names() if METHODS[name].departs]
    networks = models.table()
    way = {1: "larger = more memorized", -1: "smaller = more memorized", 0: "about groups"}
    scores = [(f"`{name}`", SCORES[name].summary, way[SCORES[name].polarity], SCORES[name].source) for name in SCORES.names()]
    metrics, apart = ([(name, *told) for name, told in known.items()] for known in (METRICS, distribution.METRICS))
    return {
        "methods": markdown(("method", "what it does", "its flags and defaults", "source"), methods),
        "scores": markdown(("score", "what it is", "polarity", "source"), scores),
        "departures": markdown(("method", "where it differs from the published code"), departs),
        "models": markdown(networks[0], networks[1:]),
        "datasets": markdown(("`--dataset`", "classes", "size", "training / test", "read from"), sources.table()),
        "setups": markdown(("`--setup`", "stands for", "outputs", "what it is"), setups.table()),
        "metrics": markdown(("metric", "unit", "healthy direction", "meaning"), metrics),
        "distribution": markdown(("of the forgotten points", "unit", "healthy direction", "meaning"), apart),
    }


def filled(text: str) -> str:
    """The README with every generated table as it should be now."""
    for name, table in tables().items():
        place = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(place, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.S)
        assert count == 1, f"README.md has {count} places for the table {name!r}"
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
