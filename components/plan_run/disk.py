"""What a run writes, and the disk that each pod needs for it where the store is in a bucket."""

import heapq

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.plan_run import memory
from qlora_pipelines.components.plan_run.architecture import Architecture
from qlora_pipelines.components.plan_run.sampling import Sample

FILES_AT_A_TIME = 4
"""Files of a hub's base that stage_base_model has on its disk at once."""
INDEX = 800
"""Bytes per row of preparation's index of duplicates (`duplicates.DuplicateIndex`), rounded up.

512 of signature, 32 of content hash, 8 for each of 25 bands at the default threshold, 17 of flags and clusters: 761.
"""
WRITTEN = 0.5
"""A row's text and ids are in the set that is written, compressed to about a half; before that in the staged file."""


def need(
    architecture: Architecture,
    train: TrainConfig,
    *,
    base_files: tuple[int, ...] = (),
    copied_files: tuple[int, ...] = (),
    converted: bool = False,
    data_files: tuple[int, ...] = (),
    sample: Sample | None = None,
) -> dict[str, int]:
    """Bytes by what they hold.

    Args:
        architecture: base and adapter.
        train: how many checkpoints are kept.
        base_files: sizes of the base's weight files; none: not known, and estimated as 16 bits per parameter.
        copied_files: sizes of the hub's weight files, where they are copied into the store.
        converted: whether the store gets a copy in 16 bit of a base with quantised weights.
        data_files: sizes of the data's files.
        sample: what the data's first rows tell; None: not known, and then preparation's disk is not either.
    """
    merged = 2 * architecture.parameters  # 16 bits each
    base = sum(base_files) or merged
    adapter = memory.adapter_bytes(architecture)
    checkpoint = adapter + memory.optimiser_bytes(architecture)
    # One checkpoint more than is kept: the oldest is deleted after the newest was written.
    staged = sum(copied_files) + (base if converted else 0)
    written = staged + (train.save_total_limit + 1) * checkpoint + adapter + merged
    sizes = {
        "base model": base,
        "checkpoint": checkpoint,
        "adapter": adapter,
        "merged model": merged,
        "store, written by this run": written,
        "pod that stages": sum(heapq.nlargest(FILES_AT_A_TIME, copied_files)),
        # The checkpoint it resumes from, and the one it writes.
        "pod that trains": base + 2 * checkpoint + adapter,
        # The adapter on its base, and the champion's; later the merged model.
        "pod that evaluates": max(base + 2 * adapter, merged),
        # Tensors go from store to store without a file.
        "pod that merges": adapter,
    }
    if sample:
        # Ids have 4 bytes; labels are written only in the set, where they compress well.
        per_row = sample.bytes_per_row + 4 * sample.tokens_per_row
        rows = round(sample.rows * (INDEX + (1 + WRITTEN) * per_row))
        sizes["pod that prepares"] = max(data_files, default=0) + rows
        sizes["store, written by this run"] += round(sample.rows * WRITTEN * per_row)
    return sizes
