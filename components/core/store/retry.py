"""A failure that would repeat is recorded, and a retry repeats its line instead of holding a GPU again for it."""

import contextlib
import os
from collections.abc import Iterator

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.store import storage

RETRY_VARIABLE = "KFP_RETRY_INDEX"
"""Set by Kubeflow Pipelines: 0 at a task's first try."""
MARKER = "failed.txt"


@contextlib.contextmanager
def fail_fast(key_uri: str) -> Iterator[None]:
    """Leaves a marker under a key where the work fails for a reason that stays; a retry repeats its line and ends.

    A first try begins by removing the marker: somebody started the run again, and may have fixed the reason.

    Args:
        key_uri: folder in the store of the work's key.

    Raises:
        InputError: what the work raised, or the marker's line.
    """
    marker = storage.join(key_uri, MARKER)
    if int(os.environ.get(RETRY_VARIABLE) or 0):
        line = ""
        with contextlib.suppress(InputError):  # there is none
            line = storage.read_bytes(marker).decode()
        if line:
            raise InputError(f"{line} (said by an earlier try; not tried again)")
    else:
        storage.delete(marker)
    try:
        yield
    except TransientError:
        raise
    except InputError as error:
        with contextlib.suppress(InputError):  # the store is away: what failed is what counts
            storage.write_bytes(marker, str(error).encode())
        raise
