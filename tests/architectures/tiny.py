"""Every architecture made tiny: random weights in shapes of its own classes, a tokenizer that chats, and rows."""

import json
from pathlib import Path
from typing import Any

from tests.conftest import CHAT_TEMPLATE

VOCABULARY = 512
HYBRID = {"layer_types": ["linear_attention", "full_attention"] * 2}
MLA = {"num_key_value_heads": 4}
THREE_AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
DSA = MLA | {"index_topk": 8, "index_head_dim": 32, "index_n_heads": 2}
CONVOLUTION = {"layer_types": ["conv", "full_attention"] * 2}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
PER_LAYER = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 64}
EXPERTS = {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1}

SPECIAL: dict[str, dict[str, Any]] = {
    "llama_tied": {"_type": "llama", "tie_word_embeddings": True},
    "qwen3_tied": {"_type": "qwen3", "tie_word_embeddings": True},
    "internlm3": {},
    "qwen3_next": HYBRID,
    "qwen2_5_vl": {"_text": THREE_AXES},
    "qwen2_vl": {"_text": THREE_AXES},
    "qwen3_vl": {"_text": THREE_AXES},
    "qwen3_vl_moe": {"_text": THREE_AXES},
    "qwen3_5_text": HYBRID,
    "qwen3_5_moe_text": HYBRID,
    "qwen3_5": {"_text": HYBRID},
    "qwen3_5_moe": {"_text": HYBRID},
    "gemma4_text": PER_LAYER,
    "gemma4_moe_text": {
        "_type": "gemma4_text",
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
        "hidden_size_per_layer_input": 0,
    },
    "gemma4": {"_text": PER_LAYER, "_with": ["vision_config"]},
    "gemma3n_text": PER_LAYER
    | {
        "laurel_rank": 64,
        "num_kv_shared_layers": 2,
        "intermediate_size": [128] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "granitemoehybrid": SSM | {"layer_types": ["mamba", "attention"] * 2},
    "granitemoeshared": {"shared_intermediate_size": 64},
    "olmo_hybrid": HYBRID | {"linear_num_key_heads": 4},
    "falcon": {"new_decoder_architecture": True},
    "falcon_alibi": {
        "_type": "falcon",
        "alibi": True,
        "multi_query": False,
        "num_kv_heads": 4,
        "parallel_attn": False,
    },
    "gptj": {"rotary_dim": 16},
    "codegen": {"rotary_dim": 16},
    "opt": {"word_embed_proj_dim": 64},
    "mpt": {"max_seq_len": 512},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 16},
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "deepseek_v32": DSA,
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 64,
        "head_dim": 32,
        "qk_rope_head_dim": 16,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "mistral4": MLA | {"!head_dim": 0},
    "glm4_moe_lite": MLA,
    "glm_moe_dsa": DSA,
    "ernie4_5_moe": {"moe_k": 2, "moe_layer_end_index": 3},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "moe_shared_expert_intermediate_size": 64,
        "!num_hidden_layers": 0,
    },
    "mamba": {"time_step_rank": 64},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16},
    "falcon_mamba": {"time_step_rank": 64},
    "jamba": {"mamba_dt_rank": 64, "attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "mamba_d_state": 16,
        "adapter_rank": 64,
        "num_key_value_heads": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "!hybrid_layer_ids": 0,
    },
    "bamba": SSM | {"attn_layer_indices": [1, 3]},
    "falcon_h1": SSM | {"mamba_d_ssm": 128},
    "lfm2": CONVOLUTION | {"block_auto_adjust_ff_dim": False},
    "lfm2_moe": CONVOLUTION,
    "lfm3": CONVOLUTION,
    "dots1": MLA | EXPERTS,
    "kimi_linear": HYBRID | MLA | {"linear_head_dim": 64, "linear_num_heads": 4},
    "longcat_flash": MLA | {"zero_expert_num": 2, "num_layers": 2},
    "minicpm3": MLA,
    "afmoe": {"num_dense_layers": 1},
    "jetmoe": {"kv_channels": 16},
    "recurrent_gemma": {"lru_width": 64, "attention_window_size": 16},
    "dbrx": {
        "_sub": {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        }
    },
}
"""What differs from COMMON, by name. `_type`: the model_type; `_text`: of its text_config; `_with`: parts that the
class leaves out by default; `_sub`: parts as they are; `!key`: a key of COMMON that is left to the class."""

