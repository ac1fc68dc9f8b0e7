"""A model's own answers to the held-out questions: greedy, batched, bounded."""

import json
from collections.abc import Sequence
from typing import Any

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.core.runtime import Progress
from qlora_pipelines.components.evaluate_model import metrics
from qlora_pipelines.components.evaluate_model.score_table import Answer


def generate(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    max_new_tokens: int,
    wanted: list[str],
    what: str,
) -> list[Answer]:
    """Lets the model give the last answer of each row.

    Args:
        model: causal language model in eval mode.
        tokenizer: its tokenizer.
        samples: the rows to answer; left out are those of plain text, which ask nothing, and those whose question was
            cut.
        batch_size: rows at a time.
        max_new_tokens: longest answer.
        wanted: metrics to mark the answers by.
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
    questions = [(sample, *_question(tokenizer, sample)) for sample in samples if sample.messages]
    # A question that was cut in preparation has no end of its own, and may be longer than the model can hold.
    questions = [item for item in questions if _tokens(tokenizer, item[1]) <= len(item[0].encoded.input_ids)]
    samples, asked = [item[0] for item in questions], [item[1:] for item in questions]
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
            answers.append(Answer(samples[index].id, prompt, reference, text, metrics.marks(text, reference, wanted)))
        progress.at(min(start + batch_size, len(order)))
    return sorted(answers, key=lambda item: item.id)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    known = model.generation_config.eos_token_id
    ends = known if isinstance(known, list) else [] if known is None else [known]
    return sorted({*ends, tokenizer.eos_token_id})


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False).input_ids)


def _question(tokenizer: Any, sample: Sample) -> tuple[str, str]:
    """The prompt up to the last answer, and that answer; one that only calls tools is given as their JSON."""
    last = _last_answer(sample)
    return chat_template.render(tokenizer, sample.messages[:last], tools=sample.tools, for_answer=True), reference(
        sample
    )


def reference(sample: Sample) -> str:
    """The right answer to what a row asks last, or '' where it is plain text."""
    if not sample.messages:
        return ""
    message = sample.messages[_last_answer(sample)]
    return str(message.get("content") or json.dumps(message.get("tool_calls") or ""))


def _last_answer(sample: Sample) -> int:
    return max(turn for turn, message in enumerate(sample.messages) if message["role"] == "assistant")
