"""A model's own answers to the held-out questions: greedy, in batches, of limited length."""

import json
from collections.abc import Sequence
from typing import Any

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.core.runtime import Progress
from qlora_pipelines.components.evaluate_model import metrics
from qlora_pipelines.components.evaluate_model.score_table import Answer


def generate(model: Any, tokenizer: Any, samples: Sequence[Sample], config: EvaluateConfig, name: str) -> list[Answer]:
    """Has the model give the last answer of each row.

    Args:
        model: causal language model in eval mode.
        tokenizer: its tokenizer.
        samples: the rows to answer; left out are those of plain text, which have no question, and those whose question
            was cut.
        config: how many rows at a time, the longest answer, and the metrics to score answers by.
        name: of the model in the progress lines.
    """
    import torch
    from transformers import GenerationConfig

    # Greedy whatever the model's own generation config says: the same model gives the same answers.
    greedy = GenerationConfig(
        max_new_tokens=config.max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_end_tokens(model, tokenizer),
    )
    prompts = []
    for sample in (sample for sample in samples if sample.messages):
        prompt = _prompt(tokenizer, sample)
        # A question that was cut in preparation has no end of its own, and may be longer than the model can hold.
        if len(tokenizer(prompt, add_special_tokens=False).input_ids) <= len(sample.encoded.input_ids):
            prompts.append((sample, prompt))
    prompts.sort(key=lambda item: len(item[1]))  # prompts of about one length need the least padding
    answers = []
    progress = Progress(f"generating with {name}", len(prompts))
    for start in range(0, len(prompts), config.eval_batch_size):
        batch = prompts[start : start + config.eval_batch_size]
        encoded = tokenizer(
            [prompt for _, prompt in batch],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            output = model.generate(**encoded, generation_config=greedy)
        texts = tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        for (sample, prompt), text in zip(batch, texts, strict=True):
            expected = reference(sample)
            scores = metrics.score(text, expected, config.answer_metrics)
            answers.append(Answer(sample.id, prompt, expected, text, scores))
        progress.at(start + len(batch))
    return sorted(answers, key=lambda answer: answer.id)


def reference(sample: Sample) -> str:
    """The right answer to a row's last question, tool calls as JSON; '' where the row is plain text."""
    if not sample.messages:
        return ""
    message = sample.messages[_last_answer(sample)]
    return str(message.get("content") or json.dumps(message.get("tool_calls") or ""))


def _prompt(tokenizer: Any, sample: Sample) -> str:
    turns = sample.messages[: _last_answer(sample)]
    return chat_template.render(tokenizer, turns, tools=sample.tools, add_generation_prompt=True)


def _last_answer(sample: Sample) -> int:
    return max(turn for turn, message in enumerate(sample.messages) if message["role"] == "assistant")


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    known = model.generation_config.eos_token_id
    return sorted({*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id} - {None})
