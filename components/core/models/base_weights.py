"""The tensors of a base model, from the headers of its files: a few kB of each, local, in a bucket or on the hub."""

import concurrent.futures
import json

from qlora_pipelines.components.core.data import hub
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model, safetensors_files
from qlora_pipelines.components.core.models.safetensors_files import INDEX, SINGLE, File, Stored
from qlora_pipelines.components.core.store import storage, streams, verified

PARALLEL = 8
"""Headers read at a time: in a bucket and on the hub, each waits for an answer or two."""
OPENED = 2
"""Files opened at a time. One that is read whole for that takes objects.PARALLEL parts of memory."""


def read(base: str, revision: str = "", checked: list[storage.Entry] | None = None) -> dict[str, Stored]:
    """All tensors of a base by name, in the order of its files.

    Where there are both a single file and an index, the single file counts, as for transformers' `from_pretrained`.

    Args:
        base: a folder, an `s3://` prefix or a Hugging Face id.
        revision: a commit, for a Hugging Face id.
        checked: the files that `base_model.check` gave. Weights in an object store are then read whole here, and what
            is read of them later is compared. None: nothing is compared, which will do for a look at the headers.

    Raises:
        InputError: weights are missing, torn, not safetensors, or others than `checked`.
    """
    on_hub = base_model.is_on_hub(base)
    listed = base_model.hub_files(base, revision)[1] if on_hub else storage.files(base)
    entries = {entry.path: entry for entry in (listed if checked is None else checked)}
    compared, blocks = checked is not None and storage.is_remote(base), verified.Blocks()
    sizes = {name: entry.size for name, entry in entries.items()}
    base_model.check_names(base, sizes)
    if SINGLE not in sizes and INDEX not in sizes:
        raise InputError(f"base model {base}: neither {SINGLE} nor {INDEX} is there; fetch it again")

    def open_file(name: str) -> File:
        if name not in sizes:
            raise InputError(f"base model {base}: {name} is missing, which {INDEX} names; fetch it again")
        if on_hub:
            return _HubFile(base, revision, name, sizes[name])
        uri = storage.join(base, name)
        if compared:
            return verified.Reader(uri, entries[name], blocks)
        return streams.Reader(uri, sizes[name], entries[name].etag)

    weight_map = {} if SINGLE in sizes else _weight_map(base, open_file(INDEX))
    with concurrent.futures.ThreadPoolExecutor(OPENED) as pool:
        files = list(pool.map(open_file, dict.fromkeys(weight_map.values()) or [SINGLE]))
    with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
        headers = pool.map(safetensors_files.read_header, files)
        tensors = {name: tensor for header in headers for name, tensor in header.items()}
    for name, file in weight_map.items():
        if name not in tensors:
            raise InputError(f"base model {base}: {name} is in {INDEX}, but not in {file}")
    return tensors


def _weight_map(base: str, index: File) -> dict[str, str]:
    """The file of each tensor, by name."""
    try:
        weight_map = json.loads(index.read(0, index.size))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"base model {base}: {INDEX} cannot be read; fetch it again") from None


class _HubFile:
    """A file on the hub; only what is asked for is fetched."""

    def __init__(self, name: str, revision: str, path: str, size: int) -> None:
        import huggingface_hub

        self.uri, self.size = f"{name}/{path}", size
        self._errors = f"base model {name}", revision
        system = huggingface_hub.HfFileSystem(endpoint=huggingface_hub.constants.ENDPOINT)
        with hub.errors(*self._errors):
            # Without a cache, or five more MiB would come along with each read.
            self._file = system.open(f"{name}@{revision}/{path}", size=size, cache_type="none")

    def read(self, offset: int, size: int) -> bytearray:
        with hub.errors(*self._errors):
            self._file.seek(offset)
            return bytearray(self._file.read(size))
