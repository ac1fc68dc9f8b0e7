"""Parts of files, hashes and removal by URI, for a local folder and for S3 alike."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import storage

PART = 16 << 20
"""Bytes asked for at a time."""
TRIES = 5
PARALLEL = 8
MODELS_VARIABLE = "QLORA_MODELS_STORE"
"""An s3:// prefix for registered models, where the registry's readers have no rights on the store itself."""
_DELETED_AT_ONCE = 1000


def check_address(uri: str, what: str) -> None:
    """Refuses an address that would be taken for something else than it is.

    Args:
        uri: what to check: a local path, `file://` or `s3://`.
        what: whose address it is, for the message.

    Raises:
        InputError: another scheme, or a step upwards in the path.
    """
    scheme, separator, path = uri.partition("://")
    if separator and scheme not in ("s3", "file"):
        hint = f"; give it as s3://{path}" if scheme in ("minio", "s3a", "s3n") else ""
        raise InputError(f"{what} {uri}: {scheme}:// is not read here{hint}")
    if ".." in (path or uri).split("/"):
        raise InputError(f"{what} {uri}: an address may not contain ..")


def models_endpoint() -> str:
    """The S3 endpoint that MLflow's clients use, where it is another than the store's; else ''."""
    endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL", "").rstrip("/")
    own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    return endpoint if endpoint != own.rstrip("/") else ""


def use_endpoint(endpoint: str) -> None:
    """From now on this process reads and writes every s3:// address at another endpoint; '' changes nothing."""
    if endpoint:
        os.environ["AWS_ENDPOINT_URL_S3"] = endpoint
        storage.s3_client.cache_clear()


def read_range(uri: str, start: int, size: int) -> bytes:
    """`size` bytes of a file from `start` on; fewer only where the file ends.

    Raises:
        InputError: it cannot be read, also after `TRIES` tries where the connection was cut.
    """
    if size == 0:
        return b""
    if not storage.is_s3(uri):
        try:
            with storage.local_path(uri).open("rb") as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise InputError(f"{uri}: {error.strerror}") from None
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    bucket, key = storage.s3_location(uri)
    for left in reversed(range(TRIES)):
        try:
            found = storage.s3_client().get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{start + size - 1}")
            return found["Body"].read()
        except ClientError as error:
            raise refused(uri, error) from None
        except (BotoCoreError, HTTPError) as error:
            if not left:
                raise InputError(f"{uri}: the connection was cut {TRIES} times ({type(error).__name__})") from None
    raise AssertionError("unreachable")


def refused(uri: str, error: Exception) -> InputError:
    """What S3 refuses, in one line that says what to do."""
    code = str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))
    if code in ("NoSuchKey", "404", "NoSuchBucket"):
        return InputError(f"{uri}: it is gone")
    if code in ("AccessDenied", "403", "Forbidden"):
        bucket, _ = storage.s3_location(uri)
        return InputError(
            f"{uri}: access denied (403); a version registered by reference is read from the bucket itself: these"
            f" credentials need s3:GetObject and s3:ListBucket on s3://{bucket}"
        )
    return storage.refused(uri, error)


def sha256(uri: str, size: int) -> str:
    """sha256 of a file of `size` bytes, in hexadecimal, read part by part."""
    found = hashlib.sha256()
    for start in range(0, size, PART):
        found.update(read_range(uri, start, PART))
    return found.hexdigest()


class Dated(NamedTuple):
    """A file of a listing: its path below the listed address, bytes, and when it was written, seconds since 1970."""

    path: str
    size: int
    written: float


def dated(uri: str) -> list[Dated]:
    """Every file below a folder or prefix, also what is being written aside.

    Raises:
        InputError: it may not be listed.
    """
    if not storage.is_s3(uri):
        folder = storage.local_path(uri)
        found = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
        return [Dated(path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime) for path, stat in found]
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = storage.s3_location(uri)
    prefix = key.rstrip("/") + "/"
    try:
        return [
            Dated(item["Key"].removeprefix(prefix), item["Size"], item["LastModified"].timestamp())
            for page in storage.s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            for item in page.get("Contents", [])
        ]
    except (ClientError, BotoCoreError) as error:
        raise refused(uri, error) from None


def sizes(uri: str) -> dict[str, int]:
    """Bytes of every file below a folder or prefix, by path.

    Raises:
        InputError: it may not be listed.
    """
    return {file.path: file.size for file in dated(uri)}


def remove(uri: str, mark: str) -> None:
    """Removes a file, or everything below a folder or prefix; none there is no error.

    Args:
        uri: what to remove.
        mark: name of the file that makes work count as finished: it goes first, so that nobody finds half of the rest.

    Raises:
        InputError: something may not be removed.
    """
    below = [file.path for file in dated(uri)]
    marks = [name for name in below if name.rsplit("/", 1)[-1] == mark]
    for name in marks:
        storage.delete(storage.join(uri, name))
    if storage.is_s3(uri):
        folder = storage.s3_location(uri)[1].rstrip("/")
        _delete_objects(uri, [f"{folder}/{name}" for name in below if name not in marks] if below else [folder])
        return
    path = storage.local_path(uri)
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{uri}: cannot be removed: {error.strerror}") from None


def _delete_objects(uri: str, keys: list[str]) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _ = storage.s3_location(uri)
    try:
        for batch in _batches(keys):
            answer = storage.s3_client().delete_objects(
                Bucket=bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
            )
            for problem in answer.get("Errors", []):
                raise InputError(f"s3://{bucket}/{problem.get('Key')}: cannot be removed: {problem.get('Message')}")
    except (ClientError, BotoCoreError) as error:
        raise refused(uri, error) from None


def _batches(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), _DELETED_AT_ONCE):
        yield keys[start : start + _DELETED_AT_ONCE]


def check_files(uri: str, files: dict[str, dict[str, object]], what: str, mend: str) -> None:
    """Reads every file of a manifest again and compares size and sha256, several at a time.

    Args:
        uri: the folder that they lie in.
        files: size and sha256 by path.
        what: whose files they are, for the message.
        mend: what to do where one differs, for the message.

    Raises:
        InputError: one is gone, not whole, or another; it is named.
    """
    present = sizes(uri)
    for name, file in files.items():
        if present.get(name) != file["size"]:
            raise InputError(f"{what} {uri}: {name} is gone or not whole; {mend}")

    def differs(name: str) -> str:
        same = sha256(storage.join(uri, name), int(str(files[name]["size"]))) == files[name]["sha256"]
        return "" if same else name

    with ThreadPoolExecutor(PARALLEL) as pool:
        changed: Iterable[str] = [name for name in pool.map(differs, files) if name]
    for name in changed:
        raise InputError(f"{what} {uri}: {name} is not the file that its manifest lists; {mend}")
