"""Intervals, paired comparisons and their correction; every distribution comes from SciPy.

All samples are one-dimensional, one value a seed. A quantity that the sample does not determine (a spread
from one seed, a t-test without spread) is NaN, never an exception: tables show it as an empty cell.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

MOST_SEEDS = 100_000
"""Above this number of seeds `seeds_to_decide` gives up: nobody would repeat such an experiment so often."""

# The noncentral t of SciPy is NaN for noncentralities above about 1e12; from 1e6 on the power is 1 in double
# precision at every level that a test is made at, so that nothing is lost.
_LARGEST_NONCENTRALITY = 1e6

_QUANTILES = 2000  # of a standard deviation, over which a power is averaged: an error below 1e-4


@dataclass(frozen=True, slots=True)
class Interval:
    """The mean of `n` values with the bounds of its confidence interval, and their standard deviation.

    `sd` has n - 1 in its denominator. All but `n` are in the unit of the values; what is undefined is NaN.
    """

    n: int
    mean: float
    low: float
    high: float
    sd: float


@dataclass(frozen=True, slots=True)
class Paired:
    """Left minus right over `n` pairs: mean difference, its 95 % t-interval, p of the test that was made.

    `sd` is the standard deviation of the differences. What is undefined is NaN.
    """

    n: int
    effect: float
    low: float
    high: float
    p: float
    sd: float


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean and t-interval: mean ± t((1 + level) / 2; n - 1) · sd / √n.

    Args:
        values: shape (n,), any unit. Infinities and NaNs are not removed: they show in the mean.
        level: coverage, between 0 and 1.

    Returns:
        The interval. With n = 0 everything is NaN, with n = 1 bounds and sd are; equal values give an
        interval of width zero.

    Raises:
        ValueError: `values` is not one-dimensional, or `level` is not between 0 and 1.
    """
    sample = _sample(values)
    _check_fraction("level", level)
    n, mean, sd = len(sample), _mean(sample), _sd(sample)
    if n < 2:
        return Interval(n, mean, math.nan, math.nan, math.nan)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(n, mean, mean - half, mean + half, sd)


