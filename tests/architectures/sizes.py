"""The sizes of the tiny models: what all have in common, and what differs by name."""

from typing import Any

VOCABULARY = 512
HYBRID = {"layer_types": ["linear_attention", "full_attention"] * 2}
THREE_AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
DSA = {"index_topk": 8, "index_head_dim": 32, "index_n_heads": 2}
CONVOLUTION = {"layer_types": ["conv", "full_attention"] * 2}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
PER_LAYER = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 64}
EXPERTS = {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1}
NEMOTRON_H = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 1,
    "moe_shared_expert_intermediate_size": 64,
    "!num_hidden_layers": 0,
}
BY_LAYER = {"rope_parameters": {"full_attention": THREE_AXES["rope_parameters"]}}
ERNIE_AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}}
HALF_ROTARY = {
    "rope_parameters": THREE_AXES["rope_parameters"] | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
}
DENSE_FIRST = {"mlp_layer_types": ["dense", *["sparse"] * 3], "num_experts_per_tok": 2}
NOTE = DSA | {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 64,
    "swa_kv_lora_rank": 64,
    "swa_head_dim": 32,
    "swa_qk_nope_head_dim": 16,
    "swa_v_head_dim": 16,
    "shared_experts_intermediate_size": 64,
}
DRAFTS = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_hidden_layers": 4}
QSA = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 16,
}

