"""Local files: names that stay in their folder, every file of a folder, and files that appear when they are whole."""

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from qlora_pipelines.components.core.errors import InputError, TransientError

PART = ".part"
"""How the hidden name of a file ends that is being written."""
_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
"""Control characters, backslashes, and what Python makes of bytes that are not UTF-8."""
_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)


def check_name(name: str) -> str:
    """A name from a listing, if it can be that of a file below a folder, here and in every store alike.

    Args:
        name: path parts with slashes between them.

    Raises:
        InputError: it is absolute or empty, has a part that is `..`, `.` or empty, a backslash, a control character,
            or is not UTF-8.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or _NOT_IN_NAMES.search(name):
        raise InputError(f"{name!r} is no name for a file below a folder; rename it where it comes from")
    return name


def join_local(root: Path, name: str) -> Path:
    """The path of a listed name below a folder: the one way from a name that others chose to a place on this disk.

    Args:
        root: the folder; it need not be there.
        name: a path as a listing, a manifest or a hub gives it.

    Raises:
        InputError: the name is none for a file, or leads out of the folder, perhaps through a symlink.
    """
    path = root / check_name(name)
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{path} leads out of {root} through a symlink; remove that")
    return path


def tree(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file below a folder with its path there, or the file itself with its name; symlinks are followed.

    Nothing is left out: what can be no file of a data set or a model is an error that names it. A file that goes
    meanwhile is passed over, and where nothing is, there are no files.

    Raises:
        InputError: a name that is none in every store, a folder that cannot be read, a symlink to nothing or to a
            folder that it is in, or something that is neither file nor folder.
    """
    with errors(str(root), "read"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        status = root.stat()
        if stat.S_ISDIR(status.st_mode):
            yield from _below(root, "", (os.path.realpath(root),))
        else:
            yield root.name, status


def _below(folder: Path, prefix: str, inside: tuple[str, ...]) -> Iterator[tuple[str, os.stat_result]]:
    found: list[os.DirEntry[str]] = []
    with errors(str(folder), "read"), contextlib.suppress(FileNotFoundError):  # gone meanwhile
        found = sorted(os.scandir(folder), key=lambda item: item.name)
    for item in found:
        path, name = folder / item.name, prefix + item.name
        try:
            check_name(item.name)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None
        with errors(str(path), "read"):
            try:
                status = item.stat()
            except FileNotFoundError:
                if item.is_symlink() and path.is_symlink():
                    raise InputError(f"{path}: is a symlink to nothing; remove it") from None
                continue
        if stat.S_ISDIR(status.st_mode):
            real = os.path.realpath(path)
            if real in inside:
                raise InputError(f"{path}: is a symlink to a folder that it is in; remove it")
            yield from _below(path, f"{name}/", (*inside, real))
        elif stat.S_ISREG(status.st_mode):
            yield name, status
        else:
            raise InputError(f"{path}: is neither a file nor a folder; remove it")


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
