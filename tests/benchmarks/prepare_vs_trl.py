"""Raw JSONL to labelled tokens: prepare_dataset against TRL's own preparation, one process each, on the same rows.

    python -m tests.benchmarks.prepare_vs_trl [--rows 80000] [--memory-rows 1000000]

`prepare_vs_trl` is how many times the rows a second; ours removes near duplicates, TRL's does not.
`prepare_peak_mib` is the step's peak memory on `--memory-rows` generated rows of about 1 kB.
BENCH_DATA names a file to compare on in place of generated rows: of any form and kind that prepare_dataset reads. Both
sides get it as JSONL of `messages`, the one form that TRL prepares with its loss on the assistant.
"""

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import quiet_libraries
from tests.benchmarks import measure as memory
from tests.benchmarks.measure import MODEL

MAX_LENGTH = 1024
SEED = 1
NEAR_SHARE, EXACT_SHARE = 0.05, 0.02
# TRL wants the assistant's part marked in the template: the model's own, with the mark.
MARKED_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endif %}{% endfor %}"
)


def generate(path: Path, rows: int) -> None:
    """Writes conversations of about 1 kB: words by Zipf's law, some rows repeated, some with one word changed."""
    rng = random.Random(SEED)
    syllables = [first + vowel + last for first in "bcdfghlmnprst" for vowel in "aeiou" for last in ("", "n", "r", "s")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(20_000)]
    weights = [1 / (place + 10) for place in range(len(words))]
    cumulative = [sum(weights[:1])]
    for weight in weights[1:]:
        cumulative.append(cumulative[-1] + weight)

    def text(length: int) -> str:
        drawn = rng.choices(words, cum_weights=cumulative, k=length)
        return " ".join(" ".join(drawn[at : at + 12]).capitalize() + "." for at in range(0, length, 12))

    last = [text(50), text(120)]
    with path.open("w") as file:
        for _ in range(rows):
            kind = rng.random()
            if kind < NEAR_SHARE:
                last[1] = f"{last[1]} {rng.choice(words)}"
            elif kind > NEAR_SHARE + EXACT_SHARE:
                last = [text(rng.randint(20, 80)), text(rng.randint(40, 200))]
            turns = [{"role": "user", "content": last[0]}, {"role": "assistant", "content": last[1]}]
            file.write(json.dumps({"messages": turns}) + "\n")


def as_messages(source: Path, target: Path) -> None:
    """Writes the usable conversations of a file as JSONL of `messages`; the others would stop TRL."""
    from qlora_pipelines.components.core.data import formats, readers

    written = 0
    with target.open("w") as file:
        for _, record in readers.records(source, source.name):
            with contextlib.suppress(ValueError):
                row = readers.decode(record)
                messages = formats.conversation(row, formats.form_of(row) or "").messages
                if messages:
                    file.write(json.dumps({"messages": messages}) + "\n")
                    written += 1
    if not written:
        raise InputError(f"BENCH_DATA {source}: no conversation in it")


def ours(data: str) -> float:
    """Seconds prepare_dataset takes, from the listing to the written sets and report; imports are not counted."""
    import fastokens  # noqa: F401
    import orjson  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import rensa  # noqa: F401

    from qlora_pipelines.components.core.config.steps import PrepareConfig
    from qlora_pipelines.components.core.data import listing
    from qlora_pipelines.components.core.models import loading
    from qlora_pipelines.components.prepare_dataset import task

    loading.load_tokenizer(MODEL)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["QLORA_STORE"] = folder
        listing_uri = listing.save(listing.make(str(Path(data).absolute())))
        started = time.monotonic()
        task.run(
            PrepareConfig(max_length=MAX_LENGTH),
            listing_uri=listing_uri,
            tokenizer_uri=str(MODEL),
            train_set=f"{folder}/train.parquet",
            eval_set=f"{folder}/eval.parquet",
            rejected=f"{folder}/rejected.jsonl",
            report=f"{folder}/report.html",
        )
        return time.monotonic() - started


def trl(data: str) -> float:
    """Seconds TRL takes to read the same file and prepare it for a loss on the assistant; imports are not counted."""
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    spent = []

    class Timed(SFTTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            prepared = super()._prepare_dataset(*args, **kwargs)
            spent.append(time.monotonic() - started)
            return prepared

    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    spent.append(time.monotonic() - started)
    tokenizer.chat_template = MARKED_TEMPLATE
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        rows = datasets.load_dataset("json", data_files=data, split="train", cache_dir=folder)
        spent.append(time.monotonic() - started)
        Timed(
            model=model,
            args=SFTConfig(folder, assistant_only_loss=True, max_length=MAX_LENGTH, use_cpu=True, bf16=False),
            train_dataset=rows,
            processing_class=tokenizer,
        )
    return sum(spent)


def _run(what: str, data: str) -> tuple[float, float]:
    """Seconds and peak MiB of `ours` or `trl` in a process of its own."""
    output, peak = memory.run([sys.executable, "-m", "tests.benchmarks.prepare_vs_trl", "--only", what, data])
    return float(output.strip().splitlines()[-1]), peak


def measure(rows: int = 80_000, memory_rows: int = 1_000_000) -> dict[str, float]:
    """Runs both, and ours once more on many rows for its memory; 0 memory rows leave that out.

    Ours spends a good second on loading tokenizers, whatever the rows; few rows measure that.

    Args:
        rows: generated rows to compare on, where BENCH_DATA names none.
        memory_rows: generated rows to measure memory on.
    """
    from qlora_pipelines.pipelines.demo import fetch_model

    if not MODEL.exists():
        fetch_model.fetch(MODEL)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/rows.jsonl"
        if given := os.environ.get("BENCH_DATA"):
            as_messages(Path(given), Path(data))
        else:
            generate(Path(data), rows)
        theirs, own = _run("trl", data)[0], _run("ours", data)[0]
        print(f"TRL {theirs:.1f} s, ours {own:.1f} s", file=sys.stderr)
        figures["prepare_vs_trl"] = round(theirs / own, 2)
        if memory_rows:
            generate(Path(folder, "many.jsonl"), memory_rows)
            seconds, peak = _run("ours", f"{folder}/many.jsonl")
            figures["prepare_peak_mib"] = round(peak)
            print(f"{memory_rows} rows in {seconds:.0f} s, {memory_rows / seconds:.0f} rows a second", file=sys.stderr)
    return figures


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=80_000)
    parser.add_argument("--memory-rows", type=int, default=1_000_000)
    parser.add_argument("--only", nargs=2, metavar=("WHAT", "DATA"), help="one side alone: ours or trl; prints seconds")
    given = parser.parse_args()
    quiet_libraries()
    if given.only:
        what, data = given.only
        print({"ours": ours, "trl": trl}[what](data))
    else:
        print(json.dumps(measure(given.rows, given.memory_rows), indent=1))


if __name__ == "__main__":
    main()
