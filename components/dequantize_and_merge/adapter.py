"""Reads an adapter. Every key is accounted for: it changes a parameter, or the adapter is refused in one line."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import safetensors_files
from qlora_pipelines.components.core.models.parameter_names import Names
from qlora_pipelines.components.core.models.safetensors_files import Stored
from qlora_pipelines.components.core.store import streams
from qlora_pipelines.components.dequantize_and_merge.updates import (
    EmbeddingLoraUpdate,
    LoraBiasUpdate,
    LoraUpdate,
    TokenUpdate,
    Update,
)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
KNOWN_OPTIONS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias",
    "target_modules", "exclude_modules", "fan_in_fan_out", "layers_to_transform", "layers_pattern", "modules_to_save",
    "trainable_token_indices", "ensure_weight_tying", "init_lora_weights", "runtime_config",
}  # fmt: skip
"""Options of peft that are honoured here or change nothing in a merge; any other must be at its default."""
DEFAULTS = {"megatron_core": "megatron.core", "qalora_group_size": 16}
"""Peft's defaults that are not empty. Importing peft for them would take longer than a small merge."""
NEUTRAL_INITS = (True, False, "gaussian", "eva", "orthogonal", None)
"""Values of `init_lora_weights` that leave the base as it is."""
PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector|token_adapter\.trainable_tokens_delta)"
)


@dataclasses.dataclass
class Edit:
    """What an adapter does to one parameter: another tensor in its place, an update on top, or both."""

    replacement: Stored | None = None
    update: Update | None = None


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter: edits by the parameter's name in memory."""

    edits: dict[str, Edit]
    ties_embeddings: bool


def read(folder: Path, names: Names, shapes: dict[str, tuple[int, ...]]) -> Adapter:
    """Reads an adapter's config and keys.

    Args:
        folder: as peft's `save_pretrained` writes it.
        names: the base's parameters.
        shapes: the shapes of the base's tensors, by parameter.

    Raises:
        InputError: an option or a key that is not known, a tensor that fits no parameter, values that are not finite.
    """
    config = _read_config(folder)
    modules, replacements = _read_tensors(folder)
    edits: dict[str, Edit] = {}
    for parameter, tensor in replacements.items():
        _check_known(folder, tensor.name, parameter, names)
        edits[parameter] = Edit(tensor)
    for module, parts in modules.items():
        key = next(iter(parts.values())).name
        for suffix, update in _updates(folder, config, module, parts).items():
            parameter = f"{module}.{suffix}"
            _check_known(folder, key, parameter, names)
            edit = edits.setdefault(parameter, Edit())
            edit.update = update
            shape = edit.replacement.shape if edit.replacement else shapes[parameter]
            if not update.fits(shape):
                raise InputError(
                    f"adapter {folder}: {key} does not fit the base's tensor of shape {list(shape)}:"
                    " was it trained on another base?"
                )
    if not edits:
        raise InputError(f"adapter {folder}: it has no tensors")
    tying = bool(config.get("ensure_weight_tying"))
    ends = [edits[name].update for name in (names.head, names.embeddings) if name in edits]
    if tying and any(isinstance(update, LoraUpdate | EmbeddingLoraUpdate) for update in ends):
        raise InputError(f"adapter {folder}: ensure_weight_tying with LoRA on the embeddings cannot be merged")
    return Adapter(edits, tying)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"adapter {folder}: {CONFIG} cannot be read: {error}") from None
    if config.get("peft_type") != "LORA":
        raise InputError(f"adapter {folder}: peft_type {config.get('peft_type')} cannot be merged, only LORA")
    for option, value in config.items():
        if option not in KNOWN_OPTIONS and value not in (None, {}, [], False, DEFAULTS.get(option)):
            raise InputError(
                f"adapter {folder}: {option} = {json.dumps(value)[:80]} is not known here, so it cannot be merged"
            )
    if config.get("init_lora_weights", True) not in NEUTRAL_INITS:
        raise InputError(
            f"adapter {folder}: init_lora_weights = {config['init_lora_weights']} changed the base when training began;"
            " convert it to an ordinary LoRA adapter first (peft: path_initial_model_for_weight_conversion)"
        )
    return config


