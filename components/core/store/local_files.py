"""Local files: what the disk says in one line, and files that appear under their names when whole."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from qlora_pipelines.components.core.errors import InputError, TransientError

PART = ".part"
"""How the hidden name of a file ends that is being written."""
_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)


@contextlib.contextmanager
def errors(uri: str, what: str) -> Iterator[None]:
    """Turns what a local disk raises into one line that names `uri` and `what` cannot be done.

    Raises:
        TransientError: the disk is full or broken.
        InputError: anything else.
    """
    try:
        yield
    except OSError as error:
        kind = TransientError if error.errno in _MAY_PASS else InputError
        raise kind(f"{uri}: cannot be {what}: {error.strerror}") from None


@contextlib.contextmanager
def replacing(target: Path, *, sync: bool = False) -> Iterator[Path]:
    """A path next to `target` to write a file or folder at, which takes its name when the block ends.

    So nobody ever sees half of it, and if the block raises, nothing of it stays.

    Args:
        target: the name to take; a file there is replaced.
        sync: whether the file must outlive a loss of power.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}{PART}")
    try:
        yield aside
        if sync:
            fsync(aside)
        aside.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
        raise


def fsync(path: Path) -> None:
    """Waits until a file's bytes are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
