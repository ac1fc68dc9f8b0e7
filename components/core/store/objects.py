"""Objects in stores by their addresses: obstore carries the bytes, for every scheme alike.

obstore makes a request again that fails, and goes on where a body is cut off. What comes is checked: its length always,
the MD5 where a whole object comes at once and its ETag is one.
"""

import contextlib
import errno
import hashlib
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.store import s3
from qlora_pipelines.components.core.store.addresses import join, locate
from qlora_pipelines.components.core.store.connections import authorities, connect, errors, server
from qlora_pipelines.components.core.store.prefetch import prefetch

PART = 16 << 20
"""Bytes of a part of a file, read or written. An upload has at most 10,000 parts, so files of up to 156 GiB."""
PARALLEL = 4
"""Parts of one file in transfer at a time."""
_CHUNK = 1 << 20
"""Bytes of a part that are in memory at a time while it is copied to a file."""
CHANGED = "something between here and the store changes what it sends, or it is damaged there; run again"


class Object(NamedTuple):
    """One object of a listing; `path` is its key below the listed address, `modified` is in seconds since 1970."""

    uri: str
    path: str
    size: int
    etag: str
    modified: float


def objects(uri: str) -> list[Object]:
    """The object at an address, and all below it, sorted by key.

    What stands for a folder is left out, whatever made it: an object of no bytes whose name ends with a slash, or one
    that others are below.

    Raises:
        InputError: a name among them cannot be a file's, such as `a/../b`.
    """
    import obstore

    place = locate(uri)
    key = place.key.strip("/")
    store = connect(uri)
    found = []
    with errors(uri):
        for page in obstore.list(store, key or None, chunk_size=1000):
            found += [_object(place.root, item, item["path"][len(key) + 1 if key else 0 :]) for item in page]
        if key:
            with contextlib.suppress(FileNotFoundError):
                found.append(_object(place.root, obstore.head(store, key), key.rsplit("/", 1)[-1]))
    found.sort()
    folders = {parent for each in found if "/" in each.uri for parent in _parents(each.uri)}
    return [each for each in found if each.size or (each.uri not in folders and _is_there(store, uri, each))]


def _object(root: str, item: Any, path: str) -> Object:
    etag = (item["e_tag"] or "").strip('"')
    return Object(join(root, item["path"]), path, item["size"], etag, item["last_modified"].timestamp())


def _parents(uri: str) -> Iterator[str]:
    while "/" in (uri := uri.rpartition("/")[0]):
        yield uri


def _is_there(store: Any, uri: str, found: Object) -> bool:
    """Whether an object of no bytes has the listed name: a listing drops the slash of one that stands for a folder."""
    import obstore

    with errors(uri):
        try:
            obstore.head(store, locate(found.uri).key)
        except FileNotFoundError:
            return False
    return True


def clock(uri: str) -> float:
    """The time by the server's own clock, which also stamps its objects; seconds since 1970.

    Every answer has it in its header, also one to a stranger.
    """
    trusted = ssl.create_default_context()
    if file := authorities():
        trusted.load_verify_locations(file)
    with errors(uri):
        try:
            with urllib.request.urlopen(server(uri), timeout=30, context=trusted) as answer:
                date = answer.headers["Date"]
        except urllib.error.HTTPError as refused:
            date = refused.headers["Date"]
    return parsedate_to_datetime(date).timestamp()


def read(uri: str, start: int = 0, size: int | None = None, etag: str = "") -> bytes:
    """Bytes of an object; fewer than asked for only where it ends.

    Args:
        uri: the object.
        start: the first byte.
        size: how many at most, 1 or more; None: all that follow.
        etag: what a listing says tells its content apart; '': any content will do.

    Raises:
        InputError: there is no such object, or it is another than the listed one.
        TransientError: other bytes came than the store says, or it does not answer.
    """
    found = _ask(uri, start, size, etag)
    if found is None:
        return b""
    with errors(uri):
        data = b"".join(found.stream(min_chunk_size=_CHUNK))  # with one copy less in memory than bytes()
    whole, own = found.meta["size"], (found.meta["e_tag"] or "").strip('"')
    _check_length(uri, len(data), whole - start if size is None else min(whole - start, size))
    if len(data) == whole and is_md5(own):
        check_md5(uri, own, hashlib.md5(data, usedforsecurity=False).hexdigest())
    return data


