from collections.abc import Callable
from pathlib import Path

import pytest

from tests.components.register_model.registering import copies


@pytest.fixture
def fresh(merged_uri: str, tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    return copies(merged_uri, tmp_path)
