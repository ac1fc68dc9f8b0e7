"""Attention over packed rows: each conversation attends to itself alone, at the cost of its own length squared.

Causal attention is softmax(Q K' / sqrt(d)) V over the tokens so far (Vaswani et al. 2017, section 3.2.1). In a row of
conversations with n_1, n_2, ... tokens, the mask is block-diagonal as well (Krell et al. 2021, "Efficient sequence
packing without cross-contamination"). A masked score adds exp(-inf) = 0 to the softmax's sum, so the rows of a block
are the attention over its conversation alone: one call per conversation gives the same as one call with the mask. The
calls compute n_1^2 + n_2^2 + ... scores, the mask (n_1 + n_2 + ...)^2. They also need no mask, so PyTorch answers them
with a flash kernel on CPU and GPU alike; on a CPU, short ones go to `cpu_attention`.
"""

import contextlib
import importlib.util
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from qlora_pipelines.components.core.errors import InputError

NAME = "packed_conversations"


def attention_forward(
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
        key: shape (1, key heads, tokens of a prefix that all share + tokens, head size); `value` likewise.
        value: see `key`.
        attention_mask: None, as this kind of attention has no mask; a layer that makes its own is refused.
        scaling: factor on the scores; None: 1 / sqrt(head size).
        dropout: of the attention weights.
        cu_seq_lens_q: cumulative lengths of the conversations, shape (conversations + 1,); None: those that the decoder
            was given, as some architectures' layers do not hand them on; where it was given none, there is one.
        sliding_window: how many tokens a token sees, itself included, where the model limits that.
        s_aux: None; a layer that has attention sinks is refused.

    Returns:
        Shape (1, tokens, heads, head size), and None for the weights.

    Raises:
        InputError: the layer has a mask or sinks.
    """
    if attention_mask is not None or s_aux is not None:
        raise InputError(
            f"{type(module).__name__} has a mask or sinks of its own, and cannot take packed conversations"
        )
    borders = _Borders.now if cu_seq_lens_q is None else cu_seq_lens_q
    lengths = [query.shape[2]] if borders is None else borders.diff().tolist()
    return block_diagonal_attention(query, key, value, lengths, scaling, dropout, sliding_window), None


def block_diagonal_attention(
    query: Any,
    key: Any,
    value: Any,
    lengths: list[int],
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
    for_gpu: bool = False,
) -> Any:
    """See `attention_forward`; `lengths` are those of the conversations.

    plan_run calls this to count a GPU's memory on a CPU, with tensors that hold no data and so cannot say lengths;
    `for_gpu` leaves out the kernel for CPUs.
    """
    import torch

    from qlora_pipelines.components.core.models import cpu_attention

    # Grouped queries: head h reads key head h // group, so each key head is repeated `group` times in a row
    # (Ainslie et al. 2023, section 2.2).
    group = query.shape[1] // key.shape[1]
    shared = key.shape[2] - query.shape[2]

    def attend(query: Any, key: Any, value: Any) -> Any:
        if not for_gpu and cpu_attention.supports(query, key, dropout, sliding_window):
            return cpu_attention.attend(query, key, value, scaling)
        mask = _mask(query, key, sliding_window)
        return torch.nn.functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(group, dim=1),
            value.repeat_interleave(group, dim=1),
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
        )

    def split(tensor: Any) -> Iterable[Any]:
        prefix, *own = tensor.split([shared, *lengths], 2)
        return (torch.cat([prefix, part], 2) for part in own) if shared else own

    parts = [attend(*part) for part in zip(query.split(lengths, 2), split(key), split(value), strict=True)]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()  # some layers `view` it


def _mask(query: Any, key: Any, sliding_window: int | None) -> Any:
    """Where a token may look, shape (tokens, keys); None: at itself and all before it.

    Queries are the last of the keys' positions, and see `sliding_window` positions that end with their own (Jiang et
    al. 2023, "Mistral 7B", section 2). A window as long as the keys hides nothing. With a prefix, PyTorch's `is_causal`
    would be wrong: it takes the first query to be at the first key.
    """
    import torch

    tokens, keys = query.shape[2], key.shape[2]
    window = keys if sliding_window is None else sliding_window
    if tokens == keys <= window:
        return None
    position = torch.arange(keys, device=query.device)
    distance = position[keys - tokens :, None] - position[None, :]
    return (distance >= 0) & (distance < window)


def unsupported(model: Any) -> str:
    """Why a model's layers would mix packed conversations, in one line; empty: they do not."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention"}:
        why = f"its layers are {', '.join(sorted(kinds))}"
    elif getattr(config, "attn_logit_softcapping", None):
        why = "it caps its attention's scores"
    elif not model._can_set_attn_implementation():  # transformers' own: it would keep its attention, and only warn
        why = "its attention cannot be exchanged"
    elif any(hasattr(module, "sinks") for module in model.modules()):
        why = "its attention has sinks"
    else:
        return ""
    return f"{model.config.model_type} cannot be trained on packed conversations: {why}; leave packing at auto"


def enable(model: Any, kernel: str = "sdpa") -> None:
    """Makes a model attend within the conversations of packed rows.

    Args:
        model: a causal language model.
        kernel: `sdpa`, PyTorch's own, or `flash_attention_2`, which knows packed rows by their position ids.

    Raises:
        InputError: the architecture has layers that would mix conversations, or flash-attn is not installed.
    """
    from transformers import AttentionInterface

    if why := unsupported(model):
        raise InputError(why)
    if kernel == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None:
            raise InputError("attn_implementation flash_attention_2: flash-attn is not installed; take sdpa")
        model.set_attn_implementation(kernel)
        return
    AttentionInterface.register(NAME, attention_forward)
    model.set_attn_implementation(NAME)
    if decoder_of(model) not in _Borders.told_by:
        decoder_of(model).register_forward_pre_hook(_Borders.note, with_kwargs=True)
        _Borders.told_by.add(decoder_of(model))


class _Borders:
    """The borders in the row that a decoder runs now, or ran last: the backward pass may run its layers again."""

    now: Any = None
    told_by: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    @classmethod
    def note(cls, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        """Called before a decoder runs."""
        cls.now = kwargs.get("cu_seq_lens_q")


def decoder_of(model: Any) -> Any:
    """A model's layers, between embeddings and head; of one that takes images too, those that text goes through."""
    from transformers import PreTrainedModel

    decoder = model.get_decoder()
    while decoder is not model and isinstance(decoder, PreTrainedModel):
        if decoder.get_output_embeddings() is None:
            return decoder
        model, decoder = decoder, decoder.get_decoder()  # a causal model in a larger one
    return getattr(model, "model", model.base_model)  # Llama 4, Mllama, and heads that are called decoder


@contextlib.contextmanager
def enabled(model: Any) -> Iterator[None]:
    """`enable` for a while.

    Raises:
        InputError: as `enable`.
    """
    before = model.config._attn_implementation
    enable(model)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
