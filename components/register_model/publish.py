"""A registered version's files: next to the merged model, or in a store of registered models of their own."""

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import manifest
from qlora_pipelines.components.core.runtime import Progress, log
from qlora_pipelines.components.core.store import addresses, attempts, models_store, s3, storage, streams

ADAPTER = "adapter"
"""Folder of the adapter below the version's."""


def judged_files(merged: attempts.Finished, adapter: attempts.Finished | None) -> manifest.Files:
    """What was judged, by path in a version's folder: the model's files and the adapter's, with their manifests."""
    return merged.files | {f"{ADAPTER}/{name}": file for name, file in (adapter.files if adapter else {}).items()}


def publish(merged: attempts.Finished, adapter: attempts.Finished | None, merge_key: str) -> str:
    """Brings model and adapter to the version's folder; a file that is there with the right size stays.

    By reference, nothing of the model moves. Where QLORA_MODELS_STORE names another place, the model is copied there:
    within the server where it is the same endpoint, else streamed in parts.

    Args:
        merged: the merged model, as `integrity.read` gives it.
        adapter: the adapter, likewise; None: none.
        merge_key: names the folder in QLORA_MODELS_STORE.

    Returns:
        The version's folder. What is there now is not checked yet.

    Raises:
        InputError: an address cannot be read or written, or MLflow's S3 is another and no place on it is named.
    """
    target, endpoint = models_store.root(), models_store.endpoint()
    storage.check_address(target, models_store.VARIABLE)
    if target and not storage.is_remote(target):
        raise InputError(f"{models_store.VARIABLE} {target}: give {addresses.KINDS}")
    if endpoint and not target and merged.uri.startswith("s3://"):
        raise InputError(
            f"MLflow's S3 endpoint {endpoint} is another than the store's: set {models_store.VARIABLE} to an s3://"
            " prefix there, or unset MLFLOW_S3_ENDPOINT_URL"
        )
    uri = storage.join(target, merge_key) if target else merged.uri
    sources = {"": merged} | ({f"{ADAPTER}/": adapter} if adapter else {})
    wanted = {
        folder + name: (storage.join(source.uri, name), file)
        for folder, source in sources.items()
        for name, file in source.files.items()
    }
    present = storage.sizes(uri)
    missing = {
        storage.join(uri, name): (source, file["size"])
        for name, (source, file) in wanted.items()
        if source != storage.join(uri, name) and present.get(name) != file["size"]
    }
    if target and missing:
        how = (
            "copied within the server"
            if _on_one_server(merged.uri, uri)
            else f"streamed in parts to {models_store.endpoint_of(uri) or 'the store'}"
        )
        log(f"{len(missing)} files, {sum(size for _, size in missing.values()) / 1e9:.2f} GB, are {how}: {uri}")
    progress = Progress("copied", len(missing))
    for done, (file_uri, (source, size)) in enumerate(missing.items(), 1):
        _copy(source, file_uri, size)
        progress.at(done)
    return uri


def _on_one_server(source: str, target: str) -> bool:
    """Whether a store copies without the bytes coming here: S3 does, on one endpoint."""
    return all(uri.startswith("s3://") for uri in (source, target)) and not models_store.endpoint_of(target)


def _copy(source: str, target: str, size: int) -> None:
    if not storage.is_remote(target):
        storage.upload_file(storage.local_path(source), target)
    elif _on_one_server(source, target):
        s3.copy(source, target)
    else:
        with streams.writing(target) as writer:
            for start in range(0, size, storage.PART):
                writer.write(storage.read_range(source, start, storage.PART))
