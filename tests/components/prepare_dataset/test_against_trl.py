"""Ids and labels against TRL's own preparation, which needs the assistant's part marked in the template."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qlora_pipelines.components.prepare_dataset.encoding import Encoder, Row
from tests.components.prepare_dataset import templates
from tests.components.prepare_dataset.test_encoding import assistant, talk, user

LENGTH = 40
TALKS = [
    talk(user("the cat"), assistant("sat on the mat")),
    talk({"role": "system", "content": "one"}, user("two"), assistant("three\n\nfour")),
    talk(user("one"), assistant("two"), user("three"), assistant("four"), user("five"), assistant("one two")),
    talk(user("one"), assistant("two"), user("three")),
    talk(user("ünïcode 中文"), assistant("🙂🙂 ok")),
    talk(user("cut"), assistant("in the middle of the answer " * 5)),
]


def theirs(tokenizer: Any, tiny_model: Path, folder: Path) -> list[dict[str, Any]]:
    import datasets
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(str(folder), assistant_only_loss=True, max_length=LENGTH, use_cpu=True, bf16=False)
    rows = datasets.Dataset.from_list([{"messages": conversation.messages} for conversation in TALKS])
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    return list(SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer).train_dataset)


def labels(row: Row) -> list[int]:
    found = [-100] * len(row.ids)
    for start, end in row.spans:
        found[start:end] = row.ids[start:end].tolist()
    return found


def test_ids_and_labels_are_trls(tokenizer_of: Callable[[str], Any], tiny_model: Path, tmp_path: Path) -> None:
    expected = theirs(tokenizer_of(templates.MARKED), tiny_model, tmp_path)
    ours = Encoder(tokenizer_of(templates.CHATML), LENGTH, last_only=False).encode(TALKS)
    assert len(expected) == len(ours)
    for row, wanted in zip(ours, expected, strict=True):
        assert isinstance(row, Row)
        assert (row.ids.tolist(), labels(row)) == (wanted["input_ids"], wanted["labels"])
