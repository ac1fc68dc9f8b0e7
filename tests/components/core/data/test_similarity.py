"""What counts as nearly the same: by what tells rows apart, and exactly."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlora_pipelines.components.core.data import duplicates, formats, minhash, similarity

WORDS = [f"word{number}" for number in range(3000)]
NAMES = [f"name{number}" for number in range(20)]
LABELS = ["praise", "complaint", "question", "other"]
INSTRUCTION = " ".join(f"rule{number} of the label" for number in range(40))

Row = tuple[str, str]


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def left(folder: Path, rows: list[Row], threshold: float = 0.75) -> list[bool]:
    """Which rows stay."""
    index = duplicates.DuplicateIndex(folder, threshold)
    for start in range(0, len(rows), 100):
        part = [(asked.encode(), answered.encode()) for asked, answered in rows[start : start + 100]]
        ids = [hashlib.sha256(b"\n".join(row)).digest() for row in part]
        sets = minhash.sets(part)
        index.add(np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32), sets, minhash.signatures_of(sets), False)
    found = index.deduplicate()
    index.close()
    kept: list[bool] = found.kept.tolist()
    return kept


def review(number: int) -> str:
    verb = ["loved it", "it broke", "asks the price", "went home"][number % 4]
    return f"{NAMES[number % 20]} bought a thing and {verb} {number}"


@pytest.mark.parametrize("others", [0, 200, 3000])
@pytest.mark.parametrize("where", ["before", "after", "around"])
def test_rows_of_one_instruction_stay(where: str, others: int, tmp_path: Path) -> None:
    before, after = where != "after", where != "before"
    rng = random.Random(0)
    rows = [(f"{INSTRUCTION * before} {review(n)} {INSTRUCTION * after}", LABELS[n % 4]) for n in range(200)]
    rows += [(text(rng, 20), text(rng, 20)) for _ in range(others)]
    assert all(left(tmp_path, rows))


@pytest.mark.parametrize("tasks", [3, 10, 25])
def test_rows_of_many_instructions_stay(tasks: int, tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = []
    for task in range(tasks):
        instruction = text(rng, 120)
        rows += [(f"{instruction} Input: {text(rng, 6)}", LABELS[n % (2 + task % 2)]) for n in range(60)]
    assert all(left(tmp_path, rows))


def test_forms_that_differ_in_a_label_stay(tmp_path: Path) -> None:
    """An answer of common words alone: half of these rows have the same question too."""
    rng = random.Random(2)
    fields = {f"field{number}": "a value that all rows have" for number in range(8)}
    rows = []
    for number in range(300):
        asked = text(random.Random(number // 2), 30)
        rows.append((asked, json.dumps({**fields, "label": LABELS[number % 4], "urgent": rng.random() < 2})))
    assert all(left(tmp_path, rows))


@pytest.mark.parametrize(
    "answers", [("yes", "no"), ("It is 42 of them.", "It is 43 of them."), ("a", "b"), ("鱼", "猫")]
)
def test_rows_whose_answers_differ_are_no_duplicates(answers: Row, tmp_path: Path) -> None:
    rng = random.Random(3)
    asked = [text(rng, 100) for _ in range(50)]
    rows = [(question, answer) for question in asked for answer in answers]
    assert all(left(tmp_path, rows))
    same = [(question, answers[0]) for question in asked] + [(f"{question} please", answers[0]) for question in asked]
    (tmp_path / "same").mkdir()
    assert sum(left(tmp_path / "same", same)) == 50


def edited(rng: random.Random, words: list[str], wanted: float) -> str:
    """The words with some of them replaced, such that the similarity of their runs of five is about the wanted one."""
    found, seen = list(words), set(minhash.sets([(" ".join(words).encode(), b"")]).values.tolist())
    while True:
        found[rng.randrange(len(found))] = rng.choice(WORDS)
        other = set(minhash.sets([(" ".join(found).encode(), b"")]).values.tolist())
        if len(seen & other) / len(seen | other) <= wanted:
            return " ".join(found)


@pytest.mark.parametrize(("similar", "stay"), [(0.63, True), (0.7, True), (0.74, True), (0.87, False)])
def test_the_similarity_is_exact(similar: float, stay: bool, tmp_path: Path) -> None:
    rng = random.Random(4)
    texts = [rng.choices(WORDS, k=300) for _ in range(150)]
    rows = [(" ".join(words), "") for words in texts] + [(edited(rng, words, similar), "") for words in texts]
    assert sum(left(tmp_path, rows)) == (300 if stay else 150)


def test_a_row_that_is_left_out_is_similar_to_one_that_stays(tmp_path: Path) -> None:
    """Of a chain in which each row is similar to the next one, not only one row stays."""
    rng = random.Random(5)
    words = rng.choices(WORDS, k=200)
    rows = [(" ".join(words), "")]
    for _ in range(30):
        words = [*words[10:], *rng.choices(WORDS, k=10)]
        rows.append((" ".join(words), ""))
    kept = left(tmp_path, [*rows, *((text(rng, 50), "") for _ in range(600))])[: len(rows)]
    sets = [set(minhash.sets([(asked.encode(), b"")]).values.tolist()) for asked, _ in rows]
    best = [max(len(a & b) / len(a | b) for b, stays in zip(sets, kept, strict=True) if stays) for a in sets]
    assert 1 < sum(kept) < 20 and min(best) >= 0.75


def test_many_copies_are_one_and_a_copy_under_an_instruction_is_found(tmp_path: Path) -> None:
    rng = random.Random(6)
    first = text(rng, 60)
    rows = [(text(rng, 60), text(rng, 20)) for _ in range(500)]
    rows += [(f"{first} {word}", "the answer") for word in WORDS[:15]]
    (tmp_path / "plain").mkdir()
    assert sum(left(tmp_path / "plain", rows)) == 501
    templated = [(f"{INSTRUCTION} {text(rng, 40)}", LABELS[n % 4]) for n in range(200)]
    templated += [(f"{asked} now", answered) for asked, answered in templated[:80]]
    assert sum(left(tmp_path, templated)) == 200


@pytest.mark.parametrize("form", ["messages", "sharegpt", "alpaca", "prompt_completion"])
def test_answers_are_told_from_what_is_asked_in_every_form(form: str) -> None:
    made: dict[str, dict[str, Any]] = {
        "messages": {"messages": [{"role": role, "content": said} for role, said in (
            ("system", "s"), ("user", "q"), ("assistant", "a"))]},
        "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        "alpaca": {"instruction": "q", "output": "a", "system": "s"},
        "prompt_completion": {"prompt": "q", "completion": "a"},
    }  # fmt: skip
    assert similarity.compared(formats.conversation(made[form], form)) == (b"q", b"a")
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert b'"arguments": {"a": 1}' in similarity.compared(formats.conversation({"messages": turns}, "messages"))[1]
    assert similarity.compared(formats.conversation({"text": "t"}, "text")) == (b"t", b"")
