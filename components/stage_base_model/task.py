"""Copies the base model into the store, once per revision; a folder or a bucket is used in place.

Where its weights are quantised, what the other steps get is a copy in 16 bit.
"""

from typing import NamedTuple

from qlora_pipelines.components.core.config.steps import StageConfig
from qlora_pipelines.components.core.data import hub
from qlora_pipelines.components.core.models import base_model, published_quantization
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.stage_base_model import converting, copying

Config = StageConfig


class Result(NamedTuple):
    """Where the base model's files are."""

    base_uri: str


def run(config: StageConfig) -> Result:
    """Makes sure the base model is where the GPU pods can read it.

    The files of a revision are in one folder, each written whole after its hash was checked. So an attempt that was
    interrupted is continued by the next one, and two at once write the same bytes. The manifest is written last.

    Raises:
        InputError: there is no such model, its files are not those that were planned with, or its weights are quantised
            in a way that cannot be undone here.
    """
    if not base_model.is_on_hub(config.base_model):
        revision = base_model.resolve(config.base_model, config.base_revision)
        uri = config.base_model
        uri = uri if storage.is_remote(uri) else str(storage.local_path(uri))
        return _in_16bit(config.base_model, revision, uri, "is used in place")
    revision = config.base_revision
    staged = base_model.staged(config.base_model, revision) if hub.is_commit(revision) else None
    if staged is None:
        revision, files = base_model.hub_files(config.base_model, config.base_revision)
        staged = base_model.staged(config.base_model, revision)
    if staged is None:
        uri = storage.join(base_model.place_in_store(config.base_model, revision), "files")
        copied = copying.copy(config.base_model, revision, files, uri)
        info = {"base_model": config.base_model, "revision": revision, "layout": base_model.LAYOUT}
        staged = attempts.finish(uri, info, copied)
    return _in_16bit(config.base_model, revision, staged.uri, f"is at {staged.uri}")


def _in_16bit(name: str, revision: str, uri: str, place: str) -> Result:
    """The base at `uri`, or the copy in 16 bit of it, where its weights are quantised."""
    quantised = published_quantization.described(storage.read_bytes(storage.join(uri, "config.json")))
    if not quantised:
        log(f"base {name} {place}")
        return Result(uri)
    made = base_model.in_16bit(name, revision) or converting.convert(name, revision, uri, quantised)
    log(f"base {name} {place}; the copy in 16 bit that is trained on is at {made.uri}")
    return Result(made.uri)
