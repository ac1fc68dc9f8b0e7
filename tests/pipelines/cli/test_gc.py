"""gc: what it removes, and what it leaves."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from qlora_pipelines.components.core.registry import integrity, references
from qlora_pipelines.components.core.store import attempts
from qlora_pipelines.components.register_model import task
from qlora_pipelines.pipelines.cli import unused
from tests.pipelines.cli.gc_work import client, make_adapter, merged, record_run, use_registry, write
from tests.pipelines.cli.registered import Make, aged, qlora, refused, register


def listed(*arguments: str) -> dict[str, str]:
    """Why each piece that no version needs stays, by its path below the store; '' where it goes."""
    found = json.loads(qlora("gc", "--json", *arguments).output)["pieces"]
    return {piece["path"]: piece["kept"] for piece in found}


def test_gc_removes_what_no_version_refers_to(make_merged: Make, store: str) -> None:
    base = f"{store}/bases/org--tiny/abc"
    evidence = {"training_key": "training-one", "data_digest": "d1", "base_uri": f"{base}/files"}
    kept, _ = register(make_merged, store, "one", evidence=evidence)
    unwanted = merged(make_merged, store, "unwanted")
    merged(make_merged, store, "young", days=0)
    write(store, "checkpoints/training-one/a/x", "checkpoints/training-two/a/x", "listings/d1.json", "listings/d2.json",
          "tokenizers/t/x", "bases/org--tiny/abc/files/x", "bases/org--tiny/old/files/x",
          "claims/training-unwanted/tiny/1/a.passed", "checksums/x", "prepared/d/a/x", "evaluations/one/e/a/x",
          "evaluations/unwanted/e/a/x", "evaluations/training-one/e/a/x")  # fmt: skip
    make_adapter(store, "training-one")
    record_run(store, "unwanted", "listings/d2.json", "bases/org--tiny/old", "checkpoints/training-two", "prepared/d")
    record_run(store, "young")
    aged(Path(kept), 30)
    expected = {
        "bases/org--tiny/old",
        "checkpoints/training-one",
        "claims/training-unwanted",
        "evaluations/unwanted",
        "prepared/d",
        "listings/d2.json",
        f"merged/unwanted/{unwanted.name}",
    }
    left = {
        "checkpoints/training-two": "its training is not finished",
        next(path for path in listed("--dry-run") if path.startswith("merged/young/")): (
            "it was written in the last 7 days"
        ),
    }
    assert listed("--dry-run") == dict.fromkeys(expected, "") | left
    assert all(Path(store, path).exists() for path in expected)
    output = qlora("gc").output
    assert f"{store}/checkpoints/training-two: stays: its training is not finished\n" in output
    assert output.endswith("7 pieces, 0.000 GB, removed\n")
    assert not any(Path(store, path).exists() for path in expected)
    assert Path(kept, "model", "config.json").exists() and all(Path(store, path).exists() for path in left)
    assert Path(store, "checksums/x").exists() and Path(store, "tokenizers/t/x").exists()
    assert listed() == left


def test_how_steps_ended_goes_when_it_is_old(make_merged: Make, store: str) -> None:
    register(make_merged, store, "one")
    write(store, "runs/old/plan_run.json", "runs/old/notify.json", "runs/young/plan_run.json")
    write(store, "runs/young/register_model.json", days=1)
    assert listed("--dry-run") == {"runs/old": ""}
    assert listed() == {"runs/old": ""} and listed() == {}
    assert Path(store, "runs/young/plan_run.json").exists() and not Path(store, "runs/old").exists()
    assert listed("--days", "0") == {"runs/young": ""}


def test_checkpoints_stay_until_the_adapter_that_came_of_them_is_whole(make_merged: Make, store: str) -> None:
    register(make_merged, store, "one")
    write(store, "checkpoints/training-one/a/x")
    assert listed("--dry-run") == {"checkpoints/training-one": "its training is not finished"}
    make_adapter(store, "training-one")
    assert listed("--dry-run") == {"checkpoints/training-one": ""}


def test_what_no_record_names_stays(make_merged: Make, store: str) -> None:
    """It may be another registry's, of version 0.1, which kept no records."""
    register(make_merged, store, "one")
    unwanted = merged(make_merged, store, "unwanted")
    reason = f"no record in {store}/references says that it is this registry's"
    assert listed() == {f"merged/unwanted/{unwanted.name}": reason}
    assert unwanted.exists()


