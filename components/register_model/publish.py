"""A registered version's files: next to the merged model, or in a store of registered models of their own."""

import functools
import os
import uuid
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import manifest
from qlora_pipelines.components.core.runtime import Progress, log
from qlora_pipelines.components.core.store import attempts, storage, transfer

ADAPTER = "adapter"
"""Folder of the adapter below the version's."""
COPY_PART = 512 << 20
STREAM_PART = 64 << 20


class _Stream:
    """A file by URI as boto3 reads it for an upload; read_range resumes after a cut connection."""

    def __init__(self, uri: str, size: int) -> None:
        self.uri, self.size, self.at = uri, size, 0

    def read(self, amount: int = -1) -> bytes:
        left = self.size - self.at
        data = transfer.read_range(self.uri, self.at, left if amount < 0 else min(amount, left))
        self.at += len(data)
        return data


def publish(merged: attempts.Finished, adapter_uri: str, merge_key: str) -> tuple[str, manifest.Files]:
    """Brings model and adapter to the version's folder; a file that is there with the right size stays.

    By reference, nothing of the model moves. Where QLORA_MODELS_STORE names another place, the model is copied there:
    within the server where it is the same endpoint, else streamed in parts.

    Args:
        merged: the merged model.
        adapter_uri: folder of the adapter in the store; '': none.
        merge_key: names the folder in QLORA_MODELS_STORE.

    Returns:
        The version's folder, and the files there.

    Raises:
        InputError: an address cannot be read or written, or MLflow's S3 is another and no place on it is named.
    """
    target, endpoint = os.environ.get(transfer.MODELS_VARIABLE, ""), transfer.models_endpoint()
    transfer.check_address(target, transfer.MODELS_VARIABLE)
    if target and not storage.is_s3(target):
        raise InputError(f"{transfer.MODELS_VARIABLE} {target}: give an s3:// prefix")
    if endpoint and not target and storage.is_s3(merged.uri):
        raise InputError(
            f"MLflow's S3 endpoint {endpoint} is another than the store's: set {transfer.MODELS_VARIABLE} to an s3://"
            " prefix there, or unset MLFLOW_S3_ENDPOINT_URL"
        )
    uri = storage.join(target, merge_key) if target else merged.uri
    sources = {"": merged} | ({f"{ADAPTER}/": attempts.read(adapter_uri)} if adapter_uri else {})
    wanted = {
        folder + name: (storage.join(source.uri, name), file)
        for folder, source in sources.items()
        for name, file in _with_manifest(source).items()
    }
    present = _sizes(uri, endpoint)
    missing = {
        storage.join(uri, name): (source, file["size"])
        for name, (source, file) in wanted.items()
        if source != storage.join(uri, name) and present.get(name) != file["size"]
    }
    if target and missing:
        inside = not endpoint and storage.is_s3(merged.uri)
        how = "copied within the server" if inside else f"streamed in parts to {endpoint or 'S3'}"
        log(f"{len(missing)} files, {sum(size for _, size in missing.values()) / 1e9:.2f} GB, are {how}: {uri}")
    progress = Progress("copied", len(missing))
    for done, (file_uri, (source, size)) in enumerate(missing.items(), 1):
        _copy(source, file_uri, size, endpoint)
        progress.at(done)
    return uri, {name: file for name, (_, file) in wanted.items()}


def use_endpoint_of(uri: str) -> None:
    """From now on reads and writes at the endpoint of a version's folder; the store may then be out of reach."""
    target = os.environ.get(transfer.MODELS_VARIABLE, "")
    if target and uri.startswith(f"{target.rstrip('/')}/"):
        transfer.use_endpoint(transfer.models_endpoint())


def files_at(uri: str) -> manifest.Files:
    """What `publish` brought to a version's folder."""
    files = _with_manifest(attempts.read(uri))
    if f"{ADAPTER}/{attempts.MANIFEST}" in storage.sizes(uri):
        adapter = _with_manifest(attempts.read(storage.join(uri, ADAPTER)))
        files |= {f"{ADAPTER}/{name}": file for name, file in adapter.items()}
    return files


def _with_manifest(work: attempts.Finished) -> manifest.Files:
    """The files of finished work, its own manifest among them, last."""
    content = storage.read_bytes(storage.join(work.uri, attempts.MANIFEST))
    return work.files | {attempts.MANIFEST: manifest.entry(content)}


def _sizes(uri: str, endpoint: str) -> dict[str, int]:
    """Bytes of every file in a folder by path; an s3:// address is one of the endpoint."""
    if not endpoint or not storage.is_s3(uri):
        return storage.sizes(uri)
    bucket, prefix = storage.s3_location(f"{uri}/")
    pages = _client(endpoint).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    with storage.s3_errors(uri):
        return {item["Key"].removeprefix(prefix): item["Size"] for page in pages for item in page.get("Contents", [])}


def _copy(source: str, target: str, size: int, endpoint: str) -> None:
    if not storage.is_s3(target):
        aside = storage.local_path(target).with_name(f".{uuid.uuid4().hex}")
        storage.upload_file(storage.local_path(source), str(aside))
        aside.replace(storage.local_path(target))
        return
    from boto3.s3.transfer import TransferConfig

    inside = not endpoint and storage.is_s3(source)
    part = COPY_PART if inside else STREAM_PART
    parts = TransferConfig(multipart_threshold=part, multipart_chunksize=part)
    bucket, key = storage.s3_location(target)
    with storage.s3_errors(target):
        if inside:
            from_bucket, from_key = storage.s3_location(source)
            storage.s3_client().copy({"Bucket": from_bucket, "Key": from_key}, bucket, key, Config=parts)
        else:
            client: Any = _client(endpoint) if endpoint else storage.s3_client()
            client.upload_fileobj(_Stream(source, size), bucket, key, Config=parts)


@functools.cache
def _client(endpoint: str) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=endpoint)
