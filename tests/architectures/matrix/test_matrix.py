"""Every architecture through the whole path, against the table of expectations that docs/models.md shows."""

from pathlib import Path

import pytest

from tests.architectures import whole_path


@pytest.mark.parametrize(
    "name", [name for name, found in whole_path.EXPECTED.items() if found["outcome"] != "not tried"]
)
def test_the_result_is_the_expected_one(name: str, place: Path) -> None:
    """A refusal in the place of a success fails as much as a success in the place of a refusal."""
    found = whole_path.walk(name, place)
    assert not found.wrong
    assert found.as_expected() == whole_path.expected(name)
