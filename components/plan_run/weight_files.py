"""What a base's safetensors files hold, from their headers: a few kilobytes of each file, wherever it lies.

A file is 8 bytes that give the header's length, the header (JSON: name, dtype, shape and place of each tensor), and the
tensors' bytes end to end (https://huggingface.co/docs/safetensors, "Format").
"""

import concurrent.futures
import dataclasses
import json
from typing import Any

from qlora_pipelines.components.core.data import hub
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.store import storage

Shapes = dict[str, tuple[int, ...]]
INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""Bytes; the library refuses more."""
_FIRST_READ = 1 << 16
_PARALLEL = 8


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors of a base by name, and the sizes in bytes of the files that hold them."""

    shapes: Shapes
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes)


def read(name: str, revision: str) -> Weights:
    """Reads the headers of all of a base's weight files.

    Args:
        name: folder, s3:// prefix or Hugging Face id.
        revision: a commit, where it is on the hub.

    Raises:
        InputError: a file is torn, is no safetensors, or is missing.
    """
    if base_model.is_on_hub(name):
        return _from_hub(name, revision)
    sizes = storage.sizes(name)
    files = _files(name, sizes)
    with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
        headers = list(pool.map(lambda file: _header(storage.join(name, file), sizes[file]), files))
    shapes = {tensor: shape for header in headers for tensor, shape in header.items()}
    return Weights(shapes, tuple(sizes[file] for file in files))


def _files(name: str, sizes: dict[str, int]) -> list[str]:
    """The files that the index names, or all where there is none."""
    if INDEX not in sizes:
        return sorted(file for file in sizes if file.endswith(".safetensors") and "/" not in file)
    try:
        named = sorted(set(json.loads(storage.read_bytes(storage.join(name, INDEX)))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"base model {name}: {INDEX} cannot be read; fetch it again") from None
    for file in named:
        if file not in sizes:
            raise InputError(f"base model {name}: {file} is missing, which {INDEX} names; fetch it again")
    return named


def _header(uri: str, size: int) -> Shapes:
    start = storage.read_bytes(uri, min(_FIRST_READ, size)) if size else b""
    length = int.from_bytes(start[:8], "little")
    if size < 8 or length > min(size - 8, LONGEST_HEADER):
        raise InputError(f"base model: {uri} is torn: its header is longer than the file; fetch it again")
    if len(start) < 8 + length:
        start = storage.read_bytes(uri, 8 + length)
    try:
        header: dict[str, Any] = json.loads(start[8 : 8 + length])
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        shapes = {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise InputError(f"base model: {uri} is no safetensors file: its header cannot be read") from None
    _check_size(uri, 8 + length + end, size)
    return shapes


def _check_size(uri: str, wanted: int, size: int) -> None:
    if wanted != size:
        raise InputError(f"base model: {uri} is torn: it has {size} bytes, its header says {wanted}; fetch it again")


def _from_hub(name: str, revision: str) -> Weights:
    import huggingface_hub

    with hub.errors(f"base model {name}", revision):
        found = huggingface_hub.HfApi().get_safetensors_metadata(name, revision=revision)
    sizes = {file.path: file.size for file in base_model.hub_files(name, revision)[1]}
    shapes: Shapes = {}
    for file, header in found.files_metadata.items():
        end = max((tensor.data_offsets[1] for tensor in header.tensors.values()), default=0)
        if end + 8 > sizes.get(file, 0):  # how long the header is, the client does not say
            _check_size(f"{name}/{file}", end + 8, sizes.get(file, 0))
        shapes |= {tensor: tuple(info.shape) for tensor, info in header.tensors.items()}
    return Weights(shapes, tuple(sizes[file] for file in found.files_metadata))


def compare(shapes: Shapes, model: Any) -> tuple[str, str]:
    """Whether files hold the parameters that the base's config.json describes.

    Names are compared as transformers has them. It renames and joins those of some architectures while it loads, so
    a missing name is certainly a fault only where the files hold no name that is unknown.

    Args:
        shapes: of the tensors in the files.
        model: the base without data.

    Returns:
        `fatal`, `warning` or `ok`, and what was found.
    """
    known = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    for name, shape in shapes.items():
        if name in known and known[name] != shape:
            return "fatal", f"{name} is of shape {list(shape)} in the files, but {list(known[name])} by config.json"
    same: dict[int, list[str]] = {}  # tied parameters are one, stored under any of their names
    for name, parameter in model.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(name)
    missing = [names[0] for names in same.values() if not any(name in shapes for name in names)]
    unknown = [name for name in shapes if name not in known]
    if not missing:
        return "ok", f"the files hold all {len(same)} parameters of config.json"
    found = f"the files hold no {missing[0]}, which config.json describes ({len(missing)} of {len(same)} are missing)"
    if not unknown:
        return "fatal", found
    return "warning", f"{found}, but {unknown[0]}; transformers may rename it while it loads"
