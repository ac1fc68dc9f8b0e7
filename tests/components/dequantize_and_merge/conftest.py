"""Small bases and adapters of every kind, made with peft."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import MergeConfig
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.core.store import attempts
from qlora_pipelines.components.dequantize_and_merge import task
from tests.components.conftest import digest, sealed

REVISION = "of-a-base"
Merge = Callable[..., Path]


def save_base(folder: Path, tokenizer: Path, dtype: str = "bfloat16", tied: bool = False, width: int = 64) -> Path:
    """A random Llama of two layers with biases in its attention."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=width,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder)
    return folder


def save_mixtral(folder: Path, tokenizer: Path) -> Path:
    """A random Mixtral, whose experts transformers fuses when it loads them."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    save_base(folder, tokenizer)  # for its tokenizer
    torch.manual_seed(1)
    config = MixtralConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, change: Callable[[Any], None] | None = None, **options: Any) -> Path:
    """An adapter with random values, as peft saves it, with the manifest that training writes.

    Args:
        base: the base's folder.
        folder: where to.
        change: what to do to the base before it is adapted.
        **options: of LoraConfig.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    model = load(base)
    if change:
        change(model)
    options = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, "task_type": "CAUSAL_LM"} | options
    adapted = get_peft_model(model, LoraConfig(**options))
    for name, parameter in adapted.named_parameters():
        # Biases, magnitudes, whole modules and tokens begin as the base has them.
        if parameter.requires_grad and "lora_A" not in name and "lora_embedding_A" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(str(folder))
    info = {
        "base_revision": REVISION,
        "training_key": "key",
        "quantization": vars(Quantization()),
        "quantised": {},
    }
    attempts.finish(str(folder), info, {})
    return sealed(folder)


def load(folder: Path, **options: Any) -> Any:
    """A model, by default in the dtype of its files."""
    kind = loading.auto_class(loading.described(folder))
    return kind.from_pretrained(str(folder), **{"dtype": "auto"} | options)


@pytest.fixture
def base(tmp_path: Path, tiny_model: Path) -> Path:
    """A base as `save_base` makes it."""
    return save_base(tmp_path / "base", tiny_model)


@pytest.fixture
def merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Merge:
    """Merges in a store of the test's own; gives the model's folder."""
    monkeypatch.setenv("QLORA_STORE", str(tmp_path / "own_store"))

    def run(base: Path, adapter: Path, **options: Any) -> Path:
        config = MergeConfig(**{"merge_base": "original"} | options)
        given = {"adapter": str(adapter), "adapter_digest": digest(sealed(adapter))}
        result = task.run(config, base_uri=str(base), base_revision=REVISION, merge_key="key", **given)
        return Path(result.merged_uri) / "model"

    return run


def tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a model's folder, by name."""
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def config_of(folder: Path) -> dict[str, Any]:
    """The model's config.json."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
