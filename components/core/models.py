"""Loading tokenizers and models the one way all steps load them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from components.core.errors import InputError
from components.core.quantization import Quantization

COMPUTE_DTYPE = "bfloat16"


def check_folder(folder: Path) -> None:
    """Checks that a folder holds a model: a config and safetensors, no pickle in their place.

    Raises:
        InputError: says what is missing.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"base model {folder}: no config.json there; give a folder with a model or a Hugging Face id")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"base model {folder}: no *.safetensors there; other formats can run code and are refused")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model, checked to be one that chats.

    Raises:
        InputError: it cannot be read, or has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"tokenizer in {folder}: {str(error).splitlines()[0]}") from None
    if not tokenizer.chat_template:
        raise InputError(f"tokenizer in {folder} has no chat template: take the model's chat or instruct version")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def device() -> str:
    """This process' own GPU, `cuda:0` where it is the only process, or `cpu` where there is none."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of what a tokenizer does: its vocabulary and rules, and its chat template."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else tokenizer.get_vocab()
    for of_the_last_call in ("truncation", "padding"):
        rules.pop(of_the_last_call, None)
    return hashlib.sha256(json.dumps([rules, tokenizer.chat_template], sort_keys=True).encode()).hexdigest()


def load_quantized(folder: Path, quantization: Quantization | None = None) -> Any:
    """The base with its linear layers in 4 bit, the rest in 16 bit, on the GPU where there is one.

    Args:
        folder: the model's.
        quantization: how; None is NF4 with double quantisation and bfloat16 compute, as in the QLoRA paper (Dettmers et
            al. 2023, section 3).
    """
    import bitsandbytes as bnb

    quantization = quantization or Quantization()
    model = load_16bit(folder, quantization.compute_dtype, quantization_config=quantization.as_transformers())
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks the weight at the first forward without gradients,
            # for good: training then gets no gradients, silently, and dequantising gives garbage.
            module.support_avx512bf16_for_cpu = False
    return model


def load_16bit(folder: Path, dtype: str = COMPUTE_DTYPE, **options: Any) -> Any:
    """A model in 16 bit, on the GPU where there is one; safetensors only, no remote code."""
    import torch
    from transformers import AutoModelForCausalLM

    options = {"device_map": {"": device()}} | options
    return AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False, **options
    )


def check_targets(target_modules: str, layers: list[str]) -> list[str] | str:
    """LoRA targets as peft takes them, each checked to match a layer.

    Args:
        target_modules: `all-linear`, or names separated by commas.
        layers: full names of the model's linear layers.

    Raises:
        InputError: a name that matches no layer, with the names there are.
    """
    if target_modules == "all-linear":
        return target_modules
    names = [name.strip() for name in target_modules.split(",") if name.strip()]
    for name in names:
        if not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            known = sorted({layer.rsplit(".", 1)[-1] for layer in layers})
            raise InputError(f"target_modules: {name} matches no linear layer; this model has {', '.join(known)}")
    if not names:
        raise InputError("target_modules names no layer; give names separated by commas, or all-linear")
    return names


def describe(folder: Path) -> dict[str, Any]:
    """The model's config.json as a dict."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config
