"""Bases that are published in FP8 or MXFP4, through the whole path: as right as in 16 bit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architectures import published, whole_path


@pytest.mark.parametrize(
    ("name", "publish"),
    [("deepseek_v3", published.fp8_blocks), ("gpt_oss", published.mxfp4)],
)
def test_the_whole_path_is_right(name: str, publish: Callable[[Path], None], place: Path) -> None:
    found = whole_path.walk(name, place, publish)
    assert not found.wrong
    assert found.as_expected() == whole_path.expected(name)