def bootstrap_interval(values: ArrayLike, level: float = 0.95, resamples: int = 9999, seed: int = 0) -> Interval:
    """Mean and bias-corrected accelerated (BCa) bootstrap interval, through `scipy.stats.bootstrap`.

    Args:
        values: shape (n,), any unit.
        level: coverage, between 0 and 1.
        resamples: number of bootstrap samples.
        seed: of the resampling; the same seed gives the same bounds.

    Returns:
        As `mean_interval`: NaN bounds below two values, an interval of width zero for equal values.

    Raises:
        ValueError: `values` is not one-dimensional, or `level` is not between 0 and 1.
    """
    sample = _sample(values)
    _check_fraction("level", level)
    n, mean, sd = len(sample), _mean(sample), _sd(sample)
    if n < 2:
        return Interval(n, mean, math.nan, math.nan, math.nan)
    if sd == 0:  # BCa's acceleration would be 0 / 0
        return Interval(n, mean, mean, mean, 0.0)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # the bounds are then NaN, which says the same
        found = stats.bootstrap(
            (sample,),
            np.mean,
            confidence_level=level,
            n_resamples=resamples,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return Interval(n, mean, float(found.low), float(found.high), sd)


def paired_difference(left: ArrayLike, right: ArrayLike) -> Paired:
    """Paired two-sided t-test on the differences d = left - right, pair by pair (seed by seed).

    effect = mean(d), t = effect / (sd(d) / √n) with n - 1 degrees of freedom,
    bounds effect ± t(0.975; n - 1) · sd(d) / √n.

    With fewer than two pairs, and where all differences are equal (a spread of zero, up to the rounding of
    the subtraction), the t-test is undefined: p and bounds are NaN, which leaves a claim undecided. Without
    that allowance for rounding, 0.78 - 0.68 and 0.80 - 0.70 would differ in their last digit, and p would be
    near zero.

    Args:
        left: shape (n,), any unit.
        right: shape (n,), the same seeds in the same order.

    Raises:
        ValueError: not one-dimensional, or of different lengths.
    """
    difference, rounding = _differences(left, right)
    n = len(difference)
    if n < 2 or _without_spread(difference, rounding):
        return Paired(n, _mean(difference), math.nan, math.nan, math.nan, 0.0 if n >= 2 else math.nan)
    interval = mean_interval(difference)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = interval.mean / (np.float64(interval.sd) / math.sqrt(n))
    p = float(2 * stats.t.sf(abs(t), n - 1))
    return Paired(n, interval.mean, interval.low, interval.high, p, interval.sd)


def paired_equivalence(left: ArrayLike, right: ArrayLike, margin: float) -> Paired:
    """Paired test of equivalence on the differences d = left - right: two one-sided t-tests (TOST).

    The one rejects mean(d) <= -margin by t = (mean(d) + margin) / (sd(d) / √n), the other mean(d) >= margin by
    t = (mean(d) - margin) / (sd(d) / √n), each with n - 1 degrees of freedom. p is the larger of both: below α, the
    mean difference lies within the margin at level α. The bounds are those of `paired_difference`.

    Where all differences are equal (up to rounding), p has the value that it goes to as the spread goes to zero: 0
    within the margin, 1 outside, 0.5 at its edge; both bounds are the difference itself. With fewer than two pairs p
    and bounds are NaN.

    Args:
        left: shape (n,), any unit.
        right: shape (n,), the same seeds in the same order.
        margin: the largest difference that does not count, in the same unit, above 0.

    Raises:
        ValueError: not one-dimensional, of different lengths, or a margin that is not above 0 and finite.

    Source: Schuirmann 1987.
    """
    _check_margin(margin)
    difference, rounding = _differences(left, right)
    n, mean = len(difference), _mean(difference)
    if n < 2:
        return Paired(n, mean, math.nan, math.nan, math.nan, math.nan)
    if _without_spread(difference, rounding):
        if math.isfinite(mean) and abs(abs(mean) - margin) <= rounding:
            mean = math.copysign(margin, mean)
        p = 0.5 if abs(mean) == margin else float(abs(mean) > margin)
        return Paired(n, mean, mean, mean, p, 0.0)
    interval = mean_interval(difference)
    with np.errstate(invalid="ignore"):  # inf / inf is NaN
        t = (margin - np.abs(interval.mean)) / (np.float64(interval.sd) / math.sqrt(n))  # the test with the larger p
    return Paired(n, interval.mean, interval.low, interval.high, float(stats.t.sf(t, n - 1)), interval.sd)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjustment of p-values for making several tests at once.

    For p(1) <= ... <= p(m), adjusted p(i) = max over j <= i of min(1, (m - j + 1) · p(j)).
    NaN stands for a test that could not be made: it stays NaN and does not count in m.

    Args:
        p_values: shape (k,).

    Returns:
        Adjusted values, shape (k,), in the order of the input.

    Raises:
        ValueError: not one-dimensional, or a value outside 0 to 1.
    """
    raw = _sample(p_values)
    defined = np.flatnonzero(~np.isnan(raw))
    if np.any((raw[defined] < 0) | (raw[defined] > 1)):
        raise ValueError("p-values lie between 0 and 1")
    order = defined[np.argsort(raw[defined], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full_like(raw, math.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * raw[order]))
    return adjusted


def paired_power(n: int, effect: float, sd: float, alpha: float = 0.05) -> float:
    """Power of the paired two-sided t-test, if the differences are normal with this mean and spread.

    P(|T| > t(1 - alpha / 2; n - 1)), T noncentral t with n - 1 degrees of freedom and noncentrality
    √n · effect / sd.

    Args:
        n: number of pairs, at least 2.
        effect: mean of the differences, any unit.
        sd: their standard deviation, the same unit, above 0.
        alpha: level of the test.
    """
    critical = float(stats.t.isf(alpha / 2, n - 1))
    noncentrality = min(math.sqrt(n) * abs(effect) / sd, _LARGEST_NONCENTRALITY)
    above = float(stats.nct.sf(critical, n - 1, noncentrality))
    below = float(stats.nct.cdf(-critical, n - 1, noncentrality))
    return above + (0.0 if math.isnan(below) else below)  # SciPy has NaN where the far tail underflows


def seeds_to_decide(effect: float, sd: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Smallest number of pairs for which the paired two-sided t-test reaches the power; see `paired_power`.

    Args:
        effect: mean of the differences, any unit.
        sd: their standard deviation, the same unit.
        power: wanted probability of a p below alpha, between 0 and 1.
        alpha: level of the test.

    Returns:
        n >= 2, or None where no number can be named: the effect is 0 or unknown (NaN), the spread is 0 or
        unknown, or more than `MOST_SEEDS` pairs would be needed.

    Raises:
        ValueError: `power` or `alpha` is not between 0 and 1.
    """
    _check_fraction("power", power)
    _check_fraction("alpha", alpha)
    if not (math.isfinite(effect) and math.isfinite(sd) and effect != 0 and sd > 0):
        return None
    return _smallest(lambda n: paired_power(n, effect, sd, alpha) >= power)


def equivalence_power(n: int, effect: float, sd: float, margin: float, alpha: float = 0.05) -> float:
    """Power of the paired test of equivalence, if the differences are normal with this mean and spread.

    P(|D| < margin - t(1 - alpha; n - 1) · S / √n) for the mean D and the standard deviation S of n differences: the
    probability given S, in closed form as D is normal, is averaged over the quantiles of S.

    Args:
        n: number of pairs, at least 2.
        effect: mean of the differences, any unit.
        sd: their standard deviation, the same unit, above 0.
        margin: of the test, the same unit, above 0.
        alpha: level of the test.
    """
    critical = float(stats.t.isf(alpha, n - 1))
    spreads = np.sqrt(stats.chi2.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, n - 1) / (n - 1))
    half = np.maximum(margin * math.sqrt(n) / sd - critical * spreads, 0)
    shift = effect * math.sqrt(n) / sd
    return float(np.mean(stats.norm.cdf(half - shift) - stats.norm.cdf(-half - shift)))


