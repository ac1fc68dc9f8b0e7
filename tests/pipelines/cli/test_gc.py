"""gc: what it removes, and what it refuses."""

import json
from pathlib import Path

import mlflow
import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.pipelines.cli import gc
from tests.pipelines.cli.registered import Make, aged, qlora, refused, register


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
    references = gc.References(frozenset([f"{tmp_path}/{kept}"]), frozenset(), frozenset(), frozenset())
    assert [piece.uri for piece in gc.in_models_store(str(tmp_path), references, 7)] == [f"{tmp_path}/{unwanted}"]


@pytest.mark.parametrize("store", ["az://models/team-a", "abfss://models@acme.dfs.core.windows.net/team-a"])
def test_gc_knows_a_store_on_azure_by_each_of_its_spellings(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow holds wasbs://, the store is called otherwise: what a version refers to is not taken for unused."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acme")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db", f"sqlite:///{tmp_path}/mlflow.db")
    client.create_registered_model("tickets")
    source = "wasbs://models@acme.blob.core.windows.net/team-a/merged/k/a"
    client.create_model_version("tickets", source, tags={"qlora.base_uri": f"{store}/bases/b/r/files"})
    references = gc.find_references(client)
    gc.check_registry(store, "", references)
    assert references.sources == {source}
    assert references.bases == {"wasbs://models@acme.blob.core.windows.net/team-a/bases/b/r/files"}
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "another")
    with pytest.raises(InputError, match="no version in this registry refers to az://models/team-a"):
        gc.check_registry("az://models/team-a", "", references)
