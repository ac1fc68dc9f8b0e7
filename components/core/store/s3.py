"""What only boto3 can do on S3: list and abort uploads, copy objects of any size, tell how one is encrypted."""

from collections.abc import Iterator
from typing import NamedTuple

from qlora_pipelines.components.core.store.addresses import join, locate
from qlora_pipelines.components.core.store.connections import client, endpoint, errors

_COPIED_AT_ONCE = 512 << 20


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
