import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import PrepareConfig
from qlora_pipelines.components.core.data import listing, tokenized
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.prepare_dataset import task
from tests.components.prepare_dataset import templates


@pytest.fixture(scope="session")
def base_tokenizer(tiny_model: Path) -> Any:
    tokenizer = loading.load_tokenizer(tiny_model)
    tokenizer.add_special_tokens({"additional_special_tokens": templates.SPECIAL})
    return tokenizer


@pytest.fixture
def tokenizer_of(base_tokenizer: Any) -> Callable[[str], Any]:
    """The tiny tokenizer under another model's template."""

    def make(template: str) -> Any:
        tokenizer = copy.copy(base_tokenizer)
        tokenizer.chat_template = template
        return tokenizer

    return make


class Prepared:
    """One run of the step and what it wrote."""

    def __init__(self, folder: Path, tiny_model: Path, data: Path, evaluation: Path | None, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        listed = listing.make(str(data), str(evaluation or ""))
        self.result = task.run(
            PrepareConfig(**{"max_length": 64, "eval_share": 0.2, **options}),
            listing_uri=listing.save(listed),
            tokenizer_uri=str(tiny_model),
            train_set=str(folder / "train.parquet"),
            eval_set=str(folder / "eval.parquet"),
            rejected=str(folder / "rejected.jsonl"),
            report=str(folder / "report.html"),
        )

    def side(self, name: str) -> list[tokenized.Sample]:
        return tokenized.read(str(self.folder / f"{name}.parquet"), self.result.dataset_digest)

    @property
    def rejected(self) -> str:
        return (self.folder / "rejected.jsonl").read_text()

    @property
    def report(self) -> str:
        return (self.folder / "report.html").read_text()


@pytest.fixture
def prepared(tmp_path: Path, tiny_model: Path) -> Callable[..., Prepared]:
    """Prepares a file, by another template than the tiny model's where one is given; further options by name."""
    count = iter(range(100))

    def make(data: Path, evaluation: Path | None = None, template: str = "", **options: Any) -> Prepared:
        tokenizer = tiny_model
        if template:
            made = loading.load_tokenizer(tiny_model)
            made.chat_template = template
            tokenizer = tmp_path / f"tokenizer{next(count)}"
            made.save_pretrained(tokenizer)
        return Prepared(tmp_path / f"out{next(count)}", tokenizer, data, evaluation, **options)

    return make
