"""What both demos share: stages run one after another in this process, then the tables."""

from __future__ import annotations

import time
from types import ModuleType

import analysis
import analysis_mia

Jobs = list[tuple[ModuleType, list[str]]]  # a stage's main and its command line


def follow(todo: Jobs, out: str, start: float) -> None:
    """Run every stage, saying which and the seconds since ``start``; tables and plots go to ``out``, where the runs are."""
    for number, (stage, command) in enumerate(todo, 1):
        spent = time.perf_counter() - start
        print(f"[{number}/{len(todo)}, {spent:.0f} s] {stage.__name__}.py {' '.join(command)}", flush=True)
        stage.main(command)
    print("\nTug-of-War against retrain (1 = like a model that never saw the forget set)\n")
    analysis.main(["--save_dir", out, "--out", out])
    print("\nMembership inference\n")
    analysis_mia.main(["--save_dir", out, "--out", out])
