"""A copy in 16 bit of a base whose weights are quantised: they flow through, a few MiB at a time."""

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.models import (
    base_model,
    base_weights,
    model_files,
    published_quantization,
    safetensors_files,
)
from qlora_pipelines.components.core.models.published_quantization import Restored
from qlora_pipelines.components.core.runtime import Progress, log
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.core.store.prefetch import prefetch

PARALLEL = 4
"""Pieces in work at a time; one of fused experts is some 50 MiB."""


def convert(name: str, revision: str, uri: str, quantised: dict[str, Any]) -> attempts.Finished:
    """Writes the copy into the store: one file for each of the published ones, their index, and all small files.

    Args:
        name: of the base, as it was given.
        revision: of the base.
        uri: where its files are.
        quantised: what its config.json says of the weights.

    Raises:
        InputError: the weights are in another format, torn, or not finite.
        TransientError: the disk has no room.
    """
    tensors = base_weights.read(uri, checked=base_model.check(uri, revision))
    try:
        restored = published_quantization.restored(tensors, quantised)
    except published_quantization.UnreadableFormat as error:
        raise InputError(published_quantization.refusal(name, error, base_model.origin(name, revision))) from None
    size = sum(tensor.size for tensor in restored.values())
    place = storage.join(base_model.place_in_store(name, revision), base_model.IN_16BIT)
    free = storage.free_bytes(storage.root())
    if free is not None and free < size:
        raise TransientError(f"{place}: the copy in 16 bit needs {size / 1e9:,.2f} GB, and {free / 1e9:,.2f} are left")
    log(f"base {name} is quantised ({quantised.get('quant_method')}): writing it in 16 bit, {size / 1e9:,.2f} GB")
    with tempfile.TemporaryDirectory() as scratch, attempts.attempt(place, wait=True) as attempt:
        _write(attempt, restored, size)
        files = base_model.small_files(uri, revision, Path(scratch))
        for path in model_files.small(files):
            if not model_files.tells_of_weights(path) and path != "config.json":
                attempt.write(path, (files / path).read_bytes())
        described = published_quantization.without(json.loads((files / "config.json").read_text()))
        attempt.write("config.json", json.dumps(described, indent=2).encode())
        info = {"base_model": name, "revision": revision, "conversion": base_model.CONVERSION}
        return attempt.commit(info)


def _write(attempt: attempts.Attempt, restored: dict[str, Restored], size: int) -> None:
    shards: dict[str, list[Restored]] = {}
    for tensor in restored.values():
        shards.setdefault(tensor.source.file.uri.rpartition("/")[2], []).append(tensor)
    progress, done = Progress("in 16 bit, tensors", len(restored)), 0
    for shard, tensors in shards.items():
        with attempt.open(shard) as writer:
            writer.write(safetensors_files.write_header((t.name, t.dtype, t.shape) for t in tensors))
            for tensor in tensors:
                read = functools.partial(_read, tensor, tensor.scales())
                for _, data in prefetch(read, tensor.pieces(), min(os.cpu_count() or 1, PARALLEL)):
                    writer.write(data)
                done += 1
                progress.at(done)
    if list(shards) != [safetensors_files.SINGLE]:
        weight_map = {tensor.name: shard for shard, tensors in shards.items() for tensor in tensors}
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        attempt.write(safetensors_files.INDEX, json.dumps(index, indent=2).encode())


def _read(tensor: Restored, scale: Any, rows: tuple[int, int]) -> Any:
    return tensor.read(*rows, scale)
