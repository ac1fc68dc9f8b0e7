"""Brings the base model into the store, once a revision; a folder or an s3:// prefix is used where it lies."""

from typing import NamedTuple

from qlora_pipelines.components.core.config.steps import StageConfig
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.stage_base_model import copying

Config = StageConfig
USED = "used"


class Result(NamedTuple):
    """Where the base model's files lie."""

    base_uri: str


def run(config: StageConfig) -> Result:
    """Makes sure the base model lies where the GPU pods can read it.

    The files of a revision lie in one folder, each put there whole after its hash was checked. So an attempt that was
    cut short is taken up where it ended, and two at once write the same bytes. The manifest comes last.

    Raises:
        InputError: there is no such model, or its files are not those that were planned with.
    """
    if not base_model.is_on_hub(config.base_model):
        base_model.resolve(config.base_model, config.base_revision)
        log(f"base {config.base_model} is used where it lies")
        uri = config.base_model
        return Result(uri if storage.is_s3(uri) else str(storage.local_path(uri)))
    revision, place = config.base_revision, base_model.place_in_store(config.base_model, config.base_revision)
    staged = attempts.find(place) if revision else None
    if staged is None:
        revision, files = base_model.hub_files(config.base_model, config.base_revision)
        place = base_model.place_in_store(config.base_model, revision)
        staged = attempts.find(place)
    if staged is None:
        uri = storage.join(place, "files")
        copied = copying.copy(config.base_model, revision, files, uri)
        info = {"base_model": config.base_model, "revision": revision}
        staged = attempts.finish(uri, info, copied)
    # Says that a run is at work with it: clean-up keeps what was written lately.
    storage.write_bytes(storage.join(place, USED), b"")
    log(f"base lies at {staged.uri}")
    return Result(staged.uri)
