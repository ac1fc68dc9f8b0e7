"""S3 objects by their `s3://` address: the only module that talks to boto3.

The endpoint and the credentials come from boto3's own environment variables (`AWS_ENDPOINT_URL_S3`, ...). Where the
server refuses or does not answer, each function raises a TransientError that names the address.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qlora_pipelines.components.core.errors import InputError, TransientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = Any

PART = 16 << 20
"""Bytes of a part of a file, read or written. An upload has at most 10,000 parts, so files of up to 156 GiB."""
PARALLEL = 4
"""Parts of one file in transfer at a time."""
TRIES = 5
_COPIED_AT_ONCE = 512 << 20


class Unreachable(TransientError):
    """The server does not answer, or a connection was cut: another try may get through at once."""


class Object(NamedTuple):
    """One object of a listing; `path` is its key below the listed address, `modified` is in seconds since 1970."""

    uri: str
    path: str
    size: int
    etag: str
    modified: float


class PendingUpload(NamedTuple):
    """A multipart upload that is not completed; `uri` and `path` are those of the object it would make."""

    uri: str
    path: str
    id: str
    started: float


@functools.cache
def client(endpoint: str = "") -> S3Client:
    """The one client of this process for an endpoint ('': the environment's); several threads may use it."""
    import boto3
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "max_attempts": 5})
    return boto3.client("s3", endpoint_url=endpoint or None, config=config)


