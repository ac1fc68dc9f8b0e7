"""Brings the base model into the store, once a revision; a folder or an s3:// prefix is used where it lies."""

from typing import NamedTuple

from components.core import attempts, base_model, models, storage
from components.core.config import StageConfig
from components.core.errors import InputError
from components.core.steps import log

Config = StageConfig


class Result(NamedTuple):
    """Where the base model's files lie."""

    base_uri: str


def run(config: StageConfig) -> Result:
    """Makes sure the base model lies where the GPU pods can read it.

    Raises:
        InputError: there is no such model, or its files are no longer those that were planned with.
    """
    revision = base_model.resolve(config.base_model, config.base_revision)
    if not base_model.is_on_hub(config.base_model):
        log(f"base {config.base_model} is used where it lies")
        uri = config.base_model
        return Result(uri if storage.is_s3(uri) else str(storage.local_path(uri)))
    key_uri = storage.join(storage.root(), "bases", config.base_model.replace("/", "--"), revision)
    staged = attempts.find(key_uri)
    if staged is None:
        log(f"copying {config.base_model} at {revision[:12]} into the store")
        staged = _download(config.base_model, revision, key_uri)
    log(f"base lies at {staged.uri}")
    return Result(staged.uri)


def _download(name: str, revision: str, key_uri: str) -> attempts.Finished:
    import huggingface_hub

    with attempts.attempt(key_uri) as attempt:
        try:
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=[*base_model.SMALL_FILES, "*.safetensors"],
                local_dir=attempt.folder,
            )
        except Exception as error:  # the hub's client raises many unrelated kinds
            raise InputError(f"base model {name} at {revision[:12]}: {error}") from None
        models.check_folder(attempt.folder)
        return attempt.commit({"base_model": name, "revision": revision})
