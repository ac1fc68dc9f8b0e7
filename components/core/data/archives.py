"""Files out of tar archives, one after another, as a stream: nothing is unpacked onto the disk.

So no member can be written outside a folder, through a link or over something. What an archive may hold is data files;
whatever else it holds is an error that names it, so that no row is lost in silence.
"""

import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import local_files, storage

LONGEST_NAME = 1 << 16
"""Bytes of an extended header, which holds a member's name: tarfile reads it into memory whole."""
_EXTENDED = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


def members(stream: BinaryIO, name: str) -> Iterator[tuple[str, BinaryIO]]:
    """The files of an archive, in order; each must be read before the next one is asked for.

    Args:
        stream: the archive, no longer compressed; it is read from its start to its end.
        name: of the archive, for messages.

    Yields:
        The member's path in the archive, and its content, which cannot be sought in.

    Raises:
        InputError: it is damaged, or holds something else than files.
    """
    damaged = InputError(f"data {name}: the archive is cut short or damaged; write it again")
    ended = False

    class Member(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: Any, encoding: str, errors: str) -> "Member":
            nonlocal ended
            try:
                made: Member = super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError:
                # tarfile takes any of these for the archive's end. It ends with blocks of zeros, and after them there
                # is nothing or another archive.
                if any(buf) or not (buf or ended):
                    raise damaged from None
                ended = True
                raise
            ended = False
            if made.type in _EXTENDED and made.size > LONGEST_NAME:
                raise damaged
            return made

    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=Member, ignore_zeros=True) as archive:
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # else the list of them grows with the archive
                path = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise InputError(f"data {name}: {path!r} in it is no ordinary file; archive files alone")
                local_files.check_name(path)
                if storage.is_hidden(path):
                    raise InputError(f"data {name}: {path} in it is hidden, and not read; archive it without that")
                if content := archive.extractfile(member):
                    yield path, cast(BinaryIO, content)
    except (tarfile.TarError, RecursionError):
        raise damaged from None
