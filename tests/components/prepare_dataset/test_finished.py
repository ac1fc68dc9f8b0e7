"""Prepared data is found again by its data_key, and prepared again where anything differs or is damaged."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import PrepareConfig
from qlora_pipelines.components.core.data import listing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.store import attempts, keys
from qlora_pipelines.components.prepare_dataset import task
from tests.conftest import conversation, write_jsonl

OUTPUTS = ("train_set", "eval_set", "rejected", "report")
CONFIG = PrepareConfig(max_length=64, eval_share=0.2, max_rejected_share=0.1)


@dataclasses.dataclass
class Preparation:
    """The step as a run calls it."""

    folder: Path
    tokenizer: Path
    data: Path
    count: int = 0

    def key(self, config: PrepareConfig = CONFIG) -> str:
        digest = listing.data_digest(listing.make(str(self.data)))
        return keys.data_key(digest, config, base_model.tokenizer_digest(self.tokenizer))

    def __call__(self, config: PrepareConfig = CONFIG, **given: Any) -> tuple[task.Result, dict[str, bytes]]:
        """What the step returned, and the content of its outputs."""
        self.count += 1
        paths = {name: self.folder / f"run-{self.count}" / name for name in OUTPUTS}
        arguments = {
            "listing_uri": listing.save(listing.make(str(self.data))),
            "tokenizer_uri": str(self.tokenizer),
            "data_key": self.key(config),
        } | given
        result = task.run(config, **arguments, **{name: str(path) for name, path in paths.items()})
        return result, {name: path.read_bytes() for name, path in paths.items()}


@pytest.fixture
def prepare(place: Path, tiny_model: Path) -> Preparation:
    rows = [conversation(f"question {n}", f"cat {n}") for n in range(60)] + [{"messages": "none"}]
    return Preparation(place, tiny_model, write_jsonl(place / "rows.jsonl", rows))


@pytest.fixture
def again(prepare: Preparation, capsys: pytest.CaptureFixture[str]) -> Callable[..., bool]:
    """Prepares once more and says whether it was done again."""

    def run(*given: Any, **named: Any) -> bool:
        capsys.readouterr()
        prepare(*given, **named)
        said = capsys.readouterr().out
        assert ("finished already: " in said) != ("reading " in said)
        return "reading " in said

    return run


def test_the_same_data_and_options_again_are_copied(prepare: Preparation, again: Callable[..., bool]) -> None:
    first = prepare()
    assert first[0].rejected_rows == 1 and first[1]["rejected"]
    assert prepare() == first
    assert not again()


def test_nothing_but_the_listing_and_the_tokenizer_is_read(prepare: Preparation) -> None:
    key, listing_uri = prepare.key(), listing.save(listing.make(str(prepare.data)))
    first = prepare()
    prepare.data.write_text("changed since")
    assert prepare(listing_uri=listing_uri, data_key=key) == first
    with pytest.raises(InputError, match="changed since the run was planned"):
        prepare(listing_uri=listing_uri, data_key="")


def test_without_a_key_the_work_is_done_and_nothing_is_kept(prepare: Preparation, again: Callable[..., bool]) -> None:
    prepare(data_key="")
    assert not (prepare.folder / "store" / "prepared").exists()
    prepare()
    assert again(data_key="")


def test_other_options_and_other_data_are_prepared(prepare: Preparation, again: Callable[..., bool]) -> None:
    prepare()
    assert again(PrepareConfig(max_length=32, eval_share=0.2, max_rejected_share=0.1))
    write_jsonl(prepare.data, [conversation(f"question {n}", f"mat {n}") for n in range(60)])
    assert again()


def test_a_damaged_file_is_prepared_again(prepare: Preparation, again: Callable[..., bool]) -> None:
    first = prepare()
    work = attempts.find(str(prepare.folder / "store" / "prepared" / prepare.key()))
    assert work
    path = Path(work.uri, "eval_set")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert again()
    assert prepare() == first


def test_a_key_of_something_else_is_refused(prepare: Preparation) -> None:
    prepare()
    with pytest.raises(
        InputError, match=r"^data_key is abc, and that of listing, tokenizer and options is [0-9a-f]{12}"
    ):
        prepare(data_key="abc")
    with pytest.raises(InputError, match="data_key is"):
        prepare(PrepareConfig(max_length=32), data_key=prepare.key())


def test_what_failed_fails_again(prepare: Preparation) -> None:
    strict = PrepareConfig(max_length=64, max_rejected_share=0)
    for _ in range(2):
        with pytest.raises(InputError, match="1 of 61 rows cannot be used"):
            prepare(strict)
    assert not (prepare.folder / "store" / "prepared").exists()
