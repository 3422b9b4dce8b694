"""Ranks of methods over settings: exact tests against SciPy's, bars, blocks, and the reason where there are too few."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from layout import faults
from pretended import four_methods, table_of
from scipy import stats

from evaluation.statistics import Number
from report import contrasts, ranks
from report.draw import draw
from report.pairs import AnalysisConfig
from report.ranks import ranking, signed_rank
from report.rows import FLOOR, Row


@pytest.mark.parametrize("count", [1, 2, 6, 11])
def test_signed_ranks_are_scipys(count: int) -> None:
    random = np.random.default_rng(count)
    for shift in (0.0, 0.5, 2.0):
        values = random.normal(shift, 1, count)
        assert signed_rank(values) == pytest.approx(stats.wilcoxon(values, method="exact").pvalue)


def test_ties_are_counted_over_all_signs() -> None:
    """By hand: every sign of each rank, whose mean ties share; a difference of 0 says nothing."""
    values = [1.0, -1.0, 2.0, 0.0, 2.0, 3.0]
    sizes = [1.5, 1.5, 3.5, 3.5, 5.0]
    sums = [sum(size for size, sign in zip(sizes, signs, strict=True) if sign) for signs in itertools.product((0, 1), repeat=5)]
    seen = 1.5 + 3.5 + 3.5 + 5.0
    wanted = 2 * min(sum(s >= seen for s in sums), sum(s <= seen for s in sums)) / 32
    assert signed_rank(values) == min(1.0, wanted) and signed_rank([0.0, 0.0]) == 1.0


def test_ranking_by_hand() -> None:
    """Three methods over eight blocks: A above B in half of them, C below both; Holm by hand over the three p."""
    blocks = {f"setting {k}": {"C": 0.1 + k / 1000, "A": 0.9 + k / 500, "B": 0.9 + (k - 3.4) / 100} for k in range(8)}
    found = ranking(blocks)
    values = {name: np.array([means[name] for means in blocks.values()]) for name in "ABC"}
    by_block = np.array([stats.rankdata([-means[name] for name in "ABC"]) for means in blocks.values()])
    assert found.ranks == pytest.approx(dict(zip("ABC", by_block.mean(0), strict=True)))
    assert list(found.ranks) == sorted("ABC", key=lambda name: by_block.mean(0)["ABC".index(name)])
    own = {pair: stats.wilcoxon(values[pair[0]] - values[pair[1]], method="exact").pvalue for pair in found.p}
    least, highest = sorted(own, key=lambda pair: own[pair]), 0.0
    for place, pair in enumerate(least):
        highest = max(highest, min(1.0, own[pair] * (3 - place)))
        assert found.p[pair] == pytest.approx(highest)
    joined = {tuple(sorted(list(found.ranks)[a : b + 1])) for a, b in found.joined}
    assert joined == {("A", "B")}


def test_bars_join_neighbours_alone() -> None:
    ordered = list("ABCD")
    p = {pair: 0.5 for pair in itertools.combinations(ordered, 2)}
    assert ranks._joined(ordered, p, 0.05) == ((0, 3),)
    assert ranks._joined(ordered, p | {("A", "D"): 0.01}, 0.05) == ((0, 2), (1, 3))
    assert ranks._joined(ordered, dict.fromkeys(p, 0.01), 0.05) == ()


@pytest.fixture(scope="module")
def table(library: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return table_of(four_methods(library, tmp_path_factory.mktemp("ranks")))


@pytest.fixture(autouse=True)
def headroom(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every setting told its methods apart; toy ones do not."""
    monkeypatch.setattr(contrasts, "nobody_best", lambda *_: "")


def settings(table: list[Row], count: int) -> list[Row]:
    """The rows of one setting under several names; FT is above NG in all."""
    found = []
    for k in range(count):
        for row in table:
            pairs = [dataclasses.replace(pair, setting=pair.setting._replace(key=f"key {k}")) for pair in row.pairs]
            own = {"FT": 0.8, "NG": 0.5}.get(row.method)
            numbers = row.numbers | ({"ToW": Number(own + k / 100, None, 3)} if own else {})
            found.append(dataclasses.replace(row, setting=f"setting {k}", pairs=pairs, numbers=numbers))
    return found


def test_six_settings_are_ranked(table: list[Row]) -> None:
    many = settings(table, 6)
    (extra,) = ranks.tow_tables(AnalysisConfig(), many)
    chart, lines = extra.figures["ranks"], extra.csv
    assert chart.rows == ("FT", "NG") and chart.panels[0].bars == () and not faults(draw(chart))
    assert [line[:3] for line in lines[1:]] == [["FT", 1.0, 6], ["NG", 2.0, 6]]
    assert lines[1][lines[0].index("p_NG")] == pytest.approx(2 / 2**6)
    assert [dot.mean for dot in chart.panels[0].dots[""].values()] == [1.0, 2.0]
    assert "over 6 settings" in chart.caption and "n = 3 seeds (3, 5, 8)" in chart.caption
    assert "So few settings" not in chart.caption
    three = {name: means | {"GA": 0.1} for name, means in ranks.blocks_of(many, contrasts.TOW, AnalysisConfig())[0].items()}
    assert "So few settings" in ranks.chart(ranking(three), three, many, "ToW").caption  # 3 * 2 / 64
    assert lines[1][-6:] == [0.8 + k / 100 for k in range(6)]


def test_methods_that_are_alike_are_joined(table: list[Row]) -> None:
    many = settings(table, 6)
    for place, row in enumerate(row for row in many if row.method == "NG"):
        row.numbers["ToW"] = Number(0.99 if place % 2 else 0.4, None, 3)
    (extra,) = ranks.tow_tables(AnalysisConfig(), many)
    assert extra.figures["ranks"].panels[0].bars == ((0, 1),) and not faults(draw(extra.figures["ranks"]))


def test_too_few_settings_give_the_reason(table: list[Row]) -> None:
    """Five; six of which two are one forget set; six of which one tells no methods apart; one alone is not spoken of."""
    def reason(many: list[Row]) -> str:
        (extra,) = ranks.tow_tables(AnalysisConfig(), many)
        assert not extra.figures and not extra.csv
        return extra.notes[0]

    assert "they need 6" in reason(settings(table, 5)) and reason(settings(table, 5)).endswith("here are 5")
    twice = settings(table, 6)
    for row in twice:
        row.pairs = [dataclasses.replace(pair, setting=pair.setting._replace(key=pair.setting.key.replace("5", "4")))
                     for pair in row.pairs]
    assert reason(twice).endswith("here are 5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrasts, "nobody_best", lambda part, *_: "no headroom: x" if part[0].setting == "setting 2" else "")
        assert reason(settings(table, 6)).endswith("here are 5 (1 more tell no methods apart)")
    assert ranks.tow_tables(AnalysisConfig(), table) == []
    other = [row for row in settings(table, 6) if (row.setting, row.method) != ("setting 0", "NG")]
    assert "1 of the methods are in all of the 6" in reason(other)


def test_a_broken_model_ranks_last(table: list[Row]) -> None:
    many = settings(table, 6)
    for row in many:
        if row.method == "FT":
            row.pairs = [dataclasses.replace(pair, run=pair.run._replace(record=pair.run.record | {
                "collapsed": True})) for pair in row.pairs]
    (extra,) = ranks.tow_tables(AnalysisConfig(), many)
    assert extra.figures["ranks"].rows == ("NG", "FT")
    assert FLOOR not in extra.figures["ranks"].rows
