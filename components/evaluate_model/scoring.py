"""What a model makes of the held-out rows: the loss of the reference answers, and its own answers."""

import dataclasses
import json
from typing import Any

from components.core import chat
from components.core.dataset import Sample
from components.core.errors import InputError
from components.core.steps import Progress


@dataclasses.dataclass(frozen=True)
class Score:
    """One row under one model: summed negative log-likelihood (nats) over its supervised tokens.

    `group` and `slice` are the data's own columns, or empty.
    """

    id: str
    nll: float
    tokens: int
    group: str
    slice: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """One generated answer beside its reference."""

    id: str
    prompt: str
    reference: str
    answer: str
    correct: bool


def score(model: Any, samples: list[Sample], batch_size: int, pad: int, what: str) -> list[Score]:
    """Scores every row, rows of like length together.

    Args:
        model: causal language model in eval mode.
        samples: rows with token ids and labels.
        batch_size: rows a forward pass.
        pad: id of the pad token.
        what: named in the progress lines.

    Raises:
        InputError: the model gives a loss that is no number.
    """
    import torch

    ordered = sorted(samples, key=lambda sample: len(sample.encoded.input_ids))
    scores = []
    progress = Progress(f"scoring {what}", len(ordered))
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        width = max(len(sample.encoded.input_ids) for sample in batch)
        ids = torch.full((len(batch), width), pad)
        labels = torch.full((len(batch), width), chat.IGNORED)
        for row, sample in enumerate(batch):
            ids[row, : len(sample.encoded.input_ids)] = torch.tensor(sample.encoded.input_ids)
            labels[row, : len(sample.encoded.labels)] = torch.tensor(sample.encoded.labels)
        # The head runs from the first position that predicts a supervised token: prompts are long, logits large.
        targets = labels[:, 1:]
        first = int((targets != chat.IGNORED).any(dim=0).nonzero()[0])
        with torch.inference_mode():
            # Right padding and causal attention: no mask is needed, padding comes after all that counts.
            logits = model(input_ids=ids.to(model.device), logits_to_keep=width - first).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2),
                targets[:, first:].to(logits.device),
                reduction="none",
                ignore_index=chat.IGNORED,
            )
        for sample, nll in zip(batch, losses.sum(dim=1).tolist(), strict=True):
            if nll != nll:
                raise InputError(f"{what} gives a loss that is no number on row {sample.id[:12]}")
            scores.append(Score(sample.id, nll, sample.encoded.supervised, sample.group, sample.slice))
        progress.at(min(start + batch_size, len(ordered)))
    return sorted(scores, key=lambda item: item.id)


def generate(
    model: Any, tokenizer: Any, samples: list[Sample], batch_size: int, max_new_tokens: int, what: str
) -> list[Answer]:
    """Lets the model give the last answer of each row, greedily.

    Args:
        model: causal language model in eval mode.
        tokenizer: its tokenizer.
        samples: the rows to answer.
        batch_size: rows at a time.
        max_new_tokens: longest answer.
        what: named in the progress lines.
    """
    import torch
    from transformers import GenerationConfig

    # Greedy whatever the model's own generation config says: the same model gives the same answers.
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_end_tokens(model, tokenizer),
    )
    samples = [sample for sample in samples if sample.messages]  # plain text asks nothing
    asked = [_question(tokenizer, sample) for sample in samples]
    order = sorted(range(len(asked)), key=lambda index: len(asked[index][0]))
    answers = []
    progress = Progress(f"generating with {what}", len(asked))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        encoded = tokenizer(
            [asked[index][0] for index in batch],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            output = model.generate(**encoded, generation_config=greedy)
        texts = tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(batch, texts, strict=True):
            prompt, reference = asked[index]
            answers.append(Answer(samples[index].id, prompt, reference, text, matches(text, reference)))
        progress.at(min(start + batch_size, len(order)))
    return sorted(answers, key=lambda item: item.id)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    known = model.generation_config.eos_token_id
    ends = known if isinstance(known, list) else [] if known is None else [known]
    return sorted({*ends, tokenizer.eos_token_id})


def _question(tokenizer: Any, sample: Sample) -> tuple[str, str]:
    """The prompt up to the last answer, and that answer."""
    last = max(turn for turn, message in enumerate(sample.messages) if message["role"] == "assistant")
    prompt = chat.render(tokenizer, sample.messages[:last], tools=sample.tools, for_answer=True)
    return prompt, sample.messages[last]["content"]


def matches(answer: str, reference: str) -> bool:
    """Whether an answer is right: equal as JSON where the reference is a JSON object, else equal as text.

    The outermost braces are what counts of an answer, so that a fence or a sentence around JSON costs no model its
    point.
    """
    wanted = _json_object(reference)
    if wanted is None:
        return answer.strip() == reference.strip()
    start, end = answer.find("{"), answer.rfind("}")
    return _json_object(answer[start : end + 1]) == wanted


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
