"""Quantisation that gives the same bytes everywhere: against bitsandbytes' own, and against its definition."""

from typing import Any

import pytest

from qlora_pipelines.components.core.models import blockwise_quantization as blockwise


def quantized(weight: Any, quant_type: str = "nf4", **options: Any) -> tuple[Any, Any]:
    import bitsandbytes.functional as bnb

    with blockwise.portable_quantization():
        found: tuple[Any, Any] = bnb.quantize_4bit(weight, quant_type=quant_type, **options)
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_codes_and_scales_of_whole_blocks_are_bitsandbytes_own(quant_type: str, dtype: str) -> None:
    import bitsandbytes.functional as bnb
    import torch

    torch.manual_seed(0)
    weight = (0.02 * torch.randn(300, 1024)).to(getattr(torch, dtype))
    weight[7] = 0
    packed, state = quantized(weight, quant_type)
    theirs, their_state = bnb.quantize_4bit(weight, quant_type=quant_type)
    assert torch.equal(packed, theirs)
    assert torch.equal(state.absmax, their_state.absmax)
    assert torch.equal(bnb.dequantize_4bit(packed, state), bnb.dequantize_4bit(theirs, their_state))


def test_a_scales_code_is_the_nearest_entry_of_the_table() -> None:
    import torch

    torch.manual_seed(0)
    absmax = 0.05 + 0.01 * torch.randn(16384).abs()
    mean = blockwise.mean(absmax)
    codes, state = blockwise.double_quantize(absmax, mean)
    scaled = (absmax - mean).view(-1, 256) / state.absmax[:, None]
    distances = (scaled.view(-1, 1).double() - state.code.double()).abs()
    found = distances.gather(1, codes[:, None].long())[:, 0]
    assert (found - distances.min(1).values).max() < 1e-7  # the quotient here is rounded otherwise


def test_bitsandbytes_own_codes_of_the_scales_are_equal_or_next_to_them() -> None:
    """On a CPU it looks codes up in a table, and a few in a thousand are one entry off."""
    import bitsandbytes.functional as bnb
    import torch

    torch.manual_seed(0)
    weight = (0.02 * torch.randn(1024, 1024)).bfloat16()
    _, state = quantized(weight, compress_statistics=True)
    _, single = quantized(weight)
    theirs, their_state = bnb.quantize_blockwise(single.absmax - state.offset, blocksize=256)
    assert torch.equal(state.state2.absmax, their_state.absmax)
    off = (theirs.int() - state.absmax.int()).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 0.01


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_zeros_stay_zeros(quant_type: str, double: bool) -> None:
    import bitsandbytes.functional as bnb
    import torch

    torch.manual_seed(0)
    weight = (0.02 * torch.randn(64, 128)).bfloat16()
    weight[3], weight[4] = 0.0, -0.0
    seen = bnb.dequantize_4bit(*quantized(weight, quant_type, compress_statistics=double))
    assert not seen[3:5].any() and seen[2].any()


@pytest.mark.parametrize("storage", ["uint8", "bfloat16", "float32"])
def test_the_bytes_depend_neither_on_pieces_nor_on_the_dtype_they_are_kept_in(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    torch.manual_seed(0)
    weight = (0.02 * torch.randn(96, 200)).bfloat16()
    packed, state = quantized(weight, compress_statistics=True)
    monkeypatch.setitem(blockwise.PIECE, "cpu", 128)
    other, other_state = quantized(weight, compress_statistics=True, quant_storage=getattr(torch, storage))
    assert other.dtype == getattr(torch, storage) and other.shape[1] == 1
    assert torch.equal(other.view(torch.uint8).flatten(), packed.flatten())
    assert torch.equal(other_state.absmax, state.absmax)


def test_the_mean_is_the_same_in_whatever_order_it_is_summed() -> None:
    import torch

    torch.manual_seed(0)
    absmax = torch.rand(100_003)
    mean = blockwise.mean(absmax)
    for _ in range(20):
        other = blockwise.mean(absmax[torch.randperm(len(absmax))])
        assert other in (mean, mean.nextafter(torch.tensor(1.0)), mean.nextafter(torch.tensor(0.0)))


def test_bitsandbytes_is_as_it_was_afterwards() -> None:
    import bitsandbytes.functional as bnb
    import torch

    before = bnb.quantize_4bit
    with pytest.raises(ValueError, match="blocks of 128 values, and only 64 are known here"):
        quantized(torch.ones(1, 128), blocksize=128)
    assert bnb.quantize_4bit is before
