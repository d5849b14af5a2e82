"""Intervals, paired tests, Holm and sample sizes against hand calculation, theory and simulation."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from bilevel.statistics import (
    MOST_SEEDS,
    bootstrap_interval,
    equivalence_power,
    holm,
    mean_interval,
    paired_difference,
    paired_equivalence,
    paired_power,
    seeds_to_decide,
    seeds_to_decide_equivalence,
)

values = st.floats(-1000, 1000, allow_subnormal=False).map(lambda x: round(x, 3))
samples = st.lists(values, min_size=2, max_size=20)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=20)


def test_t_interval_by_hand() -> None:
    found = mean_interval([1, 2, 3, 4, 5])
    assert found.n == 5
    assert found.mean == 3
    assert found.sd == pytest.approx(math.sqrt(2.5))
    half = 2.7764451 * math.sqrt(2.5) / math.sqrt(5)  # t(0.975; 4) from a printed table
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), abs=1e-6)


def test_level_widens_the_interval() -> None:
    narrow, wide = mean_interval([1, 2, 4], level=0.8), mean_interval([1, 2, 4], level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("interval", [mean_interval, bootstrap_interval])
def test_few_values_have_no_bounds(interval) -> None:
    nothing, one = interval([]), interval([7.5])
    assert nothing.n == 0
    assert math.isnan(nothing.mean)
    assert (one.n, one.mean) == (1, 7.5)
    assert all(math.isnan(x) for found in (nothing, one) for x in (found.low, found.high, found.sd))


@pytest.mark.parametrize("interval", [mean_interval, bootstrap_interval])
def test_equal_values_have_width_zero(interval) -> None:
    found = interval([0.1] * 3)  # whose sum rounds: numpy's mean is not 0.1
    assert (found.mean, found.low, found.high, found.sd) == (0.1, 0.1, 0.1, 0)


@pytest.mark.parametrize("interval", [mean_interval, bootstrap_interval])
def test_misuse_is_refused(interval) -> None:
    with pytest.raises(ValueError, match="one dimension"):
        interval([[1.0, 2.0]])
    with pytest.raises(ValueError, match="level lies between 0 and 1"):
        interval([1.0, 2.0], level=95)


def test_an_infinity_shows_in_the_mean() -> None:
    found = mean_interval([1, 2, math.inf])
    assert found.mean == math.inf
    assert math.isnan(found.low)


@given(samples, st.floats(0.01, 100), values)
def test_t_interval_follows_shift_and_scale(sample: list[float], scale: float, shift: float) -> None:
    plain, moved = mean_interval(sample), mean_interval(scale * np.array(sample) + shift)
    mirrored = mean_interval(-np.array(sample))
    expected = [
        scale * plain.mean + shift,
        scale * plain.low + shift,
        scale * plain.high + shift,
        scale * plain.sd,
    ]
    assert [moved.mean, moved.low, moved.high, moved.sd] == pytest.approx(expected, rel=1e-9, abs=1e-6)
    assert (mirrored.low, mirrored.high) == pytest.approx((-plain.high, -plain.low), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_t_and_bootstrap_agree_on_normal_samples(seed: int) -> None:
    sample = np.random.default_rng(seed).normal(3, 2, size=200)
    t, bootstrap = mean_interval(sample), bootstrap_interval(sample, resamples=4000, seed=seed)
    assert bootstrap.mean == t.mean
    width = t.high - t.low
    assert abs(bootstrap.low - t.low) < 0.04 * width
    assert abs(bootstrap.high - t.high) < 0.04 * width


def test_bootstrap_is_repeatable_and_skewed_as_the_sample_is() -> None:
    sample = np.random.default_rng(0).lognormal(sigma=1.5, size=30)
    found = bootstrap_interval(sample, resamples=500, seed=1)
    assert found == bootstrap_interval(sample, resamples=500, seed=1)
    assert found != bootstrap_interval(sample, resamples=500, seed=2)
    assert found.high - found.mean > 1.2 * (found.mean - found.low)


def test_t_interval_covers_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 4))
    covered = [found.low < 0 < found.high for found in map(mean_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_paired_difference_by_hand() -> None:
    found = paired_difference([11, 22, 33], [10, 20, 30])  # differences 1, 2, 3: sd 1, t = 2 √3
    assert (found.n, found.effect, found.sd) == (3, 2, 1)
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))  # closed form for 2 degrees of freedom
    half = 4.3026527 / math.sqrt(3)  # t(0.975; 2) from a printed table
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-6)


@given(st.lists(st.tuples(values, values), min_size=2, max_size=12))
def test_paired_difference_agrees_with_scipy_and_turns_with_its_sides(
    pairs: list[tuple[float, float]],
) -> None:
    left, right = np.array(pairs).T
    assume(np.ptp(left - right) > 1e-6)
    found, turned = paired_difference(left, right), paired_difference(right, left)
    assert found.p == pytest.approx(stats.ttest_rel(left, right).pvalue, rel=1e-6, abs=1e-12)
    assert (turned.effect, turned.low, turned.high) == (-found.effect, -found.high, -found.low)
    assert turned.p == found.p
    if abs(found.p - 0.05) > 1e-6:
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


@pytest.mark.parametrize(
    ("left", "right", "effect"),
    [
        ([5, 6, 7], [4, 5, 6], 1),
        ([5, 6, 7], [5, 6, 7], 0),
        ([0.78, 0.80, 0.735], [0.68, 0.70, 0.635], 0.1),  # equal up to the rounding of the subtraction
    ],
)
def test_differences_without_spread_have_no_test(left, right, effect: float) -> None:
    found = paired_difference(left, right)
    assert found.n == 3
    assert found.effect == pytest.approx(effect)
    assert found.sd == 0
    assert all(map(math.isnan, (found.p, found.low, found.high)))


def test_a_small_spread_is_still_a_spread() -> None:
    assert paired_difference([0.71, 0.72, 0.7301], [0.61, 0.62, 0.63]).p < 1e-4


def test_few_pairs_have_no_test() -> None:
    assert paired_difference([], []).n == 0
    one = paired_difference([2.0], [0.5])
    assert (one.n, one.effect) == (1, 1.5)
    assert all(map(math.isnan, (one.p, one.low, one.high, one.sd)))
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])


def test_holm_by_hand() -> None:
    # sorted 0.005 · 4, 0.01 · 3, 0.03 · 2, 0.04 · 1 = 0.02, 0.03, 0.06, 0.04; the last is raised to 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_passes_undefined_tests_over() -> None:
    found = holm([0.01, math.nan, 0.04, 0.03, math.nan, 0.005])
    assert found == pytest.approx([0.03, math.nan, 0.06, 0.06, math.nan, 0.02], nan_ok=True)
    assert holm([]).shape == (0,)
    assert np.isnan(holm([math.nan])).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, 1.1])


@given(p_values)
def test_holm_is_monotone_and_between_raw_and_bonferroni(raw: list[float]) -> None:
    adjusted = holm(raw)
    assert np.all(adjusted >= raw)
    assert np.all(adjusted <= np.minimum(1, len(raw) * np.array(raw)))
    by_raw = adjusted[np.argsort(raw, kind="stable")]
    assert all(first <= second for first, second in pairwise(by_raw))
    assert holm(raw[::-1]) == pytest.approx(adjusted[::-1])


@given(p_values, st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(raw: list[float], alpha: float) -> None:
    rejected: set[int] = set()
    for position, index in enumerate(np.argsort(raw, kind="stable")):
        if not (len(raw) - position) * raw[index] < alpha:
            break
        rejected.add(int(index))
    assert set(np.flatnonzero(holm(raw) < alpha)) == rejected


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_known_sample_sizes(effect: float, n: int) -> None:
    assert seeds_to_decide(effect, sd=1.0) == n  # as G*Power and R's power.t.test give them
    assert seeds_to_decide(-10 * effect, sd=10.0) == n


@given(st.floats(0.02, 50), st.floats(0.5, 0.99), st.floats(0.001, 0.1))
def test_seeds_to_decide_is_the_smallest_number(effect: float, power: float, alpha: float) -> None:
    n = seeds_to_decide(effect, 1.0, power, alpha)
    assert n is not None
    assert paired_power(n, effect, 1.0, alpha) >= power
    assert n == 2 or paired_power(n - 1, effect, 1.0, alpha) < power


def test_power_is_what_simulation_gives() -> None:
    draws = np.random.default_rng(0).normal(0.9, 1.0, size=(20_000, 8))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(
        paired_power(8, 0.9, 1.0), abs=0.01
    )


def test_power_is_defined_in_the_far_tails() -> None:
    # the noncentral F with one degree of freedom is the square of the noncentral t
    for effect in np.geomspace(1e-3, 1e4, 40):
        for n in (2, 3, 9, 1000):
            squared = stats.t.isf(0.0025, n - 1) ** 2
            oracle = stats.ncf.sf(squared, 1, n - 1, min(n * effect**2, 1e9))
            assert paired_power(n, effect, 1.0, 0.005) == pytest.approx(oracle, abs=1e-6)


@pytest.mark.parametrize(
    ("effect", "sd"), [(0.0, 1.0), (math.nan, 1.0), (1.0, math.nan), (1.0, 0.0), (1e-4, 1.0), (math.inf, 1.0)]
)
def test_no_number_of_seeds_can_be_named(effect: float, sd: float) -> None:
    assert seeds_to_decide(effect, sd) is None


def test_the_cap_of_seeds_to_decide() -> None:
    n = seeds_to_decide(0.009, 1.0)
    assert n is not None
    assert 90_000 < n <= MOST_SEEDS
    assert seeds_to_decide(0.0088, 1.0) is None
    assert seeds_to_decide(1e15, 1.0) == 2
    with pytest.raises(ValueError, match="power lies between 0 and 1"):
        seeds_to_decide(1.0, 1.0, power=80)


# --- equivalence


@given(samples, st.floats(0.01, 100), st.floats(-50, 50))
def test_equivalence_is_the_larger_of_two_one_sided_tests(left: list[float], margin: float, shift: float) -> None:
    right = [x * 0.5 + shift for x in reversed(left)]
    difference = np.subtract(left, right)
    assume(np.ptp(difference) > 1e-6)
    found, two_sided = paired_equivalence(left, right, margin), paired_difference(left, right)
    above = stats.ttest_1samp(difference, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(difference, margin, alternative="less").pvalue
    assert found.p == pytest.approx(max(above, below), rel=1e-9, abs=1e-300)
    assert (found.n, found.effect, found.low, found.high, found.sd) == (
        two_sided.n, two_sided.effect, two_sided.low, two_sided.high, two_sided.sd,
    )  # fmt: skip
    mirrored = paired_equivalence(right, left, margin)
    assert (mirrored.p, mirrored.effect) == (found.p, -found.effect)
    assert paired_equivalence(left, right, 2 * margin).p <= found.p


def test_equivalence_by_hand() -> None:
    found = paired_equivalence([1, 2, 3, 4], [1, 1, 4, 4], margin=2)  # differences 0, 1, -1, 0
    t = 2 / (math.sqrt(2 / 3) / 2)
    assert found.effect == 0
    assert found.p == pytest.approx(stats.t.sf(t, 3))


@pytest.mark.parametrize(
    ("left", "margin", "p"),
    [
        ([0.825, 0.825, 0.825], 0.01, 0.0),
        ([0.815, 0.815, 0.815], 0.011, 0.0),
        ([0.815, 0.815, 0.815], 0.01, 0.5),
        ([0.835, 0.835, 0.835], 0.01, 0.5),
        ([0.814, 0.814, 0.814], 0.01, 1.0),
        ([0.805, 0.805, 0.805], 0.01, 1.0),
    ],
)
def test_equivalence_without_spread_is_the_limit(left: list[float], margin: float, p: float) -> None:
    found = paired_equivalence(left, [0.825] * 3, margin)
    assert found.p == p
    assert found.low == found.effect == found.high == pytest.approx(left[0] - 0.825, abs=1e-15)
    assert found.sd == 0
    assert (abs(found.effect) > margin) == (p == 1)


def test_equal_differences_up_to_rounding_have_no_spread() -> None:
    found = paired_equivalence([0.78, 0.80, 0.83], [0.68, 0.70, 0.73], margin=0.2)
    assert (found.p, found.sd) == (0, 0)
    assert paired_equivalence([0.78, 0.80, 0.83], [0.68, 0.70, 0.73], margin=0.1).p == 0.5


def test_equivalence_of_few_pairs_is_undefined() -> None:
    nothing, one = paired_equivalence([], [], 1), paired_equivalence([1], [0.5], 1)
    assert (nothing.n, one.n, one.effect) == (0, 1, 0.5)
    for found in (nothing, one):
        assert all(math.isnan(value) for value in (found.low, found.high, found.p, found.sd))


@pytest.mark.parametrize("margin", [0, -1, math.nan, math.inf])
def test_a_margin_is_a_positive_number(margin: float) -> None:
    with pytest.raises(ValueError, match="margin: expected a number above 0"):
        paired_equivalence([1, 2], [1, 2], margin)
    with pytest.raises(ValueError, match="margin: expected a number above 0"):
        seeds_to_decide_equivalence(0, 1, margin)
    with pytest.raises(ValueError, match="as many left as right"):
        paired_equivalence([1, 2], [1], 1)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 50, 1000, 100_000])
@pytest.mark.parametrize(("effect", "alpha"), [(0.0, 0.05), (0.4, 0.05), (-0.4, 0.005)])
def test_the_power_of_equivalence_is_the_integral_over_spreads(n: int, effect: float, alpha: float) -> None:
    margin = 0.5 + 3 / math.sqrt(n)
    critical, root = stats.t.isf(alpha, n - 1), math.sqrt(n)

    def density(spread: float) -> float:
        half = max(margin - critical * spread / root, 0)
        inside = stats.norm.cdf((half - effect) * root) - stats.norm.cdf((-half - effect) * root)
        return inside * stats.chi.pdf(spread, n - 1, scale=1 / math.sqrt(n - 1))

    width = 10 / math.sqrt(2 * n)
    oracle = integrate.quad(density, max(0, 1 - width), 1 + width, limit=500, points=[min(1, margin * root / critical)])
    assert equivalence_power(n, effect, 1.0, margin, alpha) == pytest.approx(oracle[0], abs=2e-4)


def test_the_power_of_equivalence_is_what_simulation_gives() -> None:
    draws = np.random.default_rng(0).normal(0.2, 1.0, size=(20_000, 12))
    p = [stats.ttest_1samp(draws, side, axis=1, alternative=a).pvalue for side, a in ((-1, "greater"), (1, "less"))]
    assert np.mean(np.max(p, axis=0) < 0.05) == pytest.approx(equivalence_power(12, 0.2, 1.0, 1.0), abs=0.01)


@settings(max_examples=30, deadline=None)
@given(st.floats(-0.95, 0.95), st.floats(0.05, 20), st.floats(0.5, 0.95), st.floats(0.001, 0.1))
def test_seeds_to_decide_equivalence_is_the_smallest_number(
    share: float, sd: float, power: float, alpha: float
) -> None:
    n = seeds_to_decide_equivalence(share, sd, 1.0, power, alpha)
    assume(n is not None)
    assert n is not None
    assert equivalence_power(n, share, sd, 1.0, alpha) >= power
    for fewer in {2, n // 2, n - 2, n - 1}:
        assert fewer < 2 or fewer == n or equivalence_power(fewer, share, sd, 1.0, alpha) < power
    assert seeds_to_decide_equivalence(-10 * share, 10 * sd, 10.0, power, alpha) == n


def test_seeds_to_decide_equivalence_of_large_samples() -> None:
    normal = ((stats.norm.isf(0.05) + stats.norm.isf(0.1)) / 0.02) ** 2  # both tests fail equally often
    assert seeds_to_decide_equivalence(0.0, 1.0, 0.02) == pytest.approx(normal, rel=1e-3)
    one_sided = ((stats.norm.isf(0.05) + stats.norm.isf(0.2)) / 0.02) ** 2  # one test is sure
    assert seeds_to_decide_equivalence(0.98, 1.0, 1.0) == pytest.approx(one_sided, rel=1e-3)


@pytest.mark.parametrize(
    ("effect", "sd"), [(1.0, 1.0), (-1.5, 1.0), (math.nan, 1.0), (0.0, math.nan), (0.0, 0.0), (0.9999, 1.0)]
)
def test_no_number_of_seeds_can_be_named_for_equivalence(effect: float, sd: float) -> None:
    assert seeds_to_decide_equivalence(effect, sd, 1.0) is None
