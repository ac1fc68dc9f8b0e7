"""A merge that ends before its time: nothing of it is taken for whole, and the next start removes what it left."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qlora_pipelines.components.core.store import attempts
from tests.components.dequantize_and_merge.conftest import Merge, save_adapter, tensors

CHILD = """
import os, resource, signal, sys
from qlora_pipelines.components.core.config.steps import MergeConfig
from qlora_pipelines.components.core.runtime import step
from qlora_pipelines.components.core.store import streams
from qlora_pipelines.components.dequantize_and_merge import task
from tests.components.conftest import digest
from tests.components.dequantize_and_merge.conftest import REVISION

how, base, adapter = sys.argv[1:]
if how == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
else:
    take = streams.Writer._take
    def take_once(writer, data):
        take(writer, data)
        if writer.file["size"] > 40_000:
            os.kill(os.getpid(), signal.SIGKILL)
    streams.Writer._take = take_once
with step("dequantize_and_merge"):
    config = MergeConfig(merge_base="original")
    given = {"adapter": adapter, "adapter_digest": digest(adapter)}
    task.run(config, base_uri=base, base_revision=REVISION, merge_key="key", **given)
"""


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return save_adapter(base, tmp_path / "adapter", target_modules="all-linear")


def age(folder: Path) -> None:
    """Makes the files of an attempt an hour old."""
    hour_ago = time.time() - 3600
    for path in folder.rglob("*"):
        os.utime(path, (hour_ago, hour_ago))


def interrupted(how: str, base: Path, adapter: Path, store: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, how, str(base), str(adapter)]
    environment = os.environ | {"QLORA_STORE": str(store)}
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(
    base: Path, adapter: Path, tmp_path: Path, merge: Merge
) -> None:
    """The operating system's limit on a file's size stands for a full disk: the write fails in the middle."""
    done = interrupted("full", base, adapter, tmp_path / "own_store")
    assert done.returncode == 1
    (line,) = (line for line in done.stdout.splitlines() if "error" in line)
    assert line.endswith("model/model.safetensors: cannot be written: File too large") and not done.stderr
    assert not list((tmp_path / "own_store" / "merged" / "key").iterdir())


def test_a_killed_merge_is_done_again_with_the_same_result(
    base: Path, adapter: Path, tmp_path: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "own_store" / "merged" / "key"
    assert interrupted("kill", base, adapter, tmp_path / "own_store").returncode == -signal.SIGKILL
    (torn,) = key.iterdir()
    assert attempts.find(str(key)) is None and any(path.is_file() for path in (torn / "model").iterdir())
    age(torn)
    merged = merge(base, adapter)
    assert [path.name for path in key.iterdir()] == [merged.parent.name]
    monkeypatch.setenv("QLORA_STORE", str(tmp_path / "undisturbed"))
    undisturbed = merge(base, adapter)
    assert attempts.read(str(merged.parent)).files == attempts.read(str(undisturbed.parent)).files
    assert tensors(merged).keys() == tensors(undisturbed).keys()


def test_what_a_dead_attempt_left_next_to_a_finished_one_goes_at_the_next_start(
    base: Path, adapter: Path, tmp_path: Path, merge: Merge
) -> None:
    merged = merge(base, adapter)
    dead = merged.parent.parent / "20200101T000000-dead"
    shutil.copytree(merged, dead / "model")
    (dead / attempts.ALIVE).touch()
    assert merge(base, adapter) == merged and dead.exists(), "it may be alive"
    age(dead)
    assert merge(base, adapter) == merged and not dead.exists()