def location(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` address."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@contextlib.contextmanager
def errors(uri: str) -> Iterator[None]:
    """Turns what the client and its connections raise into one line that names `uri` and says what to do.

    Raises:
        TransientError: the server refuses; or, as Unreachable, it could not be asked.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error, HTTPError) as error:
        code = error.response["Error"].get("Code", "") if isinstance(error, ClientError) else ""
        said = str(error).strip().replace(":\n", ": ").splitlines()[0]
        line = f"{said}; check the address, the endpoint and the credentials"
        if code in ("NoSuchKey", "404"):
            line = "there is no such object"
        elif code in ("AccessDenied", "403", "Forbidden"):
            line = (
                f"access denied (403); these credentials need s3:GetObject and s3:ListBucket on s3://{location(uri)[0]},"
                " and to write there s3:PutObject, s3:DeleteObject and s3:ListBucketMultipartUploads; a login to MLflow"
                " does not give them"
            )
        raise (TransientError if code else Unreachable)(f"{uri}: {line}") from None


def objects(uri: str, endpoint: str = "") -> Iterator[Object]:
    """The object at an address, and all below it, sorted by key."""
    bucket, key = location(uri)
    folder = key.rstrip("/") + "/" if key else ""
    with errors(uri):
        pages = client(endpoint).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key.rstrip("/"))
        for item in (item for page in pages for item in page.get("Contents", [])):
            name = item["Key"]
            # A prefix also matches its neighbours ("data" and "data-old").
            if name == key or name.startswith(folder):
                path = name.rsplit("/", 1)[-1] if name == key else name.removeprefix(folder)
                etag, modified = item["ETag"].strip('"'), item["LastModified"].timestamp()
                yield Object(f"s3://{bucket}/{name}", path, item["Size"], etag, modified)


def clock(uri: str) -> float:
    """The time by the server's own clock, which also stamps its objects; seconds since 1970."""
    bucket, key = location(uri)
    with errors(uri):
        answer = client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()


def read(uri: str, start: int = 0, size: int | None = None, etag: str = "") -> bytes:
    """Bytes of an object. Where a connection is cut they are asked for again, `TRIES` times in all.

    Args:
        uri: the object.
        start: the first byte.
        size: how many at most, 1 or more; None: all that follow.
        etag: what a listing says tells its content apart; '': any content will do.

    Raises:
        InputError: the object is another than the listed one.
    """
    bucket, key = location(uri)
    part: Any = {"Range": f"bytes={start}-{'' if size is None else start + size - 1}"} if start or size else {}
    for left in reversed(range(TRIES)):
        try:
            with errors(uri):
                found = client().get_object(Bucket=bucket, Key=key, **part)
                # The answer's own ETag: it is that of the very bytes that follow.
                if etag and found["ETag"].strip('"') != etag:
                    raise InputError(f"{uri} changed since it was listed; start a new run")
                return found["Body"].read()
        except Unreachable:
            if not left:
                raise
            # The client itself tries again only until an answer begins. Pauses of 0.2, 0.4, 0.8 and 1.6 s.
            time.sleep(2.0 ** (TRIES - left) / 10)
    raise AssertionError("unreachable")


def download(uri: str, size: int, etag: str, target: Path) -> None:
    """Copies an object to a local file, several parts at a time.

    Args:
        uri: the object.
        size: bytes it has.
        etag: tells its content apart, as in `read`.
        target: the file to write.

    Raises:
        InputError: the object is another than the listed one.
    """

    def copy_part(start: int) -> None:
        data = read(uri, start, min(PART, size - start), etag)
        with target.open("r+b") as file:
            file.seek(start)
            file.write(data)

    target.touch()
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(copy_part, range(0, size, PART)))


def copy(source: str, target: str) -> None:
    """Copies an object within the server."""
    from boto3.s3.transfer import TransferConfig

    from_bucket, from_key = location(source)
    bucket, key = location(target)
    parts = TransferConfig(multipart_threshold=_COPIED_AT_ONCE, multipart_chunksize=_COPIED_AT_ONCE)
    with errors(target):
        client().copy({"Bucket": from_bucket, "Key": from_key}, bucket, key, Config=parts)


def delete(uri: str) -> None:
    """Deletes an object; none there is no error."""
    bucket, key = location(uri)
    with errors(uri):
        client().delete_object(Bucket=bucket, Key=key)


def write(uri: str, data: bytes, endpoint: str = "") -> None:
    """Writes a small object."""
    bucket, key = location(uri)
    with errors(uri):
        client(endpoint).put_object(Bucket=bucket, Key=key, Body=data)


@contextlib.contextmanager
def writing(uri: str, endpoint: str = "") -> Iterator[Callable[[Any], None]]:
    """A function that takes the bytes of an object, piece by piece.

    The object appears when the block ends; if it raises, nothing of it stays.
    """
    with ThreadPoolExecutor(PARALLEL) as pool:
        upload = _Upload(uri, endpoint, pool)
        try:
            yield upload.write
            upload.complete()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            with contextlib.suppress(InputError):  # the store is away: the next attempt removes what it holds
                upload.abort()
            raise


class _Upload:
    """A multipart upload; an object smaller than a part is put whole."""

    def __init__(self, uri: str, endpoint: str, pool: ThreadPoolExecutor) -> None:
        self._uri, self._endpoint, self._pool = uri, endpoint, pool
        self._bucket, self._key = location(uri)
        self._id = ""
        self._part = bytearray()
        self._parts: list[Future[Any]] = []

    def write(self, data: Any) -> None:
        data = memoryview(data)
        while len(data):
            room = PART - len(self._part)
            self._part += data[:room]
            data = data[room:]
            if len(self._part) == PART:
                self._send()

    def _send(self) -> None:
        if not self._id:
            with errors(self._uri):
                made = client(self._endpoint).create_multipart_upload(Bucket=self._bucket, Key=self._key)
            self._id = made["UploadId"]
        if len(self._parts) >= PARALLEL:
            self._parts[-PARALLEL].result()  # so many are on their way at most
        self._parts.append(self._pool.submit(self._send_part, len(self._parts) + 1, bytes(self._part)))
        self._part.clear()

    def _send_part(self, number: int, data: bytes) -> Any:
        with errors(self._uri):
            sent = client(self._endpoint).upload_part(
                Bucket=self._bucket, Key=self._key, UploadId=self._id, PartNumber=number, Body=data
            )
        return {"PartNumber": number, "ETag": sent["ETag"]}

    def complete(self) -> None:
        if not self._id:
            write(self._uri, bytes(self._part), self._endpoint)
            return
        if self._part:
            self._send()
        parts: Any = {"Parts": [part.result() for part in self._parts]}
        with errors(self._uri):
            client(self._endpoint).complete_multipart_upload(
                Bucket=self._bucket, Key=self._key, UploadId=self._id, MultipartUpload=parts
            )

    def abort(self) -> None:
        if self._id:
            abort(self._uri, self._id, self._endpoint)


def pending_uploads(uri: str) -> Iterator[PendingUpload]:
    """The uploads to keys below an address that are not completed; a listing of objects shows none of them."""
    bucket, key = location(uri)
    folder = key.rstrip("/") + "/"
    with errors(uri):
        pages = client().get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=folder)
        for item in (item for page in pages for item in page.get("Uploads", [])):
            place, started = f"s3://{bucket}/{item['Key']}", item["Initiated"].timestamp()
            yield PendingUpload(place, item["Key"].removeprefix(folder), item["UploadId"], started)


def abort(uri: str, upload_id: str, endpoint: str = "") -> None:
    """Ends an upload and frees its parts; it may have ended already."""
    from botocore.exceptions import ClientError

    bucket, key = location(uri)
    with errors(uri):
        try:
            client(endpoint).abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchUpload":
                raise
