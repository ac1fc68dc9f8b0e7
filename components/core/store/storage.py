"""Files by URI: a local folder or `s3://bucket/prefix`, the same few verbs for both.

The S3 endpoint and the credentials come from boto3's own environment variables (`AWS_ENDPOINT_URL_S3`, ...).
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_pipelines.components.core.errors import InputError, TransientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = Any

STORE_VARIABLE = "QLORA_STORE"
FETCH_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True, order=True)
class Entry:
    """One file of a listing: its path below the listed URI, size in bytes, and what tells its content apart."""

    path: str
    size: int
    etag: str


def root() -> str:
    """The store: where bases, adapters and merged models live.

    Raises:
        InputError: QLORA_STORE is not set.
    """
    uri = os.environ.get(STORE_VARIABLE, "")
    if not uri:
        raise InputError(f"{STORE_VARIABLE} is not set: give a folder or an s3:// prefix to keep models in")
    return uri if is_s3(uri) else str(Path(uri).absolute())


def is_s3(uri: str) -> bool:
    """Whether the URI is on S3 (all others are local paths)."""
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    """Appends path parts to a URI."""
    return "/".join([uri.rstrip("/"), *parts])


def local_path(uri: str) -> Path:
    """The path of a local URI (`file://` is understood)."""
    return Path(uri.removeprefix("file://")).absolute()


@functools.cache
def s3_client() -> S3Client:
    """The one S3 client of this process; it may be used by several threads."""
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))


def s3_location(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def refused(uri: str, error: Exception) -> TransientError:
    """What to raise where the S3 client raised `error` over `uri`."""
    said = str(error).strip().replace(":\n", ": ").splitlines()[0]
    return TransientError(f"{uri}: {said}; check the address, the endpoint and the credentials")


@contextlib.contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """Turns what the S3 client and its connections raise into one line that names `uri`.

    Raises:
        InputError: in place of those.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error, HTTPError) as error:
        raise refused(uri, error) from None


def read_bytes(uri: str, size: int | None = None) -> bytes:
    """The content of one file, or its first `size` bytes.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    if is_s3(uri):
        bucket, key = s3_location(uri)
        part = {"Range": f"bytes=0-{size - 1}"} if size else {}
        with s3_errors(uri):
            return s3_client().get_object(Bucket=bucket, Key=key, **part)["Body"].read()  # type: ignore[arg-type]
    try:
        with local_path(uri).open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise InputError(f"{uri}: {error.strerror}") from None


def delete(uri: str) -> None:
    """Deletes one file; none there is no error.

    Raises:
        InputError: it may not be deleted.
    """
    if is_s3(uri):
        bucket, key = s3_location(uri)
        with s3_errors(uri):
            s3_client().delete_object(Bucket=bucket, Key=key)
        return
    try:
        local_path(uri).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{uri}: cannot be deleted: {error.strerror}") from None


def fetch(uri: str, etag: str, folder: Path) -> Path:
    """A local file with the content that a listing saw at `uri`: the very file where it is local, else a copy.

    Args:
        uri: one file.
        etag: what the listing says tells its content apart; an object of another content is refused.
        folder: where the copy goes.

    Raises:
        InputError: the object changed, or cannot be read.
    """
    if not is_s3(uri):
        return local_path(uri)
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    bucket, key = s3_location(uri)
    target = folder / uuid.uuid4().hex
    for left in reversed(range(FETCH_ATTEMPTS)):
        try:
            found = s3_client().get_object(Bucket=bucket, Key=key)
            # The answer's own ETag: it is that of the very bytes that follow.
            if etag != f"etag:{found['ETag'].strip(chr(34))}":
                raise InputError(f"{uri} changed since it was listed; start a new run")
            with target.open("wb") as file:
                shutil.copyfileobj(found["Body"], file, 1 << 20)
            return target
        except ClientError as error:
            raise refused(uri, error) from None
        except (BotoCoreError, HTTPError) as error:
            if not left:
                raise refused(uri, error) from None
    raise AssertionError("unreachable")


def write_bytes(uri: str, data: bytes) -> None:
    """Writes one file; it appears under its name when whole.

    Raises:
        InputError: the place cannot be written.
    """
    if is_s3(uri):
        bucket, key = s3_location(uri)
        with s3_errors(uri):
            s3_client().put_object(Bucket=bucket, Key=key, Body=data)
        return
    path = local_path(uri)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # its folder may be none
            aside.unlink()
        raise InputError(f"{uri}: cannot be written: {error.strerror}") from None


def listing(uri: str) -> list[Entry]:
    """All files at a URI, sorted by path: the file itself, or everything below a folder or prefix.

    Local files are told apart by their sha256, objects by their ETag. Hidden files are left out.
    Nothing there is an empty list.
    """
    return sorted(_s3_entries(uri) if is_s3(uri) else _local_entries(local_path(uri)))


def sizes(uri: str) -> dict[str, int]:
    """Size in bytes of every file below a folder or prefix, by path, without reading any.

    What is being written aside is left out.
    """
    if is_s3(uri):
        return {entry.path: entry.size for entry in _s3_entries(uri)}
    folder = local_path(uri)
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _local_entries(path: Path) -> Iterator[Entry]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    base = path.parent if path.is_file() else path
    for file in files:
        name = file.relative_to(base).as_posix()
        if file.is_file() and not any(part.startswith(".") for part in name.split("/")):
            yield Entry(name, file.stat().st_size, f"sha256:{sha256_file(file)}")


def _s3_entries(uri: str) -> Iterator[Entry]:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = s3_location(uri)
    folder = key.rstrip("/") + "/" if key else ""
    try:
        for page in s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key.rstrip("/")):
            for item in page.get("Contents", []):
                name = item["Key"]
                # A prefix also matches its neighbours ("data" and "data-old"): only the object itself or what is below.
                path = name.rsplit("/", 1)[-1] if name == key else name.removeprefix(folder)
                if (name == key or name.startswith(folder)) and not name.endswith("/"):
                    yield Entry(path, item["Size"], f"etag:{item['ETag'].strip(chr(34))}")
    except (ClientError, BotoCoreError) as error:
        raise refused(uri, error) from None


def file_uri(uri: str, entry: Entry) -> str:
    """The address of one file of a listing."""
    name = uri.rstrip("/").rsplit("/", 1)[-1]
    single = entry.path == name and (is_s3(uri) or local_path(uri).is_file())
    return uri if single else join(uri, entry.path)


def download(uri: str, folder: Path) -> Path:
    """A local folder with the files at `uri`: the very folder where it is local, else a copy in `folder`."""
    if not is_s3(uri):
        return local_path(uri)
    bucket, _ = s3_location(uri)
    for entry in listing(uri):
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with s3_errors(uri):
            s3_client().download_file(bucket, s3_location(join(uri, entry.path))[1], str(target))
    return folder


def upload(folder: Path, uri: str) -> None:
    """Copies all files of a local folder to a URI."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        upload_file(file, join(uri, file.relative_to(folder).as_posix()))


def upload_file(file: Path, uri: str) -> None:
    """Copies one local file to a URI; on S3 it appears when whole.

    Raises:
        InputError: the place cannot be written.
    """
    if is_s3(uri):
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, key = s3_location(uri)
        try:
            s3_client().upload_file(str(file), bucket, key)
        except (ClientError, BotoCoreError, Boto3Error) as error:
            raise refused(uri, error) from None
        return
    local_path(uri).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, local_path(uri))


def sha256_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
