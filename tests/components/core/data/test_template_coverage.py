"""What a template does not write is found, whatever the words; what it leaves out on purpose is no fault."""

import copy
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.data import formats, template_coverage
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading
from tests.components.prepare_dataset import templates

USER, ANSWER = {"role": "user", "content": "the weather?"}, {"role": "assistant", "content": "sunny"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}, "id": "call00001"}
CALLING = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]},
           {"role": "tool", "content": "21", "name": "weather", "tool_call_id": "call00001"}, ANSWER]  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
FIRST_CALL = TURN + "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}" + END
NAMES_ONLY = TURN + "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}" + END
NO_TOOL = TURN + "{% if m.role != 'tool' %}{{ m.content }}{% endif %}" + END
# Thoughts before the last answer only, as Qwen3 does.
LAST_THOUGHTS = (
    TURN + "{% if loop.last and m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}" + END
)
# DeepSeek R1's drops thoughts that are part of the content, in the last answer too.
DROPS_THOUGHTS = TURN + "{{ m.content.split('</think>')[-1] }}" + END
MISTRAL_IDS = (
    TURN + "{{ m.content }}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('id') }}"
    "{% endif %}{{ c | tojson }}{% endfor %}" + END
)


@pytest.fixture(scope="module")
def own(tiny_model: Path) -> Any:
    return loading.load_tokenizer(tiny_model)


def tokenizer(own: Any, template: str) -> Any:
    made = copy.copy(own)
    made.chat_template = template
    return made


def lost(own: Any, template: str, messages: list[Any], tools: Any = ()) -> str:
    return template_coverage.check(tokenizer(own, template), messages, list(tools), {}).lost


@pytest.mark.parametrize(
    ("template", "messages", "tools", "what"),
    [
        (templates.CHATML, CALLING, [], "tool calls"),
        (templates.CHATML, [USER, ANSWER], TOOLS, "tools"),
        (templates.QWEN, CALLING, TOOLS, ""),
        (templates.MISTRAL, [{"role": "system", "content": "be kind"}, USER, ANSWER], [], "the system's turn"),
        (NO_TOOL, CALLING[:1] + CALLING[2:], [], "the tool's turn"),
        (NAMES_ONLY, CALLING, [], "tool calls' arguments"),
        (NAMES_ONLY, [USER, {**CALLING[1], "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}], [], ""),
        (FIRST_CALL, CALLING, [], ""),
        (FIRST_CALL, [USER, {**CALLING[1], "tool_calls": [CALL, CALL]}], [], "tool calls"),
        (MISTRAL_IDS, CALLING, [], ""),
        (templates.CHATML, [USER, ANSWER | {"reasoning_content": "hm"}], [], "reasoning"),
        (LAST_THOUGHTS, [USER, ANSWER | {"reasoning_content": "hm"}], [], ""),
        (LAST_THOUGHTS, [USER, ANSWER | {"reasoning_content": "hm"}, USER, ANSWER], [], ""),
        (DROPS_THOUGHTS, [USER, ANSWER], [], ""),
        (DROPS_THOUGHTS, [USER, ANSWER | {"content": "<think>so</think>sunny"}], [], "all of the assistant's turn"),
        (templates.LLAMA3, [USER | {"content": "  q \n"}, ANSWER], [], ""),
    ],
)  # fmt: skip
def test_a_part_that_is_not_written_is_named(own: Any, template: str, messages: Any, tools: Any, what: str) -> None:
    assert lost(own, template, messages, tools) == (f"the chat template does not write {what}" if what else "")


def test_a_word_that_is_in_the_text_by_chance_hides_nothing(own: Any) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"the": "weather?"}}}
    row = [USER, ANSWER | {"content": "the weather?", "tool_calls": [call]}]
    assert lost(own, templates.CHATML, row) == "the chat template does not write tool calls"


def test_keys_that_only_connect_turns_are_named_and_the_row_is_used(own: Any) -> None:
    made = tokenizer(own, templates.QWEN)
    row = formats.conversation({"messages": CALLING, "tools": TOOLS}, "messages")
    told = [f"{key} is not written by the chat template" for key in ("name", "tool_call_id", "tool_calls.id")]
    assert formats.notes(made, row) == told
    assert formats.encode(made, row, 500, last_only=False).supervised


def test_a_row_that_would_lose_something_is_refused(own: Any) -> None:
    row = formats.conversation({"messages": CALLING}, "messages")
    with pytest.raises(InputError, match="the chat template does not write tool calls"):
        formats.encode(tokenizer(own, templates.CHATML), row, 500, last_only=False)


def test_thoughts_are_written_whatever_the_template_calls_them(own: Any) -> None:
    for key in ("reasoning_content", "thinking", "reasoning"):
        template = TURN + "{% if m." + key + " %}<think>{{ m." + key + " }}</think>{% endif %}{{ m.content }}" + END
        for given in ("reasoning_content", "thinking", "reasoning"):
            row = formats.conversation({"messages": [USER, ANSWER | {given: "hmm"}]}, "messages")
            made = tokenizer(own, template)
            labels = [label for label in formats.encode(made, row, 500, last_only=False).labels if label != -100]
            assert made.decode(labels) == "<think>hmm</think>sunny<|im_end|>"


def test_a_rows_settings_reach_the_template(own: Any) -> None:
    template = TURN + "{% if thoughtful and m.role == 'assistant' %}Well, {% endif %}{{ m.content }}" + END
    made = tokenizer(own, template)
    reading = formats.Reading(variables=frozenset({"thoughtful"}))
    for value, start in ((True, "Well, sunny"), (False, "sunny")):
        row = formats.conversation({"messages": [USER, ANSWER], "thoughtful": value}, "messages", reading)
        labels = [label for label in formats.encode(made, row, 500, last_only=False).labels if label != -100]
        assert made.decode(labels) == f"{start}<|im_end|>"
