"""How the base is held in 4 bit, and the proof that two steps hold the same.

Training says in its manifest how the base was quantised and what came out, tensor by tensor; evaluation loads it the
same way, and the merge checks that it starts from the same bytes.
"""

import dataclasses
import hashlib
from typing import Any, Self

from qlora_pipelines.components.core.config.steps import TrainConfig


@dataclasses.dataclass(frozen=True)
class Quantization:
    """Kind of 4-bit code, double quantisation of its scales, and the dtype of the products."""

    quant_type: str = "nf4"
    double_quant: bool = True
    compute_dtype: str = "bfloat16"

    @classmethod
    def of(cls, train: TrainConfig) -> Self:
        """As a run's training options ask for it."""
        return cls(train.quant_type, train.double_quant, train.compute_dtype)

    def as_transformers(self, storage: str = "uint8") -> Any:
        """The config that `from_pretrained` takes.

        Args:
            storage: dtype that the packed bytes are kept in; FSDP wants that of the other weights.
        """
        import torch
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype),
            bnb_4bit_quant_storage=getattr(torch, storage),
        )


def digests(model: Any) -> dict[str, str]:
    """sha256 of every quantised weight of a model, by the name of its parameter in the model without an adapter."""
    import bitsandbytes as bnb

    return {
        f"{name}.weight": digest(module.weight.data, module.weight.quant_state)
        for name, module in model.named_modules()
        if isinstance(module, bnb.nn.Linear4bit)
    }


def digest(packed: Any, state: Any) -> str:
    """sha256 of one weight as bitsandbytes holds it, in hexadecimal.

    Double quantisation subtracts the mean of all scales, and a mean depends on the order of summation, which may differ
    between a CPU and a GPU: so equal options alone do not mean equal weights.

    Args:
        packed: the codes, two a byte, in whatever dtype they are kept.
        state: bitsandbytes' QuantState beside them.
    """
    import torch

    found = hashlib.sha256(f"{state.quant_type} {tuple(state.shape)} {state.blocksize}".encode())
    tensors = [packed, state.absmax]
    if state.nested:
        tensors += [state.offset, state.state2.absmax]
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
