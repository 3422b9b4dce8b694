"""What is said of differences: paired tables, headroom, notes, and means over requests."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recomputed
import shell
from grouped import csv_lines, grouped
from pretended import LEANS, SEEDS, change, copied, four_methods, of_csv, pretend, row_of, table_of, text_of
from scipy import stats

from evaluation.statistics import Number
from report import contrasts, figures, notes, output, tables
from report.names import Heading
from report.pairs import AnalysisConfig
from report.requests import over_requests
from report.rows import FLOOR, Row
from utils import BadInput, read_record

LIKE_RETRAIN = (3.0, 1.0, 1.2, 1.2)
BY_HEART = (3.0, 9.0, 1.1, 1.2)


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original that knows its forget set by heart: there is headroom."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LEANS, "raw", BY_HEART)
        return four_methods(library, tmp_path_factory.mktemp("room"))


def analysed(root: Path, out: Path, study: contrasts.Study = contrasts.TOW, **flags: Any) -> str:
    """What the analysis says, without its figures."""
    return output.write(AnalysisConfig(save_dir=str(root), out=str(out), **flags), study, lambda *_: {}).text


def found(root: Path, measure: str, against: str, **flags: Any) -> dict[str, contrasts.Contrast]:
    table = table_of(root)
    every = contrasts.of_setting(table, contrasts.TOW, AnalysisConfig(**flags))
    return {c.method: c for c in every if (c.measure, c.against) == (measure, against)}


# ---------------------------------------------------------------------------------------------------------------- verdicts


def test_the_tables_below_show_differences_and_verdicts(bench: Path, tmp_path: Path) -> None:
    text = analysed(bench, tmp_path)
    lines = text.splitlines()
    (head,) = [i for i, line in enumerate(lines) if line.startswith("| method - retrain")]
    assert [word.strip() for word in lines[head].split("|")[1:-1]] == ["method - retrain", "forget, %", "retain, %", "test, %",
                                                                      "1 - ToW over the floor"]
    for line, method in zip(lines[head + 2:head + 5], ("raw", "FT", "NG"), strict=True):
        cells = [word.strip() for word in line.split("|")[1:-1]]
        assert cells[0] == method
        for cell, name in zip(cells[1:4], ("forget", "retain", "test"), strict=True):
            contrast = found(bench, name, "retrain")[method]
            assert cell == contrasts.words(contrast) and cell.startswith(f"{contrast.found.mean:+.2f} {contrast.verdict}")
    assert all(len(line) <= 120 for line in lines[head:] if "runs" not in line and not line.startswith(str(tmp_path)))
    assert "| method - best (" in text and "confirm it on fresh seeds" in " ".join(text.split())
    assert "Holm over 3 methods" in text and "(1 point, ToW 0.02)" in text
    best = {line["against"] for line in csv_lines(tmp_path / "pairs.csv")} - {"retrain", FLOOR}
    assert len(best) == 1 and f"| method - best ({best.pop()})" in text


def test_undecided_says_how_many_seeds_would_do() -> None:
    tested = contrasts.Paired(3, 1.5, 1.0, (-1.0, 4.0), 0.12)
    undecided = contrasts.Contrast("", "forget", "FT", "retrain", tested, 0.12, 1.0, 0.6, None, "undecided", 6, (1, 2, 3))
    assert contrasts.words(undecided) == "+1.50 undecided (6)" and contrasts.words(None) == "-"
    assert contrasts.words(undecided._replace(measure="1 - ToW", verdict="equivalent")) == "+1.500 equivalent"
    assert contrasts.words(undecided._replace(verdict="")) == "+1.50"


def test_delta_is_a_setting_and_stands_in_the_output(bench: Path, tmp_path: Path) -> None:
    """Wider, the same differences become equivalent; narrower, none of them."""
    wide, narrow = ({c.verdict for c in found(bench, "test", "retrain", delta=delta).values()} for delta in (100.0, 1e-6))
    assert wide <= {"equivalent", "different but within delta"} and narrow <= {"undecided", "different"}
    assert "(40 points, ToW 0.3)" in analysed(bench, tmp_path, delta=40.0, delta_tow=0.3)
    lines = csv_lines(tmp_path / "pairs.csv")
    assert {(line["measure"], line["delta"]) for line in lines} == {
        *((name, "40.0") for name in ("forget", "retain", "val", "test", "Avg. gap")), ("ToW", "0.3"), ("1 - ToW", "0.3")}
    for bad in ({"delta": 0.0}, {"delta": -1.0}, {"delta_tow": 1.0}):
        with pytest.raises(BadInput, match="--delta"):
            AnalysisConfig(**bad)


def test_equivalence_is_not_claimed_below_the_floor(bench: Path, tmp_path: Path) -> None:
    """FT with retrain's own test accuracy: no difference at all, yet two retrains are farther apart than the smaller delta."""
    root = copied(bench, tmp_path)
    for seed in SEEDS:
        metrics = read_record(root / "forget" / f"FT-{seed}").record["metrics"]
        same = read_record(root / "forget" / f"retrain-{seed}").record["metrics"]
        change(root / "forget" / f"FT-{seed}", metrics=metrics | {"test": same["test"]})
    floor = found(root, "test", "retrain")["FT"].floor
    tests = [read_record(root / "forget" / f"retrain-{seed}").record["metrics"]["test"] for seed in SEEDS]
    assert floor == pytest.approx(np.mean([abs(a - b) for a, b in itertools.combinations(tests, 2)]))
    below, above = (found(root, "test", "retrain", delta=share * floor)["FT"] for share in (0.5, 1.5))
    assert (below.p_tost, below.verdict) == (0.0, "undecided") and (above.p_tost, above.verdict) == (0.0, "equivalent")
    text = text_of(table_of(root), delta=0.5 * floor)
    assert f"test {floor:.2f}" in text and "equivalence cannot be shown" in " ".join(text.split())


