from pathlib import Path

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.evaluate_model import prompts

ROW = [
    {"role": "system", "content": "short"},
    {"role": "user", "content": "cat"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "sat"},
    {"role": "assistant", "content": "mat"},
]
EXAMPLE = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]


OTHER_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }} says\n{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant says\n{% endif %}"
)


def sample(tokenizer: object, *, last_only: bool = False, cut: int = 0) -> Sample:
    whole = chat_template.encode(tokenizer, ROW, 64, last_only=last_only)
    return Sample("1", ROW, chat_template.encode(tokenizer, ROW, len(whole.input_ids) - cut, last_only=last_only))


def test_the_base_is_asked_with_its_own_prompt(tiny_model: Path) -> None:
    tokenizer = loading.load_tokenizer(tiny_model)
    for last_only in (False, True):
        row = sample(tokenizer, last_only=last_only)
        (asked,) = prompts.with_baseline_messages(EXAMPLE, [row], tokenizer)
        assert [turn["content"] for turn in asked.messages] == ["one", "two", "cat", "one", "sat", "mat"]
        assert asked.encoded.supervised == row.encoded.supervised, "the example's answer is not scored"


def test_without_own_words_and_where_the_row_was_cut_it_is_asked_as_it_is(tiny_model: Path) -> None:
    tokenizer = loading.load_tokenizer(tiny_model)
    row, cut = sample(tokenizer), sample(tokenizer, cut=3)
    assert prompts.with_baseline_messages([], [row], tokenizer) == [row]
    assert prompts.with_baseline_messages(EXAMPLE, [cut], tokenizer) == [cut]


def test_another_tokenizer_writes_the_same_text_in_other_tokens(tiny_model: Path) -> None:
    own, other = loading.load_tokenizer(tiny_model), loading.load_tokenizer(tiny_model)
    other.chat_template = OTHER_TEMPLATE
    text = "the cat sat"
    plain = Sample("2", [], chat_template.encode_spans(own, text, [(0, len(text))], 64))
    asked = prompts.reencode([sample(own), plain, sample(own, cut=3)], own, other)
    assert [one.id for one in asked] == ["1", "2"], "the row that was cut is left out"
    assert asked[0].encoded.input_ids != sample(own).encoded.input_ids
    texts = {
        prompts.supervised_text(tokenizer, one.encoded) for tokenizer, one in ((own, sample(own)), (other, asked[0]))
    }
    assert texts == {"onemat"}
