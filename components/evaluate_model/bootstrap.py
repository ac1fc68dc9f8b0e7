"""How sure a difference between two models is: a paired, studentised bootstrap over groups of rows.

Rows of one conversation or one source document are not independent, so what is drawn anew are groups, with all their
rows. The mean of a token is a ratio of two sums that both change from draw to draw; both are drawn jointly.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRAWS = 4000
BEYOND = 10
"""Draws that lie beyond a bound at the least, however small its tail."""
SEED = 1
CELLS = 1 << 20
"""Drawn counts held at a time, 8 MiB: what bounds the memory."""


class Interval(NamedTuple):
    """A mean a unit, and one-sided bounds: each holds with the confidence asked for, both together with less."""

    mean: float
    low: float
    high: float


def grouped(values: Floats, groups: NDArray[np.str_]) -> Floats:
    """Sums of `values`, shape (rows,) or (rows, k), over the rows of each group; shape (groups,) or (groups, k)."""
    _, which = np.unique(groups, return_inverse=True)
    sums = np.zeros((which.max() + 1 if len(which) else 0, *values.shape[1:]))
    np.add.at(sums, which, values)
    return sums


def ratio(totals: Floats, units: Floats, tail: float) -> Interval:
    """The mean of `totals` a unit, with one-sided bounds by the bootstrap-t (Efron and Tibshirani 1993, section 12.5).

    Percentile intervals are too narrow at small numbers and skewed differences; here each draw's deviation is divided
    by its own standard error, that of a ratio by linearisation (Cochran 1977, section 6.3). It is second-order right.

    Args:
        totals: summed value of each group, such as a difference of losses in nats; shape (groups,).
        units: what each group's value is spread over, such as tokens; shape (groups,).
        tail: probability with which each bound may be wrong.
    """
    mean = float(totals.sum() / units.sum())
    # With the mean taken off, the draws' means are their deviations, and nothing is lost to cancellation.
    rest = totals - mean * units
    moments = np.stack([rest, units, rest**2, rest * units, units**2], axis=1)
    drawn = _draw(moments, max(DRAWS, math.ceil(BEYOND / tail)))
    error = float(_standard_error(moments.sum(axis=0)[None], len(totals))[0])
    if error == 0:
        return Interval(mean, mean, mean)
    deviation = drawn[:, 0] / drawn[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        studentised = deviation / _standard_error(drawn, len(totals))
    studentised = np.where(deviation == 0, 0.0, studentised)  # a draw without deviation has none, whatever its error
    # A sample of few, far-out differences looks skewed even where their source is not, and correcting for that skewness
    # makes a bound too near. So a bound is never nearer than the symmetric one (Hall 1988), which holds in that case.
    symmetric = np.quantile(np.abs(studentised), 1 - 2 * tail, method="higher")
    above = max(symmetric, np.quantile(studentised, 1 - tail, method="higher"))
    below = min(-symmetric, np.quantile(studentised, tail, method="lower"))
    return Interval(mean, mean - float(above) * error, mean - float(below) * error)


def _standard_error(moments: Floats, groups: int) -> Floats:
    """Of the ratio, for each line of summed moments (r, u, r², ru, u²); shape (lines,)."""
    r, u, rr, ru, uu = moments.T
    mean = r / u
    squares: Any = np.maximum(rr - 2 * mean * ru + mean**2 * uu, 0)
    found: Floats = np.sqrt(squares * groups / (groups - 1)) / u
    return found


def _draw(moments: Floats, draws: int) -> Floats:
    """Sums of the moments over groups drawn with replacement, shape (draws, moments); the same each time."""
    lines = max(1, CELLS // len(moments))
    sizes = [min(lines, draws - start) for start in range(0, draws, lines)]
    return np.concatenate([_counts(len(moments), size, place) @ moments for place, size in enumerate(sizes)])


@functools.lru_cache(maxsize=8)
def _counts(groups: int, draws: int, place: int) -> Floats:
    """How often each group is drawn, shape (draws, groups); kept, because several comparisons want the same."""
    rng = np.random.default_rng((SEED, place))
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=draws).astype(np.float64)
