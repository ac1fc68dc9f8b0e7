"""How sure a mean or a difference is: a studentised bootstrap over groups of rows.

Rows of one conversation or one source document are not independent, so whole groups are drawn, with all their rows. A
mean per token is a ratio of two sums that both change from draw to draw, so both are drawn together.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from qlora_pipelines.components.core.sample_size import groups_needed
from qlora_pipelines.components.evaluate_model.score_table import Floats, Strings

DRAWS = 4000
DRAWS_BEYOND = 10
"""At least so many draws are beyond a bound, however small its tail: it is not left to the one most extreme draw."""
SEED = 1
CELLS = 1 << 20
"""Drawn counts that are held at a time, 8 MiB: what bounds the memory."""


class Sums(NamedTuple):
    """Each group's sum of values, such as nats, and of units, such as tokens; both of shape (groups,)."""

    totals: Floats
    units: Floats


class Interval(NamedTuple):
    """A mean per unit, and one-sided bounds: each holds with the confidence asked for, both together with less."""

    mean: float
    low: float
    high: float


def grouped(totals: Floats, units: Floats, groups: Strings) -> Sums:
    """The sums of each group's rows; all arguments have the shape (rows,)."""
    _, index = np.unique(groups, return_inverse=True)
    sums: list[Any] = [np.bincount(index, values) for values in (totals, units)]
    return Sums(*sums)


def bounds(sums: Sums, tail: float) -> Interval | None:
    """The mean per unit with one-sided bounds; None where the groups are too few for such a tail."""
    return ratio(*sums, tail) if len(sums.totals) >= groups_needed(tail) else None


def ratio(totals: Floats, units: Floats, tail: float) -> Interval:
    """The mean of `totals` per unit, with one-sided bounds by the bootstrap-t.

    See Efron and Tibshirani 1993, An introduction to the bootstrap, section 12.5. With R the mean and s its standard
    error, each draw b of groups gives t_b = (R_b - R) / s_b. The quantiles of t_b take the place of Student's table:
    the bounds are R - t_(1-tail) s and R - t_(tail) s. As t depends less on the unknown distribution than R does, they
    are second-order correct where percentiles of R_b are only first-order correct (Hall 1988, Theoretical comparison of
    bootstrap confidence intervals).

    Args:
        totals: summed value of each group, such as a difference of losses in nats; shape (groups,).
        units: what each group's value is spread over, such as tokens; shape (groups,).
        tail: probability with which each bound may be wrong.
    """
    mean = float(totals.sum() / units.sum())
    # Of totals less the mean, the draws' ratios are R_b - R itself: no digits are lost in subtracting two near numbers.
    rest = totals - mean * units
    moments = np.stack([rest, units, rest**2, rest * units, units**2], axis=1)
    error = float(_standard_error(moments.sum(axis=0)[None], len(totals))[0])
    if error == 0:
        return Interval(mean, mean, mean)
    drawn = _draw(moments, max(DRAWS, math.ceil(DRAWS_BEYOND / tail)))
    deviation = drawn[:, 0] / drawn[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        studentised = deviation / _standard_error(drawn, len(totals))
    studentised = np.where(deviation == 0, 0.0, studentised)  # 0 / 0: all groups drawn are at the mean
    # In a sample of few, far-out differences one side looks longer by chance. The bootstrap-t takes that for skewness,
    # and puts the bound on the other side too near. The symmetric interval, by quantiles of |t_b|, does not (Hall 1988,
    # On symmetric bootstrap confidence intervals). So a bound is never nearer than the symmetric one. At a tail of 5 %
    # and 20 groups with Student's t of 2 degrees of freedom, the lower bound was above the truth in 6.9 % of 2,000
    # samples by the bootstrap-t alone, and in 2.8 % so. It is no cure for skewness towards losses (one minus an
    # exponential variable): 6.8 % with 20 groups and 9.7 % with ten, where percentiles gave 12 % and 16 %.
    # Quantiles are not interpolated between draws: t_b is infinite where a draw is one group many times.
    symmetric = np.quantile(np.abs(studentised), 1 - 2 * tail, method="higher")
    above = max(symmetric, np.quantile(studentised, 1 - tail, method="higher"))
    below = min(-symmetric, np.quantile(studentised, tail, method="lower"))
    return Interval(mean, mean - float(above) * error, mean - float(below) * error)


def _standard_error(moments: Floats, groups: int) -> Floats:
    """Standard errors of ratios by linearisation (Cochran 1977, section 6.3).

    To first order a ratio R = sum t / sum u deviates by sum (t - R u) / sum u. Its terms e = t - R u have the mean 0,
    so the variance of their sum is estimated by n / (n - 1) sum e², and sum e² = sum t² - 2 R sum tu + R² sum u².

    Args:
        moments: sums over the groups of (t, u, t², tu, u²), shape (lines, 5).
        groups: n, how many groups are summed in each line.

    Returns:
        Shape (lines,).
    """
    t, u, tt, tu, uu = moments.T
    mean = t / u
    squares: Any = np.maximum(tt - 2 * mean * tu + mean**2 * uu, 0)  # rounding may leave less than 0
    errors: Floats = np.sqrt(squares * groups / (groups - 1)) / u
    return errors


def _draw(moments: Floats, draws: int) -> Floats:
    """Sums of the moments over groups drawn with replacement, shape (draws, moments); the same each time."""
    lines = max(1, CELLS // len(moments))
    sizes = [min(lines, draws - start) for start in range(0, draws, lines)]
    return np.concatenate([_counts(len(moments), size, place) @ moments for place, size in enumerate(sizes)])


@functools.lru_cache(maxsize=8)
def _counts(groups: int, draws: int, place: int) -> Floats:
    """How often each group is drawn, shape (draws, groups); kept, because several comparisons draw the same."""
    rng = np.random.default_rng((SEED, place))
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=draws).astype(np.float64)
