"""Weights to 4 bit, with the same bytes on every device, in bitsandbytes' formats.

The formulas are those of Dettmers et al. 2023, "QLoRA", section 3. A weight w in a block of 64 is held as a code q, and
the block's scale c, bitsandbytes' `absmax`:

    c = max |w| over the block
    q = the k whose table entry v_k is nearest to w / c; v_0 ... v_15 are in [-1, 1]
    c is held in 8 bit (double quantisation): m = mean of all c, and c - m in blocks of 256, by a table of 256 entries
    w is read back as v_q c, rounded to the compute dtype

NF4's v_k are quantiles of a normal distribution, as weights have it, with one of them at 0; FP4's are floats of 4 bit.

bitsandbytes' kernels give other bytes on a GPU than on a CPU (0.50.2, on an H200):

- The 8-bit code of c - m: a CPU looks it up in a table of 65,536 places (csrc/cpu_ops.cpp, `norm_to_lut_index`), a GPU
  searches among all 256 (csrc/kernels.cu, `dQuantize`). Two to three in a thousand come out one code apart.
- The mean m is summed in float32, so it depends on the order of summation.
- A block of zeros is divided by zero on a GPU and gets NF4's lowest code, which means -c, and c is no longer 0 after
  double quantisation. FP4's zeros get the other sign, and denormals are flushed to 0.

Training on a GPU and the merge on a CPU need the same bytes. So all of it is done here in PyTorch operations that IEEE
754 rounds in one way only: product, reciprocal, difference, maximum, comparison. The one sum is in `mean`.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

BLOCK = 64
"""Values that share a scale: bitsandbytes' default, which transformers uses."""
ABSMAX_BLOCK = 256
"""Scales that share a scale of their own."""
PIECE = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Values in work at a time: what a processor's cache holds, and what keeps a GPU busy. A multiple of a block."""


@contextlib.contextmanager
def portable_quantization() -> Iterator[None]:
    """Within it, bitsandbytes quantises weights to the same bytes on every device: a model is to be loaded in it.

    It replaces a function of bitsandbytes, for the whole process.
    """
    import bitsandbytes.functional as bnb

    original = bnb.quantize_4bit
    bnb.quantize_4bit = _quantize_4bit
    try:
        yield
    finally:
        bnb.quantize_4bit = original


def _quantize_4bit(
    weight: Any,
    *,
    blocksize: int = BLOCK,
    compress_statistics: bool = False,
    quant_type: str = "fp4",
    quant_storage: Any = None,
) -> tuple[Any, Any]:
    """As bitsandbytes' function of this name: the codes, (bytes, 1) in `quant_storage`, and their QuantState."""
    import torch
    from bitsandbytes.functional import QuantState, get_4bit_type

    if blocksize != BLOCK:
        raise ValueError(f"blocks of {blocksize} values, and only {BLOCK} are known here")
    pieces = [quantize(piece, quant_type) for piece in weight.detach().reshape(-1).split(PIECE[weight.device.type])]
    packed, absmax = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    offset = state2 = None
    if compress_statistics:
        offset = mean(absmax)
        absmax, state2 = double_quantize(absmax, offset)
    table = get_4bit_type(quant_type, device=weight.device)
    state = QuantState(absmax, weight.shape, table, BLOCK, quant_type, weight.dtype, offset, state2)
    return packed.view(quant_storage or torch.uint8).view(-1, 1), state


def quantize(values: Any, quant_type: str) -> tuple[Any, Any]:
    """4-bit codes and scales of a flat tensor.

    Args:
        values: in any float dtype; what is not the end of a weight is a multiple of 64 long.
        quant_type: `nf4` or `fp4`.

    Returns:
        uint8 of shape (values / 2,), two codes per byte, and float32 of shape (values / 64,), both rounded up.
    """
    import torch

    values = values.float()
    blocks = torch.nn.functional.pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    absmax = blocks.abs().amax(dim=1)
    # bitsandbytes multiplies by the inverse, and so does this. A block of zeros has absmax 0.
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38))[:, None]).view(-1)[: values.numel() + values.numel() % 2]
    boundaries, order = _boundaries(quant_type)
    codes = torch.zeros(scaled.shape, dtype=torch.uint8, device=values.device)
    for boundary in boundaries:
        codes += scaled > boundary  # a value on the boundary has the lower code
    if quant_type != "nf4":  # NF4's table is in ascending order already
        codes = order.to(values.device)[codes.int()]
    return codes[::2] << 4 | codes[1::2], absmax


def mean(absmax: Any) -> Any:
    """The mean of all scales of a weight, (blocks,), that double quantisation subtracts: a float32 scalar.

    It is summed in float64 and rounded once. Scales are not negative, so each of n additions adds a relative error of
    2^-53 at most, in whatever order a device adds (Higham 2002, "Accuracy and Stability of Numerical Algorithms",
    section 4.2). For a weight of 2^30 values, n = 2^24, that is 2^-29, where half a step of float32 is 2^-25 or more.
    So two devices get the same float32, or two neighbours if the exact mean is almost halfway between them.
    """
    return absmax.double().mean().float()


def double_quantize(absmax: Any, mean: Any) -> tuple[Any, Any]:
    """Scales in 8 bit.

    Args:
        absmax: all scales of a weight, float32 of shape (blocks,).
        mean: what `mean` gives.

    Returns:
        uint8 of shape (blocks,), and bitsandbytes' QuantState to read them back: its scales are float32 of shape
        (blocks / 256,), rounded up.
    """
    import torch
    from bitsandbytes.functional import QuantState

    table, boundaries = (tensor.to(absmax.device, copy=True) for tensor in _absmax_table())
    difference = absmax - mean
    blocks = torch.nn.functional.pad(difference, (0, -difference.numel() % ABSMAX_BLOCK)).view(-1, ABSMAX_BLOCK)
    largest = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / largest.clamp(min=1e-38))[:, None]).view(-1)[: difference.numel()]
    codes = torch.bucketize(scaled, boundaries, out_int32=True).to(torch.uint8)
    return codes, QuantState(largest, code=table, blocksize=ABSMAX_BLOCK, dtype=torch.float32)


@functools.cache
def _boundaries(quant_type: str) -> tuple[list[float], Any]:
    """Where one code's values end and the next one's begin, in ascending order, and the codes in that order, (16,).

    What is nearer to one of two neighbours than to the other is told by the point halfway between them.
    """
    import torch
    from bitsandbytes.functional import get_4bit_type

    table = get_4bit_type(quant_type, device="cpu")
    order = torch.argsort(table, stable=True)  # FP4 has two zeros
    ordered = table[order]
    return ((ordered[:-1] + ordered[1:]) / 2).tolist(), order.to(torch.uint8)


@functools.cache
def _absmax_table() -> tuple[Any, Any]:
    """Bitsandbytes' table of 8-bit values in ascending order, (256,), and the points halfway between them, (255,)."""
    from bitsandbytes.functional import create_dynamic_map

    table = create_dynamic_map(signed=True).cpu()
    return table, (table[:-1] + table[1:]) / 2
