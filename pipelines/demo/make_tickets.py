"""Writes the demo's data: support tickets, each with the JSON record it should become.

    python -m qlora_pipelines.pipelines.demo.make_tickets

Every ticket is put together from a sentence about the problem, one about who is affected and one that asks
for something. Training and held-out tickets draw their sentences from separate lists, so that the held-out
score measures reading, not remembering: with names and numbers masked, no eight words in a row of a held-out
ticket occur in training (`tests/pipelines/demo/test_make_tickets.py`).
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
SEED = 7
TRAIN_TICKETS = 640
HELDOUT_TICKETS = 60

SYSTEM_PROMPT = "Turn the support ticket into JSON."

COMPONENTS = {
    "login": ["login page", "login screen", "login form"],
    "checkout": ["checkout page", "checkout", "checkout form"],
    "billing": ["billing page", "billing portal", "billing screen"],
    "search": ["search page", "search", "search box"],
    "email": ["email service", "email sender", "email queue"],
    "reports": ["reports page", "reports screen", "reports tab"],
    "api": ["API", "public API", "API gateway"],
    "mobile": ["mobile app", "mobile client", "mobile version"],
}
# What is wrong decides the severity: the same few verdicts in both sets, in sentences that differ.
SEVERITIES = {
    "critical": ["completely down", "not working at all", "totally broken", "dead"],
    "high": ["very slow", "timing out", "extremely slow", "hanging"],
    "medium": ["showing wrong totals", "showing old data", "mixing up dates", "showing wrong names"],
    "low": ["hard to read", "a bit ugly", "missing an icon", "badly aligned"],
}
ACTIONS = {
    "restart": ["restart it", "give it a restart"],
    "rollback": ["roll back the last release", "roll it back"],
    "refund": ["refund them", "issue a refund"],
    "investigate": ["investigate this", "look into it"],
    "call": ["call me back", "give me a call"],
}
COMPANIES = [
    *("Northwind", "Acme", "Contoso", "Fabrikam", "Globex", "Initech", "Umbrella", "Hooli", "Vandelay", "Wonka"),
    *("Stark", "Tyrell", "Cyberdyne", "Soylent", "Aperture", "Massive", "Oscorp", "Duff", "Gringotts", "Monarch"),
    *("Sirius", "Zorg", "Virtucon", "Krusty", "Bluth", "Dunder", "Prestige", "Sterling"),
]
UNITS = ["users", "customers", "people", "accounts"]

TRAIN = {
    "problem": [
        "Since this morning the {part} is {fault}.",
        "Our {part} is {fault} again.",
        "The {part} has been {fault} for an hour.",
        "I am writing because the {part} is {fault}.",
        "We noticed that the {part} is {fault}.",
        "For {company} the {part} is {fault} right now.",
        "After the update, the {part} is {fault}.",
        "Hello, the {part} is {fault} on our side.",
        "Once more the {part} is {fault} for us.",
        "It looks like the {part} is {fault}.",
        "As of today the {part} seems to be {fault}.",
        "Hi team, your {part} is {fault}, and it is not our network.",
        "My colleague says the {part} is {fault}.",
        "Whatever browser we take, the {part} is {fault}.",
        "The {part} was fine yesterday, now it is {fault}.",
        "You should know that the {part} is {fault} in every office.",
    ],
    "impact": [
        "It affects {count} {unit} at {company}.",
        "{count} {unit} of {company} have told us so.",
        "At {company}, {count} {unit} are waiting.",
        "We count {count} {unit} with this at {company}.",
        "{company} has {count} {unit} who see it.",
        "About {count} {unit} at {company} are hit.",
        "This is a problem for {count} {unit} at {company}.",
        "So far {count} {unit} from {company} complained.",
        "All {count} {unit} of {company} see the same.",
        "There are {count} {unit} affected, all at {company}.",
        "{company} reports {count} {unit} in trouble.",
        "Roughly {count} {unit} in the {company} team cannot go on.",
    ],
    "request": [
        "Please {action}.",
        "Could you {action} today?",
        "We need you to {action}.",
        "Can someone {action} soon?",
        "I would ask you to {action}.",
        "Kindly {action} as soon as you can.",
        "The best thing would be to {action}.",
        "Would you {action}, please?",
        "My boss wants you to {action}.",
        "Just {action}, that helped the last time.",
    ],
    "extra": [
        "Thanks!",
        "Ticket {noise} was similar.",
        "I already cleared the cache.",
        "We wrote about this at {noise} already.",
        "Regards from the night shift.",
        "The log says error {noise}.",
        "Sorry for the short note.",
        "A screenshot is attached.",
    ],
}
HELDOUT = {
    "problem": [
        "Something is off: the {part} is {fault}.",
        "Good morning, we found the {part} {fault} when we came in.",
        "Nobody changed anything here, yet the {part} is {fault}.",
        "Does anybody else find the {part} {fault}?",
        "Three of us checked, and the {part} is indeed {fault}.",
        "Bad news, the {part} is {fault} once again.",
        "To us the {part} appears {fault} at the moment.",
        "Weird one today: {part} {fault}, no idea why.",
    ],
    "impact": [
        "In total {count} {unit} over at {company} suffer from it.",
        "The number of {unit} touched at {company} is {count}.",
        "I hear from {company} that {count} {unit} are stuck.",
        "That makes {count} unhappy {unit} at {company}.",
        "Over at {company} it concerns {count} {unit}.",
        "{count} {unit}, every one of them at {company}, wrote in.",
    ],
    "request": [
        "Do you mind if I ask you to {action}?",
        "It would be great to have you {action} before noon.",
        "What we want: {action}.",
        "Somebody has to {action} now.",
        "If possible, {action} this afternoon.",
    ],
    "extra": [
        "Cheers, and have a nice day.",
        "Our own reference is {noise}.",
        "A reboot on our end changed nothing.",
        "I can send a video if that helps.",
    ],
}


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
        component, severity, action = (rng.choice(list(kinds)) for kinds in (COMPONENTS, SEVERITIES, ACTIONS))
        company, count = rng.choice(COMPANIES), rng.choice([rng.randint(2, 99), rng.randint(100, 9999)])
        values = {
            "part": rng.choice(COMPONENTS[component]),
            "fault": rng.choice(SEVERITIES[severity]),
            "action": rng.choice(ACTIONS[action]),
            "company": company,
            "count": str(count),
            "unit": rng.choice(UNITS),
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
    """Writes `tickets_train.jsonl` and `tickets_heldout.jsonl` beside this file."""
    for name, sentences, number, seed in (
        ("train", TRAIN, TRAIN_TICKETS, SEED),
        ("heldout", HELDOUT, HELDOUT_TICKETS, SEED + 1),
    ):
        lines = [json.dumps(ticket) for ticket in tickets(sentences, number, seed)]
        (HERE / f"tickets_{name}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
