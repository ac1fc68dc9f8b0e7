"""Writes the demo's data: support tickets, each with the JSON record it should become.

    python -m qlora_pipelines.pipelines.demo.make_tickets

Every ticket is put together from a sentence about the problem, one about who is affected and one that asks
for something. Training and held-out tickets draw their sentences from separate lists in tickets.yaml, so that the
held-out score measures reading, not remembering: with names and numbers masked, no eight words in a row of a held-out
ticket occur in training (`tests/pipelines/demo/test_make_tickets.py`).
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import yaml

HERE = Path(__file__).parent
WORDS = yaml.safe_load((HERE / "tickets.yaml").read_text())
SEED = 7
TRAIN_TICKETS = 640
HELDOUT_TICKETS = 60

SYSTEM_PROMPT = "Turn the support ticket into JSON."


def tickets(sentences: dict[str, list[str]], number: int, seed: int) -> Iterator[dict[str, object]]:
    """Yields conversations: system prompt, ticket, and the JSON record as the assistant's answer.

    Args:
        sentences: the sentence frames for "problem", "impact", "request" and "extra".
        number: how many tickets; all are different.
        seed: the same seed gives the same tickets.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    while len(seen) < number:
        component, severity, action = (
            rng.choice(list(WORDS[kind])) for kind in ("components", "severities", "actions")
        )
        company, count = rng.choice(WORDS["companies"]), rng.choice([rng.randint(2, 99), rng.randint(100, 9999)])
        values = {
            "part": rng.choice(WORDS["components"][component]),
            "fault": rng.choice(WORDS["severities"][severity]),
            "action": rng.choice(WORDS["actions"][action]),
            "company": company,
            "count": str(count),
            "unit": rng.choice(WORDS["units"]),
            "noise": rng.choice([f"{rng.randint(1, 12)}:{rng.randint(10, 59)}", f"#{rng.randint(1000, 99999)}"]),
        }
        parts = [rng.choice(sentences[kind]) for kind in ("problem", "impact", "request")]
        if rng.random() < 0.2:
            parts = [parts[1], parts[0], parts[2]]
        if rng.random() < 0.5:
            parts.append(rng.choice(sentences["extra"]))
        text = " ".join(parts).format(**values)
        if text in seen:
            continue
        seen.add(text)
        record = {
            "component": component,
            "severity": severity,
            "affected_users": count,
            "company": company,
            "action": action,
        }
        yield {
            "messages": [
                {"role": "system", "content": SYSTEM_PROMPT},
                {"role": "user", "content": text},
                {"role": "assistant", "content": json.dumps(record)},
            ]
        }


def main() -> None:
    """Writes `tickets_train.jsonl` and `tickets_heldout.jsonl` next to this file."""
    for name, number, seed in (("train", TRAIN_TICKETS, SEED), ("heldout", HELDOUT_TICKETS, SEED + 1)):
        lines = [json.dumps(ticket) + "\n" for ticket in tickets(WORDS[name], number, seed)]
        (HERE / f"tickets_{name}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
