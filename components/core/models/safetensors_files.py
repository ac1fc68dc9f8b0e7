"""Safetensors files read and written by their format (https://github.com/huggingface/safetensors#format).

A file is 8 bytes that give the header's length, the header (JSON: dtype, shape and place of each tensor by name), and
the tensors' bytes end to end.
"""

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any, Protocol

from qlora_pipelines.components.core.errors import InputError

ITEM_BYTES = {
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"], 1),
    **dict.fromkeys(["U16", "I16", "F16", "BF16"], 2),
    **dict.fromkeys(["U32", "I32", "F32"], 4),
    **dict.fromkeys(["U64", "I64", "F64", "C64"], 8),
}
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Torch's names of the dtypes that a merge can compute with."""
LARGEST_HEADER = 100_000_000
"""Bytes; the safetensors library refuses more."""
FIRST_READ = 1 << 16
"""Bytes, of which most headers need less: they then take one request to a bucket or the hub."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class File(Protocol):
    """A file that can be read from any place in it, such as `streams.Reader`; several threads may read at once."""

    uri: str
    size: int

    def read(self, offset: int, size: int) -> bytearray:
        """The `size` bytes from `offset` on."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor in a file: where its bytes are."""

    file: File
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
        """Bytes under one index of the first dimension."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        """Whether a merge can compute with it."""
        return self.dtype in FLOATS

    def row_ranges(self, size: int, multiple: int = 1) -> list[tuple[int, int]]:
        """First and last row (not included) of pieces to read, each of at least one row.

        Args:
            size: bytes of a piece.
            multiple: rows of a piece are a multiple of this, except in the last.
        """
        step = max(1, size // max(1, self.row_bytes) // multiple) * multiple
        return [(first, min(first + step, self.rows)) for first in range(0, self.rows, step)]

    def read(self, first: int, last: int) -> bytearray:
        """The bytes of rows `first` to `last`, not included."""
        return self.file.read(self.offset + first * self.row_bytes, (last - first) * self.row_bytes)

    def tensor(self, first: int = 0, last: int = -1) -> Any:
        """Rows `first` to `last` (not included; -1: to the end) as a tensor in the dtype of the file, one of FLOATS."""
        import torch

        last = self.rows if last < 0 else last
        data = self.read(first, last)
        values = torch.frombuffer(data, dtype=getattr(torch, FLOATS[self.dtype])) if data else torch.empty(0)
        return values.view(last - first, *self.shape[1:])


def read_header(file: File) -> dict[str, Stored]:
    """The tensors of one safetensors file by name, in the order of their bytes.

    Raises:
        InputError: it is no safetensors file, or not all of one.
    """
    data = file.read(0, min(FIRST_READ, file.size))
    length = int.from_bytes(data[:8], "little")
    if 0 < file.size < 8 or length > LARGEST_HEADER:
        raise InputError(f"{file.uri} is no safetensors file; other formats can run code and are refused")
    start = 8 + length
    if start > file.size:
        raise InputError(f"{file.uri} is torn: its header is longer than the file; fetch it again")
    if start > len(data):
        data += file.read(len(data), start - len(data))
    found: dict[str, Stored] = {}
    end = 0
    try:
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if entry["dtype"] not in ITEM_BYTES:
                raise InputError(f"{file.uri}: {name} is of dtype {entry['dtype']}, which is not known here")
            found[name] = tensor = Stored(file, name, entry["dtype"], tuple(entry["shape"]), start + end)
            begin, end = end, end + tensor.rows * tensor.row_bytes
            if entry["data_offsets"] != [begin, end]:  # the format has no gaps and no overlaps
                raise InputError(f"{file.uri} is damaged: its header contradicts itself; fetch it again")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise InputError(f"{file.uri} is no safetensors file: its header cannot be read") from None
    if start + end != file.size:
        raise InputError(f"{file.uri} is torn: it has {file.size} bytes, its header says {start + end}; fetch it again")
    return found


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
