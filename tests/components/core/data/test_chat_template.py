import copy
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return loading.load_tokenizer(tiny_model)


def user(content: str) -> chat_template.Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> chat_template.Message:
    return {"role": "assistant", "content": content}


def test_labels_are_the_answers_with_their_end_of_turn(tokenizer: Any) -> None:
    encoded = chat_template.encode(tokenizer, [user("one"), assistant("two"), user("three"), assistant("four")], 100)
    supervised = [label for label in encoded.labels if label != chat_template.IGNORED]
    assert tokenizer.decode(supervised) == "two<|im_end|>four<|im_end|>"
    assert all(
        label in (token, chat_template.IGNORED) for token, label in zip(encoded.input_ids, encoded.labels, strict=True)
    )


def test_context_is_not_supervised_and_neither_is_all_but_the_last_where_asked(tokenizer: Any) -> None:
    turns = [user("one"), assistant("two"), user("three"), assistant("four")]
    for encoded in (
        chat_template.encode(tokenizer, turns, 100, context=2),
        chat_template.encode(tokenizer, turns, 100, last_only=True),
    ):
        assert (
            tokenizer.decode([label for label in encoded.labels if label != chat_template.IGNORED]) == "four<|im_end|>"
        )


def test_what_is_too_long_is_cut_at_the_end(tokenizer: Any) -> None:
    whole = chat_template.encode(tokenizer, [user("one"), assistant("two " * 50)], 1000)
    cut = chat_template.encode(tokenizer, [user("one"), assistant("two " * 50)], 20)
    assert cut.input_ids == whole.input_ids[:20] and cut.labels == whole.labels[:20]


def test_the_first_token_is_never_counted_as_supervised() -> None:
    assert chat_template.Encoded([1, 2], [1, 2]).supervised == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no such turns') }}", "the chat template refuses: no such turns"),
        ("{{ messages[5].content }}", "the chat template refuses|the chat template fails"),
        ("{{ messages[0].content + 1 }}", r"fails on these turns \(TypeError\)"),
        ("{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}", "asks for an answer in other words"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(tokenizer: Any, template: str, message: str) -> None:
    own = tokenizer.chat_template
    try:
        tokenizer.chat_template = template
        with pytest.raises(InputError, match=message) as error:
            chat_template.encode(tokenizer, [user("private"), assistant("two")], 100)
        assert "private" not in str(error.value)
    finally:
        tokenizer.chat_template = own


def test_a_tokenizer_without_template_or_pad_token(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(tiny_model)
    bare.pad_token = None
    bare.save_pretrained(tmp_path / "no_pad")
    assert loading.load_tokenizer(tmp_path / "no_pad").pad_token == "<|im_end|>"
    bare.chat_template = None
    bare.save_pretrained(tmp_path / "no_template")
    plain = loading.load_tokenizer(tmp_path / "no_template")
    with pytest.raises(InputError, match="has no chat template: take the model's chat or instruct version"):
        chat_template.render(plain, [{"role": "user", "content": "hi"}])
    assert chat_template.encode_text(plain, "one", 8).input_ids[-1] == plain.eos_token_id


def test_a_folder_that_holds_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        loading.load_tokenizer(tmp_path / "none")
    assert str(error.value) == f"tokenizer in {tmp_path}/none: no such folder"
    (tmp_path / "tokenizer.json").write_text('{"torn')
    with pytest.raises(InputError, match=f"tokenizer in {tmp_path} cannot be read: ") as error:
        loading.load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def with_template(tokenizer: Any, template: str) -> Any:
    made = copy.copy(tokenizer)
    made.chat_template = template
    return made


def supervised(tokenizer: Any, encoded: chat_template.Encoded) -> str:
    return str(tokenizer.decode([label for label in encoded.labels if label != chat_template.IGNORED]))


@pytest.mark.parametrize("space", [" ", "  ", "\n", ""])
def test_the_first_token_of_an_answer_is_trained_though_it_begins_in_the_prompt(tokenizer: Any, space: str) -> None:
    made = with_template(
        tokenizer,
        "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} ASSISTANT:" + space + "{% else %}"
        "{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
    )
    for answer in ("yes", "No, never."):
        encoded = chat_template.encode(made, [user("Is it?"), assistant(answer)], 100)
        assert supervised(made, encoded).lstrip() == f"{answer}<|im_end|>"


def test_an_answer_that_ends_within_a_token_is_trained_to_its_end(tokenizer: Any) -> None:
    made = with_template(tokenizer, "{% for m in messages %}{{ m.role }}: {{ m.content }}ing\n{% endfor %}"
                         "{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    encoded = chat_template.encode(made, [user("q"), assistant("walk"), user("q"), assistant("go")], 100)
    assert supervised(made, encoded).replace("\n", "") == "walkinggoing"


def test_text_that_has_its_own_beginning_gets_no_second_one(tokenizer: Any) -> None:
    from tokenizers import processors

    made = copy.deepcopy(tokenizer)
    begin = "<|im_start|>"
    made.add_special_tokens({"bos_token": begin})
    template = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, made.convert_tokens_to_ids(begin))]
    )
    made.backend_tokenizer.post_processor = template
    bare, own = (chat_template.encode_text(made, text, 50) for text in ("once upon", f"{begin}once upon"))
    assert bare == own and own.input_ids.count(made.bos_token_id) == 1
    twice = chat_template.encode_text(made, f"{begin}{begin}once", 50)  # what the text says twice stays
    assert twice.input_ids.count(made.bos_token_id) == 2


def test_a_template_that_prints_the_date_gives_the_same_text_on_any_day(tokenizer: Any) -> None:
    made = with_template(tokenizer, "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert chat_template.render(made, [user("q")]) == "01 Jan 2026q"
    assert chat_template.reads_clock(made) and not chat_template.reads_clock(tokenizer)


def test_a_turn_that_is_not_trained_is_only_read(tokenizer: Any) -> None:
    turns = [user("one"), assistant("two") | {"weight": 0}, user("three"), assistant("four")]
    for last_only in (False, True):
        encoded = chat_template.encode(tokenizer, turns, 100, last_only=last_only)
        assert supervised(tokenizer, encoded) == "four<|im_end|>"
        assert "two" in tokenizer.decode(encoded.input_ids)
    last = [user("one"), assistant("two"), user("three"), assistant("four") | {"weight": 0}]
    assert supervised(tokenizer, chat_template.encode(tokenizer, last, 100, last_only=True)) == "two<|im_end|>"


def test_an_answer_without_words_is_never_trained(tokenizer: Any) -> None:
    made = with_template(tokenizer, "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'user' %}"
                         "{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
                         "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")  # fmt: skip
    with pytest.raises(InputError, match="writes nothing of the assistant's turn"):
        chat_template.encode(made, [user("one"), assistant("two")], 100)


def test_space_that_differs_before_an_answer_is_no_other_prompt(tokenizer: Any) -> None:
    """Hermes 3 ends the answer of a tool by a line only where a turn follows."""
    made = with_template(
        tokenizer,
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.role == 'tool' and not loop.last %}\n"
        "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    turns = [user("one"), {"role": "tool", "content": "two"}, assistant("three")]
    assert supervised(made, chat_template.encode(made, turns, 100)) == "three<|im_end|>"
