"""A generated answer is compared with the trained text, in the template's own format."""

import copy
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.data import chat_template, formats
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.evaluate_model import generation, metrics
from qlora_pipelines.components.evaluate_model.answer_words import AnswerWords, thinking_marks
from tests.components.prepare_dataset import templates

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "sit", "arguments": {"on": "mat", "for": None}}}
END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
THOUGHTS = (
    TURN
    + "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    + END
)
CHANNELS = (
    TURN + "{% if m.role == 'assistant' %}{% if m.thinking %}<|analysis|>{{ m.thinking }}<|im_end|>{% endif %}<|final|>"
    "{% endif %}{{ m.content }}" + END
)
# The prompt begins the thoughts, as R1's and Qwen3.5's do.
BEGUN = (
    TURN + "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def tokenizer_of(tiny_model: Path, template: str) -> Any:
    made = copy.copy(loading.load_tokenizer(tiny_model))
    made.chat_template = template
    return made


def sample(tokenizer: Any, row: formats.Row, max_length: int = 200) -> Sample:
    found = formats.conversation(row, "messages")
    encoded = formats.encode(tokenizer, found, max_length, last_only=False)
    return Sample("1", found.messages, encoded, found.tools, settings=found.settings)


def as_trained(tokenizer: Any, encoded: chat_template.Encoded) -> list[int]:
    """The ids that a model gives which has learnt the row by heart."""
    return [label for label in encoded.labels if label != chat_template.IGNORED]


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (templates.QWEN, {"role": "assistant", "content": "", "tool_calls": [CALL]}),
        (templates.QWEN, {"role": "assistant", "content": "well", "tool_calls": [CALL, CALL]}),
        (templates.CHATML, ANSWER | {"content": '{"x": 1}'}),
        (templates.THINKING, ANSWER),
        (THOUGHTS, ANSWER | {"reasoning_content": "hm"}),
        (CHANNELS, ANSWER | {"reasoning_content": "hm"}),
        (BEGUN, ANSWER | {"reasoning_content": "hm"}),
    ],
)
def test_what_is_generated_token_for_token_as_trained_is_right(
    tiny_model: Path, template: str, answer: dict[str, Any]
) -> None:
    tokenizer = tokenizer_of(tiny_model, template)
    row = sample(tokenizer, {"messages": [USER, answer]})
    words = AnswerWords(tokenizer)
    expected, found = words.of(generation.reference(tokenizer, row)), words.of_ids(as_trained(tokenizer, row.encoded))
    assert metrics.exact_match(found, expected) == 1 and "hm" not in expected and expected


def test_thoughts_count_neither_for_nor_against_an_answer(tiny_model: Path) -> None:
    tokenizer = tokenizer_of(tiny_model, THOUGHTS)
    words = AnswerWords(tokenizer)
    assert thinking_marks(tokenizer) == ("<think>", "</think>")
    for text in ("a", "<think>\nother\n</think>\n\na<|im_end|>", "other</think> a", " a <|im_end|>"):
        assert words.of(text) == "a"
    assert words.of("<think>\nnever ends, a") == ""
    assert thinking_marks(tokenizer_of(tiny_model, templates.CHATML)) is None


def test_the_reference_is_whole_though_the_row_was_cut(tiny_model: Path) -> None:
    tokenizer = tokenizer_of(tiny_model, templates.CHATML)
    row = sample(tokenizer, {"messages": [USER, ANSWER | {"content": "one two " * 20}]}, max_length=60)
    assert AnswerWords(tokenizer).of(generation.reference(tokenizer, row)) == ("one two " * 20).strip()


def test_the_last_answer_that_is_trained_is_asked_for(tiny_model: Path) -> None:
    tokenizer = tokenizer_of(tiny_model, templates.CHATML)
    row = sample(tokenizer, {"messages": [USER, ANSWER, USER, ANSWER | {"content": "b", "weight": 0}]})
    assert AnswerWords(tokenizer).of(generation.reference(tokenizer, row)) == "a"
    assert generation._prompt(tokenizer, row).endswith("q<|im_end|>\n<|im_start|>assistant\n")


def test_a_prompt_ends_where_the_rows_answer_starts_in_tokens(tiny_model: Path) -> None:
    spaced = "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} ASSISTANT: {% else %}" \
             "{{ m.content }}<|im_end|>{% endif %}{% endfor %}"  # fmt: skip
    for template in (spaced, templates.CHATML):
        tokenizer = tokenizer_of(tiny_model, template)
        row = sample(tokenizer, {"messages": [USER, ANSWER, USER, ANSWER | {"content": "the cat"}]})
        ids = generation.prompt_ids(tokenizer, generation._prompt(tokenizer, row), row.encoded)
        assert row.encoded.input_ids[: len(ids)] == ids
        first = next(at for at in range(len(ids), 200) if row.encoded.labels[at] != chat_template.IGNORED)
        assert first == len(ids), "the next token is the answer's first"
