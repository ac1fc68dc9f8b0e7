"""Safetensors files read and written by their format: a header that says where each tensor lies, then the tensors.

The format: https://github.com/huggingface/safetensors#format
"""

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models.base_model import PICKLES
from qlora_pipelines.components.core.store import storage, streams

ITEM_BYTES = {
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"], 1),
    **dict.fromkeys(["U16", "I16", "F16", "BF16"], 2),
    **dict.fromkeys(["U32", "I32", "F32"], 4),
    **dict.fromkeys(["U64", "I64", "F64"], 8),
}
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Torch's names of the dtypes that a merge can compute with."""
LARGEST_HEADER = 100_000_000
"""Bytes, as safetensors itself has it."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor in a file: where its bytes lie."""

    file: streams.Reader
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def rows(self) -> int:
        """Length of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of all that lies under one index of the first dimension."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        """Whether a merge can compute with it."""
        return self.dtype in FLOATS

    def read(self, first: int, last: int) -> bytearray:
        """The bytes of rows `first` to `last`, not included."""
        return self.file.read(self.offset + first * self.row_bytes, (last - first) * self.row_bytes)

    def tensor(self, first: int = 0, last: int = -1) -> Any:
        """Rows `first` to `last` (not included; -1: to the end) as a tensor in the dtype of the file."""
        last = self.rows if last < 0 else last
        return as_tensor(self.read(first, last), self.dtype).view(last - first, *self.shape[1:])


def as_tensor(data: bytearray, dtype: str) -> Any:
    """A flat tensor over bytes, of one of FLOATS."""
    import torch

    return torch.frombuffer(data, dtype=getattr(torch, FLOATS[dtype])) if data else torch.empty(0)


def read_header(uri: str, size: int) -> dict[str, Stored]:
    """The tensors of one safetensors file, by name, in the order of their bytes.

    Raises:
        InputError: it is no safetensors file, or not all of one.
    """
    file = streams.Reader(uri, size)
    length = int.from_bytes(file.read(0, 8), "little") if size >= 8 else LARGEST_HEADER + 1
    if length > LARGEST_HEADER:
        raise InputError(f"{uri} is no safetensors file; other formats can run code and are refused")
    if 8 + length > size:
        raise InputError(f"{uri} is torn: it ends inside its header; copy it again")
    try:
        header = json.loads(file.read(8, length))
        header.pop("__metadata__", None)
        found = [
            Stored(file, name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        ]
        end, whole = 8 + length, True
        for tensor in found:  # each begins where the one before ends, and is as long as its shape
            whole = whole and tensor.offset == end
            end += tensor.rows * tensor.row_bytes
            whole = whole and header[tensor.name]["data_offsets"][1] == end - 8 - length
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{uri} is no safetensors file: its header cannot be read ({error})") from None
    if not whole:
        raise InputError(f"{uri} is damaged: its header contradicts itself; copy it again")
    if end != size:
        raise InputError(f"{uri} is torn: {end:,} bytes are promised by its header, {size:,} are there; copy it again")
    return {tensor.name: tensor for tensor in found}


def read_base(base_uri: str) -> dict[str, Stored]:
    """All tensors of a model's folder, in the order of its files.

    Raises:
        InputError: weights are missing, torn, or not safetensors.
    """
    sizes = storage.sizes(base_uri)
    if INDEX in sizes:
        try:
            weight_map = json.loads(storage.read_bytes(storage.join(base_uri, INDEX)))["weight_map"]
            names = list(dict.fromkeys(weight_map.values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"base model {base_uri}: {INDEX} cannot be read; copy the model again") from None
    elif SINGLE in sizes:
        weight_map, names = {}, [SINGLE]
    else:
        pickles = [name for name in sizes if name.endswith(PICKLES)]
        instead = f", only {pickles[0]}" if pickles else ""
        raise InputError(
            f"base model {base_uri}: no {SINGLE} there{instead}; other formats can run code and are refused"
        )
    tensors: dict[str, Stored] = {}
    for name in names:
        if name not in sizes:
            raise InputError(f"base model {base_uri}: {name} is missing, and {INDEX} names it; copy the model again")
        tensors |= read_header(storage.join(base_uri, name), sizes[name])
    for name in weight_map:
        if name not in tensors:
            raise InputError(f"base model {base_uri}: {name} is in {INDEX}, but not in {weight_map[name]}")
    return tensors


def write_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The beginning of a safetensors file.

    Args:
        tensors: name, dtype and shape of each, in the order in which their bytes will follow.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text
