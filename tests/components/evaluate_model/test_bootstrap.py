import numpy as np
import pytest

from qlora_pipelines.components.core.sample_size import groups_needed
from qlora_pipelines.components.evaluate_model import bootstrap

RNG = np.random.default_rng(3)


def test_the_mean_is_a_ratio_of_sums_and_lies_between_its_bounds() -> None:
    totals, units = np.array([1.0, 2, 3, 10] * 5), np.array([1.0, 1, 2, 4] * 5)
    found = bootstrap.ratio(totals, units, 0.05)
    assert found.mean == pytest.approx(2.0)
    assert found.low < found.mean < found.high
    assert found == bootstrap.ratio(totals, units, 0.05), "the same every time"


def test_a_smaller_tail_moves_the_bounds_apart() -> None:
    totals, units = RNG.normal(1, 1, 40), np.full(40, 10.0)
    wide, narrow = bootstrap.ratio(totals, units, 0.005), bootstrap.ratio(totals, units, 0.05)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_without_differences_the_bounds_are_the_mean() -> None:
    assert bootstrap.ratio(np.zeros(20), np.full(20, 7.0), 0.05) == (0, 0, 0)


def test_rows_of_one_conversation_count_once() -> None:
    """Ten copies of each row under one group say no more than the rows; as rows of their own they would."""
    totals, units, groups = RNG.normal(0.5, 1, 20), np.full(20, 5.0), np.array([f"{place}" for place in range(20)])
    copies = [np.repeat(column, 10) for column in (totals, units, groups)]
    once = bootstrap.ratio(totals, units, 0.05)
    together = bootstrap.ratio(*bootstrap.grouped(*copies), 0.05)
    apart = bootstrap.ratio(*copies[:2], 0.05)
    assert together.high - together.low == pytest.approx(once.high - once.low, rel=0.1)
    assert apart.high - apart.low < 0.5 * (once.high - once.low)


@pytest.mark.parametrize(
    "draw",
    [
        lambda groups: RNG.normal(0, 1, groups),
        lambda groups: RNG.standard_t(2, groups),
        lambda groups: RNG.choice([-1, 1], groups) * RNG.lognormal(0, 1, groups),
        lambda groups: RNG.exponential(1, groups) - 1,
    ],
    ids=["normal", "heavy tails", "symmetric and far-out", "skewed"],
)
def test_the_lower_bound_is_above_the_truth_in_no_more_cases_than_allowed(draw: object) -> None:
    """The truth is 0 here; 600 samples of 20 groups of unequal length, so 3 % of 5 % is two standard errors of this."""
    missed = sum(bootstrap.ratio(draw(20), RNG.integers(20, 60, 20).astype(float), 0.05).low > 0 for _ in range(600))
    assert missed / 600 <= 0.05 + 2 * (0.05 * 0.95 / 600) ** 0.5


def test_many_groups_are_drawn_in_bounded_memory() -> None:
    import tracemalloc

    totals, units = RNG.normal(1, 1, 20_000), np.full(20_000, 10.0)
    tracemalloc.start()
    found = bootstrap.ratio(totals, units, 0.05)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20
    assert found.high - found.low == pytest.approx(2 * 1.645 * 0.1 / 20_000**0.5, rel=0.1), "as the normal law says"


@pytest.mark.parametrize(("tail", "needed"), [(0.05, 10), (0.05 / 30, 10), (0.0001, 14)])
def test_fewer_groups_than_could_ever_reach_a_tail_are_too_few(tail: float, needed: int) -> None:
    assert groups_needed(tail) == needed
    assert 2.0**-needed <= tail
