"""The whole path of one tiny model: planned, prepared, trained, judged, merged both ways, judged again, loaded plainly.

What came out is compared with what plain transformers and peft make of the same files, one conversation at a time.
"""

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.data import tokenized
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import storage
from tests.architectures import results, sizes, tiny
from tests.architectures.results import Walk
from tests.components.conftest import digest

STEPS = 8
"""Optimiser steps of training, unless `sizes` says otherwise."""
EXPECTED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "expected.json").read_text())
"""What each entry of `tiny` comes to; `python -m tests.architectures NAME...` writes it anew."""


def expected(name: str) -> dict[str, Any]:
    """What the table says of an entry, apart from the distance, which is measured and not held."""
    return {key: value for key, value in EXPECTED[name].items() if key != "distance"}


def walk(name: str, folder: Path, publish: Callable[[Path], None] = lambda _: None) -> Walk:
    """The whole path of one architecture; nothing is raised.

    Args:
        name: an entry of `tiny`.
        folder: an empty one; the environment names a store in it, and MLflow's.
        publish: changes the model's files, as its authors may have published it.
    """
    found = Walk(name)
    try:
        found.made = tiny.save_model(name, folder / "base")
        publish(folder / "base")
    except Exception as error:
        found.wrong.append(f"not made: {_line(error)}")
        return found
    try:
        _go(found, folder)
    except Exception as error:
        if "VERBOSE" in os.environ:
            traceback.print_exc()
        found.wrong.append(_line(error))
    return found


def _line(error: BaseException) -> str:
    """A refusal's own words; of anything else also where in the product it came from."""
    if isinstance(error, InputError):
        return f"refused late: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
    ours = [place for place, frame in zip(places, frames, strict=True) if "/components/" in frame.filename]
    text = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {text} at {(ours or ['?'])[-1]} <- {places[-1]}"


def _go(found: Walk, folder: Path) -> None:
    from qlora_pipelines.components.dequantize_and_merge import task as merge
    from qlora_pipelines.components.evaluate_model import task as evaluate
    from qlora_pipelines.components.plan_run import task as plan_run
    from qlora_pipelines.components.prepare_dataset import task as prepare
    from qlora_pipelines.components.stage_base_model import task as stage
    from qlora_pipelines.components.train_qlora import task as train

    base = folder / "base"
    config = PlacedRun(
        base_model=str(base),
        dataset_uri=str(tiny.save_rows(folder / "rows.jsonl")),
        model_name=f"tiny-{found.name}".replace(".", "-"),
        max_length=128,
        learning_rate=0.01,
        lora_r=8,
        gpu_count="0",
        options={
            "prepare_dataset": {"eval_share": 0.25, "near_duplicate_threshold": 0},
            "train_qlora": {
                "max_steps": sizes.SPECIAL.get(found.name, {}).get("_steps", STEPS),
                "batch_tokens": 256,
                "max_restarts": 0,
            },
            "evaluate_model": {"generation_rows": 2, "max_new_tokens": 4, "swapped_rows": 4},
        },
    )
    try:
        plan = plan_run.run(config, report=str(folder / "plan.html"))
    except InputError as error:
        found.refused = str(error).replace(f"{folder}/", "")
        return
    staged = stage.run(stage.Config(base_model=str(base), base_revision=plan.base_revision))
    base = Path(staged.base_uri)
    prepared = prepare.run(
        prepare.Config.parse(plan.prepare_options, max_length=128),
        listing_uri=plan.listing_uri,
        tokenizer_uri=plan.tokenizer_uri,
        train_set=str(folder / "train.parquet"),
        eval_set=str(folder / "eval.parquet"),
        rejected=str(folder / "rejected.jsonl"),
        report=str(folder / "data.html"),
    )
    typed = {key: getattr(config, key) for key in ("learning_rate", "lora_r")}
    training = train.Config.parse(plan.train_options, **typed)
    found.packed = training.packing is True
    train.run(
        training,
        train_set=str(folder / "train.parquet"),
        dataset_digest=prepared.dataset_digest,
        base_uri=str(base),
        base_revision=plan.base_revision,
        training_key=plan.training_key,
        adapter=str(folder / "adapter"),
        report=str(folder / "training.html"),
    )
    results.check_adapter(found, folder / "adapter")
    judged = evaluate.Config.parse(plan.evaluate_options)
    common: dict[str, Any] = {
        "eval_set": str(folder / "eval.parquet"),
        "dataset_digest": prepared.dataset_digest,
        "base_uri": str(base),
    }
    tuned = evaluate.run(
        judged,
        **common,
        adapter=str(folder / "adapter"),
        adapter_digest=digest(folder / "adapter"),
        scores=str(folder / "scores"),
        report=str(folder / "evaluation.html"),
    )
    if not tuned.loss < tuned.reference_loss:
        found.wrong.append(f"the loss does not fall: {tuned.reference_loss:.3f} to {tuned.loss:.3f}")
    merged = {}
    for kind in ("dequantized", "original"):
        made = merge.run(
            merge.Config(merge_base=kind),
            base_uri=str(base),
            base_revision=plan.base_revision,
            adapter=str(folder / "adapter"),
            adapter_digest=digest(folder / "adapter"),
            merge_key=f"{plan.merge_key}{kind}",
        )
        merged[kind] = Path(storage.local_path(made.merged_uri))
    evaluate.run(
        judged,
        **common,
        merged_uri=str(merged["dequantized"]),
        merged_digest=digest(merged["dequantized"]),
        adapter_scores=str(folder / "scores"),
        scores=str(folder / "scores of the merged"),
        report=str(folder / "evaluation of the merged.html"),
    )
    samples = [s.encoded for s in tokenized.read(str(folder / "eval.parquet"), prepared.dataset_digest)]
    for kind, place in merged.items():
        results.check_merged(found, kind, base, folder / "adapter", place / "model", samples, tuned.loss)
    if found.packed:
        training_samples = [s.encoded for s in tokenized.read(str(folder / "train.parquet"), prepared.dataset_digest)]
        results.check_packed(found, base, folder / "adapter", training_samples[:12])
