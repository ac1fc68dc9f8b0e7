import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.formats import Conversation
from qlora_pipelines.components.prepare_dataset.encoding import Encoder, Row, reference
from tests.components.prepare_dataset import templates

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"b": 2, "a": 1}}}


def user(content: str) -> chat_template.Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> chat_template.Message:
    return {"role": "assistant", "content": content}


def talk(*messages: chat_template.Message, tools: list[Any] | None = None) -> Conversation:
    return Conversation(list(messages), tools or [], "", "", "")


TALKS = [
    talk(user("the cat"), assistant("sat on the mat")),
    talk({"role": "system", "content": "one"}, user("two"), assistant("three\n\nfour")),
    talk(user("one"), assistant("two"), user("three"), assistant("four"), user("five"), assistant("one two")),
    talk(user("one"), assistant("two"), user("three")),
    talk(user("  one "), assistant("\n\n two \n")),
    talk(user("say <|im_start|>assistant\nx"), assistant("y<|im_end|>z")),
    talk(user("say <s>[INST] x [/INST] y</s>"), assistant("[/INST] <eos> </s>")),
    talk(
        user("1+2"),
        {**assistant(""), "tool_calls": [CALL]},
        {"role": "tool", "content": "3"},
        assistant("3"),
        tools=TOOLS,
    ),
    talk(user("ünïcode 中文 🙂"), assistant("🙂🙂 ok")),
    Conversation([], [], "the cat sat on the mat", "", ""),
]


def supervised_text(tokenizer: Any, row: Row) -> list[str]:
    return [tokenizer.decode(row.ids[start:end]) for start, end in row.spans]


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("template", templates.ALL.values(), ids=templates.ALL)
def test_the_fast_way_gives_what_the_definition_gives(
    tokenizer_of: Callable[[str], Any], template: str, last_only: bool
) -> None:
    encoder = Encoder(tokenizer_of(template), 40, last_only)
    assert encoder.fast
    assert encoder.check(TALKS) == 0
    assert sum(isinstance(row, Row) for row in encoder.encode(TALKS)) >= 5


@pytest.mark.parametrize(
    ("template", "endings"),
    [
        (templates.CHATML, "<|im_end|>"),
        (templates.LLAMA3, "<|eot_id|>"),
        (templates.MISTRAL, "</s>"),
        (templates.GEMMA, "<end_of_turn>"),
        (templates.THINKING, "<|im_end|>"),
    ],
)
def test_each_answer_is_supervised_with_its_end_of_turn_and_nothing_else(
    tokenizer_of: Callable[[str], Any], template: str, endings: str
) -> None:
    tokenizer = tokenizer_of(template)
    row = reference(tokenizer, TALKS[2], 1000, last_only=False)
    thinking = "<think>\n\n</think>\n\n" if template == templates.THINKING else ""
    found = [text.strip() for text in supervised_text(tokenizer, row)]
    assert found == [f"two{endings}", f"four{endings}", f"{thinking}one two{endings}"]
    assert len(reference(tokenizer, TALKS[2], 1000, last_only=True).spans) == 1


def test_ids_and_labels_are_those_of_a_template_with_generation_marks(tokenizer_of: Callable[[str], Any]) -> None:
    tokenizer = tokenizer_of(templates.CHATML)
    for conversation in TALKS[:4]:
        marked = tokenizer.apply_chat_template(
            conversation.messages,
            chat_template=templates.MARKED,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        row = reference(tokenizer, conversation, 1000, last_only=False)
        assert row.ids.tolist() == marked["input_ids"]
        mask = np.zeros(len(row.ids), int)
        for start, end in row.spans:
            mask[start:end] = 1
        assert mask.tolist() == marked["assistant_masks"]


def test_where_trl_trains_on_what_serving_gives_we_do_not(tokenizer_of: Callable[[str], Any]) -> None:
    """A generation mark around the line end after the end of turn, as in TRL's template for Qwen, supervises it.

    Generation stops at the end of turn: the line end after it is never the model's to write.
    """
    tokenizer = tokenizer_of(templates.CHATML)
    theirs = templates.MARKED.replace("{% endgeneration %}{{ '\n' }}", "{{ '\n' }}{% endgeneration %}")
    marked = tokenizer.apply_chat_template(
        TALKS[0].messages, chat_template=theirs, return_dict=True, return_assistant_tokens_mask=True
    )
    row = reference(tokenizer, TALKS[0], 1000, last_only=False)
    assert row.ids.tolist() == marked["input_ids"]
    [(_, end)] = row.spans
    assert tokenizer.decode(row.ids[:end]).endswith("<|im_end|>")
    assert marked["assistant_masks"][end] == 1 and tokenizer.decode(row.ids[end:]) == "\n"


def test_a_tool_call_is_supervised_and_a_tools_result_is_not(tokenizer_of: Callable[[str], Any]) -> None:
    tokenizer = tokenizer_of(templates.QWEN)
    found = supervised_text(tokenizer, reference(tokenizer, TALKS[7], 1000, last_only=False))
    call = '<tool_call>\n{"name": "add", "arguments": {"b": 2, "a": 1}}\n</tool_call><|im_end|>'
    assert found == [call, "3<|im_end|>"]


def test_the_end_of_turn_is_supervised_where_pad_is_eos(tokenizer_of: Callable[[str], Any]) -> None:
    tokenizer = tokenizer_of(templates.CHATML)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    [(_, end)] = reference(tokenizer, TALKS[0], 1000, last_only=False).spans
    assert reference(tokenizer, TALKS[0], 1000, last_only=False).ids[end - 1] == tokenizer.eos_token_id


def test_plain_text_is_supervised_whole_and_ends(tokenizer_of: Callable[[str], Any]) -> None:
    tokenizer = tokenizer_of(templates.CHATML)
    row = reference(tokenizer, TALKS[-1], 1000, last_only=False)
    assert supervised_text(tokenizer, row) == ["the cat sat on the mat<|im_end|>"]


def test_a_template_that_refuses_the_turns_gives_its_reason(tokenizer_of: Callable[[str], Any]) -> None:
    [row] = Encoder(tokenizer_of(templates.GEMMA), 40, False).encode([TALKS[1]])
    assert row == "the chat template refuses: System role not supported"


def test_a_template_that_rewrites_beyond_recognition_is_refused(tokenizer_of: Callable[[str], Any]) -> None:
    quiet = "loop.last or m['role'] == 'user'"
    shouting = templates.CHATML.replace(
        "{{ m['content'] }}", f"{{{{ m['content'] if {quiet} else m['content'] | upper }}}}"
    )
    assert "rewrites earlier turns" in str(Encoder(tokenizer_of(shouting), 40, False).encode([TALKS[3]])[0])


def test_fastokens_is_put_away_where_it_differs(
    tokenizer_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fastokens

    tokenizer = tokenizer_of(templates.CHATML)
    other = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = other["model"]["vocab"]
    vocabulary["t"], vocabulary["c"] = vocabulary["c"], vocabulary["t"]
    wrong = fastokens.Tokenizer.from_json_str(json.dumps(other))
    monkeypatch.setattr("qlora_pipelines.components.prepare_dataset.encoding._fastokens", lambda _: wrong)
    encoder = Encoder(tokenizer, 40, False)
    rows, slow = encoder.encode_checked(TALKS)
    assert slow and rows[0].ids.tolist() == encoder._reference(TALKS[0]).ids.tolist()
    assert encoder.check(TALKS) > 0 and not encoder.fast
    assert encoder.check(TALKS) == 0
