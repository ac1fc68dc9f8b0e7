"""Recall and precision of near duplicates on rows with known ones, against datatrove's MinHash on the same rows.

    python -m venv peer && peer/bin/pip install 'datatrove[processing]==0.10.1' spacy
    DATATROVE=peer/bin/python python -m tests.benchmarks.near_duplicates_vs_datatrove

datatrove has a Python of its own, as its dependencies differ. It compares whole texts; ours knows questions and
answers. A row counts as found if it is left out. `precision` is the share of the rows left out that are copies of
another row, `recall` the share of the copies that are left out. BENCH_DATA names rows to copy, in place of generated
ones.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qlora_pipelines.components.core.config.steps import PrepareConfig
from qlora_pipelines.components.core.data import duplicates, minhash
from tests.benchmarks.prepare_vs_trl import as_messages, generate

ROWS = 3000
LABELS = ["praise", "complaint", "question", "other"]
PEER = """
import json, sys
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
folder, config = sys.argv[1], MinhashConfig()
rows = [Document(text=text, id=str(n)) for n, text in enumerate(json.load(open(folder + "/texts.json")))]
MinhashDedupSignature(folder + "/signatures", config).run(iter(rows), 0, 1)
number = config.num_buckets
for bucket in range(number):
    MinhashDedupBuckets(folder + "/signatures", folder + "/buckets", config=config).run(None, bucket, number)
MinhashDedupCluster(folder + "/buckets", folder + "/removed", config=config).run(None, 0, 1)
"""


class Row(NamedTuple):
    """A row with the kind it is of, and whether it is a copy of one before it."""

    asked: str
    answered: str
    kind: str
    is_copy: bool


def rows(source: Path, rng: random.Random) -> list[Row]:
    """Rows of a file, copies of them with small changes, and rows that only look like copies."""
    pairs = []
    for line in source.read_bytes().split(b"\n"):
        turns = json.loads(line)["messages"] if line else []
        if len(turns) >= 2 and len(turns[-2]["content"].split()) + len(turns[-1]["content"].split()) >= 40:
            pairs.append((turns[-2]["content"], turns[-1]["content"]))
    pairs = list(dict(pairs).items())[:ROWS]  # generated copies have the same question
    words = [word for asked, answered in pairs for word in f"{asked} {answered}".split()]
    found = [Row(*pair, "as it is", False) for pair in pairs]

    def edited(text: str, edits: int) -> str:
        parts = text.split(" ")
        for _ in range(edits):
            place = rng.randrange(len(parts))
            parts[place : place + rng.randint(0, 1)] = [rng.choice(words)]
        return " ".join(parts)

    changes: dict[str, Callable[[str, str], tuple[str, str]]] = {
        "letter case, spaces": lambda asked, answered: (asked.upper(), answered.replace(" ", "  ")),
        "a word after the question": lambda asked, answered: (f"{asked} {rng.choice(words)}", answered),
        "a word within": lambda asked, answered: (asked, edited(answered, 1)),
        "a word in a hundred": lambda asked, answered: (
            edited(asked, len(asked.split()) // 100), edited(answered, max(1, len(answered.split()) // 100))),
    }  # fmt: skip
    long = [pair for pair in pairs if min(len(text.split()) for text in pair) >= 40] or pairs
    for kind, change in changes.items():
        found += [Row(*change(*pair), kind, True) for pair in rng.sample(long, min(len(long), ROWS // 20))]
    instruction = " ".join(rng.choices(words, k=120))
    for _ in range(ROWS // 10):
        asked = f"{instruction} {' '.join(rng.choices(words, k=10))}"
        found.append(Row(asked, rng.choice(LABELS), "under one instruction", False))
    for asked, _ in rng.sample(long, min(len(long), ROWS // 20)):
        found.append(Row(f"{asked} {asked}", "yes", "another answer", False))
        found.append(Row(f"{asked} {asked}", "no", "another answer", False))
    for asked, answered in rng.sample(long, min(len(long), ROWS // 20)):
        found.append(Row(edited(asked, len(asked.split()) // 12), edited(answered, len(answered.split()) // 12),
                         "a word in twelve", False))  # fmt: skip
    return found


def ours(data: list[Row], folder: Path) -> list[bool]:
    """Which rows are left out."""
    pairs = [(row.asked.encode(), row.answered.encode()) for row in data]
    ids = b"".join(hashlib.sha256(b"\n".join(pair)).digest() for pair in pairs)
    index = duplicates.DuplicateIndex(folder, PrepareConfig().near_duplicate_threshold)
    sets = minhash.sets(pairs)
    index.add(np.frombuffer(ids, np.uint8).reshape(-1, 32), sets, minhash.signatures_of(sets), False)
    left_out: list[bool] = (~index.deduplicate().kept).tolist()
    index.close()
    return left_out


def datatrove(data: list[Row], folder: Path) -> list[bool]:
    """The same of datatrove, with its defaults, which are FineWeb's."""
    (folder / "texts.json").write_text(json.dumps([f"{row.asked}\n{row.answered}" for row in data]))
    subprocess.run([os.environ["DATATROVE"], "-c", PEER, str(folder)], check=True, stdout=sys.stderr)
    removed = np.fromfile(folder / "removed" / "000000.remove", np.uint32)
    left_out = np.zeros(len(data), bool)
    left_out[removed] = True
    return list(left_out.tolist())


def scores(data: list[Row], left_out: list[bool]) -> tuple[float, float, dict[str, str]]:
    """Recall, precision, and how many rows of each kind were left out.

    Of a row and its copy either may be left out; so copies are counted, and rows that are none and have none.
    """
    kinds: dict[str, list[bool]] = {}
    for row, out in zip(data, left_out, strict=True):
        kinds.setdefault(row.kind, []).append(out)
    copies = sum(row.is_copy for row in data)
    wrong = sum(sum(outs) for kind, outs in kinds.items() if kind in ("under one instruction", "another answer",
                                                                     "a word in twelve"))  # fmt: skip
    right = min(sum(left_out) - wrong, copies)
    shown = {kind: f"{sum(outs)} of {len(outs)}" for kind, outs in kinds.items()}
    return right / copies, right / max(sum(left_out), 1), shown


def measure() -> dict[str, float]:
    """Recall and precision of both; the peer's only where DATATROVE names its Python."""
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "rows.jsonl")
        if given := os.environ.get("BENCH_DATA"):
            as_messages(Path(given), source)
        else:
            generate(source, 2 * ROWS)
        data = rows(source, random.Random(0))
        sides = {"ours": ours, "datatrove": datatrove} if "DATATROVE" in os.environ else {"ours": ours}
        for name, side in sides.items():
            Path(scratch, name).mkdir()
            recall, precision, shown = scores(data, side(data, Path(scratch, name)))
            figures[f"near_duplicates_recall_{name}"] = round(recall, 3)
            figures[f"near_duplicates_precision_{name}"] = round(precision, 3)
            print(f"{name}, left out: {json.dumps(shown)}", file=sys.stderr)
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
