"""Copies the base model into the store, once per revision; a folder or a bucket is used in place."""

from typing import NamedTuple

from qlora_pipelines.components.core.config.steps import StageConfig
from qlora_pipelines.components.core.data import hub
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.stage_base_model import copying

Config = StageConfig


class Result(NamedTuple):
    """Where the base model's files are."""

    base_uri: str


def run(config: StageConfig) -> Result:
    """Makes sure the base model is where the GPU pods can read it.

    The files of a revision are in one folder, each written whole after its hash was checked. So an attempt that was
    interrupted is continued by the next one, and two at once write the same bytes. The manifest is written last.

    Raises:
        InputError: there is no such model, or its files are not those that were planned with.
    """
    if not base_model.is_on_hub(config.base_model):
        base_model.resolve(config.base_model, config.base_revision)
        log(f"base {config.base_model} is used in place")
        uri = config.base_model
        return Result(uri if storage.is_remote(uri) else str(storage.local_path(uri)))
    revision, place = config.base_revision, ""
    if hub.is_commit(revision):
        place = base_model.place_in_store(config.base_model, revision)
    staged = attempts.find(place) if place else None
    if staged is None:
        revision, files = base_model.hub_files(config.base_model, config.base_revision)
        place = base_model.place_in_store(config.base_model, revision)
        staged = attempts.find(place)
    if staged is None:
        uri = storage.join(place, "files")
        copied = copying.copy(config.base_model, revision, files, uri)
        staged = attempts.finish(uri, {"base_model": config.base_model, "revision": revision}, copied)
    log(f"base is at {staged.uri}")
    return Result(staged.uri)
