"""A config of a base's own classes and kinds of layers, small enough to train a step of its model in a second.

Sizes are made smaller, kinds are not: the first layers, up to one of each kind, the heads' true size, their grouping, a
few experts, a short vocabulary. What is computed, and with which kernels and masks, is then what training computes.
"""

import copy
import math
import re
from typing import Any

from qlora_pipelines.components.core.models import packed_attention

MOST_LAYERS = 8
"""Layers that are made at most; kinds that come later are not tried."""
HEADS, WIDTH, EXPERTS, RANK, VOCABULARY = 4, 256, 8, 64, 1024
"""The most there are of each; `WIDTH` is that of what is not made of heads."""
FEW = {
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], EXPERTS),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"], 2),
    **dict.fromkeys(["n_group", "num_expert_group", "topk_group", "first_k_dense_replace", "moe_layer_start_index"], 1),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "o_lora_rank", "laurel_rank", "adapter_rank"], RANK),
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], VOCABULARY),
    **dict.fromkeys(["num_nextn_predict_layers", "num_mtp_layers"], 0),
}
NO_SIZE = ("position", "window", "context", "length", "seq", "token", "chunk", "theta", "topk", "layer")
"""Parts of the names of keys that say nothing of a width."""


def smaller(config: Any, model: Any) -> Any:
    """The small config of a base.

    Args:
        config: the base's.
        model: the base without data, to see which kinds of layers there are.
    """
    described = copy.deepcopy(config)
    text = described.get_text_config()
    sizes = _sizes(text)
    width, small = int(sizes["hidden_size"]), _width(sizes)
    for name in getattr(type(described), "sub_configs", {}):
        part = getattr(described, name, None)
        if part is not None and part is not text:
            _shrink_other(part, width, small)
    layers = _layers_of_each_kind(model, getattr(text, "layer_types", None))
    return type(described).from_dict(_joined(described, text, _shrunk(text, small, layers)))


def _joined(whole: Any, text: Any, found: dict[str, Any]) -> dict[str, Any]:
    """The dictionary of a config whose text part is `found`."""
    if whole is text:
        return found
    made: dict[str, Any] = whole.to_dict()
    for name in type(whole).sub_configs:
        if getattr(whole, name, None) is text:
            made[name] = found
    return made


def _layers_of_each_kind(model: Any, types: list[str] | None) -> int:
    """How many of the first layers there must be for one of each kind, two at least."""
    import torch

    decoder = packed_attention.decoder_of(model)
    layers = max((module for module in decoder.modules() if isinstance(module, torch.nn.ModuleList)), key=len)
    types = types if types and len(types) == len(layers) else [""] * len(layers)
    # One that shares weights with an earlier layer is a kind of its own.
    tied = {int(number) for name in model.all_tied_weights_keys for number in re.findall(r"layers\.(\d+)\.", name)}
    kinds = [
        (own, number in tied, type(layer).__name__, *(name for name, _ in layer.named_parameters()))
        for number, (own, layer) in enumerate(zip(types, layers, strict=True))
    ]
    last = max(kinds.index(kind) for kind in set(kinds))
    return min(len(layers), MOST_LAYERS, max(2, last + 1))


def _sizes(config: Any) -> dict[str, Any]:
    """A config's keys, those of all architectures under one name."""
    found: dict[str, Any] = config.to_dict()
    renamed = {name: found[own] for name, own in getattr(config, "attribute_map", {}).items() if own in found}
    return {"num_hidden_layers": getattr(config, "num_hidden_layers", 0), **found, **renamed}


