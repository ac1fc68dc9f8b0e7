"""`make test-kill`: kill -9 at many random moments, and the adapter is bit for bit that of an undisturbed run."""

import os
import random
from pathlib import Path

import pytest

from qlora_pipelines.components.core.store import storage
from tests.components.conftest import TinyRun
from tests.kill import lives

STEPS = 120
KILLS = int(os.environ.get("KILLS", "24"))
ON_S3 = max(1, KILLS // 3)
"""Of which so many with the store on S3, where a checkpoint is uploaded."""


@pytest.fixture(scope="module")
def job(tiny_run: TinyRun, tiny_model: Path) -> dict[str, str]:
    """The step's inputs."""
    return lives.job(tiny_run, tiny_model, STEPS)


@pytest.fixture(scope="module")
def undisturbed(job: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of a run that nobody killed."""
    return lives.adapter_after_no_kill(job, tmp_path_factory.mktemp("kill") / "undisturbed")


def test_training_killed_again_and_again_ends_with_the_same_adapter(
    job: dict[str, str], undisturbed: bytes, tmp_path: Path
) -> None:
    kills = KILLS - ON_S3
    adapter, torn = lives.adapter_after_kills(job, tmp_path / "killed", kills, random.Random(0))
    print(f"\nkilled {kills} times, {torn} of them in the middle of a checkpoint")
    assert torn
    assert adapter == undisturbed


def test_training_killed_while_it_uploads_ends_with_the_same_adapter(
    job: dict[str, str], undisturbed: bytes, s3_store: str, tmp_path: Path
) -> None:
    uri = storage.join(s3_store, "kill")
    adapter, torn = lives.adapter_after_kills(job, tmp_path / "killed", ON_S3, random.Random(1), uri)
    print(f"\nkilled {ON_S3} times, {torn} of them in the middle of an upload")
    assert torn
    assert adapter == undisturbed
