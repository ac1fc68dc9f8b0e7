"""What a run writes, and the disk that each pod needs for it where the store is on S3."""

import heapq

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.plan_run import memory
from qlora_pipelines.components.plan_run.architecture import Architecture
from qlora_pipelines.components.plan_run.sampling import Sample

FILES_AT_A_TIME = 4
"""Files of a hub's base that stage_base_model has on its disk at once."""
INDEX = 800
"""Bytes a row of preparation's index of duplicates."""
TWICE = 1.5
"""A row's text and ids lie in the staged file and, compressed, in the set that comes out."""


def need(
    architecture: Architecture,
    train: TrainConfig,
    *,
    base_files: tuple[int, ...] = (),
    from_hub: bool = False,
    data_files: tuple[int, ...] = (),
    sample: Sample | None = None,
) -> dict[str, int]:
    """Bytes by what they hold.

    Args:
        architecture: base and adapter.
        train: how many checkpoints are kept.
        base_files: sizes of the base's weight files; none: not known, and reckoned at 16 bits a parameter.
        from_hub: whether the base is copied into the store.
        data_files: sizes of the data's files.
        sample: what the data's first rows tell; None: not known, and then preparation's disk is not either.
    """
    merged = 2 * architecture.parameters
    base = sum(base_files) or merged
    adapter = memory.adapter_bytes(architecture)
    checkpoint = adapter + memory.optimiser_bytes(architecture)
    written = (base if from_hub else 0) + (train.save_total_limit + 1) * checkpoint + adapter + merged
    found = {
        "base model": base,
        "checkpoint": checkpoint,
        "adapter": adapter,
        "merged model": merged,
        "store, written by this run": written,
        "pod that stages": sum(heapq.nlargest(FILES_AT_A_TIME, base_files)) if from_hub else 0,
        # The checkpoint it resumes from, and the one it writes.
        "pod that trains": base + 2 * checkpoint + adapter,
        # The adapter on its base, with the champion's beside it; later the merged model.
        "pod that evaluates": max(base + 2 * adapter, merged),
        # Tensors flow from store to store.
        "pod that merges": adapter,
    }
    if sample:
        a_row = INDEX + TWICE * (sample.bytes_a_row + 4 * sample.tokens_a_row)
        found["pod that prepares"] = max(data_files, default=0) + round(sample.rows * a_row)
    return found
