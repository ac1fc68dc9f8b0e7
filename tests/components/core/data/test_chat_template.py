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
    with pytest.raises(InputError, match="has no chat template: take the model's chat or instruct version"):
        loading.load_tokenizer(tmp_path / "no_template")


def test_a_folder_that_holds_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        loading.load_tokenizer(tmp_path / "none")
    assert str(error.value) == f"tokenizer in {tmp_path}/none: no such folder"
    (tmp_path / "tokenizer.json").write_text('{"torn')
    with pytest.raises(InputError, match=f"tokenizer in {tmp_path} cannot be read: ") as error:
        loading.load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
