"""A model's own answers to the held-out questions: greedy, in batches, of limited length."""

from collections.abc import Sequence
from typing import Any

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.core.data.turns import WEIGHT
from qlora_pipelines.components.core.models import stop_tokens
from qlora_pipelines.components.core.runtime import Progress
from qlora_pipelines.components.evaluate_model import metrics
from qlora_pipelines.components.evaluate_model.answer_words import AnswerWords
from qlora_pipelines.components.evaluate_model.score_table import Answer

NEAR = 4
"""Tokens by which a prompt may end elsewhere than the row's last answer starts; else that is another answer."""


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
        eos_token_id=stop_tokens.eos_token_ids(tokenizer, model.generation_config.eos_token_id),
    )
    words = AnswerWords(tokenizer)
    prompts = []
    for sample in (sample for sample in samples if sample.messages):
        prompt = _prompt(tokenizer, sample)
        ids = prompt_ids(tokenizer, prompt, sample.encoded)
        # A question that was cut in preparation has no end of its own, and may be longer than the model can hold.
        if len(ids) <= len(sample.encoded.input_ids):
            prompts.append((sample, prompt, ids))
    prompts.sort(key=lambda item: len(item[2]))  # prompts of about one length need the least padding
    answers = []
    progress = Progress(f"generating with {name}", len(prompts))
    for start in range(0, len(prompts), config.eval_batch_size):
        batch = prompts[start : start + config.eval_batch_size]
        given = {"input_ids": [ids for *_, ids in batch]}
        encoded = tokenizer.pad(given, padding=True, padding_side="left", return_tensors="pt").to(model.device)
        with torch.inference_mode():
            output = model.generate(**encoded, generation_config=greedy)
        for (sample, prompt, _), ids in zip(batch, output[:, encoded["input_ids"].shape[1] :].tolist(), strict=True):
            expected, text = words.of(reference(tokenizer, sample)), words.of_ids(ids)
            scores = metrics.score(text, expected, config.answer_metrics)
            answers.append(Answer(sample.id, prompt, expected, text, scores))
        progress.at(start + len(batch))
    return sorted(answers, key=lambda answer: answer.id)


def reference(tokenizer: Any, sample: Sample) -> str:
    """The right answer to a row's last question, as the chat template writes it; '' where the row is plain text."""
    if not sample.messages:
        return ""
    turns = sample.messages[: last_answer(sample) + 1]
    text, spans = chat_template.answers(tokenizer, turns, tools=sample.tools, settings=sample.settings, last_only=True)
    return text[slice(*spans[0])]


def prompt_ids(tokenizer: Any, prompt: str, encoded: chat_template.Encoded) -> list[int]:
    """The ids of a prompt as the row has them before its last answer.

    Where the prompt's end and the answer's start are one token, the ids of the prompt alone end in another one.

    Args:
        tokenizer: that the row was encoded with.
        prompt: the text up to the last answer.
        encoded: the row.
    """
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if ids == encoded.input_ids[: len(ids)] or len(ids) > len(encoded.input_ids):
        return ids
    supervised = [label != chat_template.IGNORED for label in encoded.labels]
    starts = [at for at in range(1, len(supervised)) if supervised[at] and not supervised[at - 1]]
    start = starts[-1] if starts else len(ids)
    return encoded.input_ids[:start] if abs(start - len(ids)) <= NEAR else ids


def _prompt(tokenizer: Any, sample: Sample) -> str:
    turns = sample.messages[: last_answer(sample)]
    return chat_template.render(
        tokenizer, turns, tools=sample.tools, settings=sample.settings, add_generation_prompt=True
    )


def last_answer(sample: Sample) -> int:
    """Which turn of a row is the last answer that is trained."""
    trained = [turn for turn, message in enumerate(sample.messages) if WEIGHT not in message]
    return max(turn for turn in trained if sample.messages[turn]["role"] == "assistant")
