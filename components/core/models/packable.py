"""Whether a base's conversations can share a row: `packing: auto`, decided by its config.json alone.

The decision is part of the training_key, and a trigger must come to the same one as the plan, without PyTorch. So it is
read from a table, of the types that tests/architectures packs on the pinned transformers with the same result as each
conversation alone. Kernels do not change it: what packs does so on a CPU and on a GPU.
"""

from pathlib import Path
from typing import Any, TypeVar

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.models import loading

Run = TypeVar("Run", bound=RunConfig)

TYPES = frozenset(
    """
    afmoe apertus arcee aya_vision bitnet chameleon cohere cohere2 cohere2_moe cohere2_vision cohere_compass_text
    cosmos3_edge cwm dbrx deepseek_ocr2 deepseek_v2 deepseek_v3 diffllama dots1 emu3 ernie4_5 ernie4_5_moe
    ernie4_5_vl_moe exaone4 exaone_moe flex_olmo gemma gemma3 gemma3_text gemma3n_text gemma4 gemma4_text gemma4_unified
    gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite glm4v gpt-sw3 gpt2 gpt_bigcode gpt_neox granite granite4_vision
    granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax hyperclovax_vision_v2 idefics3
    internlm3 internvl iquestcoder jais2 janus jetmoe kolibri1 laguna lighton_ocr llama llava llava_next longcat_flash
    mellum minicpm3 minimax_m2 ministral ministral3 mistral mistral3 mistral4 mixtral mllama modernbert-decoder moshi
    moss_transcribe_diarize muse_glimmer nanochat nemotron olmo olmo2 olmo3 olmoe opt ovis2 paddleocr_vl persimmon phi
    phi3 phi4_multimodal phimoe qianfan_ocr qwen2 qwen2_5_vl qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_vl qwen3_vl_moe
    seed_oss smollm3 smolvlm solar_open stablelm starcoder2 video_llava vipllava youtu
    """.split()  # noqa: SIM905
)
"""model_type of what packs; held against the results by tests/architectures."""
KINDS = {"full_attention", "sliding_attention"}
"""Layers whose attention can be kept within a conversation."""


def why_alone(config: dict[str, Any]) -> str:
    """Why each conversation of a model gets a row of its own, in a few words; empty: they are packed.

    Args:
        config: the content of its config.json.
    """
    text = config.get("text_config") or config
    kinds = set(text.get("layer_types") or []) - KINDS
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if text.get("attn_logit_softcapping"):
        return "it caps its attention's scores"
    own, inner = str(config.get("model_type")), str(text.get("model_type", ""))
    if own not in TYPES:
        return f"{own} is not among the types that were tried packed"
    if not inner.startswith(own) and inner not in TYPES | {""}:  # InternVL and LLaVA hold language models of any type
        return f"{inner} in it is not among the types that were tried packed"
    return ""


def resolved(run: Run, folder: Path) -> Run:
    """A run with its `packing` decided; see `decided`."""
    packing = decided(run.for_step("train_qlora"), folder).packing
    return run.with_option("train_qlora", "packing", packing)


def decided(train: TrainConfig, folder: Path) -> TrainConfig:
    """The options of training with `packing` true or false.

    Args:
        train: the options.
        folder: has the base's config.json.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    if train.packing != "auto":
        return train
    return train.model_copy(update={"packing": not why_alone(loading.read_config(folder))})
