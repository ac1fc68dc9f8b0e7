"""What a training step holds besides weights, counted by running the model's own code on tensors without data.

PyTorch's FakeTensorMode runs forward and backward of the real architecture: shapes, dtypes, autograd and gradient
checkpointing are those of training, and no memory is taken. So the same code serves every architecture, fused experts
included, and stays right when transformers changes a layer.
"""

import dataclasses
import weakref
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.models import loading, packed_attention
from qlora_pipelines.components.plan_run import architecture

FEW, MORE = 4, 8
"""Layers that are run: memory is linear in their number, so two depths give that of any other."""
_ATTENTION = "planned_packed_conversations"


@dataclasses.dataclass(frozen=True)
class Activations:
    """Bytes of one forward and backward pass of the model without its head.

    `saved` is what the forward pass keeps for the backward pass; `backward` is how much more there is at the peak of
    the backward pass: gradients between layers, and with checkpointing the recomputed activations of one layer.
    """

    saved: int
    backward: int


def trace(folder: Path, train: TrainConfig, tokens: int) -> Activations:
    """Counts the activations of one packed row.

    Args:
        folder: has the base's config.json.
        train: adapter, dropout and checkpointing.
        tokens: length of the row.

    Raises:
        InputError: transformers does not know the architecture.
    """
    total = len(_layers(loading.empty_model(folder)))
    if total <= MORE:
        return _run(folder, train, tokens, total)
    few, more = (_run(folder, train, tokens, depth) for depth in (FEW, MORE))
    beyond, step = total - FEW, MORE - FEW
    return Activations(
        saved=few.saved + (more.saved - few.saved) * beyond // step,
        backward=max(0, few.backward + (more.backward - few.backward) * beyond // step),
    )


def _layers(model: Any) -> Any:
    """The list of decoder layers: the longest list of modules in the model."""
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len)


def _run(folder: Path, train: TrainConfig, tokens: int, depth: int) -> Activations:
    import torch
    from peft.helpers import disable_input_dtype_casting
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AttentionInterface

    model = loading.empty_model(folder, train.compute_dtype)
    del _layers(model)[depth:]
    AttentionInterface.register(_ATTENTION, _attend)
    model.set_attn_implementation(_ATTENTION)
    adapted = architecture.with_adapter(model, train)
    adapted.train()
    if train.gradient_checkpointing:
        adapted.gradient_checkpointing_enable()
        adapted.enable_input_require_grads()
    with FakeTensorMode(), disable_input_dtype_casting(adapted):
        _materialise(adapted)
        ids = torch.zeros(1, tokens, dtype=torch.long)
        with _live() as live, torch.autocast("cpu", getattr(torch, train.compute_dtype)):
            backbone = adapted.get_base_model().base_model
            output = backbone(input_ids=ids, position_ids=ids, use_cache=False).last_hidden_state
            saved = live.peak = live.now
            output.backward(torch.ones_like(output))
            return Activations(saved=saved, backward=live.peak - saved)


def _attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """Training's own attention on a GPU, over two conversations: fake tensors cannot tell how long they are."""
    half = query.shape[2] // 2
    lengths = [half, query.shape[2] - half]
    return packed_attention.block_diagonal_attention(
        query, key, value, lengths, scaling, dropout, sliding_window, for_gpu=True
    ), None


def _materialise(model: Any) -> None:
    """Turns meta tensors into fake ones on the CPU; trainable ones get their gradient, which is counted elsewhere."""
    import torch

    # As `to_empty`, which FakeTensorMode refuses for tensors that were made outside it.
    model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def _live() -> Any:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.weak import WeakIdKeyDictionary

    def storages(tree: Any) -> list[Any]:
        return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]

    class Live(TorchDispatchMode):  # type: ignore[misc]  # torch has no types here
        """Adds up the storages that operators make, in bytes, until they are freed."""

        def __init__(self) -> None:
            super().__init__()
            self.now = self.peak = 0
            self.known: Any = WeakIdKeyDictionary()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = WeakIdKeyDictionary({storage: None for storage in storages((args, kwargs))})
            result = function(*args, **(kwargs or {}))
            for storage in storages(result):
                if storage not in given and storage not in self.known:
                    self.known[storage] = None
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, storage.nbytes())
            return result

        def _freed(self, size: int) -> None:
            self.now -= size

    return Live()
