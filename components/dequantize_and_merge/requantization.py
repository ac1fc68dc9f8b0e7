"""A weight to 4 bit and back, bit for bit as bitsandbytes does it, at a multiple of its speed and piece by piece.

bitsandbytes 0.50 quantises on a CPU in plain torch over the whole tensor: float32 copies of it, and a binary search a
value. Here the same arithmetic runs over pieces that fit in the processor's cache, and a value's code is the number of
boundaries below it, which is what the search finds. Scales, double quantisation and the way back are bitsandbytes' own.
"""

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.core.store import streams

BLOCK = 64
"""Values that share a scale: bitsandbytes' default, which transformers uses."""
PIECE = 1 << 19
"""Values in work at a time: a few MiB."""
OFFSETS = 8
"""How far, in steps of float32, the mean of the scales may be from the one computed here; see `QuantizedWeight`."""


class QuantizedWeight:
    """A weight as training held it, built from its rows and given back row by row.

    Memory: half a byte a value and 1/16 byte a value for scales.
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
        quantised = [found for _, found in streams.ahead(quantize, small, os.cpu_count() or 1)]
        self.shape, self.quantization = shape, quantization
        self.packed = torch.cat([packed for packed, _ in quantised])
        self.scales = torch.cat([scales for _, scales in quantised])

    @functools.cached_property
    def _digest_of_codes(self) -> Any:
        head = f"{self.quantization.quant_type} {self.shape} {BLOCK}"
        found = hashlib.sha256(head.encode())
        found.update(self.packed.numpy())
        return found

    def settle(self, digest: str) -> bool:
        """Quantises the scales, so that the weight is the one with this digest.

        Double quantisation subtracts the mean of all scales. A mean depends on the order of summation, which differs
        between processors, by a few steps of float32: the one that training had is looked for among the neighbours.

        Args:
            digest: what training recorded, as `core.quantization.digest` gives it.

        Returns:
            Whether it is that weight; False: training held another one.
        """
        if not self.quantization.double_quant:
            return self._matches(digest, [self.scales])
        import bitsandbytes.functional as bnb

        scales = self.scales
        for offset in _near(scales.mean()):
            codes, state = bnb.quantize_blockwise(scales - offset, blocksize=256)
            if self._matches(digest, [codes, offset, state.absmax]):
                self.scales = bnb.dequantize_blockwise(codes, state) + offset
                return True
        return False

    def _matches(self, digest: str, scales: list[Any]) -> bool:
        import torch

        found = self._digest_of_codes.copy()
        for tensor in scales:
            found.update(tensor.flatten().view(torch.uint8).numpy())
        return bool(found.hexdigest() == digest)

    def rows(self, first: int, last: int) -> Any:
        """Rows `first` to `last` (not included) as training computed with them, in its compute dtype.

        Both ends must fall between two blocks, or be the weight's own.
        """
        import torch

        width = self.shape[1]
        begin, end = first * width, last * width
        values = torch.ops.bitsandbytes.dequantize_4bit.default(
            self.packed[begin // 2 : -(-end // 2)],
            self.scales[begin // BLOCK : -(-end // BLOCK)],
            BLOCK,
            self.quantization.quant_type,
            (1, end - begin),  # one long row: where a row ends inside a block, the CPU's kernel takes a wrong scale
            getattr(torch, self.quantization.compute_dtype),
        )
        return values.view(last - first, width)


def _near(mean: Any) -> Iterator[Any]:
    """A float32 scalar, and its neighbours one, two, ... steps up and down."""
    import torch

    yield mean
    up = down = mean
    for _ in range(OFFSETS):
        up, down = torch.nextafter(up, torch.tensor(torch.inf)), torch.nextafter(down, torch.tensor(-torch.inf))
        yield up
        yield down


@functools.cache
def _boundaries(quant_type: str) -> tuple[list[float], Any]:
    """Boundaries between neighbouring codes in ascending order, and the codes in that order, shape (16,)."""
    import torch
    from bitsandbytes.functional import get_4bit_type

    values = get_4bit_type(quant_type, device="cpu")
    order = torch.argsort(values)
    ordered = values[order]
    return ((ordered[:-1] + ordered[1:]) / 2).tolist(), order.to(torch.uint8)


def _quantize_piece(values: Any, quant_type: str) -> tuple[Any, Any]:
    """Codes and scales of a flat tensor.

    As in bitsandbytes 0.50's `backends/default/ops.py`: the same operations on every value, in the same order.

    Returns:
        uint8 of shape (values / 2,), two codes a byte, and float32 of shape (values / 64,), both rounded up.
    """
    import torch

    values = values.float()
    whole = values.numel() // BLOCK * BLOCK
    blocks = values[:whole].view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / scales.clamp(min=1e-38))[:, None]).view(-1)
    if whole < values.numel():  # the last block is divided by its scale, not multiplied by its inverse
        rest = values[whole:]
        scale = rest.abs().amax().clamp(min=1e-38)
        scales, scaled = torch.cat([scales, scale[None]]), torch.cat([scaled, rest / scale])
    if scaled.numel() % 2:
        scaled = torch.nn.functional.pad(scaled, (0, 1))
    boundaries, order = _boundaries(quant_type)
    codes = torch.zeros(scaled.shape, dtype=torch.uint8)
    for boundary in boundaries:
        codes += scaled > boundary
    if quant_type != "nf4":
        codes = order[codes.int()]
    return codes[::2] << 4 | codes[1::2], scales
