"""MinHash signatures of texts: from bytes to words, from words to shingles, from shingles to signatures.

The words are found with numpy over a whole batch of rows at once; the signatures are rensa's.
"""

import array
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 128
"""Values of a signature; `signatures` says how exact their estimate is."""
SHINGLE = 5
"""Consecutive words that make one element of a text's set, as FineWeb takes them (Penedo et al. 2024)."""
LONGEST_SHINGLE = 100
SEED = 1
_BEFORE, _AFTER = b"^" * (SHINGLE - 1), b"$" * (SHINGLE - 1)
_LONGEST_WORD = 256
"""Bytes of a word that its hash is made of."""

ANSWER = np.uint32(1 << 31)
"""The bit of a shingle in `Sets` that says it is of an answer."""


class Sets(NamedTuple):
    """The shingles of rows, each row's without repetition and in order.

    Attributes:
        values: of all rows, of shape (all shingles,).
        offsets: where each row's begin, of shape (rows + 1,); no row is without any.
    """

    values: NDArray[np.uint32]
    offsets: NDArray[np.int64]

    def only(self, rows: NDArray[np.int64]) -> "Sets":
        """Those of some rows, in their order."""
        if len(rows) == len(self.offsets) - 1:
            return self
        lengths = np.diff(self.offsets)
        chosen = np.zeros(len(lengths), bool)
        chosen[rows] = True
        return Sets(self.values[np.repeat(chosen, lengths)], np.concatenate([[0], np.cumsum(lengths[chosen])]))


_SPACE, _LETTER, _MARK, _LEAD, _CONTINUATION = range(5)


def _tables() -> tuple[bytes, bytes]:
    """By byte of UTF-8: its kind, and what it counts as: small letters for capitals, 0 for all white space.

    Words are runs of letters and digits; every punctuation mark is a word of its own, so that `a+b` is not `a-b`; so is
    every character of three or four bytes, as Chinese and Thai put no spaces.
    """
    kinds = np.full(256, _SPACE, np.uint8)
    kinds[0x21:0x7F] = _MARK
    for first, last in (b"09", b"AZ", b"az", b"__", b"\xc0\xdf"):
        kinds[first : last + 1] = _LETTER
    kinds[0xE0:0x100] = _LEAD
    kinds[0x80:0xC0] = _CONTINUATION
    lower = np.frombuffer(bytes(range(256)).lower(), np.uint8)
    return kinds.tobytes(), np.where(kinds == _SPACE, np.uint8(0), lower).tobytes()


