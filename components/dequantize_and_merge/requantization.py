"""A weight to 4 bit and back, bit for bit as bitsandbytes does it, at a multiple of its speed and piece by piece.

The formulas are those of Dettmers et al. 2023, "QLoRA", section 3. A weight w in a block of 64 is held as a code q, and
the block's scale c, bitsandbytes' `absmax`:

    c = max |w| over the block
    q = the k whose table entry v_k is nearest to w / c; v_0 ... v_15 are in [-1, 1]
    c is held in 8 bit (double quantisation): m = mean of all c, and c - m in blocks of 256, by a table of 256 entries
    w is read back as v_q c, rounded to the compute dtype

NF4's v_k are quantiles of a normal distribution, as weights have it, with one of them at 0; FP4's are floats of 4 bit.

bitsandbytes 0.50 quantises on a CPU in plain torch over the whole tensor: float32 copies of it, and a binary search per
value. Here the same arithmetic runs over pieces that fit in the processor's cache, and a value's code is the number of
boundaries below it, which is what the search finds. Double quantisation and the way back are bitsandbytes' own.
"""

import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

from qlora_pipelines.components.core.models.quantization import Quantization, digest_of, hash_codes
from qlora_pipelines.components.core.store import streams

BLOCK = 64
"""Values that share a scale: bitsandbytes' default, which transformers uses."""
PIECE = 1 << 19
"""Values in work at a time: a few MiB."""
MEAN_STEPS = 8
"""How far, in steps of float32, the mean of the scales may be from the one computed here; see `match_digest`."""


class QuantizedWeight:
    """A weight as training held it, built from its rows and given back row by row.

    Memory: half a byte per value, and 1/16 byte per value for scales.
    """

    def __init__(self, pieces: Iterable[Any], shape: tuple[int, ...], quantization: Quantization) -> None:
        """Quantises.

        Args:
            pieces: the values in order, as flat tensors in the dtype that training loaded them in; each but the last a
                multiple of 64 long.
            shape: (out, in) of the whole weight.
            quantization: how training held it.
        """
        import torch

        def quantize(values: Any) -> tuple[Any, Any]:
            return _quantize_piece(values, quantization.quant_type)

        small = (part for piece in pieces for part in piece.split(PIECE))
        quantised = [found for _, found in streams.prefetch(quantize, small, os.cpu_count() or 1)]
        self.shape, self.quantization = shape, quantization
        self.packed = torch.cat([packed for packed, _ in quantised])
        self.absmax = torch.cat([absmax for _, absmax in quantised])

    def match_digest(self, digest: str) -> bool:
        """Quantises the scales as training did, which is known from the digest.

        Double quantisation subtracts the mean of all scales. Its sum is rounded at every addition, and a GPU adds in
        another order than a CPU. Most of these errors cancel (Higham 2002, "Accuracy and Stability of Numerical
        Algorithms", section 4.2), so training's mean is among the neighbours of the one computed here, and the digest
        says which it is.

        Args:
            digest: what training recorded, as `core.models.quantization.digest` gives it.

        Returns:
            Whether this weight has that digest; False: training held another one.
        """
        codes = hash_codes(self.quantization.quant_type, self.shape, BLOCK, self.packed)
        if not self.quantization.double_quant:
            return digest_of(codes, [self.absmax]) == digest
        import bitsandbytes.functional as bnb

        for mean in _neighbours(self.absmax.mean()):
            packed, state = bnb.quantize_blockwise(self.absmax - mean, blocksize=256)
            if digest_of(codes, [packed, mean, state.absmax]) == digest:
                self.absmax = bnb.dequantize_blockwise(packed, state) + mean
                return True
        return False

    def rows(self, first: int, last: int) -> Any:
        """Rows `first` to `last` (not included) as training computed with them, in its compute dtype.

        Both ends must fall between two blocks, or be the weight's own.
        """
        import torch

        width = self.shape[1]
        begin, end = first * width, last * width
        values = torch.ops.bitsandbytes.dequantize_4bit.default(
            self.packed[begin // 2 : -(-end // 2)],
            self.absmax[begin // BLOCK : -(-end // BLOCK)],
            BLOCK,
            self.quantization.quant_type,
            (1, end - begin),  # one long row: where a row ends inside a block, the CPU's kernel takes a wrong scale
            getattr(torch, self.quantization.compute_dtype),
        )
        return values.view(last - first, width)


def _neighbours(value: Any) -> Iterator[Any]:
    """A float32 scalar, and those one, two, ... steps above and below it."""
    import torch

    yield value
    above = below = value
    for _ in range(MEAN_STEPS):
        above, below = above.nextafter(torch.tensor(torch.inf)), below.nextafter(torch.tensor(-torch.inf))
        yield above
        yield below


@functools.cache
def _boundaries(quant_type: str) -> tuple[list[float], Any]:
    """Where one code's values end and the next one's begin, in ascending order, and the codes in that order, (16,).

    What is nearer to one of two neighbours than to the other is told by the point halfway between them.
    """
    import torch
    from bitsandbytes.functional import get_4bit_type

    table = get_4bit_type(quant_type, device="cpu")
    order = torch.argsort(table)
    ordered = table[order]
    return ((ordered[:-1] + ordered[1:]) / 2).tolist(), order.to(torch.uint8)


def _quantize_piece(values: Any, quant_type: str) -> tuple[Any, Any]:
    """Codes and scales of a flat tensor.

    As in bitsandbytes 0.50's `backends/default/ops.py`: the same operations on every value, in the same order, as each
    of them rounds.

    Returns:
        uint8 of shape (values / 2,), two codes per byte, and float32 of shape (values / 64,), both rounded up.
    """
    import torch

    values = values.float()
    whole = values.numel() // BLOCK * BLOCK
    blocks = values[:whole].view(-1, BLOCK)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38))[:, None]).view(-1)  # a block of zeros has absmax 0
    if whole < values.numel():  # the last block is divided by its scale, not multiplied by its inverse
        rest = values[whole:]
        last = rest.abs().amax().clamp(min=1e-38)
        absmax, scaled = torch.cat([absmax, last[None]]), torch.cat([scaled, rest / last])
    if scaled.numel() % 2:
        scaled = torch.nn.functional.pad(scaled, (0, 1))
    boundaries, order = _boundaries(quant_type)
    codes = torch.zeros(scaled.shape, dtype=torch.uint8)
    for boundary in boundaries:
        codes += scaled > boundary  # a value on the boundary has the lower code
    if quant_type != "nf4":  # NF4's table is in ascending order already
        codes = order[codes.int()]
    return codes[::2] << 4 | codes[1::2], absmax
