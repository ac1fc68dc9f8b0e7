import hashlib
import random
from pathlib import Path

import numpy as np
import pytest

from qlora_pipelines.components.core.data import duplicates, minhash, row_files
from qlora_pipelines.components.core.data.duplicates import Deduplicated, DuplicateIndex

WORDS = [f"word{number}" for number in range(3000)]


def text(rng: random.Random, words: int = 60) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def deduplicated(
    folder: Path, texts: list[str], held_out: int = 0, threshold: float = 0.75, batch: int = 100
) -> Deduplicated:
    index = DuplicateIndex(folder, threshold)
    for start in range(0, len(texts), batch):
        for side in (True, False):
            part = [t for place, t in enumerate(texts) if start <= place < start + batch and (place < held_out) == side]
            if part:
                data = [t.encode() for t in part]
                ids = np.frombuffer(b"".join(hashlib.sha256(t).digest() for t in data), np.uint8).reshape(-1, 32)
                sets = minhash.sets([(t, b"") for t in data])
                index.add(ids, sets, minhash.signatures_of(sets), side)
    found = index.deduplicate()
    index.close()
    return found


def signatures(texts: list[bytes]) -> np.ndarray:
    return minhash.signatures_of(minhash.sets([(text, b"") for text in texts]))


def lowest(texts: list[str]) -> str:
    return min(texts, key=lambda t: hashlib.sha256(t.encode()).digest())


def test_the_row_with_the_lowest_hash_stays_wherever_it_stands(tmp_path: Path) -> None:
    rng = random.Random(0)
    cluster = [text(rng)]
    cluster += [f"{cluster[0]} {word}" for word in WORDS[:4]]
    others = [text(rng) for _ in range(50)]
    for order in range(3):
        texts = random.Random(order).sample(cluster + others, len(cluster + others))
        (tmp_path / str(order)).mkdir()
        found = deduplicated(tmp_path / str(order), texts)
        kept = [t for t, stays in zip(texts, found.kept, strict=True) if stays]
        assert sorted(kept) == sorted([*others, lowest(cluster)])


def test_exact_copies_are_told_from_near_ones(tmp_path: Path) -> None:
    rng = random.Random(1)
    first = text(rng)
    found = deduplicated(tmp_path, [first, text(rng), first, f"{first} more"])
    assert found.exact_duplicate.tolist() == [False, False, True, False]
    assert found.kept.sum() == 2 and found.kept[1]


def test_a_held_out_row_stays_before_any_other(tmp_path: Path) -> None:
    rng = random.Random(2)
    pairs = [(text(rng)) for _ in range(20)]
    found = deduplicated(tmp_path, [*pairs, *(f"{t} more" for t in pairs)], held_out=20)
    assert found.kept.tolist() == [True] * 20 + [False] * 20
    assert found.held_out.tolist() == [True] * 20 + [False] * 20


def test_nothing_but_copies_is_sought_where_the_threshold_is_zero(tmp_path: Path) -> None:
    first = text(random.Random(3))
    assert deduplicated(tmp_path, [first, f"{first} more", first], threshold=0).kept.tolist() == [True, True, False]


def test_the_same_comes_out_however_rows_are_batched_and_partitioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(4)
    texts = [text(rng, 30) for _ in range(200)]
    texts += [f"{t} x" for t in texts[::3]] + texts[::5]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = deduplicated(tmp_path / "a", texts)
    monkeypatch.setattr(row_files, "PARTITION", 40)
    monkeypatch.setattr(row_files, "_BLOCK", 7)
    monkeypatch.setattr(duplicates, "_PART", 2)
    parts = deduplicated(tmp_path / "b", texts, batch=13)
    assert (
        whole.kept.tolist() == parts.kept.tolist() and whole.exact_duplicate.tolist() == parts.exact_duplicate.tolist()
    )
    assert whole.kept.sum() == 200


@pytest.mark.parametrize("threshold", [0.5, 0.75, 0.9, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    number, length = duplicates.bands(threshold)
    assert number * length <= minhash.PERMUTATIONS
    assert 1 - (1 - threshold**length) ** number >= duplicates.RECALL


def test_signatures_estimate_the_jaccard_similarity_of_word_runs() -> None:
    rng = random.Random(5)
    one = text(rng, 400).split()
    two = [*one[:300], *text(rng, 100).split()]
    sets = [{tuple(words[at : at + 5]) for at in range(len(words) - 4)} for words in (one, two)]
    exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    first, second = signatures([" ".join(one).encode(), " ".join(two).upper().encode()])
    assert (first == second).mean() == pytest.approx(exact, abs=0.12)  # three standard deviations of 128 places


def test_a_texts_shingles_do_not_hang_on_its_neighbours() -> None:
    texts = [b"a b", b"", b"one two three four five six seven", "中文没有空格".encode(), b"x" * 5000, b"??"]
    hashes, offsets = minhash.shingles(texts)
    for place, single in enumerate(texts):
        alone, _ = minhash.shingles([single])
        assert hashes[int(offsets[place]) : int(offsets[place + 1])].tolist() == alone.tolist()
    assert np.diff(offsets).tolist() == [1, 1, 3, 2, 1, 1]


def test_punctuation_tells_texts_apart_and_spaces_do_not() -> None:
    plus, minus, spaced = signatures([b"is 1+2 right", b"is 1-2 right", b" IS  1+2\n right "])
    assert (plus == spaced).all() and not (plus == minus).all()