SPECIAL: dict[str, dict[str, Any]] = {
    "llama_tied": {"_type": "llama", "tie_word_embeddings": True},
    "qwen3_tied": {"_type": "qwen3", "tie_word_embeddings": True},
    "internlm3": {},
    "qwen3_next": HYBRID,
    "qwen2_5_vl": {"_text_config": THREE_AXES},
    "qwen2_vl": {"_text_config": THREE_AXES},
    "qwen3_vl": {"_text_config": THREE_AXES},
    "qwen3_vl_moe": {"_text_config": THREE_AXES},
    "qwen3_5_text": HYBRID,
    "qwen3_5_moe_text": HYBRID,
    "qwen3_5": {"_text_config": HYBRID},
    "qwen3_5_moe": {"_text_config": HYBRID},
    "gemma4_text": PER_LAYER,
    "gemma4_moe_text": {
        "_type": "gemma4_text",
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
        "hidden_size_per_layer_input": 0,
    },
    "gemma4": {"_text_config": PER_LAYER, "_with": ["vision_config"]},
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
    "deepseek_v32": DSA,
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 64,
        "head_dim": 32,
        "qk_rope_head_dim": 16,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "mistral4": {"!head_dim": 0},
    "glm_moe_dsa": DSA,
    "ernie4_5_moe": {"moe_k": 2, "moe_layer_end_index": 3},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": NEMOTRON_H,
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
    "dots1": EXPERTS,
    "kimi_linear": HYBRID | {"linear_head_dim": 64, "linear_num_heads": 4},
    "longcat_flash": {"zero_expert_num": 2, "num_layers": 2},
    "afmoe": {"num_dense_layers": 1},
    "jetmoe": {"kv_channels": 16},
    "recurrent_gemma": {"lru_width": 64, "attention_window_size": 16},
    "dbrx": {
        "_sub": {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        }
    },
    "chameleon": {
        "vocabulary_map": {"<image>": 500, **{f"IMGIMG{letter}Z": 501 + n for n, letter in enumerate("ABCD")}}
    },
    "emu3": {
        "vocabulary_map": {
            "<image>": 500,
            "<|extra_200|>": 501,
            **{f"<|visual token {n:06d}|>": 502 + n for n in range(4)},
        }
    },
    "bailing_hybrid": HYBRID,
    "cohere_compass": {"_text_config": BY_LAYER},
    "cohere_compass_text": BY_LAYER,
    "cosmos3_edge": {"_text_config": THREE_AXES},
    "deepseek_ocr2": {"_text_config": DENSE_FIRST},
    "diffusion_gemma": {"_text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}},
    "dots3_note_text": NOTE,
    "ernie4_5_vl_moe": {"_text_config": {"moe_k": 2, "moe_intermediate_size": [64, 32]} | ERNIE_AXES},
    "glm4v": {"_text_config": THREE_AXES},
    "glm4v_moe": {"_text_config": HALF_ROTARY},
    "glm46v": {"_text_config": THREE_AXES},
    "glmga": {"_text_config": THREE_AXES},
    "glm_ocr": {"_text_config": THREE_AXES},
    "paddleocr_vl": {"_text_config": THREE_AXES},
    "step3p7": {"_text_config": {"sliding_window": 16}},
    "glm5_next": {
        "_text_config": DSA | {"qk_rope_head_dim": 0, "index_kpool": 4, "linear_head_dim": 16, "linear_num_heads": 4}
    },
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [1], "downsample_rate": "1/2"},
    "hunyuan_vl": {"_text_config": {"head_dim": 16} | THREE_AXES},
    "qwen2_5_omni_thinker": {"_text_config": THREE_AXES, "vision_start_token_id": 300},
    "qwen3_omni_moe_thinker": {"_text_config": THREE_AXES, "vision_start_token_id": 300},
    "inkling2": {"_vision_config": {"text_hidden_size": 64}},
    "molmo2": {"_adapter_config": {"vision_feature_layer": [-1]}},
    "nemotron_h_omni": {"_text_config": NEMOTRON_H, "_vision_config": {"video_temporal_patch_size": 2}},
    "qwen4_exp": {"_text_config": QSA},
    "qwen4_exp_text": QSA,
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_key_value_heads": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "initializer_range": 0.05,
    },
    "rwkv": {"rescale_every": 2},
    "evolla": {"_class": "EvollaForProteinText2Text"},
    **{name: {"_unmade": True} for name in ["fast_vlm", "gemma3n", "perception_lm"]},
    "gemma4_assistant": {"_unmade": True, "_default": {"text_config": DRAFTS}, "_text_config": DRAFTS},
    "gemma4_unified_assistant": {"_unmade": True, "_default": {"text_config": DRAFTS}},
    "reformer": {"is_decoder": True, "axial_pos_shape": [32, 16], "axial_pos_embds_dim": [16, 48]},
    "musicgen": {"_class": "MusicgenForConditionalGeneration"},
    "musicgen_melody": {"_class": "MusicgenMelodyForConditionalGeneration"},
    "dots3_note": {"_text_config": NOTE, "_vision_config": {"mlp_layer_types": ["dense"] * 4, "per_layer_config": {}}},
    "florence2": {"_vision_config": {"embed_dim": [16, 16, 32, 32], "num_heads": [2] * 4, "num_groups": [2] * 4}},
    "muse_spark": {
        "_text_config": {"moe_hidden_size": 64},
        "_vision_config": {"hidden_sizes": [16, 16, 32, 32]},
        "_steps": 40,  # after eight its loss has not fallen yet
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What differs from COMMON, by name. `_type`: the model_type; `_class`: that of the published models;
`_unmade`: transformers cannot make it; `_default`: what its class wants even by default; `_text_config`
and others: of that part; `_with`: parts that the class leaves out by default; `_sub`: parts as they are; `_steps`: of
training, where eight teach it nothing; `!key`: a key of COMMON that is left to the class."""

COMMON: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "embed_dim", "emb_dim"], 64),
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
    **dict.fromkeys(
        ["n_group", "num_expert_group", "topk_group", "first_k_dense_replace", "conf_num_hidden_layers"], 1
    ),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len"], 512),
    **dict.fromkeys(["initializer_range", "init_std"], 0.15),
    **dict.fromkeys(["num_nextn_predict_layers", "num_nextn"], 0),
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
    "vocab_size": VOCABULARY,
    "encoder_hash_byte_group_vocab": VOCABULARY,
    "linear_num_value_heads": 4,
    "image_size": 32,
    "patch_size": 16,
    "num_position_embeddings": 16,
    "conf_num_attention_heads": 4,
    "base_channels": 32,
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"], 2),
    **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "d_inner"], 128),
    **dict.fromkeys(
        [
            "adapter_in_dim",
            "adapter_out_dim",
            "adapter_input_size",
            "text_hidden_size",
            "output_dim",
            "hidden_size_global",
        ],
        64,
    ),
}
MAY_BE_NONE = {"n_inner", "n_routed_experts", "num_experts_per_tok"}
