"""How likely a model holds the reference answers: packed rows, the head at supervised positions only, in chunks."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from components.core import attention, chat, packing
from components.core.steps import Progress

LOGITS = 1 << 23
"""Logits held at a time, 32 MiB in float32: more positions go through the head in turns, whatever the vocabulary."""


def score(
    model: Any, encoded: Sequence[chat.Encoded], batch_tokens: int, device: str, what: str
) -> list[tuple[float, int]]:
    """Scores conversations, each as if it were alone.

    Args:
        model: causal language model in eval mode, with or without an adapter.
        encoded: the conversations.
        batch_tokens: tokens a forward pass; a longer conversation gets one of its own.
        device: where the inputs go.
        what: named in the progress lines.

    Returns:
        for each conversation, the summed negative log-likelihood of its supervised tokens in nats, and how many of
        them the model held for the likeliest.
    """
    import torch

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    found: list[tuple[float, int]] = [(0.0, 0)] * len(encoded)
    progress = Progress(f"scoring {what}", len(encoded))
    done = 0
    with _packed(causal, batch_tokens) as capacity, torch.inference_mode():
        plain = _head_is_plain(causal, encoded[0], device)
        for row in packing.pack([len(item.input_ids) for item in encoded], capacity):
            scored = _row(causal, [encoded[index] for index in row], device, plain)
            for index, (nll, right) in zip(row, scored, strict=True):
                found[index] = nll, right
            done += len(row)
            progress.at(done)
    return found


@contextlib.contextmanager
def _packed(causal: Any, batch_tokens: int) -> Iterator[int]:
    """Lets packed conversations attend to themselves alone; gives the tokens a row may hold.

    Where an architecture's layers would mix conversations, each goes alone, through the model's own attention.
    """
    if attention.supports(causal):
        with attention.packed(causal):
            yield batch_tokens
    else:
        yield 0


def _inputs(items: Sequence[chat.Encoded], device: str) -> tuple[dict[str, Any], Any]:
    inputs = packing.collate([packing.joined(items)])
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    return inputs, inputs.pop("labels")[0]


def _head_is_plain(causal: Any, sample: chat.Encoded, device: str) -> bool:
    """Whether the logits are the head's output as it is: some architectures scale or cap them afterwards.

    Found by trying it on a few tokens: no list of architectures is ever complete.
    """
    import torch

    start = chat.Encoded(sample.input_ids[:8], sample.labels[:8])
    inputs, _ = _inputs([start], device)
    head = causal.get_output_embeddings()(_hidden(causal, inputs))
    whole = causal(**inputs, use_cache=False).logits[0]
    # NaN is no matter of the head; it is reported with the row it comes from.
    plain: bool = torch.allclose(head.float(), whole.to(head.device).float(), rtol=1e-3, atol=1e-3, equal_nan=True)
    return plain


def _hidden(causal: Any, inputs: dict[str, Any]) -> Any:
    return causal.get_decoder()(**inputs, use_cache=False).last_hidden_state[0]


def _row(causal: Any, items: Sequence[chat.Encoded], device: str, plain: bool) -> list[tuple[float, int]]:
    """Scores one packed row."""
    import torch

    inputs, labels = _inputs(items, device)
    at = (labels != chat.IGNORED).nonzero()[:, 0]
    owner = torch.repeat_interleave(inputs["cu_seq_lens_q"].diff())[at].cpu()
    head, hidden = causal.get_output_embeddings(), _hidden(causal, inputs) if plain else None
    nll = torch.zeros(len(items), dtype=torch.float64)
    right = torch.zeros(len(items), dtype=torch.int64)
    chunk = max(1, LOGITS // causal.get_output_embeddings().weight.shape[0])
    for start in range(0, len(at), chunk):
        here = at[start : start + chunk]
        predicted_by = here - 1
        if hidden is None:
            # The decoder runs once a chunk: slower, and right whatever the model does with its logits.
            logits = causal(**inputs, logits_to_keep=predicted_by, use_cache=False).logits[0].float()
        else:
            logits = head(hidden[predicted_by.to(hidden.device)]).float()
        targets = labels[here].to(logits.device)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().cpu()
        nll.index_add_(0, owner[start : start + chunk], losses)
        right.index_add_(0, owner[start : start + chunk], (logits.argmax(dim=1) == targets).long().cpu())
    return list(zip(nll.tolist(), right.tolist(), strict=True))
