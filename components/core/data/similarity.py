"""Whether rows say the same: the exact Jaccard similarity of their shingles, of those that tell rows apart."""

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_pipelines.components.core.data.formats import Conversation
from qlora_pipelines.components.core.data.minhash import ANSWER, Sets

Bools = NDArray[np.bool_]
Numbers = NDArray[np.int64]
FEW, MANY = 8, 100
"""In so many rows, in a small data set and in a large one, a shingle may be; one that is in more is a template's."""
MOST_BITS = 25
"""Of the number of a counter: 2^25 of 4 bytes, in which a million rows of 150 shingles put 4.5 each on average."""


class Common:
    """Counts in how many rows each shingle is, and says which are common: those of instructions and templates.

    A shingle has one of a fixed number of counters, by its hash (a count-min sketch of one row; Cormode and
    Muthukrishnan 2005). So memory is bounded, and a shingle that shares its counter can seem more frequent than it is.

    Args:
        rows: how many will be counted.
        shingles: how many these have, about.
    """

    def __init__(self, rows: int, shingles: int) -> None:
        """See the class."""
        # A few rows alike are duplicates, and a part of the rows alike is not. The root is between the two.
        self.limit = min(max(FEW, math.isqrt(rows)), MANY)
        self._bits = min(max(shingles.bit_length(), 10), MOST_BITS)
        self._counts = np.zeros(1 << self._bits, np.uint32)
        self._common: Bools = np.zeros(0, bool)

    def count(self, values: NDArray[np.uint32]) -> None:
        """Counts the shingles of some rows, each once a row."""
        places = np.sort(self._places(values))  # np.add.at takes three times as long
        starts = np.flatnonzero(np.append(True, places[1:] != places[:-1])[: len(places)])
        self._counts[places[starts]] += np.diff(starts, append=len(places)).astype(np.uint32)

    def finish(self) -> None:
        """Keeps which are common, and no counts."""
        self._common = self._counts > self.limit
        self._counts = np.zeros(0, np.uint32)

    def are(self, values: NDArray[np.uint32]) -> Bools:
        """Whether each of these shingles is common."""
        return self._common[self._places(values)]

    def _places(self, values: NDArray[np.uint32]) -> NDArray[np.uint32]:
        # Multiplicative hashing modulo 2^32 (Knuth 1973, section 6.4): the high bits depend on all bits.
        return (values * np.uint32(0x9E3779B1)) >> np.uint32(32 - self._bits)


def similar_to_first(rows: Sets, groups: Numbers, common: Common, threshold: float) -> Bools:
    """Whether each row says the same as the first one of its group, of shape (rows,).

    It does if all their shingles are similar, and those that are not common too, and the answers' alone; and if the
    answers have the same common shingles: where the answer is a label or a form, these are all it has. Two rows of
    common shingles alone say the same only if these are all equal.

    Args:
        rows: their shingles.
        groups: number of each row's group, of shape (rows,); it does not fall.
        common: which shingles are common.
        threshold: Jaccard similarity from which on two sets are similar.
    """
    values, starts, lengths = rows.values, rows.offsets[:-1], np.diff(rows.offsets)
    is_first = np.concatenate([[True], groups[1:] != groups[:-1]])
    first = np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    # With the group above a shingle's 32 bits the shingles of all first rows are one sorted list.
    keys = np.repeat(groups.astype(np.uint64) << np.uint64(32), lengths) | values
    of_first = keys[np.repeat(is_first, lengths)]
    shared = of_first[np.minimum(np.searchsorted(of_first, keys), len(of_first) - 1)] == keys
    rare, answers = ~common.are(values), values >= ANSWER

    def counts(chosen: Any) -> tuple[Numbers, Numbers]:
        """By row, how many of the chosen shingles it shares with the first, and how many either of them has."""
        both, own = (np.add.reduceat(mask, starts, dtype=np.int64) for mask in (chosen & shared, chosen))
        return both, own[first] + own - both

    everything, telling = counts(np.ones(len(values), bool)), counts(rare)
    said, labels = counts(answers & rare), counts(answers & ~rare)
    are_labels = labels[1] > said[1]
    equal = everything[0] == everything[1]
    alike = [both >= threshold * either for both, either in (everything, telling, said)]
    return np.asarray(np.all(alike, axis=0) & ((labels[0] == labels[1]) | ~are_labels) & (equal | (telling[1] > 0)))


def compared(conversation: Conversation) -> tuple[bytes, bytes]:
    """What rows are compared by: what is asked, without the system prompt, which many share, and what is answered.

    Plain text is all in the first.
    """
    if not conversation.messages:
        return conversation.text.encode(), b""
    asked: list[str] = []
    answered: list[str] = []
    for message in conversation.messages:
        if message["role"] == "assistant":
            calls = [json.dumps(message["tool_calls"], ensure_ascii=False)] if "tool_calls" in message else []
            answered += filter(None, [message.get("reasoning_content"), message["content"], *calls])
        elif message["role"] not in ("system", "developer"):
            asked.append(message["content"])
    return "\n".join(asked).encode(), "\n".join(answered).encode()
