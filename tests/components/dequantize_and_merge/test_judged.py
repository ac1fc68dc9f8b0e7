"""What is merged is the adapter that was trained, and what was merged is handed on by its digest."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import MergeConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import attempts
from qlora_pipelines.components.dequantize_and_merge import streaming, task
from tests.components.conftest import TinyRun, digest, sealed

WEIGHTS = "adapter_model.safetensors"
Run = Callable[..., task.Result]


@pytest.fixture
def copied(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


@pytest.fixture
def run(tiny_run: TinyRun, adapter: Path, copied: Path, tiny_model: Path) -> Run:
    """Merges a copy of the tiny run's adapter, with the digest of the original."""

    def merge(key: str, **given: Any) -> task.Result:
        given = {"adapter": str(copied), "adapter_digest": digest(adapter)} | given
        given = {"base_uri": str(tiny_model), "base_revision": tiny_run.plan.base_revision} | given
        return task.run(MergeConfig(), merge_key=key, **given)

    return merge


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def sha256(uri: str) -> str:
    return hashlib.sha256((Path(uri) / attempts.MANIFEST).read_bytes()).hexdigest()


def test_the_digest_is_the_manifests_also_of_a_merge_that_is_found(run: Run) -> None:
    made = run("digest")
    assert made.merged_digest == sha256(made.merged_uri)
    assert run("digest", base_uri="/no/base") == made
    sealed(Path(made.merged_uri), more="info")
    assert run("digest", base_uri="/no/base").merged_digest == sha256(made.merged_uri) != made.merged_digest


def replaced(folder: Path) -> None:
    flip(folder / WEIGHTS)
    sealed(folder)


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights": (lambda folder: flip(folder / WEIGHTS), f"{WEIGHTS} was altered"),
    "weights and manifest": (replaced, "manifest.json was altered"),
    "an extra file": (lambda folder: (folder / "special_tokens_map.json").touch(), "special_tokens_map.json is not in"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "while"])
def test_an_adapter_that_is_not_the_trained_one_is_refused(
    change: str, when: str, run: Run, copied: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = CHANGES[change]
    real = streaming.write

    def write(*given: Any) -> None:
        real(*given)
        make(copied)

    if when == "before":
        make(copied)
    else:
        monkeypatch.setattr(streaming, "write", write)
        message = f"{message}|was altered"
    with pytest.raises(InputError, match=message):
        run("adapter-changed")
    assert attempts.find(str(store / "store" / "merged" / "adapter-changed")) is None


def test_a_manifest_that_is_replaced_before_its_digest_is_taken_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = attempts.Attempt.commit

    def commit(attempt: attempts.Attempt, info: dict[str, Any]) -> attempts.Finished:
        finished = real(attempt, info)
        flip(Path(finished.uri) / "model" / "model.safetensors")
        sealed(Path(finished.uri))
        return finished

    monkeypatch.setattr(attempts.Attempt, "commit", commit)
    with pytest.raises(InputError, match=r"manifest.json was replaced while this step ran"):
        run("replaced")


def test_training_hands_on_the_digest_of_its_adapter(tiny_run: TinyRun, adapter: Path, tiny_model: Path) -> None:
    from qlora_pipelines.components.train_qlora import task as train_qlora

    again = train_qlora.run(
        tiny_run.config.for_step("train_qlora"),
        train_set=str(tiny_run.folder / "train.parquet"),
        dataset_digest=tiny_run.data.dataset_digest,
        base_uri=str(tiny_model),
        base_revision=tiny_run.plan.base_revision,
        training_key=tiny_run.plan.training_key,
        adapter=str(tiny_run.folder / "again"),
        report=str(tiny_run.folder / "again.html"),
    )
    assert again.adapter_digest == sha256(again.adapter_uri) == sha256(str(adapter))