def seeds_to_decide_equivalence(
    effect: float, sd: float, margin: float, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """Smallest number of pairs for which the paired test of equivalence reaches the power; see `equivalence_power`.

    Args:
        effect: mean of the differences, any unit.
        sd: their standard deviation, the same unit.
        margin: of the test, the same unit, above 0.
        power: wanted probability of a p below alpha, between 0 and 1.
        alpha: level of the test.

    Returns:
        n >= 2, or None where no number can be named: the effect is not within the margin, effect or spread are
        unknown (NaN), the spread is 0, or more than `MOST_SEEDS` pairs would be needed.

    Raises:
        ValueError: `power` or `alpha` is not between 0 and 1, or `margin` is not above 0 and finite.
    """
    _check_fraction("power", power)
    _check_fraction("alpha", alpha)
    _check_margin(margin)
    if not (abs(effect) < margin and math.isfinite(sd) and sd > 0):
        return None
    return _smallest(lambda n: equivalence_power(n, effect, sd, margin, alpha) >= power)


def _smallest(enough: Callable[[int], bool]) -> int | None:
    """The smallest number of pairs, 2 to `MOST_SEEDS`, that is enough; what is enough must go on being so."""
    if not enough(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS  # too few at `low` (one pair has no test), enough at `high`
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _differences(left: ArrayLike, right: ArrayLike) -> tuple[NDArray[np.float64], float]:
    """Left minus right, and how far the rounding of a subtraction may take one difference from another."""
    first, second = _sample(left), _sample(right)
    if len(first) != len(second):
        raise ValueError(f"pairs need as many left as right values, got {len(first)} and {len(second)}")
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, as is all that follows from it
        largest = np.abs([first, second]).max(initial=0)
        return first - second, float(4 * np.finfo(np.float64).eps * largest)


def _without_spread(difference: NDArray[np.float64], rounding: float) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(np.ptp(difference) <= rounding)


def _sample(values: ArrayLike) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise ValueError(f"a sample has one dimension, got shape {sample.shape}")
    return sample


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} lies between 0 and 1, got {value}")


def _check_margin(margin: float) -> None:
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"margin: expected a number above 0, got {margin}")


def _mean(sample: NDArray[np.float64]) -> float:
    if len(sample) == 0:
        return math.nan
    if sample.min() == sample.max():  # the sum of equal numbers rounds: the mean of three 0.1 would not be 0.1
        return float(sample[0])
    with np.errstate(invalid="ignore"):
        return float(sample.mean())


def _sd(sample: NDArray[np.float64]) -> float:
    if len(sample) < 2:
        return math.nan
    if sample.min() == sample.max() and np.isfinite(sample[0]):
        return 0.0
    with np.errstate(invalid="ignore"):
        return float(sample.std(ddof=1))
