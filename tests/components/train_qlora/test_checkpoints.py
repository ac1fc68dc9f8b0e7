import json
import os
import random
import re
import time
from pathlib import Path

import pytest

from qlora_pipelines.components.core.store import attempts
from qlora_pipelines.components.train_qlora.checkpoints import Checkpoints
from tests.components.conftest import TinyRun
from tests.kill import lives

STEPS = 12


def written(folder: Path, text: str = "weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text(text)
    (folder / "trainer_state.json").write_text("{}")
    return folder


def places(folder: Path) -> list[str]:
    return sorted({path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()})


def test_the_newest_whole_ones_are_kept(tmp_path: Path) -> None:
    kept = Checkpoints(str(tmp_path / "store"), keep=2)
    for step in (5, 10, 15):
        kept.save(written(tmp_path / f"scratch-{step}", str(step)), step)
    assert places(tmp_path / "store") == ["step-00000010", "step-00000015"]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["step-00000010", "step-00000015"]
    step, folder = kept.newest(tmp_path / "copies")
    assert (step, (folder / "adapter_model.safetensors").read_text()) == (15, "15")


def tear_off_manifest(newest: Path) -> None:
    (newest / "manifest.json").unlink()


def cut_short(newest: Path) -> None:
    (newest / "adapter_model.safetensors").write_text("1")


def alter(newest: Path) -> None:
    (newest / "adapter_model.safetensors").write_text("51")


def break_manifest(newest: Path) -> None:
    (newest / "manifest.json").write_text('{"info": {')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (tear_off_manifest, "it was not finished"),
        (cut_short, "adapter_model.safetensors has 1 of 2 bytes"),
        (alter, "adapter_model.safetensors is not the file that its manifest lists; run again what made it"),
        (break_manifest, "manifest.json is damaged; remove its folder, and its work is done again"),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_it_taken(
    damage: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Checkpoints(str(tmp_path / "store"), keep=2)
    for step in (10, 15):
        kept.save(written(tmp_path / f"scratch-{step}", str(step)), step)
    newest = next((tmp_path / "store" / "step-00000015").iterdir())
    damage(newest)
    assert kept.newest(tmp_path / "copies")[0] == 10
    pattern = rf"checkpoint step-00000015/{newest.name} is not whole: (.+); it is passed over"
    assert re.search(pattern, capsys.readouterr().out)[1].endswith(said)


def test_what_a_dead_attempt_left_goes_and_what_may_live_does_not(tmp_path: Path) -> None:
    kept = Checkpoints(str(tmp_path / "store"), keep=1)
    left = tmp_path / "store" / "step-00000005" / "20200101T000000-dead"
    written(left)
    (left / attempts.ALIVE).touch()
    kept.save(written(tmp_path / "scratch-10"), 10)
    assert places(tmp_path / "store") == ["step-00000005", "step-00000010"]
    minutes_ago = time.time() - 2 * attempts.DEAD_AFTER
    for path in left.iterdir():
        os.utime(path, (minutes_ago, minutes_ago))
    kept.save(written(tmp_path / "scratch-15"), 15)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["step-00000015"]


def test_training_killed_in_the_middle_of_a_checkpoint_ends_with_the_same_adapter(
    tiny_run: TinyRun, tiny_model: Path, tmp_path: Path
) -> None:
    """The short form of `make test-kill`."""
    job = lives.job(tiny_run, tiny_model, STEPS)
    undisturbed = lives.adapter_after_no_kill(job, tmp_path / "undisturbed")
    adapter, torn = lives.adapter_after_kills(job, tmp_path / "killed", 1, random.Random(3))
    assert (adapter == undisturbed, torn) == (True, 1)
    manifest = next((tmp_path / "killed" / "store" / "adapters" / "killed").glob("*/manifest.json"))
    assert len(json.loads(manifest.read_text())["info"]["losses"]) == STEPS