def _heads(sizes: dict[str, Any]) -> tuple[int, int, int]:
    """Heads and key heads of the small model, and the true size of one."""
    heads = int(sizes.get("num_attention_heads") or HEADS)
    shared = sizes.get("num_key_value_heads") or sizes.get("num_kv_heads") or heads
    size = sizes.get("head_dim") or sizes.get("v_head_dim") or sizes["hidden_size"] // heads
    group = max(1, heads // shared)
    if group == 1:
        return min(heads, HEADS), min(heads, HEADS), size
    keys = min(shared, 2)
    return keys * min(group, HEADS // keys), keys, size


def _width(sizes: dict[str, Any]) -> int:
    heads, _, size = _heads(sizes)
    return min(int(sizes["hidden_size"]), heads * size)


def _shrunk(config: Any, width: int, layers: int) -> dict[str, Any]:
    """The dictionary of a text config, made small."""
    found: dict[str, Any] = config.to_dict()
    sizes = _sizes(config)
    full, own, names = int(sizes["hidden_size"]), int(sizes["num_hidden_layers"]), getattr(config, "attribute_map", {})
    heads, keys, _ = _heads(sizes)
    for key, value in found.items():
        if isinstance(value, list) and len(value) == own:
            found[key] = [_small(key, one, full, width) if type(one) is int else one for one in value[:layers]]
        elif isinstance(value, int) and not isinstance(value, bool):
            found[key] = _small(key, value, full, width)
    for name in (names.get("num_hidden_layers", "num_hidden_layers"), "num_layers"):
        if name in found:
            found[name] = layers
    if "per_layer_config" in found:
        found["per_layer_config"] = {
            layer: value for layer, value in (found["per_layer_config"] or {}).items() if int(layer) < layers
        }
    if sizes.get("num_attention_heads"):
        found[names.get("num_attention_heads", "num_attention_heads")] = heads
    for name in ("num_key_value_heads", "num_kv_heads"):
        if found.get(name):
            found[name] = keys
    if found.get("linear_num_key_heads"):
        ratio = found["linear_num_value_heads"] // found["linear_num_key_heads"]
        found |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2 * ratio}
    if found.get("num_kv_shared_layers"):  # the last ones; each kind of layer must be among the others too
        kinds = found.get("layer_types") or [""] * layers
        needed = 1 + max(kinds.index(kind) for kind in set(kinds))
        found["num_kv_shared_layers"] = min(found["num_kv_shared_layers"], layers - needed)
    _shrink_state_space(found, width)
    _shrink_tokens(found)
    return found


def _small(key: str, value: int, full: int, width: int) -> int:
    if key in FEW:
        return min(value, FEW[key])
    if any(part in key for part in NO_SIZE):
        return value
    if value in (full, 2 * full):  # what is as wide as the layers, or twice
        return value // full * width
    wide = any(part in key for part in ("intermediate", "ffn", "inner", "expert"))
    return min(value, WIDTH) if wide and value > WIDTH else value


def _shrink_state_space(found: dict[str, Any], width: int) -> None:
    """Mamba's heads, which together are as wide as its inner width, a multiple of the layers'."""
    expand = next((found[key] for key in ("mamba_expand", "expand") if found.get(key)), 2)
    for heads, size in (
        ("mamba_n_heads", "mamba_d_head"),
        ("mamba_num_heads", "mamba_head_dim"),
        ("n_mamba_heads", "mamba_headdim"),
        ("num_heads", "head_dim"),
    ):
        if found.get(heads) and isinstance(found.get(size), int) and (heads != "num_heads" or "expand" in found):
            found[heads] = expand * width // found[size]
    if found.get("mamba_d_ssm"):
        found["mamba_d_ssm"] = expand * width
    for rank in ("time_step_rank", "mamba_dt_rank", "dt_rank"):
        if isinstance(found.get(rank), int):
            found[rank] = math.ceil(width / 16)


def _shrink_tokens(found: dict[str, Any]) -> None:
    """Token ids within the small vocabulary: each its own, from the end on."""
    free = VOCABULARY
    for key, value in found.items():
        if key.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= VOCABULARY - 64:
            free -= 1
            found[key] = free
        elif key == "eos_token_id" and isinstance(value, list):
            found[key] = VOCABULARY - 1
        elif key == "vocabulary_map" and value:  # names of tokens, most of them for pieces of an image, as in Chameleon
            names = [name for number, name in enumerate(value) if number < 8 or name == "<image>"]
            found[key] = {name: found["vocab_size"] - 1 - number for number, name in enumerate(names)}


def _shrink_other(config: Any, width: int, small: int) -> None:
    """Cuts what does not read text to one layer, in place, with its outputs as wide as the small text model."""
    for name in ("num_hidden_layers", "depth", "num_layers", "conf_num_hidden_layers"):
        if getattr(config, "layer_types", None):
            break  # a list for each layer
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, 1)
    for name in vars(config):
        value = getattr(config, name)
        if ("out" in name or "proj" in name) and value == width:
            setattr(config, name, small)
