from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import TransientError
from qlora_pipelines.components.core.registry import champion, mlflow_client
from qlora_pipelines.components.core.store import connections


def test_the_champion_is_the_version_with_the_alias(place: Path) -> None:
    client = mlflow_client.connect()
    assert champion.current_version(client, "tickets") == ""
    client.create_registered_model("tickets")
    for _ in range(2):
        client.create_model_version("tickets", source=str(place))
    assert champion.current_version(client, "tickets") == ""
    champion.move(client, "tickets", "1", former="")
    assert champion.current_version(client, "tickets") == "1"
    champion.move(client, "tickets", "2", former="1")
    assert client.get_registered_model("tickets").aliases == {"champion": 2, "previous": 1}


def test_a_store_that_is_away_is_not_taken_for_files_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server answers on this port; a retry may find one."""
    monkeypatch.setattr(connections, "_RETRY", {"max_retries": 0})
    for name, value in {
        "ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(TransientError):
        champion._whole("s3://bucket/adapter")
    assert champion._whole("/nowhere") is None
