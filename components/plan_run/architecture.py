"""The shapes of a base model, from its config.json alone: built by transformers on the meta device, no weights read."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.models import loading, lora
from qlora_pipelines.components.core.models.quantization import Quantization

_EXPERTS = re.compile(r"\.experts\.")


@dataclasses.dataclass(frozen=True)
class Weight:
    """One stored tensor of the base; tied ones appear once.

    `quantised` says how training holds it in 4 bit; None: it stays as it is, with `itemsize` bytes an element.
    """

    name: str
    shape: tuple[int, ...]
    quantised: Quantization | None
    itemsize: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the arithmetic needs of a base model and the adapter that the run puts on it.

    `adapter` holds the shape of every trainable tensor. `active_experts` is the share of the experts that a token
    passes through, 1 where there are none.
    """

    name: str
    weights: tuple[Weight, ...]
    adapter: tuple[tuple[int, ...], ...]
    layers: int
    hidden: int
    vocabulary: int
    active_experts: float
    optimiser_bits: int = 32

    @property
    def parameters(self) -> int:
        """Parameters of the base."""
        return sum(weight.numel for weight in self.weights)

    @property
    def trainable(self) -> int:
        """Parameters of the adapter."""
        return sum(map(math.prod, self.adapter))

    @property
    def in_fused_experts(self) -> int:
        """Parameters in fused experts: 3-dimensional tensors, which bitsandbytes leaves in 16 bit."""
        return sum(weight.numel for weight in self.weights if _EXPERTS.search(weight.name) and not weight.quantised)

    @property
    def active_parameters(self) -> float:
        """Parameters in the matrix products of one token: without embeddings, which are looked up, with the head."""
        names = {weight.name.rpartition(".")[0].rpartition(".")[2] for weight in self.weights}
        # A tied head is the matrix of the embeddings, and is stored once, under their name.
        head = self.vocabulary * self.hidden if "embed_tokens" in names and "lm_head" not in names else 0
        return head + sum(
            weight.numel * (self.active_experts if _EXPERTS.search(weight.name) else 1)
            for weight in self.weights
            if len(weight.shape) > 1 and not weight.name.endswith("embed_tokens.weight")
        )


def read(folder: Path, train: TrainConfig) -> Architecture:
    """The architecture in `folder/config.json`, with the adapter of `train` on it.

    Raises:
        InputError: transformers does not know the architecture, or a target matches no layer.
    """
    model = loading.empty_model(folder, train.compute_dtype)
    quantization = Quantization.of(train)
    quantised = _quantised(model, quantization)
    weights = tuple(
        Weight(name, tuple(weight.shape), quantization if name in quantised else None, weight.dtype.itemsize)
        for name, weight in model.named_parameters()
    )
    config = model.config.get_text_config()
    embeddings = model.get_input_embeddings().weight
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    adapted = with_adapter(model, train)
    return Architecture(
        name=str((model.config.architectures or [type(model).__name__])[0]),
        weights=weights,
        adapter=tuple(tuple(p.shape) for p in adapted.parameters() if p.requires_grad),
        layers=int(config.num_hidden_layers),
        hidden=int(embeddings.shape[1]),
        vocabulary=int(embeddings.shape[0]),
        active_experts=chosen / experts if experts and chosen else 1.0,
        optimiser_bits=8 if train.optim == "paged_adamw_8bit" else 32,
    )


def _quantised(model: Any, quantization: Quantization) -> set[str]:
    """Names of the weights that bitsandbytes puts into 4 bit, by transformers' own rule."""
    import torch
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.auto import AutoHfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    quantizer = AutoHfQuantizer.from_config(quantization.as_transformers())
    skipped = quantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if (type(module) is torch.nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, skipped)
    }


def with_adapter(model: Any, train: TrainConfig) -> Any:
    """Puts the run's adapter on an empty model, in place, as peft does it; in float32, as train_qlora trains it.

    Raises:
        InputError: a target matches no layer.
    """
    import torch
    from peft import get_peft_model

    adapted = get_peft_model(model, lora.config(train, model), low_cpu_mem_usage=True)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return adapted