def test_one_seed_has_differences_and_no_verdict(bench: Path, tmp_path: Path) -> None:
    text = analysed(bench, tmp_path, seed=(3,))
    assert "One seed: differences cannot be judged" in text and "method - " not in text
    lines = csv_lines(tmp_path / "pairs.csv")
    empty = {tuple(line[name] for name in ("n", "sd", "low", "p", "p_holm", "verdict")) for line in lines}
    assert empty == {("1", "", "", "", "", "")}
    assert {line["against"] for line in lines} >= {"retrain"} and FLOOR not in {line["against"] for line in lines}


def test_a_broken_model_is_not_the_best_of_the_paired_table(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    best = contrasts.best_of(table_of(root), "ToW")
    change(root / "forget" / f"{best.method}-5", collapsed=True)
    assert contrasts.best_of(table_of(root), "ToW").method != best.method


def test_a_mean_over_other_seeds_is_marked_and_never_the_best(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    best = contrasts.best_of(table_of(root), "ToW").method
    change(root / "forget" / f"{best}-8", status="running")
    table = table_of(root)
    assert contrasts.best_of(table, "ToW").method != best
    text = text_of(table)
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in reversed(text.splitlines())
            if line.startswith("| ")}  # of the first table, where a method stands in several
    assert rows[best] == "2*" and rows["retrain"] == "3"
    assert f"* means over other seeds than retrain's, not to be compared with the rest: {best}: 3 5." in " ".join(text.split())
    assert "*" not in text_of(table_of(bench))
    there = found(root, "test", "retrain")[best]
    assert there.units == (3, 5) and there.found.n == 2


# ---------------------------------------------------------------------------------------------------------------- headroom


def test_an_original_that_is_like_retrain_leaves_no_headroom(library: Path, tmp_path: Path) -> None:
    """Said in the table and in the figures, whose rows are not in the order of ToW; nobody is the best."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LEANS, "raw", LIKE_RETRAIN)
        root = four_methods(library, tmp_path / "runs")
    table = table_of(root)
    reason = contrasts.no_room(table, contrasts.TOW, AnalysisConfig())
    assert "as near to retrain as retrains are to one another" in reason
    text = analysed(root, tmp_path / "out")
    assert "> No headroom: the original itself" in text and "method - best" not in text
    assert {line["against"] for line in csv_lines(tmp_path / "out" / "pairs.csv")} == {"retrain", FLOOR}
    drawn = figures.tow_charts(table, Heading("digits", ""), AnalysisConfig())
    for name in ("tow", "cost"):
        assert drawn[name].note == "no headroom: no method is the best here"
    others = [row.method for row in table if not row.is_reference and row.method not in (FLOOR, "raw")]
    table[[row.method for row in table].index(others[-1])].numbers["ToW"] = Number(0.999, None, 3)
    charts = figures.tow_charts(table, Heading("digits", ""), AnalysisConfig())
    assert charts["tow"].rows == ("raw", *others)  # the table's order


def test_headroom_is_not_denied_without_reason(bench: Path) -> None:
    table = table_of(bench)
    assert contrasts.no_room(table, contrasts.TOW, AnalysisConfig()) == ""
    assert contrasts.no_room([row for row in table if row.method != "raw"], contrasts.TOW, AnalysisConfig()) == ""
    assert figures.tow_charts(table, Heading("digits", ""), AnalysisConfig())["tow"].note == ""


def test_too_few_seeds_are_not_taken_for_an_original_like_retrain(library: Path, tmp_path: Path) -> None:
    """An original far from retrain, in seeds that differ much: 0 lies in its intervals, but not near its means.

    Nobody is the best then either, since not even doing nothing is told from retraining; but that is another reason.
    """
    table = table_of(four_methods(library, tmp_path))
    alone = [row for row in table if row.method == "raw" or row.is_reference]
    (over,) = contrasts.with_floor(alone, "ToW", AnalysisConfig())
    (first,) = contrasts.with_retrain(alone, "forget", AnalysisConfig())
    assert over.verdict == first.verdict == "undecided" and over.found.mean > 0.05
    reason = contrasts.no_room(table, contrasts.TOW, AnalysisConfig())
    assert reason.startswith("too few seeds: 3 do not tell the original itself from retrain (1 - ToW +")
    assert "as near" not in reason
    assert f"forget {contrasts.words(first)}" in reason
    assert not [c for c in contrasts.of_setting(table, contrasts.TOW, AnalysisConfig()) if c.against not in ("retrain", FLOOR)]


def test_one_seed_within_delta_leaves_no_headroom(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    outputs = (root / "forget" / "retrain-3" / "outputs.npz").read_bytes()
    (root / "forget" / "raw-3" / "outputs.npz").write_bytes(outputs)
    metrics = read_record(root / "forget" / "retrain-3").record["metrics"]
    change(root / "forget" / "raw-3", metrics=metrics)
    assert "within delta of retrain (1 points)" in contrasts.no_room(table_of(root, seed=(3,)), contrasts.TOW, AnalysisConfig())
    change(root / "forget" / "raw-3", metrics=metrics | {"test": metrics["test"] + 1.5})
    assert contrasts.no_room(table_of(root, seed=(3,)), contrasts.TOW, AnalysisConfig()) == ""
    assert contrasts.no_room(table_of(root, seed=(3,)), contrasts.TOW, AnalysisConfig(delta=2.0)) != ""


def like_raw(bench: Path, tmp_path: Path, *methods: str) -> Path:
    """Methods whose numbers are the original's in every seed, and that have outputs of their own."""
    root = copied(bench, tmp_path)
    for method, seed in itertools.product(methods, SEEDS):
        change(root / "forget" / f"{method}-{seed}", metrics=read_record(root / "forget" / f"raw-{seed}").record["metrics"])
    return root


def test_a_best_method_that_is_equivalent_to_doing_nothing_is_not_called_so(bench: Path, tmp_path: Path) -> None:
    """There is headroom, but none of it is used."""
    root = like_raw(bench, tmp_path, "FT", "NG")
    table = table_of(root)
    assert contrasts.no_room(table, contrasts.TOW, AnalysisConfig()) == ""
    reason = contrasts.nobody_best(table, contrasts.TOW, AnalysisConfig())
    assert reason.startswith("no gain over raw: ")
    text = analysed(root, tmp_path / "out")
    assert "> No gain over raw: " in text and "method - best" not in text and "no headroom" not in text
    assert contrasts.nobody_best(table_of(bench), contrasts.TOW, AnalysisConfig()) == ""
    for seed, less in zip(SEEDS, (0.5, -0.3, 0.2), strict=True):  # a better one by less than delta, and by chance
        metrics = read_record(root / "forget" / f"raw-{seed}").record["metrics"]
        for method, lower in (("raw", 1.0), ("FT", 1.0 + less), ("NG", 1.0)):
            change(root / "forget" / f"{method}-{seed}", metrics=metrics | {"forget": metrics["forget"] - lower})
    reason = contrasts.nobody_best(table_of(root), contrasts.TOW, AnalysisConfig())
    assert "no gain over raw: the original itself is equivalent to the best method (FT; ToW -0.00" in reason


# ------------------------------------------------------------------------------------------------------------------- notes


def told(table: list[Row], aucs: dict[str, float], columns: tuple[str, ...] = tables.SCREEN["tow_mia"]) -> str:
    for row in table:
        if row.method in aucs:
            row.numbers["AUC_forget"] = Number(aucs[row.method], None, 3)
    return " ".join(" ".join(notes.notes_of(table, columns)).split())


@pytest.mark.parametrize(("raw", "weak"), [(59.9, True), (60.0, False), (40.1, True), (40.0, False), (50.0, True)])
def test_a_weak_attack_is_said_below_its_limit(raw: float, weak: bool, bench: Path) -> None:
    """Sixty percent, or forty: by the model that tells its forget set from test images best."""
    aucs = {"retrain": 50.0, "raw": raw, "FT": 51.0, "NG": 49.0}
    assert ("tells its forget set from test images" in told(table_of(bench), aucs)) == weak


def test_the_weak_attack_goes_by_the_model_that_is_told_best(bench: Path) -> None:
    aucs = {"retrain": 50.0, "raw": 53.0, "FT": 58.5, "NG": 41.0}
    assert "(AUC at most 59.0 %)" in told(table_of(bench), aucs)
    assert "AUC at most" not in told(table_of(bench), aucs | {"NG": 10.0})
    assert "AUC at most" not in told(table_of(bench), aucs, ("ToW", "forget"))  # a table without the attack


def test_whole_classes_make_no_weak_attack(bench: Path, tmp_path: Path) -> None:
    """Every model may call all of a forgotten class non-members: its test images are as unknown as its training images."""
    root = copied(bench, tmp_path)
    aucs = {"retrain": 50.0, "raw": 53.0, "FT": 50.0, "NG": 49.0}
    assert "AUC at most" in told(table_of(root), aucs)
    for method, seed in itertools.product(LEANS, SEEDS):
        change(root / "forget" / f"{method}-{seed}", whole_classes=[2])
    assert "AUC at most" not in told(table_of(root), aucs)


def test_a_broken_retrain_is_said(bench: Path, tmp_path: Path) -> None:
    root = copied(bench, tmp_path)
    change(root / "forget" / "FT-3", collapsed=True)
    said = told(table_of(root), {})
    assert "A collapsed model is broken" in said and "Retrain itself is broken" not in said
    change(root / "forget" / "retrain-3", collapsed=True)
    assert "Retrain itself is broken here" in told(table_of(root), {})


def test_a_table_says_what_its_means_are_over_and_what_images_alone_change(bench: Path) -> None:
    table = table_of(bench)
    said = told(table, {})
    assert "Means over training seeds, for this forget set alone" in said and "on the logit scale" in said
    images = row_of(table, "retrain").images
    assert f"forget {images['forget']:.2f}, test {images['test']:.2f}, MIA {images['MIA']:.2f} points" in said
    assert "published one" in told(table, {}, tables.EVERY["tow"]) and "published one" not in said


# --------------------------------------------------------------------------------------------------------------- requests


@pytest.fixture(scope="module")
def requests(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three forget sets drawn in one way, three seeds each; NG has two of the sets."""
    root = tmp_path_factory.mktemp("requests")
    for number, method, seed in itertools.product((1, 2, 3), ("retrain", "FT", "NG"), SEEDS):
        if (number, method) != (3, "NG"):
            pretend(library, root, method, seed, name=f"-{number}", split_key=f"{number}drawn", split_seed=number)
    return root


def of_request(root: Path, number: int) -> recomputed.Table:
    return recomputed.Table(root, f"forget/*-{number}/record.json")


def test_means_over_requests_have_them_as_their_outer_level(requests: Path, tmp_path: Path) -> None:
    """A value is a request's mean over its seeds, the interval over requests, and so are the paired tests."""
    text = analysed(requests, tmp_path)
    tables = {number: of_request(requests, number) for number in (1, 2, 3)}
    lines = {line["method"]: line for line in csv_lines(tmp_path / "requests.csv")}
    assert set(lines) == {"retrain", "FT", "NG", FLOOR} and lines["NG"]["n"] == "2"
    for name, top in (("ToW", 1), ("forget", 100), ("Avg. gap", 100)):
        means = [float(np.mean(list(table.per_seed("FT", name).values()))) for table in tables.values()]
        mean, ends = of_csv(lines["FT"], name)
        assert mean == pytest.approx(np.mean(means)) and ends == pytest.approx(recomputed.interval(means, 0, top))
    assert float(lines["FT"]["gap of means"]) == pytest.approx(np.mean([table.gap_of_means("FT") for table in tables.values()]))
    floors = [float(np.mean(table.floor(table.tow))) for table in tables.values()]
    assert of_csv(lines[FLOOR], "ToW") == (pytest.approx(np.mean(floors)), pytest.approx((min(floors), max(floors))))
    setting = lines["FT"]["setting"]
    assert "forget 24 random images, " in setting and setting.endswith(", 3 requests")
    assert "## digits · ResNet-8 · random 24 of 388 · 3 requests" in text
    assert "Means over 3 requests, each a mean over its seeds" in text and text.count("for this forget set alone") == 3
    pairs = {(line["measure"], line["method"], line["against"]): line for line in csv_lines(tmp_path / "pairs.csv")
             if line["setting"] == setting}
    each = [np.mean([table.per_seed("FT", "forget")[s] - table.per_seed("retrain", "forget")[s] for s in SEEDS])
            for table in tables.values()]
    line = pairs["forget", "FT", "retrain"]
    assert line["n"] == "3" and float(line["mean"]) == pytest.approx(np.mean(each))
    assert float(line["p"]) == pytest.approx(stats.ttest_1samp(each, 0).pvalue)
    over = [table.excess("FT", lambda a, b, table=table: 1 - table.tow(a, b))[0] for table in tables.values()]
    assert float(pairs["1 - ToW", "FT", FLOOR]["p"]) == pytest.approx(stats.ttest_1samp(over, 0).pvalue)


def test_variances_of_requests_and_seeds_are_those_of_the_analysis_of_variance(requests: Path, tmp_path: Path) -> None:
    analysed(requests, tmp_path)
    lines = {(line["method"], line["measure"]): line for line in csv_lines(tmp_path / "requests_variance.csv")}
    table = np.array([list(of_request(requests, number).per_seed("FT", "test").values()) for number in (1, 2, 3)])
    within, between = table.var(1, ddof=1).mean(), 3 * table.mean(1).var(ddof=1)
    line = lines["FT", "test"]
    assert (line["requests"], line["seeds"]) == ("3", "3") and float(line["over_seeds"]) == pytest.approx(within)
    assert float(line["between_requests"]) == pytest.approx(max(0, (between - within) / 3))
    assert {method for method, _ in lines} == {"retrain", "FT", "NG"}


def test_one_request_or_sets_that_were_chosen_otherwise_make_no_means_over_requests(library: Path, tmp_path: Path) -> None:
    for method in ("retrain", "FT"):
        pretend(library, tmp_path / "one", method, 3)
        for level in ("low", "high"):
            grouped(pretend(library, tmp_path / "scores", method, 3, name=f"-{level}"), "memorization", mem=level)
        for number in (1, 2):
            pretend(library, tmp_path / "files", method, 3, name=f"-{number}", split_key=f"{number}", forget_index="f.npy")
            change(pretend(library, tmp_path / "classes", method, 3, name=f"-{number}", split_key=f"{number}",
                           class_to_replace=[number]), whole_classes=[number])
    for name in ("one", "scores", "files", "classes"):
        assert over_requests(table_of(tmp_path / name)) == [], name
        analysed(tmp_path / name, tmp_path / f"out {name}")
        assert not list((tmp_path / f"out {name}").glob("requests*"))


def test_a_retrain_named_by_file_joins_the_request_that_was_drawn(library: Path, tmp_path: Path) -> None:
    """As the printed command for a missing retrain makes it."""
    for number in (1, 2):
        pretend(library, tmp_path, "FT", 3, name=f"-{number}", split_key=f"{number}")
        pretend(library, tmp_path, "retrain", 3, name=f"-{number}", split_key=f"{number}", forget_index="splits.npz")
    table = table_of(tmp_path)
    assert len({row.setting for row in table}) == 2 and {row.place.drawn for row in table} == {"24 random images"}
    assert [row.method for row in over_requests(table)] == ["retrain", "FT"]


def test_requests_of_real_runs_share_their_original(tmp_path: Path) -> None:
    """No pretence: two forget sets by --split_seed of one original stand in a table over requests."""
    original = shell.train(tmp_path)
    for number, method in itertools.product((1, 2), ("retrain", "raw")):
        shell.forget(original, tmp_path, method, *shell.FORGET, "--split_seed", number)
    shell.call("analysis.py", save_dir=tmp_path)
    lines = csv_lines(tmp_path / "analysis" / "requests.csv")
    assert [(line["method"], line["n"]) for line in lines] == [("retrain", "2"), ("raw", "2")]
    assert lines[0]["setting"].startswith("digits resnet8s, forget 20 random images, ")


def test_rows_of_requests_keep_the_fields_of_rows(requests: Path) -> None:
    merged = over_requests(table_of(requests))
    row = row_of(merged, "FT")
    assert row.units == ["1drawn", "2drawn", "3drawn"] and len(row.pairs) == 9 and row.seeds == list(SEEDS)
    assert row_of(merged, "NG").others_seeds(merged) and not row.others_seeds(merged)
    assert dataclasses.replace(row, numbers={}).collapsed == 0


def test_the_verdict_names_the_best_and_what_is_and_is_not_told_from_it(bench: Path, tmp_path: Path) -> None:
    """As pairs.csv has it: each of the others in one of the two lists."""
    analysed(bench, tmp_path)
    (part,) = {(line["against"]) for line in csv_lines(tmp_path / "pairs.csv")} - {"retrain", FLOOR}
    lines = [line for line in csv_lines(tmp_path / "pairs.csv") if (line["measure"], line["against"]) == ("ToW", part)]
    (said,) = tables.verdicts(table_of(bench), AnalysisConfig(), contrasts.TOW)
    told, _, rest = said.partition("not told from it: ")
    assert said.startswith(f"Nearest to retrain by ToW: {part}, ") and len(lines) == 2
    for line in lines:
        assert (line["method"] in told) == line["verdict"].startswith("different")
        assert (line["method"] in rest) != line["verdict"].startswith("different")
