"""Merging from and to a real S3: streamed, killed, cut off, and two at a time."""

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import MergeConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import attempts, connections, objects, storage
from qlora_pipelines.components.core.store.addresses import locate
from qlora_pipelines.components.dequantize_and_merge import task
from tests.components.conftest import digest
from tests.components.dequantize_and_merge.conftest import REVISION, save_adapter, save_base

PART = 5 << 20
"""The smallest part that S3 takes: the tests' model has three of them."""
CHILD = """
import contextlib, os, signal, sys, time
from qlora_pipelines.components.core.config.steps import MergeConfig
from qlora_pipelines.components.core.store import objects
from qlora_pipelines.components.dequantize_and_merge import task
from tests.integration.test_merge_to_s3 import PART, merge, open_uploads

objects.PART = PART
writing = objects.writing

@contextlib.contextmanager
def killed(uri):
    with writing(uri) as write:
        done = 0

        def killing(data):
            nonlocal done
            write(data)
            done += len(data)
            if done > 2 * PART:
                while not open_uploads(uri):
                    time.sleep(0.1)
                os.kill(os.getpid(), signal.SIGKILL)

        yield killing

objects.writing = killed
merge(sys.argv[1], sys.argv[2])
"""


def open_uploads(uri: str) -> int:
    """How many uploads are open below an address."""
    place = locate(uri)
    client = connections.client(os.environ["AWS_ENDPOINT_URL_S3"])
    return len(client.list_multipart_uploads(Bucket=place.bucket, Prefix=place.key).get("Uploads", []))


def merge(base: str, adapter: str, key: str = "key") -> attempts.Finished:
    given = {"base_uri": base, "base_revision": REVISION, "adapter": adapter, "adapter_digest": digest(adapter)}
    done = task.run(MergeConfig(merge_base="original"), merge_key=key, **given)
    return attempts.read(done.merged_uri)


def left_behind(store: str) -> tuple[int, list[str]]:
    """How many uploads are open below a store, and the folders there that have no manifest."""
    folders: dict[str, set[str]] = {}
    for entry in storage.files(f"{store}/merged/key", hidden=True):
        attempt, _, path = entry.path.partition("/")
        folders.setdefault(attempt, set()).add(path)
    return open_uploads(store), [name for name, paths in folders.items() if attempts.MANIFEST not in paths]


@pytest.fixture
def base(tmp_path: Path, tiny_model: Path) -> Path:
    return save_base(tmp_path / "base", tiny_model, width=1024)


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return save_adapter(base, tmp_path / "adapter", target_modules="all-linear")


@pytest.fixture
def undisturbed(base: Path, adapter: Path, tmp_path: Path) -> dict[str, Any]:
    """The files of a merge to a local folder, sizes and hashes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(storage.STORE_VARIABLE, str(tmp_path / "local"))
        return merge(str(base), str(adapter)).files


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PART", PART)
    monkeypatch.setattr(attempts, "BEAT", 0.5)
    monkeypatch.setattr(attempts, "DEAD_AFTER", 3.0)


def test_base_and_result_on_s3_give_the_same_files(
    base: Path, adapter: Path, undisturbed: dict[str, Any], own_store: str
) -> None:
    storage.upload(base, f"{own_store}/base")
    done = merge(f"{own_store}/base", str(adapter))
    assert done.files == undisturbed
    sizes = storage.sizes(done.uri)
    assert {path: sizes[path] for path in done.files} == {path: file["size"] for path, file in done.files.items()}
    assert set(sizes) == {*done.files, attempts.MANIFEST}
    assert merge("/no/base", str(adapter)) == done


@pytest.mark.parametrize("pause", [0.0, 4.0], ids=["at once", "later"])
def test_a_killed_merge_is_done_anew_and_leaves_no_parts(
    pause: float, base: Path, adapter: Path, undisturbed: dict[str, Any], own_store: str
) -> None:
    store = f"{own_store}-{pause}"
    environment = os.environ | {storage.STORE_VARIABLE: store}
    child = subprocess.run([sys.executable, "-c", CHILD, str(base), str(adapter)], env=environment, check=False)
    assert child.returncode == -signal.SIGKILL
    uploads, dead = left_behind(store)
    assert uploads == 1 and len(dead) == 1
    time.sleep(pause)  # at once, the dead one cannot be told from a living one before the end
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(storage.STORE_VARIABLE, store)
        assert attempts.find(f"{store}/merged/key") is None
        assert merge(str(base), str(adapter)).files == undisturbed
    assert left_behind(store) == (0, [])


def test_two_at_a_time_do_not_harm_one_another(
    base: Path, adapter: Path, undisturbed: dict[str, Any], own_store: str
) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: merge(str(base), str(adapter)), range(2)))
    assert [done.files for done in both] == [undisturbed, undisturbed]
    assert left_behind(own_store) == (0, [])


def test_a_store_that_goes_away_is_one_line_and_nothing_half_done(
    base: Path,
    adapter: Path,
    undisturbed: dict[str, Any],
    own_store: str,
    proxy: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    between = proxy(os.environ["AWS_ENDPOINT_URL_S3"])
    writing = objects.writing

    @contextlib.contextmanager
    def refused_half_way(uri: str) -> Iterator[Callable[[Any], None]]:
        with writing(uri) as write:
            done = 0

            def take(data: Any) -> None:
                nonlocal done
                write(data)
                done += len(data)
                if done > 2 * PART:
                    between.refuse()

            yield take

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", between.address)
        patch.setattr(objects, "writing", refused_half_way)
        with pytest.raises(InputError, match=r"model\.safetensors: .*; check the address, the endpoint") as refused:
            merge(str(base), str(adapter))
        assert "\n" not in str(refused.value)
    assert attempts.find(f"{own_store}/merged/key") is None
    assert merge(str(base), str(adapter)).files == undisturbed
    assert left_behind(own_store) == (0, [])


def test_connections_that_break_off_are_made_anew(
    base: Path,
    adapter: Path,
    undisturbed: dict[str, Any],
    own_store: str,
    proxy: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage.upload(base, f"{own_store}/base")
    between = proxy(os.environ["AWS_ENDPOINT_URL_S3"])
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", between.address)
    between.cut_after(1_500_000, times=3)
    assert merge(f"{own_store}/base", str(adapter)).files == undisturbed
    assert between.cuts == 3
