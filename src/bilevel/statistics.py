"""Intervals, paired comparisons and their correction; every distribution comes from SciPy.

All samples are one-dimensional, one value a seed. A quantity that the sample does not determine (a spread
from one seed, a t-test without spread) is NaN, never an exception: tables show it as an empty cell.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

MOST_SEEDS = 100_000
"""Above this number of seeds `seeds_to_decide` gives up: nobody would repeat such an experiment so often."""

# The noncentral t of SciPy is NaN for noncentralities above about 1e12; from 1e6 on the power is 1 in double
# precision at every level that a test is made at, so that nothing is lost.
_LARGEST_NONCENTRALITY = 1e6


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
    """Left minus right over `n` pairs: mean difference, its 95 % t-interval, p of the two-sided t-test.

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
    first, second = _sample(left), _sample(right)
    if len(first) != len(second):
        raise ValueError(f"pairs need as many left as right values, got {len(first)} and {len(second)}")
    n = len(first)
    if n == 0:
        return Paired(0, math.nan, math.nan, math.nan, math.nan, math.nan)
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, as is all that follows from it
        difference = first - second
        rounding = 4 * np.finfo(np.float64).eps * max(np.abs(first).max(), np.abs(second).max())
        without_spread = bool(np.ptp(difference) <= rounding)
    if n < 2 or without_spread:
        sd = 0.0 if n >= 2 else math.nan
        return Paired(n, _mean(difference), math.nan, math.nan, math.nan, sd)
    interval = mean_interval(difference)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = interval.mean / (np.float64(interval.sd) / math.sqrt(n))
    p = float(2 * stats.t.sf(abs(t), n - 1))
    return Paired(n, interval.mean, interval.low, interval.high, p, interval.sd)


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
    if paired_power(MOST_SEEDS, effect, sd, alpha) < power:
        return None
    low, high = 1, MOST_SEEDS  # power grows with n: too few at `low` (one pair has no test), enough at `high`
    while high - low > 1:
        middle = (low + high) // 2
        if paired_power(middle, effect, sd, alpha) >= power:
            high = middle
        else:
            low = middle
    return high


def _sample(values: ArrayLike) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise ValueError(f"a sample has one dimension, got shape {sample.shape}")
    return sample


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} lies between 0 and 1, got {value}")


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