def _read_tensors(folder: Path) -> tuple[dict[str, dict[str, Stored]], dict[str, Stored]]:
    """The parts of each adapted module, by module and part; and tensors that replace the base's, by parameter."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"adapter {folder}: no {WEIGHTS} there")
    modules: dict[str, dict[str, Stored]] = {}
    replacements = {}
    for key, tensor in safetensors_files.read_header(streams.Reader(str(path), path.stat().st_size)).items():
        _check_finite(folder, key, tensor)
        name = key.removeprefix(PREFIX)
        if name == key:
            raise InputError(f"adapter {folder}: {key} does not begin with {PREFIX}, as keys of peft's adapters do")
        if match := PART.fullmatch(name):
            modules.setdefault(match["module"], {})[match["part"]] = tensor
        else:
            # Biases and grown embeddings of adapted layers are saved under the name that peft gives these layers.
            replacements[re.sub(r"(\.token_adapter)?\.base_layer\.", ".", name)] = tensor
    return modules, replacements


def _check_finite(folder: Path, key: str, tensor: Stored) -> None:
    if not tensor.is_float:
        raise InputError(f"adapter {folder}: {key} is {tensor.dtype}, no floating-point tensor, so it cannot be merged")
    if not all(tensor.tensor(*rows).isfinite().all() for rows in tensor.row_ranges(8 << 20)):
        raise InputError(f"adapter {folder}: {key} has values that are not finite; train it again")


def _check_known(folder: Path, key: str, parameter: str, names: Names) -> None:
    """Checks that a parameter exists, and is a tensor of its own in the checkpoint."""
    if parameter in names.tensors or (parameter == names.head and parameter in names.tied):
        return
    made_of = names.converted.get(parameter, [])
    reason = f"which transformers makes of {len(made_of)} tensors" if made_of else "which the base does not have"
    raise InputError(f"adapter {folder}: {key} changes {parameter}, {reason}; it cannot be merged")


def _updates(folder: Path, config: dict[str, Any], module: str, parts: dict[str, Stored]) -> dict[str, Update]:
    """The updates of one module, by what follows its name in the parameter's."""
    found = set(parts)
    if found == {"token_adapter.trainable_tokens_delta"}:
        (values,) = parts.values()
        return {"weight": TokenUpdate(values, _tokens(config, module))}
    on_embeddings = "lora_embedding_A" in found
    a, b = ("lora_embedding_A", "lora_embedding_B") if on_embeddings else ("lora_A.weight", "lora_B.weight")
    optional = {"lora_magnitude_vector": "use_dora", "lora_B.bias": "lora_bias"}
    wanted = {a, b, *(part for part, option in optional.items() if config.get(option) and not on_embeddings)}
    if found != wanted:
        odd = ", ".join(sorted(found ^ wanted))
        raise InputError(f"adapter {folder}: {module} lacks or has too much of {odd}, so it cannot be merged")
    scaling = _scaling(folder, config, module, parts[a])
    if on_embeddings:
        return {"weight": EmbeddingLoraUpdate(parts[a], parts[b], scaling)}
    updates: dict[str, Update] = {"weight": LoraUpdate(parts[a], parts[b], scaling, parts.get("lora_magnitude_vector"))}
    if "lora_B.bias" in parts:
        updates["bias"] = LoraBiasUpdate(parts["lora_B.bias"], scaling)
    return updates


def _scaling(folder: Path, config: dict[str, Any], module: str, a: Stored) -> float:
    """The factor s on B A: alpha / rank (Hu et al. 2021, "LoRA", section 4.1), with rsLoRA alpha / sqrt(rank).

    B begins as 0, and its gradient is s g (A x)', where g is the gradient of the layer's output. So after a step the
    adapter adds a multiple of s^2 g (A x)'(A z) for an input z. The dot product has `rank` terms: with alpha / rank the
    sum shrinks as 1 / rank, with alpha / sqrt(rank) it does not depend on the rank (Kalajdzievski 2023, "A Rank
    Stabilization Scaling Factor for Fine-Tuning with LoRA", section 3).
    """
    rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    if len(a.shape) != 2 or a.shape[0] != rank:
        raise InputError(f"adapter {folder}: {a.name} has shape {list(a.shape)}, and {CONFIG} says rank {rank}")
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _by_pattern(patterns: dict[str, Any] | None, module: str, otherwise: Any) -> Any:
    if not patterns:
        return otherwise
    from peft.utils.other import get_pattern_key

    return patterns.get(get_pattern_key(patterns, module), otherwise)


def _tokens(config: dict[str, Any], module: str) -> tuple[int, ...]:
    indices = config.get("trainable_token_indices") or []
    if isinstance(indices, dict):
        indices = next((found for name, found in indices.items() if f".{module}".endswith(f".{name}")), [])
    return tuple(indices)
