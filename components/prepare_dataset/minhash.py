"""MinHash signatures of texts: from bytes to words, from words to shingles, from shingles to signatures.

The words are found with numpy over a whole batch of rows at once; the signatures are rensa's.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 128
SHINGLE = 5
"""Words in a row that make one element of a text's set, as in FineWeb and Dolma."""
LONGEST_SHINGLE = 100
SEED = 1
_LONGEST_WORD = 256

_SPACE, _LETTER, _MARK, _LEAD, _CONTINUATION = range(5)


def _tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
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
    return kinds, np.where(kinds == _SPACE, np.uint8(0), lower)


_KINDS, _LOWER = _tables()
_RANDOM = np.random.default_rng(20260101)
_EIGHTS = _RANDOM.integers(0, 2**63, _LONGEST_WORD // 8, dtype=np.uint64) | np.uint64(1)
_IN_SHINGLE = _RANDOM.integers(0, 2**63, LONGEST_SHINGLE, dtype=np.uint64) | np.uint64(1)
_FIRST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)


def shingles(texts: list[bytes], length: int = SHINGLE) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hashes of all runs of words of one length, text after text.

    A text of fewer words has one shingle, of all its words.

    Args:
        texts: UTF-8.
        length: words, at most `LONGEST_SHINGLE`.

    Returns:
        the hashes, of shape (all shingles,), and where each text's begin and the last one's end, of shape (texts + 1,).
    """
    joined = np.frombuffer(b"\n".join(texts) + b"\n", np.uint8)
    kinds = _KINDS[joined]
    before = np.empty_like(kinds)
    before[0], before[1:] = _SPACE, kinds[:-1]
    is_start = (kinds == _MARK) | (kinds == _LEAD) | ((kinds == _LETTER) & ((before == _SPACE) | (before == _MARK)))
    starts = np.flatnonzero(is_start)
    row_starts = np.cumsum([0] + [len(text) + 1 for text in texts])
    words_before = np.searchsorted(starts, row_starts)
    counts = np.diff(words_before)
    # Each text is followed by words of hash 0, so that no shingle runs on into the next text.
    padded = np.zeros(len(starts) + length * len(texts) + length, np.uint64)
    place = np.arange(len(starts)) + np.repeat(np.arange(len(texts)) * length, counts)
    padded[place] = _words(joined, starts)
    windows = sum(
        (padded[word : len(padded) - length + 1 + word] * factor for word, factor in enumerate(_IN_SHINGLE[:length])),
        start=np.zeros(len(padded) - length + 1, np.uint64),
    )
    numbers = np.maximum(counts - length + 1, 1)
    offsets = np.concatenate([[0], np.cumsum(numbers)])
    first = words_before[:-1] + np.arange(len(texts)) * length
    index = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], numbers)
    return mixed(windows[index]), offsets.astype(np.uint64)


def _words(joined: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A hash of each word, from its first `_LONGEST_WORD` bytes, eight at a time; the spaces after it count as 0."""
    text = np.concatenate([_LOWER[joined], np.zeros(8, np.uint8)])
    eights = np.ndarray((len(joined) + 1,), "<u8", text, strides=(1,))
    lengths = np.diff(starts, append=len(joined))
    hashes = (eights[starts] & _FIRST_BYTES[np.minimum(lengths, 8)]) * _EIGHTS[0]
    for number in range(1, _LONGEST_WORD // 8):
        longer = np.flatnonzero(lengths > 8 * number)
        if not len(longer):
            break
        rest = _FIRST_BYTES[np.minimum(lengths[longer] - 8 * number, 8)]
        hashes[longer] += (eights[starts[longer] + 8 * number] & rest) * _EIGHTS[number]
    return mixed(hashes)


def mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spreads hashes over all 64 bits (the finaliser of splitmix64, Steele et al. 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def signatures(texts: list[bytes]) -> NDArray[np.uint32]:
    """MinHash signatures of shape (texts, PERMUTATIONS).

    Under a random permutation, two sets have the same smallest element with probability |A and B| / |A or B|, their
    Jaccard similarity (Broder 1997). So the share of equal places estimates it, with a standard error of sqrt(s (1 - s)
    / PERMUTATIONS): 0.038 at s = 0.75.
    """
    import rensa

    if not texts:
        return np.zeros((0, PERMUTATIONS), np.uint32)
    hashes, offsets = shingles(texts)
    matrix: Any = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, SEED)
    return np.array(matrix.to_rows(), np.uint32)
