"""What only boto3 can do on S3: list and abort uploads, copy objects of any size, read checksums and encryption."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qlora_pipelines.components.core.errors import TransientError
from qlora_pipelines.components.core.store.addresses import join, locate
from qlora_pipelines.components.core.store.connections import client, endpoint, errors

_COPIED_AT_ONCE = 512 << 20
_CHECKSUMS = ("SHA256", "CRC64NVME", "CRC32C", "CRC32")
"""What S3 keeps of an object, by its own names. Since 2025 it adds CRC64NVME where the client gave none."""
_CHUNK = 1 << 20


class PendingUpload(NamedTuple):
    """A multipart upload that is not completed; `uri` and `path` are those of the object it would make."""

    uri: str
    path: str
    id: str
    started: float


def copy(source: str, target: str) -> None:
    """Copies an object within one S3 server."""
    from boto3.s3.transfer import TransferConfig

    origin, place = locate(source), locate(target)
    parts = TransferConfig(multipart_threshold=_COPIED_AT_ONCE, multipart_chunksize=_COPIED_AT_ONCE)
    with errors(target):  # obstore copies at most 5 GB
        client(endpoint(target)).copy(
            {"Bucket": origin.bucket, "Key": origin.key}, place.bucket, place.key, Config=parts
        )


def pending_uploads(uri: str) -> Iterator[PendingUpload]:
    """The uploads to keys below an S3 address that are not completed; a listing of objects shows none of them.

    Azure forgets them after a week. On gs:// a lifecycle rule must (AbortIncompleteMultipartUpload).
    """
    place = locate(uri)
    if place.scheme != "s3":
        return
    folder = place.key.rstrip("/") + "/"
    with errors(uri):
        pages = (
            client(endpoint(uri)).get_paginator("list_multipart_uploads").paginate(Bucket=place.bucket, Prefix=folder)
        )
        for item in (item for page in pages for item in page.get("Uploads", [])):
            found, started = join(place.root, item["Key"]), item["Initiated"].timestamp()
            yield PendingUpload(found, item["Key"].removeprefix(folder), item["UploadId"], started)


def abort(uri: str, upload_id: str) -> None:
    """Ends an upload and frees its parts; it may have ended already."""
    from botocore.exceptions import ClientError

    place = locate(uri)
    with errors(uri):
        try:
            client(endpoint(uri)).abort_multipart_upload(Bucket=place.bucket, Key=place.key, UploadId=upload_id)
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchUpload":
                raise


def is_encrypted(uri: str) -> bool:
    """Whether an object is encrypted with a key of KMS or of the customer."""
    place = locate(uri)
    with errors(uri):
        head = client(endpoint(uri)).head_object(Bucket=place.bucket, Key=place.key)
    return head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head


def check_stored(uri: str, copy: Path) -> bool:
    """Compares a local copy with the checksum that S3 keeps of the whole object; returns False where it keeps none.

    Raises:
        TransientError: other bytes came.
    """
    place = locate(uri)
    if place.scheme != "s3":
        return False
    with errors(uri):
        head = client(endpoint(uri)).head_object(Bucket=place.bucket, Key=place.key, ChecksumMode="ENABLED")
    if head.get("ChecksumType") != "FULL_OBJECT" and "-" in head["ETag"]:  # then it is one of the parts' checksums
        return False
    for name in _CHECKSUMS:
        if stored := str(head.get(f"Checksum{name}") or ""):
            found = base64.b64encode(_checksum(name, copy)).decode()
            if found != stored:
                raise TransientError(
                    f"{uri}: other bytes came than are stored: their {name} is {found}, not {stored}; run again"
                )
            return True
    return False


def _checksum(name: str, file: Path) -> bytes:
    with file.open("rb") as source:
        if name == "SHA256":
            return hashlib.file_digest(source, "sha256").digest()
        from awscrt import checksums

        value, add = 0, getattr(checksums, name.lower())
        while data := source.read(_CHUNK):
            value = add(data, value)
        return int(value).to_bytes(8 if name == "CRC64NVME" else 4, "big")
