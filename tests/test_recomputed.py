"""Every cell of the tables, recomputed from the stored logits by an independent script (recomputed.py)."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import recomputed
from pretended import LEANS, SEEDS, pretend
from recomputed import Table, csv_number, interval, step_down
from scipy import stats

from report import contrasts, output
from report.pairs import AnalysisConfig

Written = tuple[contrasts.Study, Path]
FLOOR = "retrain vs retrain"
# of the attack on other features and of its own success; test_attack.py and test_separation.py hold them
ATTACK = ("MIA_", "AUC_correctness", "AUC_confidence", "AUC_entropy", "AUC_m_entropy", "AUC_forget_", "privacy")


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds, of which NG lacks one."""
    root = tmp_path_factory.mktemp("recomputed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LEANS, "raw", (3.0, 9.0, 1.1, 1.2))  # knows its forget set by heart, so that there is headroom
        for method, seed in itertools.product(LEANS, SEEDS):
            if (method, seed) != ("NG", SEEDS[-1]):
                pretend(library, root, method, seed)
    return root


@pytest.fixture(scope="module")
def table(bench: Path) -> Table:
    return Table(bench)


@pytest.fixture(scope="module", params=[contrasts.TOW, contrasts.MIA], ids=["tow", "tow_mia"])
def written(request: pytest.FixtureRequest, bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """An analysis, and the folder of its files."""
    out = tmp_path_factory.mktemp("out")
    output.write(AnalysisConfig(save_dir=str(bench), out=str(out)), request.param, lambda *_: {})
    return request.param, out


def lines_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def domain(name: str) -> tuple[float, float]:
    if name.startswith("ToW"):
        return 0, 1
    if name.startswith(("seconds", "speed_up", "images_read")):
        return 0, math.inf
    return (-100, 100) if name == "AUC_difference" else (0, 100)


def agrees(text: str, wanted: float | None, tolerance: float = 1e-9) -> bool:
    found = csv_number(text)
    return found is wanted if wanted is None or found is None else found == pytest.approx(wanted, rel=1e-7, abs=tolerance)


def test_every_mean_and_interval_is_that_of_the_logits(written: Written, table: Table) -> None:
    study, out = written
    lines = {line["method"]: line for line in lines_of(out / f"{study.name}.csv")}
    names = [name.removesuffix("_low") for name in next(iter(lines.values())) if name.endswith("_low")]
    checked = [name for name in names if not name.startswith(ATTACK)]
    assert len(checked) == 24 and set(lines) == {*LEANS, FLOOR}
    for method, name in itertools.product(LEANS, checked):
        line = lines[method]
        if name == "gap of means":
            assert agrees(line[name], table.gap_of_means(method)) and line[f"{name}_low"] == ""
            continue
        if (method, name) == ("raw", "speed_up"):
            assert line[name] == ""
            continue
        values = list(table.per_seed(method, name).values())
        ends = interval(values, *domain(name))
        for column, wanted in ((name, np.mean(values)), (f"{name}_low", ends[0]), (f"{name}_high", ends[1])):
            assert agrees(line[column], float(wanted)), (method, column, line[column], wanted)
        assert line["n"] == str(len(values)) and line["seeds"] == " ".join(map(str, sorted(table.runs[method])))


def test_every_cell_of_the_floor_is_that_of_the_logits(written: Written, table: Table) -> None:
    study, out = written
    (line,) = [line for line in lines_of(out / f"{study.name}.csv") if line["method"] == FLOOR]
    wanted = {"ToW": table.floor(table.tow), "ToW-MIA": table.floor(lambda a, b: table.tow(a, b, "MIA")),
              "Avg. gap": table.floor(table.gap),
              "KS_forget": table.floor(recomputed.apart)}
    words = ("setting", "method", "n", "seeds", "runs", "collapsed", "nobody_best")
    filled = {name for name, text in line.items() if text and name not in words}
    assert filled == {f"{name}{end}" for name in wanted for end in ("", "_low", "_high")} | {"gap of means"}
    for name, values in wanted.items():
        for column, value in ((name, np.mean(values)), (f"{name}_low", min(values)), (f"{name}_high", max(values))):
            assert agrees(line[column], float(value)), column
    assert agrees(line["gap of means"], float(np.mean(wanted["Avg. gap"])) / math.sqrt(len(SEEDS)))


def test_errors_from_the_images_are_binomial(written: Written, table: Table) -> None:
    study, out = written
    for line in lines_of(out / f"{study.name}.csv"):
        if line["method"] != FLOOR:
            for part in ("forget", "retain", "val", "test", "MIA"):
                each = []
                for run in table.runs[line["method"]].values():
                    p = table.numbers(run)[part] / 100
                    size = len(run.arrays["forget_labels" if part == "MIA" else f"{part}_labels"])
                    each.append(100 * math.sqrt(p * (1 - p) / size))
                assert agrees(line[f"{part}_images"], float(np.mean(each)))


def of_differences(each: list[float], delta: float) -> dict[str, float | None]:
    """n, mean, sd, ends, p and p of equivalence by SciPy; no spread of one seed."""
    if len(each) < 2:
        return {"n": len(each), "mean": each[0], "sd": None, "low": None, "high": None, "p": None, "p_tost": None}
    test = stats.ttest_1samp(each, 0)
    sides = [stats.ttest_1samp(each, delta, alternative="less"), stats.ttest_1samp(each, -delta, alternative="greater")]
    return {"n": len(each), "mean": np.mean(each), "sd": np.std(each, ddof=1), "low": test.confidence_interval().low,
            "high": test.confidence_interval().high, "p": test.pvalue, "p_tost": max(side.pvalue for side in sides)}


def apart(table: Table, name: str) -> float:
    """Mean |difference| between two retrains."""
    return float(np.mean(table.floor(lambda a, b: abs(table.numbers(a)[name] - table.numbers(b)[name]))))


def test_every_comparison_is_that_of_the_logits(written: Written, table: Table) -> None:
    study, out = written
    lines = lines_of(out / f"{study.pairs}.csv")
    distances = {"1 - ToW": lambda a, b: 1 - table.tow(a, b), "1 - ToW-MIA": lambda a, b: 1 - table.tow(a, b, "MIA"),
                 "Avg. gap": table.gap}
    means = {m: np.mean(list(table.per_seed(m, study.headline).values())) for m in ("raw", "FT")}  # NG lacks a seed
    best = max(means, key=lambda m: means[m])
    tests = [(line["measure"], line["method"], line["against"]) for line in lines]
    room = "none is the best" not in (out / f"{study.name}.md").read_text()
    assert room or study is contrasts.MIA  # of membership three seeds say too little to call any method the best
    assert len(set(tests)) == len(tests) == 3 * len(study.measures) + 3 * 2 + 2 * 2 * room
    by_family: dict[tuple[str, str], list[tuple[dict[str, str], float | None]]] = {}
    for line in lines:
        name, method, against = line["measure"], line["method"], line["against"]
        delta = 0.02 if "ToW" in name else 1.0
        if against == FLOOR:
            whole, pseudo = table.excess(method, distances[name])
            wanted = of_differences(pseudo, delta) if pseudo else of_differences([whole], delta)
            spread = stats.sem(pseudo) if pseudo else None
            wanted |= {"n": len(table.runs[method]), "mean": whole}
            if pseudo:  # the interval stands around the excess itself, not around the mean of the pseudo-values
                half = stats.t.ppf(0.975, len(pseudo) - 1) * spread
                one_sided = [stats.t.sf((delta + sign * whole) / spread, len(pseudo) - 1) for sign in (-1, 1)]
                wanted |= {"low": whole - half, "high": whole + half, "p_tost": max(one_sided),
                           "p": 2 * stats.t.sf(abs(whole) / spread, len(pseudo) - 1)}
        else:
            own, other = (table.per_seed(m, name) for m in (method, "retrain" if against == "retrain" else best))
            assert against in ("retrain", best)
            wanted = of_differences([own[seed] - other[seed] for seed in own if seed in other], delta)
            most = 1 if "ToW" in name else 100
            if wanted["low"] is not None:
                wanted |= {"low": max(wanted["low"], -most), "high": min(wanted["high"], most)}
        for column, value in wanted.items():
            assert agrees(line[column], None if value is None else float(value)), (name, method, against, column)
        assert float(line["delta"]) == delta
        assert agrees(line["floor"], apart(table, name) if against == "retrain" else None)
        by_family.setdefault((name, against), []).append((line, wanted["p"]))
    for family in by_family.values():
        for (line, _), p in zip(family, step_down([p for _, p in family]), strict=True):
            assert agrees(line["p_holm"], None if p is None else float(p))
            provable = not line["floor"] or float(line["floor"]) <= float(line["delta"])
            near = line["p_tost"] != "" and float(line["p_tost"]) < 0.05 and provable
            words = [["undecided", "equivalent"], ["different", "different but within delta"]]
            assert line["verdict"] == ("" if p is None else words[int(p < 0.05)][int(near)])
