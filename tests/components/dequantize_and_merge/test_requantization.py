"""The merge's 4-bit code against what training loads: the same bits, for whatever values and shapes."""

import math
from typing import Any

import pytest

from qlora_pipelines.components.core.models import blockwise_quantization as blockwise
from qlora_pipelines.components.core.models.quantization import Quantization, digest
from qlora_pipelines.components.dequantize_and_merge.requantization import QuantizedWeight

KINDS = [Quantization(quant_type, double, "bfloat16") for quant_type in ("nf4", "fp4") for double in (True, False)]
SHAPES = [(64, 64), (96, 192), (5, 100), (33, 7), (1, 63), (3, 130), (1, 1), (2, 32), (700, 1024)]


def as_loaded(weight: Any, kind: Quantization) -> tuple[str, Any, Any]:
    """The digest that training records, the codes, and the weight that they mean.

    Where rows end inside a block, bitsandbytes 0.50's CPU kernel takes wrong scales; so the meaning is spelt out here.
    """
    import bitsandbytes.functional as bnb
    import torch

    with blockwise.portable_quantization():
        packed, state = bnb.quantize_4bit(weight, quant_type=kind.quant_type, compress_statistics=kind.double_quant)
    if weight.shape[1] % 64 == 0:
        return digest(packed, state), packed.flatten(), bnb.dequantize_4bit(packed, state)
    scales = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten()[: weight.numel()]
    values = state.code[codes.int()] * scales.repeat_interleave(64)[: weight.numel()]
    return digest(packed, state), packed.flatten(), values.to(weight.dtype).view(weight.shape)


def assert_same(weight: Any, kind: Quantization) -> None:
    import torch

    expected, codes, seen = as_loaded(weight, kind)
    ours = QuantizedWeight([weight.flatten()], tuple(weight.shape), kind)
    assert torch.equal(ours.packed, codes)
    assert ours.match_digest(expected)
    assert torch.equal(ours.rows(0, len(weight)).to(weight.dtype), seen)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_random_weights_of_any_shape(kind: Quantization, dtype: str) -> None:
    import dataclasses

    import torch

    torch.manual_seed(0)
    for shape in SHAPES:
        weight = (0.02 * torch.randn(shape)).to(getattr(torch, dtype))
        assert_same(weight, dataclasses.replace(kind, compute_dtype=dtype))


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_values_on_and_next_to_every_boundary(quant_type: str) -> None:
    import torch
    from bitsandbytes.functional import get_4bit_type

    code = get_4bit_type(quant_type, device="cpu").sort().values
    middle = (code[:-1] + code[1:]) / 2
    up, down = torch.nextafter(middle, torch.tensor(9.0)), torch.nextafter(middle, torch.tensor(-9.0))
    values = torch.cat([middle, up, down, code, torch.tensor([1.0, -1.0, -0.0])])
    block = torch.nn.functional.pad(values, (0, -len(values) % 64), value=1.0)
    for scale in (1.0, 3.0, 1e-3):
        assert_same((block * scale)[None], Quantization(quant_type, False, "float32"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_zeros_tiny_values_and_outliers(dtype: str) -> None:
    import torch

    torch.manual_seed(0)
    weight = torch.randn(8, 128)
    weight[0] = 0.0
    weight[1] *= 1e-39  # denormal, and below what bitsandbytes takes for a scale
    weight[2, 5] = 1e30
    weight[3, :64] = -0.0
    for kind in KINDS:
        assert_same(weight.to(getattr(torch, dtype)), Quantization(kind.quant_type, kind.double_quant, dtype))


def test_pieces_and_rows_are_those_of_the_whole() -> None:
    import torch

    torch.manual_seed(0)
    weight, kind = (0.02 * torch.randn(256, 96)).bfloat16(), Quantization()
    expected, _, seen = as_loaded(weight, kind)
    ours = QuantizedWeight(weight.flatten().split(64 * 96), (256, 96), kind)
    assert ours.match_digest(expected)
    rows = [ours.rows(first, first + 32) for first in range(0, 256, 32)]  # two rows are three blocks
    assert torch.equal(torch.cat(rows), seen)


@pytest.mark.parametrize("above", [-math.inf, 0.0, math.inf])
def test_a_mean_that_was_summed_in_another_order_is_found(above: float) -> None:
    """Two sums in float64, rounded to float32, are equal or neighbours."""
    import bitsandbytes.functional as bnb
    import torch

    torch.manual_seed(0)
    weight = (0.02 * torch.randn(128, 256)).bfloat16()
    with blockwise.portable_quantization():
        packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    mean = blockwise.mean(state.absmax)
    state.offset = mean.nextafter(torch.tensor(above)) if above else mean
    state.absmax, state.state2 = blockwise.double_quantize(state.absmax, state.offset)
    state.nested = True
    ours = QuantizedWeight([weight.flatten()], (128, 256), Quantization())
    assert ours.match_digest(digest(packed, state))
    assert torch.equal(ours.rows(0, 128), bnb.dequantize_4bit(packed, state))


def test_another_weight_is_not_taken_for_the_recorded_one() -> None:
    import torch

    torch.manual_seed(0)
    weight = (0.02 * torch.randn(64, 64)).bfloat16()
    recorded, _, _ = as_loaded(weight, Quantization())
    weight[7, 7] += 0.01
    assert not QuantizedWeight([weight.flatten()], (64, 64), Quantization()).match_digest(recorded)
    assert not QuantizedWeight([weight.flatten()], (64, 64), Quantization(double_quant=False)).match_digest(recorded)
