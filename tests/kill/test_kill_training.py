"""`make test-kill`: kill -9 at many random moments, and the adapter is bit for bit that of an undisturbed run."""

import os
import random
from pathlib import Path

from tests.components.conftest import TinyRun
from tests.kill import lives

KILLS = int(os.environ.get("KILLS", "24"))


def test_training_killed_again_and_again_ends_with_the_same_adapter(
    tiny_run: TinyRun, tiny_model: Path, tmp_path: Path
) -> None:
    job = lives.job(tiny_run, tiny_model)
    undisturbed = lives.adapter_after_no_kill(job, tmp_path / "undisturbed")
    adapter, torn = lives.adapter_after_kills(job, tmp_path / "killed", KILLS, random.Random(0))
    print(f"\nkilled {KILLS} times, {torn} of them in the middle of a checkpoint")
    assert torn
    assert adapter == undisturbed
