"""Whether what a run will reach for can be used, tried in small."""

import uuid

from qlora_pipelines.components.core.store import storage


def store() -> str:
    """Writes, reads and deletes a small file in the store; returns the store's address.

    Raises:
        InputError: one of them is not possible; it says which address was tried.
    """
    probe = storage.join(storage.root(), f"probe-{uuid.uuid4().hex}")
    storage.write_bytes(probe, b"written to see whether it can be, and deleted again")
    storage.read_bytes(probe)
    storage.delete(probe)
    return storage.root()
