"""Adapters are put on, saved and read again by the names that layers have in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading, lora
from tests.architectures import tiny


def made(kind: str) -> Any:
    config = tiny.config(kind, {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    return loading.auto_class(config).from_config(config)


def tensors(adapted: Any) -> dict[str, Any]:
    return {name: parameter.detach() for name, parameter in adapted.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize("kind", ["llama", "mixtral", "mistral_large4"])
def test_an_adapter_is_read_as_it_was_saved(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    adapted = lora.put_on(model, lora.config(TrainConfig(lora_r=4), model))
    for values in tensors(adapted).values():
        values.normal_()
    adapted.save_pretrained(str(tmp_path))
    read = tensors(lora.load(made(kind), str(tmp_path)))
    assert read.keys() == tensors(adapted).keys()
    assert all(torch.equal(read[name], values) for name, values in tensors(adapted).items())


def test_what_generates_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="does not generate text token by token"):
        lora.config(TrainConfig(), made("diffusion_gemma"))
