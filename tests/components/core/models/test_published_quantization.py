"""FP8 and MXFP4 weights in 16 bit: values worked out by hand, and transformers' own where it has them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_weights, published_quantization
from qlora_pipelines.components.core.models.published_quantization import UnreadableFormat

BLOCK = {"quant_method": "fp8", "weight_block_size": [4, 4]}
GROUPS = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"block_structure": [4, 4]}}}}


def save(folder: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    """The stored tensors of a folder with these."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return base_weights.read(str(folder))


def values(made: published_quantization.Restored) -> Any:
    """A tensor as it is written, read in pieces of one row."""
    import torch

    scales = made.scales()
    rows = [bytes(made.read(row, row + 1, scales)) for row in range(made.source.rows)]
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.bfloat16).view(made.shape)


@pytest.mark.parametrize(
    ("shape", "scales", "config"),
    [
        ((8, 12), (2, 3), BLOCK),
        ((7, 10), (2, 3), BLOCK),  # blocks that the weight does not fill
        ((7, 10), (2, 3), GROUPS),
        ((8, 12), (2, 3), {"quant_method": "fp8"}),  # a size that the shapes tell
        ((6, 5), (6, 1), {"quant_method": "fbgemm_fp8"}),
        ((6, 5), (6,), {"quant_method": "compressed-tensors"}),
        ((6, 5), (1,), {"quant_method": "modelopt"}),
        ((6, 5), (), {"quant_method": "fp8", "weight_block_size": None}),
        ((3, 8, 12), (3, 2, 3), BLOCK),
        ((3, 8, 12), (3, 1, 1), BLOCK),
        ((3, 7, 10), (3, 2, 3), BLOCK),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("of_scale", ["float32", "bfloat16", "powers of two"])
def test_each_value_is_multiplied_by_the_scale_of_its_block(
    shape: tuple[int, ...], scales: tuple[int, ...], config: dict[str, Any], dtype: str, of_scale: str, tmp_path: Path
) -> None:
    import torch

    torch.manual_seed(0)
    codes = torch.randn(shape).to(getattr(torch, dtype))
    if of_scale == "powers of two":
        stored = torch.randint(120, 130, scales, dtype=torch.uint8)
        factors = 2.0 ** (stored.numpy().astype(np.float64) - 127)
    else:
        stored = (torch.rand(scales) + 0.01).to(getattr(torch, of_scale))
        factors = stored.double().numpy()
    end = "_scale" if config["quant_method"] != "fp8" else "_scale_inv"
    tensors = save(tmp_path / "base", {"a.weight": codes, f"a.weight{end}": stored, "a.input_scale": torch.ones(1)})
    made = published_quantization.restored(tensors, config)
    assert list(made) == ["a.weight"] and made["a.weight"].dtype == "BF16"
    wide = [1] * len(shape) if factors.size == 1 else [*factors.shape, *[1] * (len(shape) - factors.ndim)]
    factors = factors.reshape(wide)
    sizes = [-(-length // many) for length, many in zip(shape, factors.shape, strict=True)]
    if "weight_block_size" in config or "config_groups" in config:
        sizes = [4 if many > 1 and place >= len(shape) - 2 else size
                 for place, (size, many) in enumerate(zip(sizes, factors.shape, strict=True))]  # fmt: skip
    wanted = torch.empty(shape)
    for place in np.ndindex(*shape):
        factor = factors[tuple(at // size for at, size in zip(place, sizes, strict=True))]
        wanted[place] = float(np.float32(codes[place].float().item()) * np.float32(factor))
    assert torch.equal(values(made["a.weight"]), wanted.to(torch.bfloat16))


def test_mxfp4_as_transformers_has_it(tmp_path: Path) -> None:
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (3, 10, 4, 16), dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 10, 4), dtype=torch.uint8)
    plain = torch.randn(5, dtype=torch.bfloat16)
    stored = save(tmp_path / "base", {"e.up_blocks": blocks, "e.up_scales": scales, "e.up_bias": plain})
    made = published_quantization.restored(stored, {"quant_method": "mxfp4"})
    assert made.keys() == {"e.up", "e.up_bias"} and made["e.up"].shape == (3, 128, 10)
    assert torch.equal(values(made["e.up"]), convert_moe_packed_tensors(blocks, scales).view(3, 128, 10))
    assert bytes(made["e.up_bias"].read(0, 5, None)) == bytes(stored["e.up_bias"].read(0, 5))


def test_the_first_code_of_a_byte_is_its_low_half(tmp_path: Path) -> None:
    import torch

    blocks = torch.full((1, 1, 1, 16), 0x9F, dtype=torch.uint8)  # 15 is -6, 9 is -0.5
    stored = save(tmp_path / "base", {"up_blocks": blocks, "up_scales": torch.full((1, 1, 1), 128, dtype=torch.uint8)})
    made = published_quantization.restored(stored, {"quant_method": "mxfp4"})["up"]
    assert values(made).flatten()[:4].tolist() == [-12.0, -1.0, -12.0, -1.0]


def tensor(shape: tuple[int, ...], dtype: str) -> Any:
    import torch

    return torch.zeros(shape).to(getattr(torch, dtype))


@pytest.mark.parametrize(
    ("tensors", "config", "why"),
    [
        ({"a.qweight": ((4, 4), "int32")}, {"quant_method": "gptq"}, "^gptq$"),
        ({"a.weight": ((4, 4), "bfloat16")}, {"load_in_4bit": True}, "^method unknown$"),
        ({"a.weight_packed": ((4, 4), "int32")}, {"quant_method": "compressed-tensors"}, "a.weight_packed is I32"),
        ({"a.weight": ((4, 4), "int8")}, {"quant_method": "compressed-tensors"}, "a.weight is I8"),
        (
            {"a.weight": ((4, 4), "uint8"), "a.weight_scale": ((4, 1), "float8_e4m3fn")},
            {"quant_method": "modelopt"},
            "a.weight is U8|a.weight_scale is F8_E4M3 without a scale",
        ),
        ({"a.weight": ((4, 4), "float8_e4m3fn")}, BLOCK, "a.weight is F8_E4M3 without a scale that is known here"),
        (
            {"a.weight": ((10, 4), "float8_e4m3fn"), "a.weight_scale_inv": ((4, 1), "float32")},
            BLOCK,
            r"a.weight_scale_inv has shape \[4, 1\], and its weight \[10, 4\]",
        ),
        (
            {"up_blocks": ((3, 4, 8), "uint8"), "up_scales": ((3, 4), "uint8")},
            {"quant_method": "mxfp4"},
            r"up_blocks has shape \[3, 4, 8\] and U8",
        ),
    ],
    ids=str,
)
def test_what_is_in_another_format_is_not_read(
    tensors: dict[str, tuple[tuple[int, ...], str]], config: dict[str, Any], why: str, tmp_path: Path
) -> None:
    stored = save(tmp_path / "base", {name: tensor(*kind) for name, kind in tensors.items()})
    with pytest.raises(UnreadableFormat, match=why):
        published_quantization.restored(stored, config)


def test_a_value_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    import torch

    codes = torch.ones(2, 2).to(torch.float8_e4m3fn)
    stored = save(tmp_path / "base", {"a.weight": codes, "a.weight_scale": torch.tensor(float("inf"))})
    made = published_quantization.restored(stored, {"quant_method": "modelopt"})["a.weight"]
    with pytest.raises(InputError, match=r"a\.weight has values that are not finite"):
        made.read(0, 2, made.scales())


def test_what_config_json_says() -> None:
    quantised = {"quant_method": "fp8"}
    config = {"model_type": "m", "quantization_config": quantised, "text_config": {"quantization_config": quantised}}
    assert published_quantization.without(config) == {"model_type": "m", "text_config": {}}
    for content in (b'{"quantization_config": {"a": 1}}', b'{"text_config": {"quantization_config": {"a": 1}}}'):
        assert published_quantization.described(content) == {"a": 1}
    for content in (b"{}", b"[]", b"torn", b'{"quantization_config": null}'):
        assert published_quantization.described(content) == {}
