"""How an answer ends, by the chat template, and what a model's files say of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading, stop_tokens
from tests.conftest import CHAT_TEMPLATE

MARKS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|eot|>", "<|call|>", "<|user|>", "<|end|>")
CALLS = (
    "{% for m in messages %}<|header|>{{ m.role }}\n"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}<|call|>{% else %}{{ m.content }}<|eot|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|header|>assistant\n{% endif %}"
)
"""As gpt-oss: another token ends a call of a tool."""
MARKERS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As GLM-4: a turn ends where the next one begins."""
PAIRS = (
    "{% if messages[0].role != 'user' or messages | length > 2 %}{{ raise_exception('pairs') }}{% endif %}"
    "{{ bos_token }}### {{ messages[0].content }}\n{% if messages | length > 1 %}### {{ messages[1].content }}"
    "{{ eos_token }}\n\n{% elif add_generation_prompt %}### {% endif %}"
)
"""As Alpaca: the end of text ends an answer."""
TWO_ENDS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
"""As Phi-3: the end of text follows the end of the last turn."""


def tokenizer(template: str | None = None, eos: str | None = "</s>", marks: tuple[str, ...] = MARKS) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([], trainers.BpeTrainer(special_tokens=list(marks), initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos, bos_token="<s>" if marks else None)
    fast.chat_template = template
    return fast


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (CHAT_TEMPLATE, ["<|im_end|>"]),
        (CALLS, ["<|eot|>", "<|call|>"]),
        (PAIRS, ["</s>"]),
        (TWO_ENDS, ["</s>"]),
        (MARKERS, []),
        (None, []),
    ],
    ids=["chatml", "calls", "pairs", "two ends", "markers", "none"],
)
def test_the_end_of_a_turn_is_the_last_supervised_token(template: str | None, ends: list[str]) -> None:
    made = tokenizer(template)
    assert stop_tokens.end_of_turn(made) == made.convert_tokens_to_ids(ends)
    if ends:
        row = chat_template.encode(made, [{"role": role, "content": "hello"} for role in ("user", "assistant")], 100)
        assert stop_tokens.endings(row) == made.convert_tokens_to_ids(ends[:1])


def test_each_answer_of_a_conversation_has_its_ending() -> None:
    row = chat_template.Encoded([*range(8)], [-100, 1, 2, -100, 4, -100, 6, 7])
    assert stop_tokens.endings(row) == [2, 4, 7]
    assert stop_tokens.endings(chat_template.Encoded([1], [-100])) == []


@pytest.mark.parametrize("known", [(), (None,), (3,), ([3, 5], None), (0, [3])])
def test_what_is_known_and_the_tokenizer_s_own_end_are_added(known: tuple[Any, ...]) -> None:
    made = tokenizer(CALLS)
    wanted = {1, 5, 6, *([3] if known[:1] != (None,) and known else []), *([0] if known[:1] == (0,) else [])}
    assert stop_tokens.eos_token_ids(made, *known) == sorted(wanted)
    assert stop_tokens.eos_token_ids(tokenizer(eos=None)) == []


def write(folder: Path, **files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("files", "made"),
    [
        # transformers no longer reads config.json's ids where there is a generation_config.json
        ({"config": {"eos_token_id": 3}}, {"eos_token_id": [1, 3]}),
        ({"config": {"eos_token_id": [3, 1], "pad_token_id": 2}}, {"eos_token_id": [1, 3], "pad_token_id": 2}),
        ({"config": {"text_config": {"eos_token_id": 3, "bos_token_id": 0}}},
         {"eos_token_id": [1, 3], "bos_token_id": 0}),
        ({"config": {"eos_token_id": 3}, "generation_config": {"top_p": 0.5}}, {"eos_token_id": [1, 3], "top_p": 0.5}),
        ({"config": {}, "generation_config": {"eos_token_id": 3, "do_sample": True}},
         {"eos_token_id": [1, 3], "do_sample": True}),
        ({"config": {"eos_token_id": None}}, {"eos_token_id": 1}),
    ],
    ids=["config.json", "a list", "text_config", "both", "generation_config.json", "tokenizer"],
)  # fmt: skip
def test_no_token_that_ends_an_answer_is_lost(files: dict[str, Any], made: dict[str, Any], tmp_path: Path) -> None:
    found = stop_tokens.generation_config(write(tmp_path, **files), tokenizer())
    assert found == {"do_sample": False} | made


def test_a_generation_config_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(InputError, match=r"generation_config\.json: cannot be read"):
        stop_tokens.of_files(tmp_path)


@pytest.mark.parametrize(("eos", "marks", "pad"), [("</s>", MARKS, "</s>"), (None, MARKS, "<s>")])
def test_a_tokenizer_without_padding_pads_with_no_text(
    eos: str | None, marks: tuple[str, ...], pad: str, tmp_path: Path
) -> None:
    tokenizer(CHAT_TEMPLATE, eos, marks).save_pretrained(tmp_path)
    assert loading.load_tokenizer(tmp_path).pad_token == pad


def test_a_tokenizer_without_special_tokens_is_refused(tmp_path: Path) -> None:
    tokenizer(CHAT_TEMPLATE, None, ()).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no special token, so nothing ends an answer: set eos_token"):
        loading.load_tokenizer(tmp_path)
