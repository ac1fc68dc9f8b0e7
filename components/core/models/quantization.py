"""How the base is quantised to 4 bit, and the proof that two steps have the same weights.

Training says in its manifest how the base was quantised and what came out, tensor by tensor; evaluation loads it the
same way, and the merge checks that it starts from the same bytes.
"""

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any, Self

from qlora_pipelines.components.core.config.steps import TrainConfig


@dataclasses.dataclass(frozen=True)
class Quantization:
    """Kind of 4-bit code, double quantisation of its scales, and the dtype of the products.

    The defaults are those of Dettmers et al. 2023, "QLoRA", section 3: NormalFloat codes, scales quantised once more,
    and products in bfloat16.
    """

    quant_type: str = "nf4"
    double_quant: bool = True
    compute_dtype: str = "bfloat16"

    @classmethod
    def of(cls, train: TrainConfig) -> Self:
        """As a run's training options ask for it."""
        return cls(train.quant_type, train.double_quant, train.compute_dtype)

    def as_transformers(self, storage: str = "uint8", kept: Iterable[str] = ()) -> Any:
        """The config that `from_pretrained` takes.

        Args:
            storage: dtype that the packed bytes are kept in; FSDP wants that of the other weights.
            kept: the modules that stay in 16 bit.
        """
        import torch
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype),
            bnb_4bit_quant_storage=getattr(torch, storage),
            llm_int8_skip_modules=list(kept) or None,  # None: those that transformers leaves
        )


def digests(model: Any) -> dict[str, str]:
    """The digest of every quantised weight of a model, by the name of its parameter in the model without an adapter."""
    import bitsandbytes as bnb

    return {
        f"{name}.weight": digest(module.weight.data, module.weight.quant_state)
        for name, module in model.named_modules()
        if isinstance(module, bnb.nn.Linear4bit)
    }


def digest(packed: Any, state: Any) -> str:
    """sha256 of one weight as bitsandbytes holds it, in hexadecimal.

    It covers all that dequantisation reads, except the tables of codes, which are bitsandbytes' own. Equal options do
    not mean equal weights: `blockwise_quantization` says why.

    Args:
        packed: the codes, two per byte, in whatever dtype they are kept.
        state: bitsandbytes' QuantState for them.
    """
    scales = [state.absmax, state.offset, state.state2.absmax] if state.nested else [state.absmax]
    return digest_of(hash_codes(state.quant_type, tuple(state.shape), state.blocksize, packed), scales)


def hash_codes(quant_type: str, shape: tuple[int, ...], block_size: int, packed: Any) -> Any:
    """The first part of a digest, to be gone on with by `digest_of`: the codes, and what they mean.

    Args:
        quant_type: `nf4` or `fp4`.
        shape: (out, in) of the weight.
        block_size: values that share a scale.
        packed: as for `digest`.
    """
    found = hashlib.sha256(f"{quant_type} {shape} {block_size}".encode())
    found.update(_bytes(packed))
    return found


def digest_of(codes: Any, scales: Iterable[Any]) -> str:
    """The digest of a weight.

    Args:
        codes: from `hash_codes`; it stays as it is.
        scales: one float32 per block; with double quantisation their 8-bit codes, their mean, and the scales of these.
    """
    found = codes.copy()
    for tensor in scales:
        found.update(_bytes(tensor))
    return str(found.hexdigest())


def _bytes(tensor: Any) -> Any:
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
