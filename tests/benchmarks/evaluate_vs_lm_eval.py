"""Scoring held-out rows against lm-eval's loglikelihood, one process each, on the same rows and the same model.

    python -m tests.benchmarks.evaluate_vs_lm_eval

`evaluate_vs_lm_eval` is how many times the tokens a second, against lm-eval at its best batch size here, the median of
three pairs, one run after the other; `evaluate_memory_vs_lm_eval` is the peak of our process, libraries and weights
included, over that of lm-eval's at that batch size.
`evaluate_nll_difference` is how far the mean losses are apart, in nats a token. SmolLM2-135M in bfloat16, whose
rounding is most of that. BENCH_DATA names rows to take instead of the demo's.
"""

import json
import os
import statistics
import sys
import time
from typing import Any

from components.core import chat, models
from components.core.config import EvaluateConfig
from components.core.steps import quiet_libraries
from tests.benchmarks import measure as memory
from tests.benchmarks.measure import MODEL
from tests.benchmarks.train_vs_trl import json_rows

DATA = "pipelines/demo/tickets_train.jsonl"
ROWS, MAX_LENGTH = 128, 1024
BATCH_SIZES = (1, 8, 64)
PAIRS = 3


def rows() -> list[chat.Encoded]:
    """The first rows, the last answer supervised: lm-eval knows one continuation a row."""
    tokenizer = models.load_tokenizer(MODEL)
    found = zip(range(ROWS), json_rows(os.environ.get("BENCH_DATA", DATA)), strict=False)
    encoded = [chat.encode(tokenizer, row, MAX_LENGTH, last_only=True) for _, row in found]
    return [item for item in encoded if item.supervised]


def ours(model: Any, encoded: list[chat.Encoded]) -> list[float]:
    """Each row's log-likelihood in nats."""
    from components.evaluate_model import scoring

    batch_tokens = EvaluateConfig().eval_batch_tokens
    return [-nll for nll, _ in scoring.score(model, encoded, batch_tokens, models.device(), "rows")]


def harness(model: Any, encoded: list[chat.Encoded], batch_size: int) -> list[float]:
    """The same by lm-eval, on the same token ids."""
    from lm_eval.models.huggingface import HFLM

    scorer = HFLM(
        pretrained=model, tokenizer=models.load_tokenizer(MODEL), batch_size=batch_size, max_length=MAX_LENGTH
    )
    requests = []
    for item in encoded:
        places = [place for place, label in enumerate(item.labels) if label != chat.IGNORED]
        start, end = places[0], places[-1] + 1
        requests.append((("", ""), item.input_ids[:start], item.input_ids[start:end]))
    return [total for total, _ in scorer._loglikelihood_tokens(requests, disable_tqdm=True)]


def _one(batch_size: int) -> None:
    """Scores in this process, by lm-eval where it is given a batch size; prints seconds and log-likelihoods.

    Imports and first-use costs of the kernels are not counted, for either.
    """
    quiet_libraries()
    encoded, model = rows(), models.load_16bit(MODEL).eval()

    def score(items: list[chat.Encoded]) -> list[float]:
        return harness(model, items, batch_size) if batch_size else ours(model, items)

    score(encoded[:4])
    started = time.monotonic()
    found = score(encoded)
    print(json.dumps({"seconds": time.monotonic() - started, "found": found}))


def _run(batch_size: int) -> tuple[float, float, list[float]]:
    """Seconds, peak MiB and log-likelihoods of one side in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.evaluate_vs_lm_eval", "--one", str(batch_size)]
    output, peak = memory.run(command)
    result = json.loads(output.strip().splitlines()[-1])
    print(f"batch {batch_size or 'ours'}: {result['seconds']:.1f} s, {peak:.0f} MiB", file=sys.stderr)
    return result["seconds"], peak, result["found"]


def measure() -> dict[str, float]:
    """Finds lm-eval's best batch size, then compares with that in pairs."""
    tried = {batch_size: _run(batch_size)[0] for batch_size in BATCH_SIZES}
    best = min(tried, key=lambda batch_size: tried[batch_size])
    pairs = [(_run(0), _run(best)) for _ in range(PAIRS)]
    (_, _, mine), (_, _, theirs) = pairs[0]
    tokens = sum(item.supervised for item in rows())
    return {
        "evaluate_vs_lm_eval": round(statistics.median(other[0] / own[0] for own, other in pairs), 2),
        "evaluate_memory_vs_lm_eval": round(statistics.median(own[1] / other[1] for own, other in pairs), 2),
        "evaluate_lm_eval_batch_size": best,
        "evaluate_nll_difference": round(abs(sum(mine) - sum(theirs)) / tokens, 6),
    }


if __name__ == "__main__":
    if sys.argv[1:]:
        _one(int(sys.argv[2]))
    else:
        print(json.dumps(measure()))
