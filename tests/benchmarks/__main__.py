"""All benchmarks: `make bench` writes their figures to dist/bench.json, one flat object, and docs/benchmarks.md.

Each figure is a ratio against a peer measured in the same run, or a peak of memory; BENCH_DATA names rows to take
instead of generated ones.
"""

import json
import time
from pathlib import Path

from qlora_pipelines.components.core.runtime import quiet_libraries
from qlora_pipelines.pipelines.demo import fetch_model
from tests.benchmarks import (
    evaluate_vs_lm_eval,
    merge_vs_peft,
    near_duplicates_vs_datatrove,
    page,
    plan_vs_measured,
    prepare_vs_trl,
    store_vs_boto3,
    train_vs_trl,
)
from tests.benchmarks.measure import MODEL


def main() -> None:
    """Runs them one after another."""
    quiet_libraries()
    fetch_model.fetch(MODEL)
    started = time.monotonic()
    figures: dict[str, float] = {}
    benchmarks = (
        train_vs_trl,
        prepare_vs_trl,
        near_duplicates_vs_datatrove,
        plan_vs_measured,
        evaluate_vs_lm_eval,
        merge_vs_peft,
        store_vs_boto3,
    )
    for benchmark in benchmarks:
        figures |= benchmark.measure()
        print(json.dumps(figures, indent=1), flush=True)
    target = Path("dist/bench.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(figures, indent=1) + "\n")
    page.PAGE.write_text(page.text(figures, time.monotonic() - started))


if __name__ == "__main__":
    main()
