"""Statistics that decide: closed forms, published numbers by hand, SciPy, and simulations of what an interval promises."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from evaluation import statistics
from evaluation.statistics import Paired, paired
from evaluation.tow import tow
from utils import BadInput

FIVE = [0.012, 0.018, 0.007, 0.021, 0.015]  # differences of ToW over five seeds
NESTED = [[0.90, 0.92], [0.95, 0.97], [0.85, 0.83]]  # rows: training seeds


# ------------------------------------------------------------------------------------------------------------------ paired


def test_paired_differences_have_the_interval_and_p_of_a_t_test() -> None:
    found = paired(FIVE)
    assert found.n == 5 and found.mean == pytest.approx(0.0146) and found.sd == pytest.approx(0.005413, abs=1e-6)
    assert found.mean / (found.sd / math.sqrt(5)) == pytest.approx(6.031, abs=5e-4)
    assert found.p == pytest.approx(0.00381, abs=5e-6) and found.ends == pytest.approx((0.00788, 0.02132), abs=5e-6)
    wanted = stats.ttest_1samp(FIVE, 0)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-12)
    assert found.ends == pytest.approx(tuple(wanted.confidence_interval(0.95)), rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_paired_equals_scipys_test_of_related_samples(count: int) -> None:
    random = np.random.default_rng(count)
    a, b = random.normal(0.3, 1, count), random.normal(size=count)
    left, right = (dict(zip(range(count), x.tolist(), strict=True)) for x in (a, b))
    found = paired(list(statistics.differences(left, right).values()))
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-12)
    assert found.ends == pytest.approx(tuple(stats.ttest_rel(a, b).confidence_interval(0.95)), rel=1e-10)


def test_differences_are_of_the_seeds_that_both_have() -> None:
    assert statistics.differences({1: 5.0, 2: 7.0, 9: 1.0}, {2: 4.0, 1: 5.5, 3: 0.0}) == {1: -0.5, 2: 3.0}


def test_one_seed_has_a_difference_and_no_test() -> None:
    found = paired([0.3])
    assert found == Paired(1, 0.3, None, None, None)
    assert statistics.tost(found, 1.0) is None and statistics.verdict(found.p, None) == ""


def test_equal_differences_leave_no_doubt() -> None:
    assert paired([0.1, 0.1, 0.1]) == (3, 0.1, 0.0, (0.1, 0.1), 0.0)
    nothing = paired([0.0, 0.0])
    assert nothing.p == 1.0 and statistics.tost(nothing, 0.02) == 0.0
    assert statistics.tost(paired([0.1, 0.1]), 0.02) == 1.0 and statistics.tost(paired([-0.1, -0.1]), 0.02) == 1.0


def test_an_interval_of_differences_is_cut_at_the_largest_there_can_be() -> None:
    wide = [90.0, 20.0]
    assert paired(wide).ends[1] > 100 and paired(wide, most=100.0).ends == (-100.0, 100.0)
    assert paired(wide, most=100.0).p == paired(wide).p


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_values_that_are_no_numbers_are_refused(bad: list[float]) -> None:
    with pytest.raises(BadInput, match="average"):
        paired(bad)
    with pytest.raises(BadInput, match="average"):
        statistics.interval(bad)


# ------------------------------------------------------------------------------------------------------- several, equivalence


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.5, None, 0.02]) == [0.5, None, 0.04] and statistics.holm([]) == []
    assert statistics.holm([0.4, 0.9, 0.6]) == [1.0, 1.0, 1.0]


def test_holm_rejects_as_its_steps_do() -> None:
    """The procedure in its own words: the smallest p against alpha / K, the next against alpha / (K - 1), until one fails."""
    random = np.random.default_rng(1)
    for _ in range(300):
        ps = (random.random(6) ** 3).tolist()
        rejected: set[int] = set()
        for step, place in enumerate(np.argsort(ps)):
            if ps[place] > 0.05 / (6 - step):
                break
            rejected.add(int(place))
        assert {i for i, p in enumerate(statistics.holm(ps)) if p <= 0.05} == rejected


def test_equivalence_by_two_one_sided_tests() -> None:
    found = paired(FIVE)
    assert statistics.tost(found, 0.02) == pytest.approx(0.0448, abs=5e-5)
    assert statistics.tost(found, 0.03) == pytest.approx(0.00156, abs=5e-6)
    assert paired(FIVE, level=0.9).ends == pytest.approx((0.00944, 0.01976), abs=5e-6)
    for delta in (0.02, 0.03, 0.012):
        wanted = max(stats.ttest_1samp(FIVE, delta, alternative="less").pvalue,
                     stats.ttest_1samp(FIVE, -delta, alternative="greater").pvalue)
        assert statistics.tost(found, delta) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("shift", np.linspace(-0.05, 0.05, 21))
def test_equivalence_holds_where_the_narrower_interval_lies_inside(shift: float) -> None:
    values = [value + shift for value in FIVE]
    low, high = paired(values, level=0.9).ends
    assert (statistics.tost(paired(values), 0.02) < 0.05) == (low > -0.02 and high < 0.02)


def test_the_four_verdicts() -> None:
    """The five differences are significant and within 0.02; by 0.01 they are only different."""
    found = paired(FIVE)
    assert statistics.verdict(found.p, statistics.tost(found, 0.02)) == "different but within delta"
    assert statistics.verdict(found.p, statistics.tost(found, 0.01)) == "different"
    near = paired([0.001, -0.002, 0.0015, -0.001])
    assert statistics.verdict(near.p, statistics.tost(near, 0.02)) == "equivalent"
    assert statistics.verdict(near.p, None) == "undecided"
    far = paired([0.05, -0.04, 0.03])
    assert statistics.verdict(far.p, statistics.tost(far, 0.02)) == "undecided"


# --------------------------------------------------------------------------------------------------------------- how many seeds


@pytest.mark.parametrize(("n", "row"), [(3, (0.08, 0.18, 0.47, 0.75)), (5, (0.14, 0.40, 0.91, 1.00)),
                                        (10, (0.29, 0.80, 1.00, 1.00))])
def test_power_of_the_paired_test(n: int, row: tuple[float, ...]) -> None:
    for effect, wanted in zip((0.5, 1, 2, 3), row, strict=True):
        assert statistics.power_of_t(effect, n) == pytest.approx(wanted, abs=0.0051)


@pytest.mark.parametrize(("effect", "seeds"), [(0.5, 34), (0.75, 16), (1, 10), (1.5, 6), (2, 5), (3, 4), (4, 3), (-2, 5)])
def test_seeds_for_a_difference(effect: float, seeds: int) -> None:
    assert statistics.seeds_to_differ(effect) == seeds


@pytest.mark.parametrize(("difference", "seeds"), [(0.05, 3), (0.03, 4), (0.02, 5), (0.01, 10), (0.005, 34)])
def test_seeds_for_a_difference_of_tow(difference: float, seeds: int) -> None:
    """With a standard deviation of 0.01 over seeds; a hundredth is one standard deviation."""
    assert statistics.seeds_to_decide(Paired(3, difference, 0.01, None, None), None) == seeds


@pytest.mark.parametrize(("margin", "seeds"), [(0.5, 36), (0.75, 17), (1, 11), (1.5, 6), (2, 4), (3, 3)])
def test_seeds_for_equivalence(margin: float, seeds: int) -> None:
    assert statistics.seeds_to_equal(margin) == seeds


def test_power_of_equivalence_is_that_of_a_simulation() -> None:
    random = np.random.default_rng(0)
    for margin, n, mean in ((1.5, 6, 0.0), (1.5, 6, 0.4), (3, 3, 0.0)):
        draws = random.normal(mean, 1, (40000, n))
        half = stats.t.ppf(0.95, n - 1) * draws.std(1, ddof=1) / math.sqrt(n)
        shown = (abs(draws.mean(1)) + half < margin).mean()
        assert statistics.power_of_tost(margin, n, mean) == pytest.approx(shown, abs=0.01)


def test_no_number_of_seeds_shows_what_is_not_there() -> None:
    assert statistics.seeds_to_differ(0.0) is None and statistics.seeds_to_differ(1e-3) is None
    assert statistics.seeds_to_equal(1.0, mean=1.0) is None
    assert statistics.seeds_to_decide(Paired(3, 0.0, 0.0, None, None), 1.0) is None
    assert statistics.seeds_to_decide(Paired(3, 0.1, 1.0, None, None), 1.0) == statistics.seeds_to_equal(1.0, 0.1) < 20


# -------------------------------------------------------------------------------------------------------------------- nested


def test_nested_means_do_not_take_inner_runs_for_independent() -> None:
    found = statistics.nested(NESTED)
    mean, (low, high), n = found.number
    assert mean == pytest.approx(0.90333, abs=5e-6) and n == 3
    assert found.inner_variance == pytest.approx(0.0002) and found.outer_variance == pytest.approx(0.0035333, abs=5e-8)
    assert (high - low) / 2 == pytest.approx(0.1497, abs=5e-5)
    assert (high - low) / 2 / stats.t.ppf(0.975, 2) == pytest.approx(0.03480, abs=5e-6)
    plain = statistics.interval(list(itertools.chain(*NESTED)))
    assert (plain.ends[1] - plain.ends[0]) / 2 == pytest.approx(0.0577, abs=5e-5)


def test_nested_variances_are_those_of_the_analysis_of_variance() -> None:
    table = np.random.default_rng(0).normal(size=(5, 4)) + np.arange(5)[:, None]
    found = statistics.nested(table.tolist())
    f = stats.f_oneway(*table).statistic
    assert f == pytest.approx((found.inner_variance + 4 * found.outer_variance) / found.inner_variance)


def test_nested_tables_that_are_not_balanced_have_no_variances() -> None:
    assert statistics.nested([[1.0, 2.0], [3.0]])[1:] == (None, None)
    assert statistics.nested([[1.0, 2.0]]) == ((1.5, None, 1), None, None)
    assert statistics.nested([[1.0, 3.0], [2.0, 2.0]]).outer_variance == 0.0


def test_cheapest_split_is_the_best_of_all() -> None:
    """Smallest standard error for a budget, tried out."""
    outer, inner, dear, cheap = 0.5, 4.0, 10.0, 1.0
    best = min(range(1, 60), key=lambda u: (outer + inner / u) * (dear + cheap * u))
    assert round(statistics.cheapest_split(outer, inner, dear, cheap)) == best == 9
    assert statistics.cheapest_split(4.0, 0.5, 1.0, 1.0) == 1.0


# ------------------------------------------------------------------------------------------------------------------- intervals


def test_without_a_domain_the_interval_is_students() -> None:
    values = [0.71, 0.75, 0.74, 0.69]
    found = statistics.interval(values, level=0.9)
    wanted = stats.t.interval(0.9, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found.ends == pytest.approx(wanted, rel=1e-12) and found.mean == pytest.approx(0.7225) and found.n == 4
    assert statistics.interval([0.7]) == (0.7, None, 1)
    assert statistics.interval([0.1] * 3) == (0.1, (0.1, 0.1), 3)


@pytest.mark.parametrize("domain", [(0.0, 1.0), (0.0, 100.0), (-1.0, 1.0), (0.0, math.inf)])
def test_an_interval_never_passes_its_domain(domain: tuple[float, float]) -> None:
    random = np.random.default_rng(0)
    low, high = domain
    width = high - low if high < math.inf else 1.0
    for count, share in itertools.product((2, 3, 7), (0.5, 0.9, 0.999, 1.0)):
        values = (low + width * np.clip(share + random.normal(0, 0.3, count), 0, 1)).tolist()
        mean, ends, _ = statistics.interval(values, domain)
        assert low <= ends[0] <= mean <= ends[1] <= high
    for end in filter(math.isfinite, domain):
        assert statistics.interval([end] * 3, domain).ends == (end, end)
    assert statistics.interval([1e-300, 5.0], (0.0, math.inf)).ends[0] >= 0


def test_the_logit_interval_by_hand() -> None:
    values = [0.97, 0.99, 0.995]
    m, s, t = np.mean(values), stats.sem(values), stats.t.ppf(0.975, 2)
    ends = [1 / (1 + math.exp(-(math.log(m / (1 - m)) + sign * t * s / (m * (1 - m))))) for sign in (-1, 1)]
    assert statistics.interval(values, (0.0, 1.0)).ends == pytest.approx(ends, rel=1e-12)
    assert m + t * s > 1  # the plain one passes what there can be
    percent = statistics.interval([100 * v for v in values], (0.0, 100.0))
    assert percent.ends == pytest.approx([100 * e for e in ends], rel=1e-12)


def test_the_log_interval_by_hand() -> None:
    values = [1.0, 9.0, 2.0]
    half = stats.t.ppf(0.975, 2) * stats.sem(values)
    assert statistics.interval(values, (0.0, math.inf)).ends == pytest.approx((4 / math.exp(half / 4), 4 * math.exp(half / 4)))


@pytest.mark.parametrize("n", [3, 10])
def test_the_logit_interval_covers_as_it_says(n: int) -> None:
    """ToW of a perfect method with accuracies that vary by a point from run to run: near 1, and far from normal."""
    random = np.random.default_rng(n)
    gaps = np.abs(random.normal(0, 0.01, (2500, n, 3)) - random.normal(0, 0.01, (2500, n, 3)))
    tows = np.prod(1 - gaps, axis=2)
    truth = (1 - 2 * 0.01 / math.sqrt(math.pi)) ** 3
    ends = [statistics.interval(row, (0.0, 1.0)).ends for row in tows.tolist()]
    assert np.mean([low <= truth <= high for low, high in ends]) == pytest.approx(0.95, abs=0.014)


# ----------------------------------------------------------------------------------------------------------- floor and excess


@pytest.mark.parametrize(("sigma", "wanted"), [(0.002, 0.9932), (0.005, 0.9832), (0.01, 0.9665)])
def test_expected_tow_of_a_perfect_method(sigma: float, wanted: float) -> None:
    """What the floor is about: two retrained models whose accuracies vary by sigma."""
    random = np.random.default_rng(0)
    shares = [dict(zip(("forget", "retain", "test"), row, strict=True)) for row in 0.5 + random.normal(0, sigma, (600, 3))]
    mean = np.mean([tow(a, b) for a, b in zip(shares[::2], shares[1::2], strict=True)])
    assert mean == pytest.approx(wanted, abs=6 * sigma / math.sqrt(300))
    assert (1 - 2 * sigma / math.sqrt(math.pi)) ** 3 == pytest.approx(wanted, abs=6e-5)


def distance(a: dict[str, float], b: dict[str, float]) -> float:
    return abs(a["x"] - b["x"])


def as_dicts(values: np.ndarray) -> list[dict[str, float]]:
    return [{"x": float(value)} for value in values]


def test_excess_by_hand() -> None:
    """Three seeds: means over the six pairs i != j and the three pairs of retrains; pseudo-values by leaving a seed out."""
    own, ref = np.array([5.0, 4.0, 6.5]), np.array([1.0, 2.0, 1.5])
    d_own = statistics.pairwise(as_dicts(own), as_dicts(ref), distance)
    d_ref = statistics.pairwise(as_dicts(ref), as_dicts(ref), distance)

    def by_loop(keep: list[int]) -> float:
        ours = [abs(own[i] - ref[j]) for i in keep for j in keep if i != j]
        theirs = [abs(ref[i] - ref[j]) for i in keep for j in keep if i < j]
        return sum(ours) / len(ours) - sum(theirs) / len(theirs)

    whole = by_loop([0, 1, 2])
    pseudo = [3 * whole - 2 * by_loop([j for j in range(3) if j != i]) for i in range(3)]
    half = stats.t.ppf(0.975, 2) * stats.sem(pseudo)
    found = statistics.excess(d_own, d_ref)
    assert found.mean == pytest.approx(whole) and found.ends == pytest.approx((whole - half, whole + half)) and found.n == 3
    assert statistics.upper(d_ref) == [1.0, 0.5, 0.5]
    assert found.sd == pytest.approx(np.std(pseudo, ddof=1))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(whole) / stats.sem(pseudo), 2))
    assert statistics.excess(d_own[:2, :2], d_ref[:2, :2]) == (2, pytest.approx(by_loop([0, 1])), None, None, None)


@pytest.mark.parametrize("n", [3, 6])
def test_a_method_that_retrains_has_no_excess(n: int) -> None:
    """Mean 0 over many tables, and 0 lies in the interval as often as it says or oftener."""
    random, found = np.random.default_rng(n), []
    for _ in range(700):
        own, ref = random.normal(size=(2, n))
        distances = np.abs(own[:, None] - ref), np.abs(ref[:, None] - ref)
        found.append(statistics.excess(*distances))
    assert np.mean([number.mean for number in found]) == pytest.approx(0, abs=0.08)
    assert np.mean([number.ends[0] <= 0 <= number.ends[1] for number in found]) > 0.92


# ------------------------------------------------------------------------------------------------------------------- images


def test_error_from_the_images_is_binomial() -> None:
    assert statistics.share_error(0.7, 100) == pytest.approx(0.0458, abs=5e-5)  # 4.6 points at a hundred images
    assert statistics.share_error(1.0, 50) == 0.0


def test_error_of_tow_from_the_images_is_that_of_drawing_them() -> None:
    """The bootstrap by hand: images of every part with replacement, accuracies of both models on the drawn ones."""
    random = np.random.default_rng(0)
    parts = {name: (random.random(size) < 0.7, random.random(size) < 0.8) for name, size in (("forget", 60), ("test", 90))}
    counts = {name: (int((a & ~b).sum()), int((b & ~a).sum()), int((a == b).sum())) for name, (a, b) in parts.items()}
    drawn = []
    for _ in range(3000):
        product = 1.0
        for a, b in parts.values():
            rows = random.integers(0, len(a), len(a))
            product *= 1 - abs(a[rows].mean() - b[rows].mean())
        drawn.append(product)
    assert statistics.tow_error(counts) == pytest.approx(np.std(drawn), rel=0.08)
    assert statistics.tow_error({"forget": (0, 0, 40)}) == 0.0


@pytest.mark.parametrize("counts", [(1, 0, 0), (0, 3, 2), (1, 2, 4), (6, 0, 1), (3, 3, 0), (1, 1, 300), (40, 9, 500)])
def test_moments_of_the_distance_are_those_of_every_draw_there_is(counts: tuple[int, int, int]) -> None:
    n, shares = sum(counts), np.array(counts) / sum(counts)
    a = np.arange(n + 1)
    a, b = (side.ravel() for side in np.meshgrid(a, a))
    a, b = a[a + b <= n], b[a + b <= n]
    law = stats.multinomial.pmf(np.stack([a, b, n - a - b], 1), n, shares)
    apart = np.abs(a - b) / n
    assert statistics._moments_of_distance(*counts) == pytest.approx((law @ apart, law @ apart**2), rel=1e-9)
