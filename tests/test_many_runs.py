"""What an analysis of many runs costs: each file is read once, and nobody waits for figures that nobody can look at."""

from __future__ import annotations

import collections
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretended import SEEDS, four_methods, pretend
from scipy import stats

from evaluation import accuracy, statistics
from report import contrasts, output
from report.pairs import AnalysisConfig
from utils import Kept, read_arrays

SETTINGS = output.FIGURED + 1


@pytest.fixture(scope="module")
def many(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen forget sets, one of them with four methods on three seeds."""
    root = four_methods(library, tmp_path_factory.mktemp("many"))
    for number in range(SETTINGS - 1):
        for method in ("retrain", "NG"):
            pretend(library, root, method, SEEDS[0], name=f"-{number}", split_key=f"{number:06d}")
    return root


@pytest.mark.parametrize("attack", [{}, {"mia": "interval", "mia_draws": 2}])
def test_outputs_of_every_run_are_read_once(
        attack: dict[str, Any], many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows, floors and comparisons ask for them, and another attack too."""
    read: collections.Counter[Path] = collections.Counter()

    def counted(path: Path, form: Any) -> dict[str, np.ndarray]:
        read[path] += 1
        return read_arrays(path, form)

    monkeypatch.setattr(accuracy, "KEPT", Kept(2**28))
    monkeypatch.setattr(accuracy, "read_arrays", counted)
    output.write(AnalysisConfig(save_dir=str(many), out=str(tmp_path), **attack), contrasts.TOW, lambda *_: {})
    assert read == {path: 1 for path in many.glob("forget/*/outputs.npz")} and len(read) == 12 + 2 * (SETTINGS - 1)


def test_an_analysis_of_metrics_in_the_records_attacks_nothing_anew(
        many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "summarise", None)
    output.write(AnalysisConfig(save_dir=str(many), out=str(tmp_path)), contrasts.TOW, lambda *_: {})


def test_seconds_of_an_analysis_grow_with_the_runs_alone(many: Path, tmp_path: Path) -> None:
    """36 runs take 0.2 s; a step that is quadratic in them, or a second a run, would pass the bound."""
    begun = time.process_time()
    output.write(AnalysisConfig(save_dir=str(many), out=str(tmp_path)), contrasts.TOW, lambda *_: {})
    assert time.process_time() - begun < 10


def test_of_many_settings_figures_are_drawn_when_asked_for(many: Path, tmp_path: Path) -> None:
    def drawn(**flags: object) -> tuple[int, str]:
        seen: list[object] = []
        cfg = AnalysisConfig(save_dir=str(many), out=str(tmp_path), **flags)
        text = output.write(cfg, contrasts.TOW, lambda rows, *_: seen.append(rows) or {}).text
        return len(seen), text

    assert drawn()[0] == 0 and "--figures" in drawn()[1]
    assert drawn(figures=True)[0] == SETTINGS and "--figures" not in drawn(figures=True)[1]
    assert drawn(seed=(5,))[0] == 1


def test_what_is_kept_has_room_for_so_much_and_knows_a_changed_file(tmp_path: Path) -> None:
    kept, read = Kept(room=200), []

    def get(name: str, size: int = 10) -> np.ndarray:
        return kept.get(tmp_path / name, lambda: read.append(name) or {"x": np.zeros(size)})["x"]

    for name in "abc":
        (tmp_path / name).write_text("1")
        get(name)
        get(name)
    assert read == ["a", "b", "c"] and kept.held == 160  # 80 bytes each: the first had to go
    get("b"), get("a")
    assert read == ["a", "b", "c", "a"] and kept.held == 160
    (tmp_path / "a").write_text("12")
    get("a")
    assert read[-2:] == ["a", "a"]
    assert len(get("b", 1000)) == 1000 and kept.held == 0  # too large to be kept
    assert len(get("gone", 3)) == 3 and kept.held == 0


@pytest.mark.parametrize("n", [2, 3, 5, 10, 100])
def test_special_functions_are_those_of_scipys_distributions(n: int) -> None:
    assert statistics._t(0.975, n - 1) == pytest.approx(stats.t.ppf(0.975, n - 1), rel=1e-12)
    assert statistics._tail(1.3, 2.0, n) == pytest.approx(stats.t.sf(1.3 / (2 / np.sqrt(n)), n - 1), rel=1e-12)
    shares = (np.arange(2000) + 0.5) / 2000
    assert statistics._spreads(n) == pytest.approx(np.sqrt(stats.chi2.ppf(shares, n - 1) / (n - 1)), rel=1e-9)
