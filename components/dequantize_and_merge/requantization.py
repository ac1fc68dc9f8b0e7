"""A weight to 4 bit and back, piece by piece, bit for bit as training held it (core/models/blockwise_quantization)."""

import os
from collections.abc import Iterable
from typing import Any

from qlora_pipelines.components.core.models import blockwise_quantization as blockwise
from qlora_pipelines.components.core.models.blockwise_quantization import BLOCK
from qlora_pipelines.components.core.models.quantization import Quantization, digest_of, hash_codes
from qlora_pipelines.components.core.store.prefetch import prefetch


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
            return blockwise.quantize(values, quantization.quant_type)

        small = (part for piece in pieces for part in piece.split(blockwise.PIECE["cpu"]))
        quantised = [found for _, found in prefetch(quantize, small, os.cpu_count() or 1)]
        self.shape, self.quantization = shape, quantization
        self.packed = torch.cat([packed for packed, _ in quantised])
        self.absmax = torch.cat([absmax for _, absmax in quantised])

    def match_digest(self, digest: str) -> bool:
        """Quantises the scales as training did, which is known from the digest.

        Double quantisation subtracts the mean of all scales. Training's mean is the one computed here or a neighbour of
        it in float32 (`blockwise_quantization.mean` says why), and the digest says which.

        Args:
            digest: what training recorded, as `core.models.quantization.digest` gives it.

        Returns:
            Whether this weight has that digest; False: training held another one.
        """
        codes = hash_codes(self.quantization.quant_type, self.shape, BLOCK, self.packed)
        if not self.quantization.double_quant:
            return digest_of(codes, [self.absmax]) == digest
        import bitsandbytes.functional as bnb
        import torch

        mean = blockwise.mean(self.absmax)
        for nearby in (mean, mean.nextafter(torch.tensor(torch.inf)), mean.nextafter(torch.tensor(-torch.inf))):
            packed, state = blockwise.double_quantize(self.absmax, nearby)
            if digest_of(codes, [packed, nearby, state.absmax]) == digest:
                self.absmax = bnb.dequantize_blockwise(packed, state) + nearby
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
