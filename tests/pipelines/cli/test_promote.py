"""promote and rollback: what they do, and what they refuse."""

import json
from pathlib import Path

from qlora_pipelines.components.core.registry import mlflow_client
from tests.pipelines.cli.registered import Make, qlora, refused, register


def test_promote_and_rollback_move_the_champion_by_hand(make_merged: Make, store: str) -> None:
    register(make_merged, store, "one")
    register(make_merged, store, "two")  # the gate compared with none: it stays candidate

    def aliases() -> dict[str, str]:
        found = mlflow_client.connect().get_registered_model("tickets").aliases
        return {name: str(to) for name, to in found.items()}

    assert aliases() == {"champion": "1", "candidate": "2"}
    assert "no such version" in refused("rollback", "tickets")
    promoted = qlora("promote", "models:/tickets@candidate", "--json")
    assert json.loads(promoted.output) == {"name": "tickets", "champion": "2", "was": "1"}
    assert aliases() == {"champion": "2", "candidate": "2", "previous": "1"}
    assert qlora("promote", "models:/tickets/2").output == "models:/tickets@champion is version 2, as before\n"
    assert aliases() == {"champion": "2", "candidate": "2", "previous": "1"}
    assert qlora("rollback", "tickets").output == "models:/tickets@champion is version 1, it was version 2\n"
    assert aliases() == {"champion": "1", "candidate": "2", "previous": "2"}


def test_a_version_whose_files_are_gone_is_not_promoted(make_merged: Make, store: str) -> None:
    register(make_merged, store, "one")
    uri, _ = register(make_merged, store, "two")
    (Path(uri) / "model" / "model.safetensors").unlink()
    assert "model/model.safetensors is gone" in refused("promote", "models:/tickets/2")
