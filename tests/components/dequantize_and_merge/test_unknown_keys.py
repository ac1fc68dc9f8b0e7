"""Keys of an adapter that fit nothing: each is named."""

from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from tests.components.dequantize_and_merge.conftest import Merge, save_adapter, save_base, save_mixtral


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            ("layers.0.self_attn.q_proj", "layers.0.self_attn.qq_proj"),
            r"qq_proj\.lora_A\.weight changes .*qq_proj\.weight, which the base does not have",
        ),
        (
            ("layers.0.self_attn.q_proj.lora_A", "layers.0.self_attn.q_proj.lora_C"),
            r"lora_C\.weight changes .*, which the base does not have",
        ),
        (
            ("layers.0.self_attn.q_proj.lora_A", "layers.7.self_attn.q_proj.lora_A"),
            r"q_proj lacks or has too much of lora_A\.weight",
        ),
        (
            ("layers.0.self_attn.q_proj.lora_A", "layers.0.self_attn.o_proj.lora_E"),
            r"lora_E\.weight changes .*, which the base does not have",
        ),
    ],
    ids=str,
)
def test_a_key_that_fits_nothing_is_named(
    rename: tuple[str, str], message: str, base: Path, tmp_path: Path, merge: Merge
) -> None:
    from safetensors.torch import load_file, save_file

    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    stored = load_file(adapter / "adapter_model.safetensors")
    save_file({key.replace(*rename): value for key, value in stored.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=message):
        merge(base, adapter)
    assert not list((tmp_path / "own_store").glob("merged/*/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"modules_to_save": ["experts"]},
            r"experts\.\w+ changes .*, which transformers makes of \d+ tensors; it cannot",
        ),
        (
            {"target_parameters": ["mlp.experts.gate_up_proj"]},
            r'target_parameters = \["mlp\.experts\.gate_up_proj"\] is not',
        ),
    ],
    ids=str,
)
def test_changes_to_fused_experts_are_refused(
    options: dict[str, list[str]], message: str, tmp_path: Path, tiny_model: Path, merge: Merge
) -> None:
    base = save_mixtral(tmp_path / "base", tiny_model)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], **options)
    with pytest.raises(InputError, match=message):
        merge(base, adapter)
    assert not list((tmp_path / "own_store").glob("merged/*/*"))


def test_an_adapter_of_a_wider_base_is_refused(tmp_path: Path, tiny_model: Path, merge: Merge) -> None:
    base = save_base(tmp_path / "base", tiny_model)
    wide = save_base(tmp_path / "wide", tiny_model, width=128)
    adapter = save_adapter(wide, tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"q_proj\.lora_\w\.weight does not fit the base's tensor of shape \[64, 64\]"):
        merge(base, adapter)


def test_a_weight_that_the_base_holds_in_a_dtype_without_arithmetic_is_refused(
    base: Path, tmp_path: Path, merge: Merge
) -> None:
    """Such as FP8: left as it is, the adapter's change to it would be lost in silence."""
    import torch
    from safetensors.torch import load_file, save_file

    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    weights = load_file(base / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"the adapter changes model\.layers\.1\.self_attn\.q_proj\.weight, .* F8_E4M3"
    ):
        merge(base, adapter)