def test_what_another_registry_refers_to_stays(
    make_merged: Make, store: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two registries share a store: neither removes what only the other has a version of, nor what both have."""
    alone, _ = register(make_merged, store, "alone")
    both, _ = register(make_merged, store, "both")
    use_registry(monkeypatch, place / "other.db")
    theirs, _ = register(make_merged, store, "theirs")
    work = attempts.read(both)
    given = {"merged_digest": integrity.digest(work), "merged_uri": both, "merge_key": "both"}
    task.run(task.Config(model_name="others"), **given)
    for path in (alone, both, theirs, f"{store}/references"):
        aged(Path(path), 30)
    kept = listed()
    assert set(kept) == {f"merged/alone/{Path(alone).name}"}
    assert f"the registry at sqlite:///{place}/mlflow.db refers to it" in kept[f"merged/alone/{Path(alone).name}"]

    client().delete_registered_model("others")
    assert all("mlflow.db refers to it" in why for why in listed().values())  # `both` stays, for the first registry
    assert Path(both, "model").exists() and Path(alone, "model").exists() and Path(theirs, "model").exists()

    use_registry(monkeypatch, place / "mlflow.db")
    client().delete_registered_model("tickets")
    kept = listed()
    assert kept[f"merged/alone/{Path(alone).name}"] == kept[f"merged/both/{Path(both).name}"] == ""
    assert "other.db refers to it" in kept[f"merged/theirs/{Path(theirs).name}"]
    assert not Path(both).exists() and Path(theirs, "model").exists()


def test_a_registry_without_versions_removes_nothing_of_others(
    make_merged: Make, store: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwanted = merged(make_merged, store, "unwanted")
    record_run(store, "unwanted")
    use_registry(monkeypatch, place / "empty.db")
    assert "mlflow.db refers to it" in listed()[f"merged/unwanted/{unwanted.name}"]
    assert client().get_experiment_by_name(references.EXPERIMENT) is None  # gc only looks
    assert unwanted.exists()


def test_a_champion_stays_however_the_store_is_spelt(
    make_merged: Make, store: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered through a link, as a mount is, or as a relative path; and the other way round."""
    link = place / "link"
    Path(store).mkdir()
    link.symlink_to(store)
    monkeypatch.chdir(place)
    spellings = (store, str(link), "link")
    for at, spelling in enumerate(spellings):
        monkeypatch.setenv("QLORA_STORE", spelling)
        uri, _ = register(make_merged, spelling, f"key{at}")
        aged(Path(uri), 30)
    aged(Path(store, "references"), 30)
    for spelling in spellings:
        monkeypatch.setenv("QLORA_STORE", spelling)
        assert listed() == {}
    assert len(list(Path(store, "merged").iterdir())) == len(spellings)


def test_a_version_that_this_login_may_not_see_is_taken_for_there(
    make_merged: Make, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its search leaves out a model that the login may not read; asked for by name, MLflow refuses."""
    uri, _ = register(make_merged, store, "one")
    aged(Path(uri), 30)
    aged(Path(store, "references"), 30)
    monkeypatch.setattr(unused.versions, "search", lambda _client: [])
    version_1 = f"merged/one/{Path(uri).name}"
    assert listed() == {version_1: "tickets version 1 refers to it"}

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise mlflow.MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(mlflow.MlflowClient, "get_model_version", refuse)
    assert listed() == {version_1: "tickets version 1 refers to it"}
    assert Path(uri, "model").exists()


def test_a_damaged_record_stops_gc(make_merged: Make, store: str) -> None:
    register(make_merged, store, "one")
    unwanted = merged(make_merged, store, "unwanted")
    record_run(store, "unwanted")
    for content in ("", "[]", '{"pieces": 1}', '{"server": "", "model": "", "version": "", "pieces": 1}'):
        write(store, "references/another/k/run.json")
        Path(store, "references/another/k/run.json").write_text(content)
        assert refused("gc").endswith(
            "references/another/k/run.json is damaged; nothing is removed as long as it is there"
        )
    assert unwanted.exists()


def test_gc_leaves_what_is_not_named_by_a_merge_key_in_the_store_of_registered_models(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, unwanted, foreign = "a" * 64, "b" * 64, "c" * 64
    models = str(tmp_path / "models")
    monkeypatch.setenv("QLORA_MODELS_STORE", models)
    write(models, f"{kept}/model/x", f"{unwanted}/model/x", f"{foreign}/model/x", "team-a/merged/k/a/x", "notes.txt")
    client().create_registered_model("tickets")
    client().create_model_version("tickets", f"{models}/{kept}")
    own = references.registry_id(client())
    for registry, key in ((own, unwanted), ("another", foreign), ("another", kept)):
        references.write(registry, [models], key, [key], "tickets", "7")
    aged(Path(models), 30)
    found = listed()
    assert found[unwanted] == "" and "another/" in found[foreign] and set(found) == {unwanted, foreign}
    assert {path.name for path in Path(models).iterdir()} == {kept, foreign, "team-a", "notes.txt", "references"}
    assert not Path(models, "references", own, unwanted, "tickets-7.json").exists()


@pytest.mark.parametrize("store", ["az://models/team-a", "abfss://models@acme.dfs.core.windows.net/team-a"])
def test_gc_knows_a_store_on_azure_by_each_of_its_spellings(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow holds wasbs://, the store is called otherwise: what a version refers to is not taken for unused."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acme")
    use_registry(monkeypatch, tmp_path / "mlflow.db")
    client().create_registered_model("tickets")
    source = "wasbs://models@acme.blob.core.windows.net/team-a/merged/k/a"
    client().create_model_version("tickets", source, tags={"qlora.base_uri": f"{store}/bases/b/r/files"})
    registry = unused.Registry(client())
    assert registry.sources == {source}
    assert registry.bases == {"wasbs://models@acme.blob.core.windows.net/team-a/bases/b/r/files"}
