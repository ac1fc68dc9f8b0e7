"""Attention over packed rows: each conversation attends to itself alone, at the cost of its own length squared.

One mask over a whole row would cost the row's length squared. So each conversation is a call of its own, which
PyTorch answers with a flash kernel on CPU and GPU alike; on a CPU, short ones go to `short_attention`.
"""

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator
from typing import Any

from qlora_pipelines.components.core.errors import InputError

NAME = "packed_conversations"


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Any = None,
    sliding_window: int | None = None,
    s_aux: Any = None,
    **_: Any,
) -> tuple[Any, None]:
    """Causal attention within each conversation of a packed row, as transformers calls it.

    Args:
        module: the attention layer, named where it is refused.
        query: shape (1, heads, tokens, head size).
        key: shape (1, key heads, tokens of a start that all share + tokens, head size); `value` likewise.
        value: see `key`.
        attention_mask: None, this kind of attention has no mask; a layer that makes its own is refused.
        scaling: factor on the scores.
        dropout: of the attention weights.
        cu_seq_lens_q: cumulative lengths of the conversations, shape (conversations + 1,).
        sliding_window: how many tokens back a layer sees, where the model limits that.
        s_aux: None; a layer that has attention sinks is refused.

    Returns:
        Shape (1, tokens, heads, head size), and None for the weights.

    Raises:
        InputError: the layer wants what is not done here.
    """
    if attention_mask is not None or s_aux is not None:
        raise InputError(
            f"{type(module).__name__} has a mask or sinks of its own, and cannot take packed conversations"
        )
    lengths = cu_seq_lens_q.diff().tolist()
    return within(query, key, value, lengths, scaling, dropout, sliding_window), None


def within(
    query: Any,
    key: Any,
    value: Any,
    lengths: list[int],
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
    always_flash: bool = False,
) -> Any:
    """See `attend`; `lengths` are the conversations' own.

    plan_run calls this: its tensors hold no data that says lengths, and lie on a CPU where a GPU is meant, whence
    `always_flash`.
    """
    import torch

    from qlora_pipelines.components.core.models import cpu_attention

    repeat = query.shape[1] // key.shape[1]
    before = key.shape[2] - query.shape[2]

    def one(query: Any, key: Any, value: Any) -> Any:
        if not always_flash and cpu_attention.takes(query, key, dropout, sliding_window):
            return cpu_attention.attend(query, key, value, scaling)
        mask = _mask(query, key, sliding_window)
        return torch.nn.functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(repeat, dim=1),
            value.repeat_interleave(repeat, dim=1),
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
        )

    def split(tensor: Any) -> Iterable[Any]:
        start, *own = tensor.split([before, *lengths], 2)
        return (torch.cat([start, part], 2) for part in own) if before else own

    parts = [one(*part) for part in zip(query.split(lengths, 2), split(key), split(value), strict=True)]
    return torch.cat(parts, dim=2).transpose(1, 2)


def _mask(query: Any, key: Any, sliding_window: int | None) -> Any:
    """What a token may see, where that is not simply itself and all before it: None."""
    import torch

    tokens, keys = query.shape[2], key.shape[2]
    reach = keys if sliding_window is None else sliding_window
    if keys == tokens and keys <= reach:
        return None
    position = torch.arange(keys, device=query.device)
    back = position[keys - tokens :, None] - position[None, :]
    return (back >= 0) & (back < reach)


def use(model: Any, kernel: str = "sdpa") -> None:
    """Makes a model attend within the conversations of packed rows.

    Args:
        model: a causal language model.
        kernel: `sdpa`, PyTorch's own, or `flash_attention_2`, which knows packed rows by their position ids.

    Raises:
        InputError: the architecture has layers that would mix conversations, or flash-attn is not installed.
    """
    from transformers import AttentionInterface

    check(model)
    if kernel == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None:
            raise InputError("attention flash_attention_2: the package flash-attn is not installed; take sdpa")
        model.set_attn_implementation(kernel)
        return
    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)


def check(model: Any) -> None:
    """Refuses a model whose layers would mix packed conversations.

    Raises:
        InputError: says which layers.
    """
    if why := _mixes(model):
        raise InputError(
            f"{model.config.model_type} cannot be trained on packed conversations: {why}; set train_qlora.packing false"
        )


def supports(model: Any) -> bool:
    """Whether all layers of a model keep packed conversations apart."""
    return not _mixes(model)


def _mixes(model: Any) -> str:
    """What keeps a model from taking packed conversations, or ''."""
    config = model.config.get_text_config()
    if _kinds(config) - {"full_attention", "sliding_attention"}:
        return f"its layers are {', '.join(sorted(_kinds(config)))}"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps its attention's scores"
    if not model._can_set_attn_implementation():  # transformers' own: it would keep its attention, and only warn
        return "its attention cannot be exchanged"
    if any(hasattr(module, "sinks") for module in model.modules()):
        return "its attention has sinks"
    return ""


def _kinds(config: Any) -> set[str]:
    return set(getattr(config, "layer_types", None) or ["full_attention"])


@contextlib.contextmanager
def packed(model: Any) -> Iterator[None]:
    """Makes a model attend within the conversations of packed rows for a while.

    Raises:
        InputError: as `use`.
    """
    before = model.config._attn_implementation
    use(model)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
