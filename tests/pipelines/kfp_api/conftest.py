"""A server, and pauses that are very short."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_pipelines.components.core.store import claims
from qlora_pipelines.pipelines.compiler import compiled
from qlora_pipelines.pipelines.compiler.compiled import Compiled
from qlora_pipelines.pipelines.docgen.reference import GOLDEN
from qlora_pipelines.pipelines.kfp_api import client, runs, watch
from tests.pipelines.kfp_api.api_server import serve
from tests.pipelines.kfp_api.state import Kfp


@pytest.fixture
def kfp(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kfp]:
    """A server; a test's parameter says whether it has ML Metadata."""
    with serve(Kfp(metadata=getattr(request, "param", True))) as running:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", running.url)
        yield running


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QLORA_KFP_TOKEN", "QLORA_KFP_COOKIE", "KF_PIPELINES_SA_TOKEN_PATH", "KUBERNETES_SERVICE_HOST",
                 "KF_PIPELINES_DEFAULT_EXPERIMENT_NAME", "KF_PIPELINES_UI_ENDPOINT", "SSL_CERT_FILE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "BACKOFF", (0.01,))
    monkeypatch.setattr(runs, "LIST_DELAY", 0.02)
    monkeypatch.setattr(watch, "POLL_INTERVAL", 0.01)
    monkeypatch.setattr(claims, "PAUSE", 0.05)


@pytest.fixture(scope="session")
def pipeline() -> Compiled:
    return compiled.from_file(GOLDEN)


@pytest.fixture
def run_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("base_model: org/base\ndataset_uri: s3://bucket/data\nmodel_name: tickets\nnum_train_epochs: 2\n")
    return path
