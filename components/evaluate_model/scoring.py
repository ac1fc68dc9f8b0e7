"""How likely a model holds the reference answers: packed rows, the head at supervised positions only, in chunks."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from qlora_pipelines.components.core.data import chat_template, packing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import packed_attention
from qlora_pipelines.components.core.runtime import Progress

LOGITS = {"cpu": 1 << 21, "cuda": 1 << 25}
"""Logits held at a time, 8 and 128 MiB in float32: more positions take turns at the head.

More bring no speed on a CPU. A GPU reads the whole head for each turn, so it gets fewer of them.
"""


def score(
    model: Any, encoded: Sequence[chat_template.Encoded], batch_tokens: int, device: str, what: str
) -> list[tuple[float, int]]:
    """Scores conversations, each as if it were alone.

    Args:
        model: causal language model in eval mode, with or without an adapter.
        encoded: the conversations.
        batch_tokens: tokens a forward pass, what all begin with not counted; a longer conversation gets one of its own.
        device: where the inputs go.
        what: named in the progress lines.

    Returns:
        for each conversation, the summed negative log-likelihood of its supervised tokens in nats, and how many of
        them the model held for the likeliest.
    """
    import torch

    from qlora_pipelines.components.evaluate_model import prefix_cache

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    found: list[tuple[float, int]] = [(0.0, 0)] * len(encoded)
    progress = Progress(f"scoring {what}", len(encoded))
    done = 0
    with _packed(causal, batch_tokens) as capacity, torch.inference_mode():
        start, keys = prefix_cache.read(causal, _decoder(causal), encoded, device) if capacity else (0, None)
        for row in packing.pack([len(item.input_ids) - start for item in encoded], capacity):
            scored = _row(causal, [_after(start, encoded[index]) for index in row], start, keys, device)
            for index, (nll, right) in zip(row, scored, strict=True):
                found[index] = nll, right
            done += len(row)
            progress.at(done)
    return found


def _decoder(causal: Any) -> Any:
    found = causal.get_decoder()
    return causal.model if found is causal else found  # Llama 4's and Mllama's give themselves


def _after(start: int, item: chat_template.Encoded) -> chat_template.Encoded:
    return chat_template.Encoded(item.input_ids[start:], item.labels[start:])


@contextlib.contextmanager
def _packed(causal: Any, batch_tokens: int) -> Iterator[int]:
    """Lets packed conversations attend to themselves alone; gives the tokens a row may hold.

    Where an architecture's layers would mix conversations, each goes alone, through the model's own attention.
    """
    if packed_attention.unsupported(causal):
        yield 0
    else:
        with packed_attention.enabled(causal):
            yield batch_tokens


def _row(
    causal: Any, items: Sequence[chat_template.Encoded], start: int, keys: Any, device: str
) -> list[tuple[float, int]]:
    """Scores one packed row of conversations whose first `start` tokens are in `keys`."""
    import torch

    inputs = {name: tensor.to(device) for name, tensor in packing.collate([packing.joined(items)]).items()}
    labels = inputs.pop("labels")[0]
    at = (labels != chat_template.IGNORED).nonzero()[:, 0]
    owner = torch.repeat_interleave(inputs["cu_seq_lens_q"].diff())[at].cpu()
    nll = torch.zeros(len(items), dtype=torch.float64)
    right = torch.zeros(len(items), dtype=torch.int64)
    decoder = _decoder(causal)
    inputs["position_ids"] += start
    decoded = decoder(**inputs, past_key_values=keys, use_cache=keys is not None)
    chunk = max(1, LOGITS[torch.device(device).type] // causal.get_output_embeddings().weight.shape[0])
    with _gives(decoder, decoded):
        for first in range(0, len(at), chunk):
            here = at[first : first + chunk]
            predicted_by = (here - 1).to(decoded.last_hidden_state.device)
            logits = causal(**inputs, logits_to_keep=predicted_by, use_cache=False).logits[0].float()
            if len(logits) != len(here):
                raise InputError(f"{type(causal).__name__} gives logits at other places than it is asked for")
            targets = labels[here].to(logits.device)
            losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().cpu()
            nll.index_add_(0, owner[first : first + chunk], losses)
            right.index_add_(0, owner[first : first + chunk], (logits.argmax(dim=1) == targets).long().cpu())
    return list(zip(nll.tolist(), right.tolist(), strict=True))


@contextlib.contextmanager
def _gives(decoder: Any, decoded: Any) -> Iterator[None]:
    """Has a decoder give what it gave before, so that the model runs its head again, and it alone.

    Its own forward pass knows what becomes of the head's output: some architectures scale or cap it.
    """
    before = decoder.__dict__.get("forward")
    decoder.forward = lambda *_, **__: decoded
    try:
        yield
    finally:
        del decoder.forward
        if before is not None:  # accelerate's, on a model that is spread
            decoder.forward = before
