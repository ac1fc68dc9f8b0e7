"""How likely a model finds the reference answers: packed rows, the head at supervised positions only, in chunks.

A row's score is the sum over its supervised tokens of -ln p(token | all before it), in nats: cross-entropy with the
natural logarithm. Rows are summed in float64, because differences of such sums are what is judged.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from qlora_pipelines.components.core.data import chat_template, packing
from qlora_pipelines.components.core.models import linear_layers, packable, packed_attention, supervised_loss
from qlora_pipelines.components.core.runtime import Progress

LOGITS = {"cpu": 1 << 21, "cuda": 1 << 25}
"""Logits that are held at a time, 8 and 128 MiB in float32, so 42 and 682 positions of a vocabulary of 49,152.

All at once, 2,048 positions of a vocabulary of 150,000 would be 1.2 GB, and cross-entropy copies them. Larger chunks
are no faster on a CPU. A GPU reads all weights of the head for each chunk, so its chunks are larger.
"""


def score(
    model: Any, encoded: Sequence[chat_template.Encoded], batch_tokens: int, device: str, name: str
) -> list[tuple[float, int]]:
    """Scores conversations, each as if it were alone.

    Args:
        model: causal language model in eval mode, with or without an adapter.
        encoded: the conversations.
        batch_tokens: tokens per forward pass, without a prefix that all share; a longer conversation gets its own pass.
        device: where the inputs go.
        name: of the model in the progress lines.

    Returns:
        For each conversation, the summed negative log-likelihood of its supervised tokens in nats, and how many of
        them the model found the likeliest.
    """
    import torch

    from qlora_pipelines.components.evaluate_model import prefix_cache

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = packed_attention.decoder_of(causal)
    found: dict[int, tuple[float, int]] = {}
    progress = Progress(f"scoring {name}", len(encoded))
    # Where an architecture's layers would mix packed conversations, each goes alone, through the model's own attention.
    packs = not packable.why_alone(causal.config.to_dict())
    with packed_attention.enabled(causal) if packs else contextlib.nullcontext(), torch.inference_mode():
        start, cache = prefix_cache.prefill(causal, decoder, encoded, device) if packs else (0, None)
        items = [chat_template.Encoded(item.input_ids[start:], item.labels[start:]) for item in encoded]
        for row in packing.pack([len(item.input_ids) for item in items], batch_tokens if packs else 0):
            scored = _score_row(causal, decoder, [items[index] for index in row], start, cache, device)
            found |= zip(row, scored, strict=True)
            progress.at(len(found))
    return [found[index] for index in range(len(encoded))]


def _score_row(
    causal: Any, decoder: Any, items: Sequence[chat_template.Encoded], start: int, cache: Any, device: str
) -> list[tuple[float, int]]:
    """Scores one packed row of conversations whose first `start` tokens are in `cache`."""
    import torch

    inputs = {name: tensor.to(device) for name, tensor in packing.collate([packing.joined(items)]).items()}
    labels = inputs.pop("labels")[0]
    positions = (labels != chat_template.IGNORED).nonzero()[:, 0]
    lengths = torch.tensor([len(item.input_ids) for item in items])
    owner = torch.repeat_interleave(lengths)[positions.cpu()]
    nll = torch.zeros(len(items), dtype=torch.float64)
    right = torch.zeros(len(items), dtype=torch.int64)
    inputs["position_ids"] += start
    decoded = decoder(**inputs, past_key_values=cache, use_cache=cache is not None)
    chunk = max(1, LOGITS[torch.device(device).type] // linear_layers.head(causal).weight.shape[0])
    with _decoded_once(decoder, decoded):
        for first in range(0, len(positions), chunk):
            here, owners = positions[first : first + chunk], owner[first : first + chunk]
            predicted_by = (here - 1).to(decoded.last_hidden_state.device)  # logits at a token are for the next one
            outputs = causal(**inputs, logits_to_keep=predicted_by, use_cache=False)
            logits = supervised_loss.at(causal, outputs, predicted_by, len(labels)).float()
            targets = labels[here].to(logits.device)
            losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().cpu()
            nll.index_add_(0, owners, losses)
            right.index_add_(0, owners, (logits.argmax(dim=1) == targets).long().cpu())
    return list(zip(nll.tolist(), right.tolist(), strict=True))


@contextlib.contextmanager
def _decoded_once(decoder: Any, decoded: Any) -> Iterator[None]:
    """Has a decoder return what it returned before, so that the model's forward pass runs the head alone.

    The head is not called by itself, because only the model's forward pass knows what becomes of its output: some
    architectures scale or cap the logits.
    """
    before = decoder.__dict__.get("forward")
    decoder.forward = lambda *_, **__: decoded
    try:
        yield
    finally:
        del decoder.forward
        if before is not None:  # accelerate's, on a model that is offloaded
            decoder.forward = before
