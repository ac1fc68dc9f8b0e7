"""An adapter with every key accounted for: what it does to which parameter, or one line that says what is not known."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import safetensors_files
from qlora_pipelines.components.core.models.safetensors_files import Stored
from qlora_pipelines.components.core.store import streams
from qlora_pipelines.components.dequantize_and_merge.parameter_names import Names
from qlora_pipelines.components.dequantize_and_merge.updates import (
    BiasOfLowRank,
    LowRank,
    LowRankOfEmbeddings,
    Tokens,
    Update,
)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
UNDERSTOOD = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias",
    "target_modules", "exclude_modules", "fan_in_fan_out", "layers_to_transform", "layers_pattern", "modules_to_save",
    "trainable_token_indices", "ensure_weight_tying", "init_lora_weights", "runtime_config",
}  # fmt: skip
"""Options of peft that are followed here or change nothing in a merge; any other must be at its default."""
DEFAULTS = {"megatron_core": "megatron.core", "qalora_group_size": 16}
"""Peft's defaults that are not empty. Kept here, as importing peft for them takes longer than many a merge."""
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", None)
"""Ways to initialise an adapter that leave the base as it is."""
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
        InputError: an option or a key that is not known, a tensor that fits no parameter, values that are no numbers.
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
            _check_shape(folder, key, update, edit.replacement.shape if edit.replacement else shapes[parameter])
    if not edits:
        raise InputError(f"adapter {folder}: it holds no tensor")
    tying = bool(config.get("ensure_weight_tying"))
    ends = [edits[name].update for name in (names.head, names.embeddings) if name in edits]
    if tying and any(isinstance(update, LowRank | LowRankOfEmbeddings) for update in ends):
        raise InputError(f"adapter {folder}: ensure_weight_tying with LoRA on the embeddings cannot be merged")
    return Adapter(edits, tying)


def _read_tensors(folder: Path) -> tuple[dict[str, dict[str, Stored]], dict[str, Stored]]:
    """The parts of each adapted module, by module and part; and tensors that replace the base's, by parameter."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"adapter {folder}: no {WEIGHTS} there")
    modules: dict[str, dict[str, Stored]] = {}
    replacements = {}
    for key, tensor in safetensors_files.read_header(streams.Reader(str(path), path.stat().st_size)).items():
        _check_numbers(folder, key, tensor)
        name = key.removeprefix(PREFIX)
        if name == key:
            raise InputError(f"adapter {folder}: {key} does not begin with {PREFIX}, as keys of peft's adapters do")
        if match := PART.fullmatch(name):
            modules.setdefault(match["module"], {})[match["part"]] = tensor
        else:
            # Biases and grown embeddings of adapted layers are saved under the name that peft gives these layers.
            replacements[re.sub(r"(\.token_adapter)?\.base_layer\.", ".", name)] = tensor
    return modules, replacements


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"adapter {folder}: {CONFIG} cannot be read: {error}") from None
    if config.get("peft_type") != "LORA":
        raise InputError(f"adapter {folder}: peft_type {config.get('peft_type')} cannot be merged, only LORA")
    for option, value in config.items():
        if option in UNDERSTOOD or value in (None, {}, [], False) or value == DEFAULTS.get(option):
            continue
        raise InputError(
            f"adapter {folder}: {option} = {json.dumps(value)[:80]} is not known here, so it cannot be merged"
        )
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        raise InputError(
            f"adapter {folder}: init_lora_weights = {config['init_lora_weights']} changed the base when training began;"
            " convert it to an ordinary LoRA adapter first (peft: path_initial_model_for_weight_conversion)"
        )
    return config


def _check_numbers(folder: Path, key: str, tensor: Stored) -> None:
    if not tensor.is_float:
        raise InputError(f"adapter {folder}: {key} is {tensor.dtype}, no floating-point tensor, so it cannot be merged")
    step = max(1, (8 << 20) // max(1, tensor.row_bytes))
    for first in range(0, tensor.rows, step):
        if not tensor.tensor(first, min(first + step, tensor.rows)).isfinite().all():
            raise InputError(f"adapter {folder}: {key} holds values that are no numbers; train it again")


def _check_known(folder: Path, key: str, parameter: str, names: Names) -> None:
    """Checks that a parameter is there, and lies in the checkpoint as a tensor of its own."""
    if parameter in names.tensors or (parameter == names.head and parameter in names.tied):
        return
    made_of = names.converted.get(parameter, [])
    reason = f"which transformers makes of {len(made_of)} tensors" if made_of else "which the base does not have"
    raise InputError(f"adapter {folder}: {key} changes {parameter}, {reason}; it cannot be merged")


def _updates(folder: Path, config: dict[str, Any], module: str, parts: dict[str, Stored]) -> dict[str, Update]:
    """The updates of one module, by what follows its name in the parameter's."""
    found, first = set(parts), next(iter(parts.values()))
    if found == {"token_adapter.trainable_tokens_delta"}:
        return {"weight": Tokens(first, _tokens(config, module))}
    if "lora_embedding_A" in found:
        wanted = {"lora_embedding_A", "lora_embedding_B"}
    else:
        wanted = {"lora_A.weight", "lora_B.weight"}
        wanted |= {"lora_magnitude_vector"} if config.get("use_dora") else set()
        wanted |= {"lora_B.bias"} if config.get("lora_bias") else set()
    if found != wanted:
        odd = ", ".join(sorted(found ^ wanted))
        raise InputError(f"adapter {folder}: {module} lacks or has too much of {odd}, so it cannot be merged")
    if "lora_embedding_A" in found:
        a, b = parts["lora_embedding_A"], parts["lora_embedding_B"]
        return {"weight": LowRankOfEmbeddings(a, b, _scaling(folder, config, module, a))}
    a, b = parts["lora_A.weight"], parts["lora_B.weight"]
    scaling = _scaling(folder, config, module, a)
    updates: dict[str, Update] = {"weight": LowRank(a, b, scaling, parts.get("lora_magnitude_vector"))}
    if "lora_B.bias" in parts:
        updates["bias"] = BiasOfLowRank(parts["lora_B.bias"], scaling)
    return updates


def _scaling(folder: Path, config: dict[str, Any], module: str, a: Stored) -> float:
    """Scale of the product: alpha / rank, or with rsLoRA alpha / sqrt(rank) (Kalajdzievski 2023, section 3)."""
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


def _check_shape(folder: Path, key: str, update: Update, shape: tuple[int, ...]) -> None:
    match update:
        case LowRank(a, b, _, magnitude):
            fits = (b.shape[0], a.shape[1]) == shape and b.shape[1] == a.shape[0] and len(b.shape) == 2
            fits = fits and (magnitude is None or magnitude.shape == shape[:1])
        case LowRankOfEmbeddings(a, b, _):
            fits = (a.shape[1], b.shape[0]) == shape and b.shape[1] == a.shape[0] and len(b.shape) == 2
        case Tokens(values, indices):
            fits = values.shape == (len(indices), *shape[1:]) and all(0 <= token < shape[0] for token in indices)
        case BiasOfLowRank(by, _):
            fits = by.shape == shape
        case _:
            fits = False
    if not fits:
        raise InputError(
            f"adapter {folder}: {key} does not fit the base's tensor of shape {list(shape)}: trained on another base?"
        )
