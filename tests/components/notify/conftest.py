from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.store import outcomes
from qlora_pipelines.components.notify import webhook

RUN = "5f0e7f0a-0000-4000-8000-000000000001"
Left = Callable[..., None]


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own, no webhook, and no wait between tries."""
    monkeypatch.setenv("QLORA_STORE", str(tmp_path / "store"))
    monkeypatch.setenv(outcomes.RUN_VARIABLE, RUN)
    for name in (webhook.URL_VARIABLE, webhook.FORMAT_VARIABLE, "KF_PIPELINES_UI_ENDPOINT", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(webhook, "BACKOFF", (0.0,))
    return tmp_path / "store"


@pytest.fixture
def left() -> Left:
    """Leaves a step's outcome in the store, as the step would."""

    def leave(step: str, error: str = "", *, stopped: bool = False, **facts: Any) -> None:
        outcomes.begin(step)
        if not stopped:
            outcomes.tell(**facts)
            outcomes.end(step, error)

    return leave
