"""promote, rollback and gc: what they do, and what they refuse."""

import json
from pathlib import Path

from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.pipelines.registry import garbage
from tests.pipelines.registry.registered import Make, aged, qlora, refused, register


def test_promote_and_rollback_move_the_champion_by_hand(make_merged: Make, store: str) -> None:
    register(make_merged, store, "one")
    register(make_merged, store, "two")  # the gate compared with none: it stays candidate

    def aliases() -> dict[str, str]:
        found = mlflow_client.client().get_registered_model("tickets").aliases
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


def test_gc_removes_what_no_version_refers_to(make_merged: Make, store: str) -> None:
    base = Path(store) / "bases" / "org--tiny" / "abc"
    evidence = {"training_key": "t1", "data_digest": "d1", "base_uri": f"{base}/files"}
    kept, _ = register(make_merged, store, "one", evidence=evidence)
    make_merged(store, "young")
    unwanted = Path(make_merged(store, "unwanted")[0])
    for name in ("checkpoints/t1/a/x", "checkpoints/t2/a/x", "listings/d1.json", "listings/d2.json", "tokenizers/t/x",
                 "adapters/t2/a/x", "bases/org--tiny/abc/files/x", "bases/org--tiny/old/files/x",
                 "claims/t2/tiny/1/a.passed"):  # fmt: skip
        path = Path(store) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
        aged(path, 30)
    aged(unwanted, 30)
    aged(Path(kept), 30)
    listed = json.loads(qlora("gc", "--dry-run", "--json").output)
    expected = {
        f"{store}/checkpoints/t1": "its training is registered",
        f"{store}/listings/d2.json": "no version was trained on it",
        f"{store}/bases/org--tiny/old": "no version refers to it",
        f"{store}/claims/t2": "its runs are past plan_run",
        str(unwanted): "no version refers to it",
    }
    assert {piece["uri"]: piece["why"] for piece in listed["pieces"]} == expected
    assert all(Path(uri).exists() for uri in expected)
    assert qlora("gc").output.endswith("removed\n")
    assert not any(Path(uri).exists() for uri in expected)
    assert Path(kept, "model", "config.json").exists() and (Path(store) / "merged" / "young").exists()
    assert json.loads(qlora("gc", "--dry-run", "--json").output)["pieces"] == []


def test_gc_refuses_a_registry_that_knows_nothing_of_the_store(make_merged: Make, store: str) -> None:
    unwanted = Path(make_merged(store, "unwanted")[0])
    aged(unwanted, 30)
    assert "no version in this registry refers to" in refused("gc")
    assert unwanted.exists()
    assert "1 pieces" in qlora("gc", "--dry-run").output


def test_gc_leaves_what_is_not_named_by_a_merge_key_in_the_store_of_registered_models(tmp_path: Path) -> None:
    kept, unwanted = "a" * 64, "b" * 64
    for name in (f"{kept}/model/x", f"{unwanted}/model/x", "team-a/merged/k/a/x", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
        aged(path, 30)
    refer = garbage.References(frozenset([f"{tmp_path}/{kept}"]), frozenset(), frozenset(), frozenset())
    assert [piece.uri for piece in garbage.in_models_store(str(tmp_path), refer, 7)] == [f"{tmp_path}/{unwanted}"]
