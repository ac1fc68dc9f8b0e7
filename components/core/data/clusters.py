"""Which rows are one cluster of duplicates, for any number of rows."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 18
"""Rows that are compared at a time."""


class Clusters:
    """Which rows are one cluster (union-find); a cluster's root is its row of the first priority."""

    def __init__(self, folder: Path, priorities: NDArray[np.uint64]) -> None:
        """See the class."""
        self._priorities = priorities
        self._parents = mapped(folder / "parents", np.int64, len(priorities))
        self._parents[:] = np.arange(len(priorities))

    def root(self, row: int) -> int:
        """The row that stays of a row's cluster."""
        parents = self._parents
        while (parent := int(parents[row])) != row:
            parents[row] = parents[parent]  # path halving: keeps paths short (Tarjan, van Leeuwen 1984)
            row = parent
        return row

    def roots(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows that stay of some rows' clusters."""
        while (self._parents[rows] != rows).any():
            rows = self._parents[rows]
        return np.asarray(rows)

    def join(self, rows: NDArray[np.int64]) -> None:
        """Makes one cluster of those that the rows are in."""
        roots = {self.root(int(row)) for row in rows}
        first = min(roots, key=lambda row: (self._priorities[row], row))
        for root in roots:
            self._parents[root] = first

    def are_several(
        self, rows: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether the rows from each start to its end are in more than one cluster."""
        lengths = ends - starts
        first = np.cumsum(lengths) - lengths
        roots = self.roots(rows[np.arange(lengths.sum()) + np.repeat(starts - first, lengths)])
        return np.asarray(np.minimum.reduceat(roots, first) != np.maximum.reduceat(roots, first))

    def ordered(self, rows: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows in the order in which they stay, group by group."""
        return rows[np.lexsort((rows, self._priorities[rows], groups))]

    def is_root(self) -> NDArray[np.bool_]:
        """Whether each row is its cluster's root, of shape (rows,)."""
        found = np.empty(len(self._parents), bool)
        for start in range(0, len(found), _BLOCK):  # whole, the comparison would take 8 bytes per row
            block = self._parents[start : start + _BLOCK]
            found[start : start + _BLOCK] = block == np.arange(start, start + len(block))
        return found


def mapped(path: Path, kind: type[np.generic], rows: int) -> NDArray[Any]:
    """An array in a file, for what grows with the rows."""
    # Pages of a mapped file can be written back and dropped, where memory is short.
    return np.memmap(path, kind, "w+", shape=(rows,)).view(np.ndarray) if rows else np.zeros(0, kind)
