"""The merge itself: the base's tensors flow through, a MiB at a time, into the files of the merged model."""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.models import safetensors_files
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.core.models.safetensors_files import FLOATS
from qlora_pipelines.components.core.runtime import Progress, one_thread_per_operation
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.components.core.store.attempts import Attempt
from qlora_pipelines.components.core.store.prefetch import prefetch
from qlora_pipelines.components.dequantize_and_merge.layout import MergedLayout, OutputTensor
from qlora_pipelines.components.dequantize_and_merge.requantization import QuantizedWeight

Rows = tuple[OutputTensor, int, int]
Pieces = Iterator[tuple[Rows, Any]]
"""Bytes of a tensor that is copied, else values in the dtype of the file, as (out, in)."""


def write(layout: MergedLayout, quantization: Quantization, attempt: Attempt, folder: str, note: str) -> None:
    """Writes the merged model's weights, and their index where there are several files.

    Args:
        layout: what to write.
        quantization: how training held the base.
        attempt: where to write.
        folder: the path in the attempt.
        note: what to say of a weight that is not the one training had.

    Raises:
        InputError: the base cannot be read, is not what training had, or the files cannot be written.
    """
    tensors = [tensor for shard in layout.shards for tensor in shard.tensors]
    rows = [(tensor, first, last) for tensor in tensors for first, last in tensor.row_ranges()]
    progress = Progress("merging, tensors", len(tensors))
    done = itertools.count(1)
    with one_thread_per_operation(), contextlib.closing(prefetch(_read, rows)) as pieces:
        for shard in layout.shards:
            header = safetensors_files.write_header((t.name, t.dtype, t.source.shape) for t in shard.tensors)
            with attempt.open(f"{folder}/{shard.name}") as writer:
                writer.write(header)
                for tensor in shard.tensors:
                    own = itertools.islice(pieces, len(tensor.row_ranges()))
                    for data in _merged(tensor, own, quantization, note):
                        writer.write(data)
                    progress.at(next(done))
    if len(layout.shards) > 1:
        weight_map = {tensor.name: shard.name for shard in layout.shards for tensor in shard.tensors}
        index = {"metadata": {"total_size": layout.size}, "weight_map": dict(sorted(weight_map.items()))}
        attempt.write(f"{folder}/{safetensors_files.INDEX}", json.dumps(index, indent=2).encode())


def _read(rows: Rows) -> Any:
    tensor, first, last = rows
    if tensor.is_copy:
        return tensor.source.read(first, last)
    values = tensor.source.tensor(first, last)
    return values.T if tensor.transposed else values


def _merged(tensor: OutputTensor, pieces: Pieces, quantization: Quantization, note: str) -> Iterator[Any]:
    """The bytes of one tensor of the merged model."""
    if tensor.is_copy:
        for _, data in pieces:
            yield data
        return
    import torch

    apply = tensor.update.load() if tensor.update else None
    weight = _quantized(tensor, pieces, quantization, note) if tensor.digest else None
    if weight:  # the base's values have all been read
        ranges = [(0, weight.shape[0])] if tensor.transposed else tensor.row_ranges()
        pieces = (((tensor, first, last), None) for first, last in ranges)

    def merge(piece: tuple[Rows, Any]) -> Any:
        (_, first, last), values = piece
        found = weight.rows(first, last) if weight else values
        found = apply(found, first) if apply else found
        found = found.T if tensor.transposed else found
        # The merge's only rounding, to the dtype of the file.
        return found.to(getattr(torch, FLOATS[tensor.dtype])).contiguous().view(-1).view(torch.uint8).numpy()

    for _, data in prefetch(merge, pieces, os.cpu_count() or 1):
        yield data


def _quantized(tensor: OutputTensor, pieces: Pieces, quantization: Quantization, note: str) -> QuantizedWeight:
    """A weight as training held it.

    Raises:
        InputError: training held another weight.
    """
    import torch

    loaded_in = getattr(torch, quantization.compute_dtype)
    shape = tensor.source.shape[::-1] if tensor.transposed else tensor.source.shape
    weight = QuantizedWeight((values.to(loaded_in).flatten() for _, values in pieces), shape, quantization)
    if not weight.match_digest(tensor.digest):
        raise InputError(f"{tensor.name} of the base, brought to 4 bit, is not what training had: {note}")
    return weight


def check_room(layout: MergedLayout, uri: str) -> None:
    """Checks that a local disk has room for the merged model.

    Raises:
        TransientError: it has not.
    """
    free = storage.free_bytes(uri)
    if free is not None and free < layout.size:
        raise TransientError(
            f"{uri}: the merged model needs {layout.size / 1e9:,.2f} GB, and the disk has {free / 1e9:,.2f} GB left"
        )
