from pathlib import Path

from qlora_pipelines.components.core.registry import champion, mlflow_client


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
