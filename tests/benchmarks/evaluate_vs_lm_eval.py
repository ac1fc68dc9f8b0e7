"""Scoring held-out rows against lm-eval's loglikelihood, one process each, on the same rows and the same model.

    python -m tests.benchmarks.evaluate_vs_lm_eval

`evaluate_vs_lm_eval` is how many times the tokens a second, against lm-eval at its best batch size here, the median of
three pairs, one run after the other; `evaluate_memory_vs_lm_eval` is the peak of our process, libraries and weights
included, over that of lm-eval's at that batch size, and `evaluate_scoring_memory_vs_lm_eval` the same of what comes on
top of libraries and weights.
`evaluate_nll_difference` is how far the mean losses are apart, in nats a token. SmolLM2-135M in bfloat16, whose
rounding is most of that. BENCH_DATA names rows to take instead of the demo's.
"""

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.core.runtime import quiet_libraries
from tests.benchmarks import measure as memory
from tests.benchmarks import rows as rows_of
from tests.benchmarks.measure import MODEL

ROWS, MAX_LENGTH = 128, 1024
BATCH_SIZES = (1, 4, 8, 16, 32, 64)
ROUNDS, PAIRS = 2, 3


def rows() -> list[chat_template.Encoded]:
    """The first rows, the last answer supervised: lm-eval knows one continuation a row."""
    encoded = rows_of.encoded(0, ROWS, MAX_LENGTH, last_only=True)
    return [item for item in encoded if item.supervised]


def ours(model: Any, encoded: list[chat_template.Encoded]) -> list[float]:
    """Each row's log-likelihood in nats."""
    from qlora_pipelines.components.evaluate_model import scoring

    batch_tokens = EvaluateConfig().eval_batch_tokens
    return [-nll for nll, _ in scoring.score(model, encoded, batch_tokens, loading.device(), "rows")]


def harness(model: Any, encoded: list[chat_template.Encoded], batch_size: int) -> list[float]:
    """The same by lm-eval, on the same token ids."""
    from lm_eval.models.huggingface import HFLM

    scorer = HFLM(
        pretrained=model, tokenizer=loading.load_tokenizer(MODEL), batch_size=batch_size, max_length=MAX_LENGTH
    )
    requests = []
    for item in encoded:
        places = [place for place, label in enumerate(item.labels) if label != chat_template.IGNORED]
        start, end = places[0], places[-1] + 1
        requests.append((("", ""), item.input_ids[:start], item.input_ids[start:end]))
    return [total for total, _ in scorer._loglikelihood_tokens(requests, disable_tqdm=True)]


class Run(NamedTuple):
    """One side's figures: seconds, log-likelihoods, peak in MiB, and what of it was there before the scoring."""

    seconds: float
    found: list[float]
    peak: float
    before: float


def _one(batch_size: int) -> None:
    """Scores in this process, by lm-eval where it is given a batch size; prints seconds and log-likelihoods.

    Imports and first-use costs of the kernels are not counted, for either.
    """
    quiet_libraries()
    encoded, model = rows(), loading.load_16bit(MODEL).eval()
    importlib.import_module(
        "lm_eval.models.huggingface" if batch_size else "qlora_pipelines.components.evaluate_model.scoring"
    )
    with torch.no_grad():
        model(torch.tensor([encoded[0].input_ids[:8]]).to(model.device))  # weights are read when they are first used
    before = memory.resident()

    def score(items: list[chat_template.Encoded]) -> list[float]:
        return harness(model, items, batch_size) if batch_size else ours(model, items)

    score(encoded[:4])
    started = time.monotonic()
    found = score(encoded)
    print(json.dumps({"seconds": time.monotonic() - started, "found": found, "before": before}))


def _run(batch_size: int) -> Run:
    """One side in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.evaluate_vs_lm_eval", "--one", str(batch_size)]
    output, peak = memory.run(command)
    run = Run(peak=peak, **json.loads(output.strip().splitlines()[-1]))
    who = f"batch {batch_size}" if batch_size else "ours"
    print(f"{who}: {run.seconds:.1f} s, {peak:.0f} MiB, {peak - run.before:.0f} of it for scoring", file=sys.stderr)
    return run


def measure() -> dict[str, float]:
    """Finds lm-eval's best batch size, then compares with that in pairs."""
    tried = [(_run(batch_size).seconds, batch_size) for _ in range(ROUNDS) for batch_size in BATCH_SIZES]
    best = min(tried)[1]
    pairs = [(_run(0), _run(best)) for _ in range(PAIRS)]
    mine, theirs = pairs[0]
    tokens = sum(item.supervised for item in rows())

    def median(ratio: Callable[[Run, Run], float]) -> float:
        return round(statistics.median(ratio(*pair) for pair in pairs), 2)

    return {
        "evaluate_vs_lm_eval": median(lambda own, other: other.seconds / own.seconds),
        "evaluate_memory_vs_lm_eval": median(lambda own, other: own.peak / other.peak),
        "evaluate_scoring_memory_vs_lm_eval": median(
            lambda own, other: (own.peak - own.before) / (other.peak - other.before)
        ),
        "evaluate_lm_eval_batch_size": best,
        "evaluate_nll_difference": round(abs(sum(mine.found) - sum(theirs.found)) / tokens, 6),
    }


if __name__ == "__main__":
    if sys.argv[1:]:
        _one(int(sys.argv[2]))
    else:
        print(json.dumps(measure()))
