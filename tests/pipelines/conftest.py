from pathlib import Path

import pytest


@pytest.fixture
def store(place: Path) -> str:
    return str(place / "store")
