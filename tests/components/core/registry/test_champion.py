import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import TransientError
from qlora_pipelines.components.core.registry import champion, mlflow_client
from qlora_pipelines.components.core.store import attempts, connections


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


@pytest.fixture
def versions(place: Path) -> Callable[..., str]:
    """Registers versions of `tickets`, each out of a training, compared with another; the newest is champion."""
    client = mlflow_client.connect()
    client.create_registered_model("tickets")
    count = itertools.count()

    def register(training: str, compared_with: str = "no champion", files: bool = True) -> str:
        source = place / f"merged-{next(count)}"
        if files:
            attempts.finish(str(source), {"training_key": training}, {})
        tags = {"qlora.training_key": training, "qlora.compared_with": compared_with}
        number = str(client.create_model_version("tickets", source=str(source), tags=tags).version)
        client.set_registered_model_alias("tickets", "champion", number)
        return number

    return register


def to_match(training: str) -> str:
    return champion.to_match(mlflow_client.connect(), "tickets", training)


def test_a_model_has_to_match_todays_champion(versions: Callable[..., str]) -> None:
    assert to_match("a") == ""
    versions("a")
    assert to_match("b") == "1"
    assert to_match("") == "1", "a training without key is no other's"


def test_the_same_training_again_has_to_match_what_it_had_to_at_first(versions: Callable[..., str]) -> None:
    versions("a")
    assert to_match("a") == ""
    versions("b", "1")
    assert (to_match("a"), to_match("b")) == ("2", "1")


def test_a_version_of_the_same_training_merged_otherwise_is_passed_over(versions: Callable[..., str]) -> None:
    versions("a")
    versions("b", "1")
    versions("b", "1")
    assert to_match("b") == "1"
    versions("b", "3")  # as version 0.1 registered it
    assert to_match("b") == "1"


def test_a_version_that_was_deleted_or_whose_files_are_gone_counts_as_none(versions: Callable[..., str]) -> None:
    versions("a")
    versions("b", "1")
    mlflow_client.connect().delete_model_version("tickets", "1")
    assert to_match("b") == ""
    versions("c", "2", files=False)
    versions("d", "3")
    assert to_match("d") == ""


def test_numbers_that_were_given_again_lead_nowhere(versions: Callable[..., str]) -> None:
    """MLflow gives the number of a deleted last version to the next one."""
    versions("a", "2")
    assert to_match("a") == ""
    versions("b", "2")
    assert to_match("b") == ""
