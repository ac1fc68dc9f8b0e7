"""The shapes of a base model, from its config.json alone: built by transformers on the meta device, no weights read."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import linear_layers, loading, lora
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

    `adapter` holds the shape of every trainable tensor, `adapted` the names of the base's weights that have an adapter,
    `not_text` those that text does not go through. `active_experts` is the share of the experts that a token
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
    adapted: frozenset[str] = frozenset()
    not_text: frozenset[str] = frozenset()

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
    def without_adapter(self) -> dict[str, float]:
        """Shares of the parameters in layers without an adapter, by what they are; embeddings and head do not count."""
        layers = [weight for weight in self.weights if self.vocabulary not in weight.shape]
        total = sum(weight.numel for weight in layers)
        found: dict[str, float] = {}
        for weight in layers:
            if weight.name not in self.adapted and len(weight.shape) > 1:
                kind = (
                    "parts that do not read text"
                    if weight.name in self.not_text
                    else "experts"
                    if _EXPERTS.search(weight.name)
                    else "others"
                )
                found[kind] = found.get(kind, 0.0) + weight.numel / total
        return found

    @property
    def in_16bit(self) -> float:
        """The share of the parameters that training does not hold in 4 bit."""
        return sum(weight.numel for weight in self.weights if not weight.quantised) / self.parameters

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
        InputError: transformers does not know the architecture, a target matches no layer, or it cannot generate.
    """
    model = loading.empty_model(folder, train.compute_dtype)
    quantization = Quantization.of(train)
    quantised = {f"{name}.weight" for name in linear_layers.quantised(model)}
    weights = tuple(
        Weight(name, tuple(weight.shape), quantization if name in quantised else None, weight.dtype.itemsize)
        for name, weight in model.named_parameters()
    )
    config = model.config.get_text_config()
    if not hasattr(config, "num_hidden_layers"):
        raise InputError(
            f"{config.model_type} has no number of layers in its config, and cannot generate without; give another base"
        )
    embeddings = model.get_input_embeddings().weight
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    not_text = frozenset(linear_layers.not_language(model))
    adapted = with_adapter(model, train)
    return Architecture(
        name=str((model.config.architectures or [type(model).__name__])[0]),
        weights=weights,
        adapter=tuple(tuple(p.shape) for p in adapted.parameters() if p.requires_grad),
        adapted=frozenset(f"{name}.weight" for name in lora.adapted_layers(adapted)),
        not_text=not_text,
        layers=int(config.num_hidden_layers),
        hidden=int(embeddings.shape[1]),
        vocabulary=int(embeddings.shape[0]),
        active_experts=chosen / experts if experts and chosen else 1.0,
        optimiser_bits=8 if train.optim == "paged_adamw_8bit" else 32,
    )


def with_adapter(model: Any, train: TrainConfig) -> Any:
    """Puts the run's adapter on an empty model, in place, as peft does it; in float32, as train_qlora trains it.

    Raises:
        InputError: a target matches no layer.
    """
    import torch

    adapted = lora.put_on(model, lora.config(train, model), low_cpu_mem_usage=True)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return adapted
