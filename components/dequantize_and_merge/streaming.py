"""The merge itself: the base's tensors flow through, a MiB at a time, into the files of the merged model."""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.models import safetensors_files
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.core.models.safetensors_files import FLOATS
from qlora_pipelines.components.core.runtime import Progress
from qlora_pipelines.components.core.store import streams
from qlora_pipelines.components.core.store.streamed_attempts import StreamedAttempt
from qlora_pipelines.components.dequantize_and_merge.layout import Output, Plan, Shard
from qlora_pipelines.components.dequantize_and_merge.requantization import QuantizedWeight

Block = tuple[Output, int, int]
Blocks = Iterator[tuple[Block, bytearray]]


def write(plan: Plan, quantization: Quantization, attempt: StreamedAttempt, folder: str, note: str) -> None:
    """Writes the merged model's weights, and their index where there are several files.

    Args:
        plan: what to write.
        quantization: how training held the base.
        attempt: where to write.
        folder: the path in the attempt.
        note: what to say of a weight that is not the one training had.

    Raises:
        InputError: the base cannot be read, is not what training had, or the files cannot be written.
    """
    blocks = [
        (output, first, last) for shard in plan.shards for output in shard.outputs for first, last in output.blocks()
    ]
    progress = Progress("merging, tensors", sum(len(shard.outputs) for shard in plan.shards))
    done = itertools.count(1)
    with _one_thread_an_operation(), contextlib.closing(streams.ahead(_read, blocks)) as pieces:
        for shard in plan.shards:
            with attempt.open(f"{folder}/{shard.name}") as writer:
                writer.write(_header(shard))
                for output in shard.outputs:
                    own = itertools.islice(pieces, len(output.blocks()))
                    for data in _merged(output, own, quantization, note):
                        writer.write(data)
                    progress.at(next(done))
    if len(plan.shards) > 1:
        attempt.write(f"{folder}/{safetensors_files.INDEX}", json.dumps(_index(plan), indent=2).encode())


@contextlib.contextmanager
def _one_thread_an_operation() -> Iterator[None]:
    """Several pieces in work at a time, one thread each: threads that share an operation wait for the slowest."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read(block: Block) -> bytearray:
    output, first, last = block
    return output.source.read(first, last)


def _header(shard: Shard) -> bytes:
    return safetensors_files.write_header((output.name, output.dtype, output.source.shape) for output in shard.outputs)


def _index(plan: Plan) -> dict[str, Any]:
    weight_map = {output.name: shard.name for shard in plan.shards for output in shard.outputs}
    return {"metadata": {"total_size": plan.size}, "weight_map": dict(sorted(weight_map.items()))}


def _merged(output: Output, pieces: Blocks, quantization: Quantization, note: str) -> Iterator[Any]:
    """The bytes of one tensor of the merged model."""
    if output.update is None and not output.digest and output.dtype == output.source.dtype:
        for _, data in pieces:
            yield data
        return
    apply = output.update.load() if output.update else None
    items, load = _in_4bit(output, pieces, quantization, note) if output.digest else (pieces, _as_stored)

    def merge(item: Any) -> Any:
        first, values = load(item)
        found = apply(values, first) if apply else values
        return _bytes(found.T if output.transposed else found, output.dtype)

    for _, data in streams.ahead(merge, items, os.cpu_count() or 1):
        yield data


def _as_stored(piece: tuple[Block, bytearray]) -> tuple[int, Any]:
    """A piece's first row, and its values in the dtype of the file; a transposed tensor as (out, in)."""
    (output, first, last), data = piece
    values = safetensors_files.as_tensor(data, output.source.dtype).view(last - first, *output.source.shape[1:])
    return first, values.T if output.transposed else values


def _in_4bit(
    output: Output, pieces: Blocks, quantization: Quantization, note: str
) -> tuple[list[tuple[int, int]], Callable[[tuple[int, int]], tuple[int, Any]]]:
    """The pieces of a weight as training computed with them: first and last rows, and what gives the values between.

    Raises:
        InputError: training held another weight.
    """
    import torch

    loaded_in = getattr(torch, quantization.compute_dtype)
    values = (_as_stored(piece)[1].to(loaded_in).flatten() for piece in pieces)
    shape = output.source.shape[::-1] if output.transposed else output.source.shape
    weight = QuantizedWeight(values, shape, quantization)
    if not weight.settle(output.digest):
        raise InputError(f"{output.name} of the base, brought to 4 bit, is not what training had: {note}")
    blocks = [(0, shape[0])] if output.transposed else output.blocks()
    return blocks, lambda block: (block[0], weight.rows(*block))


def _bytes(values: Any, dtype: str) -> Any:
    """A tensor's bytes in the dtype of its file: the merge's only rounding."""
    import torch

    return values.to(getattr(torch, FLOATS[dtype])).contiguous().view(-1).view(torch.uint8).numpy()


def check_room(plan: Plan, uri: str) -> None:
    """Checks that a local disk has room for the merged model.

    Raises:
        TransientError: it has not.
    """
    free = streams.free_bytes(uri)
    if free is not None and free < plan.size:
        raise TransientError(
            f"{uri}: the merged model needs {plan.size / 1e9:,.2f} GB, and the disk has {free / 1e9:,.2f} GB left"
        )