_KINDS, _LOWER = _tables()
_RANDOM = np.random.default_rng(20260101)
# Factors of multiplicative hashing modulo 2^64. They are odd, so that multiplying loses no bit; the seed is fixed, so
# that every process makes the same hashes.
_CHUNK_FACTORS = _RANDOM.integers(0, 2**63, _LONGEST_WORD // 8, dtype=np.uint64) | np.uint64(1)
_WORD_FACTORS = _RANDOM.integers(0, 2**63, LONGEST_SHINGLE, dtype=np.uint64) | np.uint64(1)
_BYTE_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
"""By number of bytes: what keeps so many of the first (lowest) bytes of a little-endian integer."""


def shingles(texts: list[bytes], length: int = SHINGLE) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hashes of all runs of `length` words (shingles, or n-grams), text after text.

    The hash of a shingle is a sum of its words' hashes, each times the factor of its place, so that order counts. A
    text of fewer words has one shingle, of all its words.

    Args:
        texts: UTF-8.
        length: words, at most `LONGEST_SHINGLE`.

    Returns:
        The hashes, of shape (all shingles,), and the offsets of each text's, of shape (texts + 1,).
    """
    joined = b"\n".join(texts) + b"\n"
    kinds = np.frombuffer(joined.translate(_KINDS), np.uint8)  # a fifth of the time of an index of numpy's
    before = np.concatenate([[_SPACE], kinds[:-1]])
    is_start = (kinds == _MARK) | (kinds == _LEAD) | ((kinds == _LETTER) & ((before == _SPACE) | (before == _MARK)))
    starts = np.flatnonzero(is_start)
    row_starts = np.cumsum([0] + [len(text) + 1 for text in texts])
    words_before = np.searchsorted(starts, row_starts)
    counts = np.diff(words_before)
    # Each text is followed by words of hash 0, so that no shingle runs on into the next text.
    padded = np.zeros(len(starts) + length * len(texts) + length, np.uint64)
    place = np.arange(len(starts)) + np.repeat(np.arange(len(texts)) * length, counts)
    padded[place] = _words(joined, starts)
    windows = np.zeros(len(padded) - length + 1, np.uint64)
    for word, factor in enumerate(_WORD_FACTORS[:length]):
        windows += padded[word : len(windows) + word] * factor
    numbers = np.maximum(counts - length + 1, 1)
    offsets = np.concatenate([[0], np.cumsum(numbers)])
    first = words_before[:-1] + np.arange(len(texts)) * length
    index = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], numbers)
    return mix(windows[index]), offsets.astype(np.uint64)


def _words(joined: bytes, starts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A hash of each word, from its first `_LONGEST_WORD` bytes, eight at a time; the spaces after it count as 0."""
    # A view in which item i is the eight bytes from byte i on.
    integers = np.ndarray((len(joined) + 1,), "<u8", joined.translate(_LOWER) + bytes(8), strides=(1,))
    lengths = np.diff(starts, append=len(joined))
    # Most words have no more than eight: theirs are taken without an index.
    hashes = (integers[starts] & _BYTE_MASKS[np.minimum(lengths, 8)]) * _CHUNK_FACTORS[0]
    longer = np.flatnonzero(lengths > 8)
    for number, factor in enumerate(_CHUNK_FACTORS[1:], 1):
        longer = longer[lengths[longer] > 8 * number]
        if not len(longer):
            break
        mask = _BYTE_MASKS[np.minimum(lengths[longer] - 8 * number, 8)]
        hashes[longer] += (integers[starts[longer] + 8 * number] & mask) * factor
    return mix(hashes)


def mix(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spreads hashes over all 64 bits (the finaliser of splitmix64; Steele, Lea, Flood 2014).

    Sums of products differ most in their high bits; what uses the hashes takes their low ones, or their remainders.
    """
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def sets(rows: list[tuple[bytes, bytes]]) -> Sets:
    """The shingles of each row, as 32-bit values: those of what is asked, then those of the answers, told by a bit.

    Args:
        rows: what is asked and what is answered, in UTF-8; plain text is all in the first.
    """
    # Between marks, so that the first and the last word are in as many shingles as any other.
    hashes, offsets = shingles([text and _BEFORE + text + _AFTER for row in rows for text in row])
    text = np.repeat(np.arange(2 * len(rows), dtype=np.uint64), np.diff(offsets).astype(np.int64))
    # Above 32 bits the row, so that sorting keeps rows apart.
    values = (text >> np.uint64(1)) << np.uint64(32) | (text & np.uint64(1)) << np.uint64(31) | hashes >> np.uint64(33)
    # A text without words has the hash 0; a row without answers has no shingle of them.
    values = np.sort(values[(hashes != 0) | (text & np.uint64(1) == 0)])
    values = values[np.append(True, values[1:] != values[:-1])[: len(values)]]  # np.unique takes ten times as long
    ends = np.searchsorted(values >> np.uint64(32), np.arange(len(rows)), side="right")
    return Sets(values.astype(np.uint32), np.concatenate([[0], ends]).astype(np.int64))


def signatures_of(rows: Sets) -> NDArray[np.uint32]:
    """Signatures of rows by all their shingles; see `signatures`."""
    return signatures(mix(rows.values.astype(np.uint64)), rows.offsets)


def signatures(hashes: NDArray[np.uint64], offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
    """MinHash signatures of sets of hashes, of shape (sets, PERMUTATIONS).

    Under a random permutation, two sets have the same smallest element with probability |A and B| / |A or B|, their
    Jaccard similarity s (Broder 1997). So the share of equal values estimates s. It is the mean of PERMUTATIONS
    independent draws that are 1 with probability s, so its standard error is sqrt(s (1 - s) / PERMUTATIONS): 0.038 at
    s = 0.75.
    """
    import rensa

    if len(offsets) < 2:
        return np.zeros((0, PERMUTATIONS), np.uint32)
    places = offsets.astype(np.uint64)
    matrix: Any = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, places, PERMUTATIONS, SEED)
    rows = b"".join(array.array("I", row) for row in matrix.to_rows())  # numpy takes four times as long over lists
    return np.frombuffer(rows, np.uint32).reshape(-1, PERMUTATIONS)
