"""Every architecture made tiny: random weights in shapes of its own classes, a tokenizer that chats, and rows."""

import json
from pathlib import Path
from typing import Any

from tests.architectures.sizes import COMMON, MAY_BE_NONE, SPECIAL, VOCABULARY
from tests.conftest import CHAT_TEMPLATE

WORDS = ["cat", "mat", "one", "two", "three", "four", "five", "moon"]


def model_type(name: str) -> str:
    """The model_type of an entry; some have several entries."""
    return str(SPECIAL.get(name, {}).get("_type", name))


def shrink(cls: Any, special: dict[str, Any], tokens: dict[str, Any]) -> Any:
    """A tiny config: COMMON where the class has the key, lists of a value per layer left to it, `special` on top."""
    default = cls(**special.get("_default", {}))
    known = default.to_dict()
    wanted = {
        key: value
        for key, value in COMMON.items()
        if key in known and not isinstance(known[key], list | dict) and (known[key] is not None or key in MAY_BE_NONE)
    } | tokens
    if "kv_lora_rank" in wanted and "num_key_value_heads" in wanted:  # latent attention has a key for each head
        wanted["num_key_value_heads"] = COMMON["num_attention_heads"]
    if "tie_word_embeddings" in known:
        wanted["tie_word_embeddings"] = known["tie_word_embeddings"]
    for name, kind in getattr(cls, "sub_configs", {}).items():
        part = kind() if name in special.get("_with", ()) else getattr(default, name, None)
        if part is not None and name not in ("attn_config", "ffn_config"):
            wanted[name] = shrink(type(part), special.get(f"_{name}", {}), tokens).to_dict()
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

    if own := SPECIAL.get(name, {}).get("_class"):
        return str(own)
    kind = model_type(name)
    whole = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    return str(whole or modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])


def save_model(name: str, folder: Path) -> str:
    """Writes a tiny random model as its authors would publish it; returns its class.

    Every tensor of one dimension is moved off its initial value: one that gets lost on the way must show.
    """
    import torch
    import transformers
    from safetensors.torch import save_file

    from qlora_pipelines.components.core.models import loading

    fast = save_tokenizer(folder)
    tokens = {
        "bos_token_id": fast.bos_token_id,
        "eos_token_id": fast.eos_token_id,
        "pad_token_id": fast.pad_token_id,
    }
    torch.manual_seed(0)
    described = config(name, tokens)
    if SPECIAL.get(name, {}).get("_unmade"):
        described.save_pretrained(folder)
        save_file({"lm_head.weight": torch.zeros(VOCABULARY, 64)}, folder / "model.safetensors")
        return own_class(name)
    own = SPECIAL.get(name, {}).get("_class")
    model = getattr(transformers, own)(described) if own else loading.auto_class(described).from_config(described)
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
