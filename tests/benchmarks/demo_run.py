"""The demo's run up to its prepared data, for benchmarks that measure what comes after."""

import os
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.plan_run import task as plan_run
from qlora_pipelines.components.prepare_dataset import task as prepare_dataset


def prepare(config: RunConfig, folder: Path, store: Path) -> tuple[Any, Any]:
    """Plans a run and prepares its data: `train.parquet` in the folder, beside MLflow's database.

    Args:
        config: the whole run.
        folder: an empty one.
        store: what `QLORA_STORE` is to name from here on.

    Returns:
        What plan_run and what prepare_dataset returned.
    """
    os.environ["QLORA_STORE"] = str(store.absolute())
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    plan = plan_run.run(config, report=str(folder / "plan.html"))
    data = prepare_dataset.run(
        config.for_step("prepare_dataset"),
        listing_uri=plan.listing_uri,
        tokenizer_uri=plan.tokenizer_uri,
        train_set=str(folder / "train.parquet"),
        eval_set=str(folder / "eval.parquet"),
        rejected=str(folder / "rejected.jsonl"),
        report=str(folder / "data.html"),
    )
    return plan, data
