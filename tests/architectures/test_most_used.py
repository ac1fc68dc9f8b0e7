"""The ten architectures that most people tune, through the whole path; all others are in `matrix`."""

from pathlib import Path

import pytest

from qlora_pipelines.components.core.models import packable
from tests.architectures import tiny, whole_path

MOST_USED = [
    "llama",
    "qwen3",
    "qwen3_5",
    "qwen3_moe",
    "mistral",
    "mistral3",
    "gemma3",
    "phi3",
    "deepseek_v3",
    "gpt_oss",
]


@pytest.mark.parametrize("name", MOST_USED)
def test_the_whole_path_is_right(name: str, place: Path) -> None:
    found = whole_path.walk(name, place)
    assert not found.wrong
    assert found.as_expected() == whole_path.expected(name)


def test_the_table_of_what_packs_is_that_of_the_results() -> None:
    """Both ways: what is in it was right packed, and what was right packed is in it."""
    packed = {
        tiny.model_type(name) for name, found in whole_path.EXPECTED.items() if found["outcome"] == "right packed"
    }
    assert packed == packable.TYPES


def test_each_entry_of_transformers_mapping_is_in_the_table() -> None:
    from transformers.models.auto import modeling_auto

    known = {
        *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    assert known - {tiny.model_type(name) for name in whole_path.EXPECTED} == set()
