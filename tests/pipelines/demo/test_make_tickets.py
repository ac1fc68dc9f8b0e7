import json
import re
from pathlib import Path

import pytest

from qlora_pipelines.pipelines.demo import make_tickets
from qlora_pipelines.pipelines.demo.make_tickets import HERE, WORDS

Ticket = tuple[str, dict[str, object]]


def load(name: str) -> list[Ticket]:
    rows = [json.loads(line)["messages"] for line in (HERE / f"tickets_{name}.jsonl").read_text().splitlines()]
    return [(messages[1]["content"], json.loads(messages[2]["content"])) for messages in rows]


def masked_words(text: str) -> list[str]:
    text = re.sub(r"#?\d[\d:]*", "NUMBER", text)
    names = [*WORDS["companies"], *(part for parts in WORDS["components"].values() for part in parts)]
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(name)}\b", "NAME", text)
    return re.findall(r"\w+", text.lower())


def grams(tickets: list[Ticket]) -> set[tuple[str, ...]]:
    found = set()
    for text, _ in tickets:
        words = masked_words(text)
        found |= {tuple(words[start : start + 8]) for start in range(len(words) - 7)}
    return found


def test_the_generator_makes_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_tickets, "HERE", tmp_path)
    make_tickets.main()
    for name in ("train", "heldout"):
        assert (tmp_path / f"tickets_{name}.jsonl").read_bytes() == (HERE / f"tickets_{name}.jsonl").read_bytes()


def test_no_eight_words_in_a_row_of_a_heldout_ticket_occur_in_training() -> None:
    train, heldout = grams(load("train")), grams(load("heldout"))
    assert len(heldout) > 500
    assert not train & heldout


def test_tickets_are_varied_and_every_answer_can_be_read_from_its_ticket() -> None:
    for name, number in (("train", make_tickets.TRAIN_TICKETS), ("heldout", make_tickets.HELDOUT_TICKETS)):
        tickets = load(name)
        assert len({text for text, _ in tickets}) == number
        for text, record in tickets:
            assert str(record["affected_users"]) in text and str(record["company"]) in text
            assert any(part in text for part in WORDS["components"][str(record["component"])])
            assert any(fault in text for fault in WORDS["severities"][str(record["severity"])])
            assert any(action in text for action in WORDS["actions"][str(record["action"])])
        for field, words in (("component", "components"), ("severity", "severities"), ("action", "actions")):
            assert {record[field] for _, record in tickets} == set(WORDS[words])