def stream(uri: str, start: int, size: int, etag: str = "") -> Iterator[tuple[int, bytes]]:
    """The bytes that `read` gives as they come, each piece with its place in the object; all of them, or an error.

    Raises:
        InputError: there is no such object, or it is another than the listed one.
        TransientError: fewer or more bytes came, or the store does not answer.
    """
    found, at = _ask(uri, start, size, etag), start
    chunks = iter(found.stream(min_chunk_size=_CHUNK) if found else ())
    while True:
        with errors(uri):
            chunk = next(chunks, None)
        if chunk is None:
            break
        if at + len(chunk) <= start + size:  # more than was asked for does not become the next part's
            yield at, chunk
        at += len(chunk)
    _check_length(uri, at - start, size)


def _ask(uri: str, start: int, size: int | None, etag: str) -> Any:
    """Obstore's answer to a request for a part of an object, its bytes still to come; None beyond the object's end."""
    import obstore

    options: Any = {"range": {"offset": start} if size is None else (start, start + size)}
    if etag and not etag.startswith("W/"):  # a weak ETag matches nothing
        options["if_match"] = f'"{etag}"'
    with errors(uri):
        try:
            found = obstore.get(connect(uri), locate(uri).key, options=options)
        except obstore.exceptions.GenericError as error:
            if "416 " in str(error).partition("\n")[0]:
                return None
            raise
    own = (found.meta["e_tag"] or "").strip('"')
    if etag and own and own != etag:
        raise InputError(f"{uri} changed since it was listed; start a new run")
    return found


def _check_length(uri: str, size: int, expected: int) -> None:
    if size != expected:
        raise TransientError(f"{uri}: {size:,} of {expected:,} bytes came; {CHANGED}")


def download(uri: str, size: int, etag: str, target: Path, digest: Any) -> None:
    """Copies an object to a local file, several parts at a time.

    Args:
        uri: the object.
        size: bytes it has.
        etag: tells its content apart, as in `read`.
        target: the file to write.
        digest: of `hashlib`; takes the bytes in their order.

    Raises:
        InputError: the object is another than the listed one.
        TransientError: other bytes came than the store says, or it does not answer.
    """

    def part(start: int) -> None:
        for at, chunk in stream(uri, start, min(PART, size - start), etag):
            if os.pwrite(file.fileno(), chunk, at) != len(chunk):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    starts = range(0, size, PART)
    with target.open("w+b", buffering=0) as file, contextlib.closing(prefetch(part, starts, PARALLEL)) as parts:
        for start, _ in parts:  # read back in order, which the disk's cache makes quick
            for at in range(start, min(start + PART, size), _CHUNK):
                digest.update(os.pread(file.fileno(), min(_CHUNK, size - at, start + PART - at), at))


def is_md5(etag: str) -> bool:
    """Whether an ETag has the form of an MD5 of the content: no upload in parts."""
    return re.fullmatch("[0-9a-f]{32}", etag) is not None


def check_md5(uri: str, etag: str, md5: str) -> bool:
    """Compares the MD5 of what came with an ETag; returns False where that is none after all.

    Raises:
        TransientError: other bytes came.
    """
    if md5 == etag:
        return True
    if locate(uri).scheme == "s3" and s3.is_encrypted(uri):  # then the ETag has the form of an MD5 and is none
        return False
    raise TransientError(
        f"{uri}: other bytes came than are stored: their MD5 is {md5[:12]}, not {etag[:12]}; {CHANGED}"
    )


def delete(uri: str) -> None:
    """Deletes an object; none there is no error."""
    import obstore

    with errors(uri), contextlib.suppress(FileNotFoundError):
        obstore.delete(connect(uri), locate(uri).key)


def delete_all(uris: list[str]) -> None:
    """Deletes objects, several at a time."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(delete, uris))


def write(uri: str, data: bytes) -> None:
    """Writes a small object."""
    import obstore

    with errors(uri):
        obstore.put(connect(uri), locate(uri).key, data, use_multipart=False)


@contextlib.contextmanager
def writing(uri: str) -> Iterator[Callable[[Any], None]]:
    """A function that takes the bytes of an object, piece by piece; they go to the store in parts.

    The object appears when the block ends; if it raises, nothing of it stays.
    """
    import obstore

    with errors(uri):
        writer = obstore.open_writer(connect(uri), locate(uri).key, buffer_size=PART, max_concurrency=PARALLEL)

    def take(data: Any) -> None:
        with errors(uri):
            writer.write(data)

    with contextlib.ExitStack() as stack:
        stack.push(_closing(writer, uri))
        yield take


def _closing(writer: Any, uri: str) -> Any:
    """Ends an upload: completes it, or, after an error, gives it up."""

    def end(kind: Any, error: Any, trace: Any) -> None:
        # The store may be away: the next attempt removes what it holds.
        with contextlib.suppress(*([Exception] if error else [])), errors(uri):
            writer.__exit__(kind, error, trace)

    return end
