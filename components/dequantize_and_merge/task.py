"""Merges the adapter into the base it was trained on: the dequantised one, not the 16-bit original."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from components.core import attempts, models, storage
from components.core.config import MergeConfig
from components.core.errors import InputError
from components.core.steps import Progress, log

Config = MergeConfig
MODEL = "model"
"""The model lies in this folder below `merged_uri`, so that MLflow's files fit beside it."""


class Result(NamedTuple):
    """Where the merged model's folder lies."""

    merged_uri: str


def run(config: MergeConfig, *, base_uri: str, base_revision: str, adapter: str, merge_key: str) -> Result:
    """Writes an ordinary 16-bit model, or returns the one that this merge_key already has.

    Args:
        config: the step's options.
        base_uri: folder of the base model.
        base_revision: commit, or digest of the base's files.
        adapter: folder of the trained adapter.
        merge_key: names the merged model; it is kept in the store under this key.

    Raises:
        InputError: the adapter was trained on another base, fits no layer of it, or holds values that are no numbers.
    """
    key_uri = storage.join(storage.root(), "merged", merge_key)
    finished = attempts.find(key_uri)
    if finished is not None:
        log(f"merged already: {finished.uri}")
        return Result(finished.uri)
    trained = attempts.read(adapter)
    if trained.info["base_revision"] != base_revision:
        raise InputError(
            f"the adapter was trained on revision {trained.info['base_revision']} of its base, not on {base_revision}"
        )
    with tempfile.TemporaryDirectory() as folder, attempts.attempt(key_uri) as attempt:
        base = storage.download(base_uri, Path(folder))
        _merge(config, base, Path(adapter), attempt.folder / MODEL)
        finished = attempt.commit({"merge_key": merge_key, "training_key": trained.info["training_key"]})
    log(f"merged model lies at {finished.uri}")
    return Result(finished.uri)


def _merge(config: MergeConfig, base: Path, adapter: Path, output: Path) -> None:
    import torch
    from peft import PeftModel
    from peft.tuners.lora import Linear as LoraLinear
    from safetensors.torch import load_file

    models.check_folder(base)
    model = models.load_16bit(base)
    merged = PeftModel.from_pretrained(model, str(adapter))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    plain = _quantised_layers(model)
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        if not tensor.isfinite().all():
            raise InputError(f"adapter {adapter}: {name} holds values that are no numbers; train it again")
    if not layers:
        raise InputError(f"adapter {adapter} fits no layer of {base}")
    progress = Progress("merging", len(plain))
    with torch.no_grad():
        for done, (name, weight) in enumerate(plain.items(), 1):
            merged_weight = seen_in_training(weight).float()
            if name in layers:
                merged_weight += layers[name].get_delta_weight("default").float()
            weight.copy_(merged_weight)  # rounds once, to bfloat16
            progress.at(done)
    # The deltas are in the weights now: unload leaves the plain layers behind without adding them again.
    whole = merged.unload()
    whole.config.torch_dtype = getattr(torch, models.COMPUTE_DTYPE)
    whole.save_pretrained(str(output), max_shard_size=int(config.max_shard_gb * 1e9))
    models.load_tokenizer(base).save_pretrained(str(output))


def _quantised_layers(model: Any) -> dict[str, Any]:
    """The weights that training held in NF4, by the layer's name: all linear layers but the head."""
    import torch

    head = model.get_output_embeddings()
    found = {}
    for name, module in model.named_modules():
        if name.endswith(".base_layer") or ".lora_" in name:
            continue
        layer = getattr(module, "base_layer", module)
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            found[name] = layer.weight
    return found


def seen_in_training(weight: Any) -> Any:
    """A weight as training computed with it: to NF4 with double quantisation and back.

    Args:
        weight: 16-bit matrix of shape (out, in).

    Returns:
        A matrix of the same shape and dtype; see Dettmers et al. 2023, equation 6.
    """
    import bitsandbytes.functional as quantisation

    packed, state = quantisation.quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
    return quantisation.dequantize_4bit(packed, state)
