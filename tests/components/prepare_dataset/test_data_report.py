import numpy as np
import pytest

from qlora_pipelines.components.core.data import packing
from qlora_pipelines.components.prepare_dataset.data_report import packed_rows, padded_positions

RNG = np.random.default_rng(0)


def lengths(rows: int, longest: int, spread: float) -> np.ndarray:
    """Lengths of rows in tokens, many short and few long."""
    return np.clip(RNG.lognormal(np.log(longest / 4), spread, rows).astype(int), 1, longest)


@pytest.mark.parametrize("longest", [8, 64, 1024])
@pytest.mark.parametrize("spread", [0.1, 0.5, 1.5])
def test_packed_rows_are_as_many_as_packing_makes(longest: int, spread: float) -> None:
    for rows in (1, 2, 7, 50, 500):
        found = lengths(rows, longest, spread)
        expected = len(packing.pack(found.tolist(), longest))
        assert packed_rows(np.bincount(found, minlength=longest + 1)) == expected


def test_padded_positions_are_those_of_random_batches() -> None:
    found = lengths(4000, 256, 0.8)
    drawn = RNG.choice(found, (2000, 8))
    expected = drawn.max(axis=1).mean() * len(found)
    assert padded_positions(np.bincount(found, minlength=257), 8) == pytest.approx(expected, rel=0.02)