COMMON: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "embed_dim"], 64),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "intermediate_size_mlp"], 128),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"], 64),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 4),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads", "linear_num_key_heads"], 2),
    **dict.fromkeys(["head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"], 16),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim", "query_pre_attn_scalar"], 16),
    **dict.fromkeys(["sliding_window", "attention_chunk_size", "chunk_size", "mamba_chunk_size"], 16),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "out_hidden_size", "projector_input_dim", "dt_rank"], 64),
    **dict.fromkeys(["projector_output_dim", "vision_output_dim", "projection_hidden_size"], 64),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "depth"], 2),
    **dict.fromkeys(["n_group", "topk_group", "first_k_dense_replace", "conf_num_hidden_layers"], 1),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len"], 512),
    **dict.fromkeys(["initializer_range", "init_std"], 0.15),
    **dict.fromkeys(["num_nextn_predict_layers", "num_nextn"], 0),
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
    "vocab_size": VOCABULARY,
    "linear_num_value_heads": 4,
    "image_size": 32,
    "patch_size": 16,
    "num_position_embeddings": 16,
    "conf_num_attention_heads": 4,
}
MAY_BE_NONE = {"n_inner", "n_routed_experts", "num_experts_per_tok"}
WORDS = ["cat", "mat", "one", "two", "three", "four", "five", "moon"]


def model_type(name: str) -> str:
    """The model_type of an entry; some have several entries."""
    return str(SPECIAL.get(name, {}).get("_type", name))


def shrink(cls: Any, special: dict[str, Any], tokens: dict[str, Any]) -> Any:
    """A tiny config: COMMON where the class has the key, lists of a value per layer left to it, `special` on top."""
    default = cls()
    known = default.to_dict()
    wanted = {
        key: value
        for key, value in COMMON.items()
        if key in known and not isinstance(known[key], list | dict) and (known[key] is not None or key in MAY_BE_NONE)
    } | tokens
    if "tie_word_embeddings" in known:
        wanted["tie_word_embeddings"] = known["tie_word_embeddings"]
    for name, kind in getattr(cls, "sub_configs", {}).items():
        part = kind() if name in special.get("_with", ()) else getattr(default, name, None)
        if part is not None and name not in ("attn_config", "ffn_config"):
            own = special.get("_text", {}) if name == "text_config" else {}
            wanted[name] = shrink(type(part), own, tokens).to_dict()
    wanted |= special.get("_sub", {}) | {key: value for key, value in special.items() if key[0] not in "_!"}
    return cls(**{key: value for key, value in wanted.items() if f"!{key}" not in special})


def save_tokenizer(folder: Path) -> Any:
    """A tokenizer of few words, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    text = " ".join(WORDS) + " assistant user system the sat on answer with last word of question"
    tokenizer.train_from_iterator([text], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return fast


def save_rows(path: Path) -> Path:
    """64 conversations of different lengths, each with another answer; half of the first tokens are the same."""

    def row(first: int, last: int) -> list[dict[str, str]]:
        length = (first * 7 + last * 3) % 14
        filler = " ".join(WORDS[(first * 3 + last * 5 + place * (last + 1)) % 8] for place in range(length))
        return [
            {"role": "system", "content": "answer with the last word of the question"},
            {"role": "user", "content": f"the {WORDS[first]} sat {filler} on {WORDS[last]}"},
            {"role": "assistant", "content": f"{WORDS[last]} {WORDS[last]}"},
        ]

    rows = ({"messages": row(first, last)} for first in range(8) for last in range(8))
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def config(name: str, tokens: dict[str, Any] | None = None) -> Any:
    """The tiny config of an entry."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = model_type(name)
    made = shrink(CONFIG_MAPPING[kind], SPECIAL.get(name, {}), tokens or {})
    made.architectures = [own_class(name)]
    return made


def own_class(name: str) -> str:
    """The class that an architecture is published as: whole, where it takes images too."""
    from transformers.models.auto import modeling_auto

    kind = model_type(name)
    whole = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    return str(whole or modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])


def save_model(name: str, folder: Path) -> str:
    """Writes a tiny random model as its authors would publish it; returns its class.

    Every tensor of one dimension is moved off its initial value: one that gets lost on the way must show.
    """
    import torch

    from qlora_pipelines.components.core.models import loading

    fast = save_tokenizer(folder)
    tokens = {
        "bos_token_id": fast.bos_token_id,
        "eos_token_id": fast.eos_token_id,
        "pad_token_id": fast.pad_token_id,
    }
    torch.manual_seed(0)
    described = config(name, tokens)
    model = loading.auto_class(described).from_config(described)
    keep = model._keep_in_fp32_modules_strict or []
    state = model.state_dict()
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and key in state:
            if tensor.ndim <= 1 and tensor.numel() > 1:
                tensor.data += 0.1 * torch.rand_like(tensor)
            if not any(part in key for part in keep):
                tensor.data = tensor.data.to(torch.bfloat16)
    model.save_pretrained(folder)
    return type(model).__name__
