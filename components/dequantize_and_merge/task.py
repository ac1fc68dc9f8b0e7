"""Merges the adapter into the base it was trained on, tensor by tensor: any size of model in a small pod."""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from qlora_pipelines.components.core.config.steps import MergeConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import (
    base_model,
    base_weights,
    loading,
    model_files,
    parameter_names,
    published_quantization,
    stop_tokens,
)
from qlora_pipelines.components.core.models.blockwise_quantization import BLOCK
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.core.registry import integrity
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.dequantize_and_merge import adapter as adapters
from qlora_pipelines.components.dequantize_and_merge import layout, streaming

Config = MergeConfig
MODEL = "model"
"""The model is in this folder below `merged_uri`, so that MLflow's files fit next to it."""


class Result(NamedTuple):
    """Where the merged model's folder is, and the SHA-256 of its manifest, which later steps compare with."""

    merged_uri: str
    merged_digest: str


def run(
    config: MergeConfig,
    *,
    base_uri: str,
    base_revision: str,
    adapter: str,
    adapter_digest: str,
    merge_key: str,
    recommended_base: str = "",
) -> Result:
    """Writes an ordinary 16-bit model, or returns the one that this merge_key already has.

    Args:
        config: the step's options.
        base_uri: folder of the base model.
        base_revision: commit, or digest of the base's files.
        adapter: folder of the trained adapter.
        adapter_digest: sha256 of its manifest, as train_qlora returned it; checked.
        merge_key: names the merged model; it is kept in the store under this key.
        recommended_base: the base that evaluation found better, for `merge_base` auto; empty: dequantized.

    Raises:
        InputError: the adapter is not the one that was trained, was trained on another base, does not fit it, or has
            values that are not finite; the base is not whole; there is no room.
    """
    merge_base = _merge_base(config, recommended_base)
    key_uri = storage.join(storage.root(), "merged", merge_key)
    finished = attempts.find(key_uri, merge_base=merge_base)
    if finished is not None:
        log(f"merged already: {finished.uri}")
        attempts.clear(key_uri)
        return Result(finished.uri, integrity.digest(finished))
    trained = integrity.read(adapter, adapter_digest, "adapter")
    if (revision := trained.info.get("base_revision")) != base_revision:
        raise InputError(f"the adapter was trained on revision {revision} of its base, not on {base_revision}")
    digests = _digests(trained.info, merge_base)
    with (
        tempfile.TemporaryDirectory() as scratch,
        integrity.verified_folder(trained, Path(scratch, "adapter"), "adapter") as held,
    ):
        base = base_weights.read(base_uri, checked=base_model.check(base_uri, base_revision))
        folder = base_model.small_files(base_uri, base_revision, Path(scratch, "base"))
        if published_quantization.config_of(folder):
            raise InputError(f"base model {base_uri}: its weights are quantised; give what stage_base_model returned")
        names = parameter_names.read(folder, base)
        shapes = names.shapes(base)
        _check_widths(trained.info, digests, shapes)
        edits = adapters.read(held.folder, names, shapes)
        merged = layout.make(base, names, edits, digests, int(config.max_shard_gb * 1e9))
        streaming.check_room(merged, key_uri)
        log(f"merging into the {merge_base} base: {merged.size / 1e9:,.2f} GB in {len(merged.shards)} files")
        with attempts.attempt(key_uri, wait=True) as attempt:
            streaming.write(merged, Quantization(**trained.info["quantization"]), attempt, MODEL, _note(trained.info))
            held.check_unchanged()  # the weights took their time
            for name, content in _other_files(folder, held.folder, merged).items():
                attempt.write(f"{MODEL}/{name}", content)
            held.check_unchanged()  # before anything counts as finished
            finished = attempt.commit(
                {"merge_key": merge_key, "training_key": trained.info["training_key"], "merge_base": merge_base}
            )
    log(f"merged model: {finished.uri}")
    return Result(finished.uri, integrity.digest(finished))


def _merge_base(config: MergeConfig, recommended: str) -> str:
    if recommended not in ("", "dequantized", "original"):
        raise InputError(f"recommended_base is {recommended!r}; it must be dequantized, original or empty")
    return (recommended or "dequantized") if config.merge_base == "auto" else config.merge_base


def _digests(info: dict[str, Any], merge_base: str) -> dict[str, str]:
    """What training recorded of the weights that it held in 4 bit, by parameter; none where they are not wanted."""
    if "quantised" not in info or "quantization" not in info:
        raise InputError("the adapter's manifest does not say how training held its base; train it again")
    return dict(info["quantised"]) if merge_base == "dequantized" else {}


def _check_widths(info: dict[str, Any], digests: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuses what training on a CPU computed with other weights than its 4-bit codes mean.

    Where a row ends inside a block of 64 values, bitsandbytes 0.50's kernel for CPUs takes a wrong scale.
    """
    if info.get("device") == "cpu":
        for parameter in digests:
            width = shapes.get(parameter, (0, 0))[1]
            if width % BLOCK:
                raise InputError(
                    f"{parameter} has rows of {width}, no multiple of {BLOCK}, which bitsandbytes"
                    " computes wrongly on a CPU: train on a GPU, or set merge_base to original"
                )


def _note(info: dict[str, Any]) -> str:
    if str(info.get("device")).startswith("cuda"):  # `cuda:0` and on
        return "another base, or a GPU that rounds otherwise than this processor; set merge_base to original"
    return "another base"


def _other_files(base: Path, adapter: Path, merged: layout.MergedLayout) -> dict[str, bytes]:
    """All files of the merged model but its weights, by path: what the base had that still holds, and its own configs.

    The tokenizer is the one that training used, byte for byte: the adapter's, or else the base's.
    """
    tokenizer = adapter if (adapter / "tokenizer_config.json").is_file() else base
    files = model_files.carried(base, tokenizer)
    config = layout.merged_config(json.loads(files["config.json"]), merged)
    if not config.get("architectures"):  # without it vLLM and MLflow do not know what the model is
        config["architectures"] = [type(loading.empty_model(base)).__name__]
    generation = stop_tokens.generation_config(base, loading.load_tokenizer(tokenizer))
    made = {"config.json": config, stop_tokens.GENERATION: generation}
    return files | {name: json.dumps(content, indent=2).encode() for name, content in made.items()}
