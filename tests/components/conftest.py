"""A tiny run, step by step: each fixture is one step's result, made once a session."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.store import connections
from tests.conftest import conversation, write_jsonl
from tests.meddling import Meddler, meddler

WORDS = ["cat", "mat", "one", "two", "three", "four", "five", "system", "user", "sat"]


class TinyRun(NamedTuple):
    """A planned and prepared run in a folder of its own."""

    folder: Path
    config: PlacedRun
    plan: object
    data: object


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store and an MLflow for the session's tiny run, named by the environment."""
    folder = tmp_path_factory.mktemp("session")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_STORE", str(folder / "store"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield folder


@pytest.fixture(scope="session")
def tiny_run(store: Path, tiny_model: Path) -> TinyRun:
    """A hundred questions whose answer is their last word, planned and prepared."""
    from qlora_pipelines.components.plan_run import task as plan_run
    from qlora_pipelines.components.prepare_dataset import task as prepare_dataset

    rows = [conversation(f"the {first} sat on {last}", last) for first in WORDS for last in WORDS]
    data = write_jsonl(store / "rows.jsonl", rows)
    config = PlacedRun(
        base_model=str(tiny_model),
        dataset_uri=str(data),
        model_name="tiny",
        max_length=64,
        learning_rate=0.01,
        options={
            "prepare_dataset": {"eval_share": 0.2},
            "train_qlora": {"max_steps": 30, "batch_tokens": 512, "max_restarts": 0},
            "evaluate_model": {"generation_rows": 4, "max_new_tokens": 4},
        },
    )
    plan = plan_run.run(config, report=str(store / "plan.html"))
    prepared = prepare_dataset.run(
        config.for_step("prepare_dataset"),
        listing_uri=plan.listing_uri,
        tokenizer_uri=plan.tokenizer_uri,
        train_set=str(store / "train.parquet"),
        eval_set=str(store / "eval.parquet"),
        rejected=str(store / "rejected.jsonl"),
        report=str(store / "data.html"),
    )
    return TinyRun(store, config, plan, prepared)


@pytest.fixture(scope="session")
def adapter(tiny_run: TinyRun, tiny_model: Path) -> Path:
    """The tiny run's trained adapter."""
    from qlora_pipelines.components.train_qlora import task as train_qlora

    folder = tiny_run.folder / "adapter"
    train_qlora.run(
        tiny_run.config.for_step("train_qlora"),
        train_set=str(tiny_run.folder / "train.parquet"),
        dataset_digest=tiny_run.data.dataset_digest,
        base_uri=str(tiny_model),
        base_revision=tiny_run.plan.base_revision,
        training_key=tiny_run.plan.training_key,
        adapter=str(folder),
        report=str(tiny_run.folder / "training.html"),
    )
    return folder


@pytest.fixture(scope="session")
def merged_uri(tiny_run: TinyRun, adapter: Path, tiny_model: Path) -> str:
    """The tiny run's merged model."""
    from qlora_pipelines.components.dequantize_and_merge import task as merge

    config = tiny_run.config.for_step("dequantize_and_merge")
    return merge.run(
        config,
        base_uri=str(tiny_model),
        base_revision=tiny_run.plan.base_revision,
        adapter=str(adapter),
        adapter_digest=digest(adapter),
        merge_key=tiny_run.plan.merge_key,
    ).merged_uri


def digest(work: Path | str) -> str:
    """What the step that made some work returned as its digest."""
    from qlora_pipelines.components.core.registry import integrity
    from qlora_pipelines.components.core.store import attempts

    return integrity.digest(attempts.read(str(work)))


def sealed(folder: Path, **info: Any) -> Path:
    """Writes the manifest of a folder as the step that made it would have, had it made what is there now."""
    from qlora_pipelines.components.core.registry import manifest
    from qlora_pipelines.components.core.store import attempts

    known = attempts.read(str(folder)).info | info
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != attempts.MANIFEST)
    files = {path.relative_to(folder).as_posix(): manifest.entry(path.read_bytes()) for path in paths}
    attempts.finish(str(folder), {name: value for name, value in known.items() if value is not None}, files)
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """moto's S3 in this process."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def between(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Meddler]:
    """A proxy before that S3, which can change what it sends; the environment names it."""
    with meddler(s3_server) as found:
        for name, value in {"ENDPOINT_URL_S3": found.address, "DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            monkeypatch.setenv(f"AWS_{name}", "test")
        for name in ("PROFILE", "SESSION_TOKEN", "ENDPOINT_URL", "CA_BUNDLE"):
            monkeypatch.delenv(f"AWS_{name}", raising=False)
        yield found


@pytest.fixture
def bucket(between: Meddler) -> str:
    """The address of a bucket of the test's own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    connections.client(between.address).create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def s3_place(bucket: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, with its store in the bucket."""
    monkeypatch.setenv("QLORA_STORE", f"{bucket}/store")
    return place


@pytest.fixture(autouse=True)
def _environment(store: Path) -> None:
    assert os.environ["QLORA_STORE"] == str(store / "store")


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that CUDA shows to whoever it is not hidden from. It is pretended: what takes it into use fails."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: os.environ.get("CUDA_VISIBLE_DEVICES") != "")
