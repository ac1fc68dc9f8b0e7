"""What is registered and signed is what was judged, whatever others write into the store meanwhile."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import manifest, mlflow_client, signing
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.register_model import mlflow_files, publish, task
from tests.components.conftest import digest, sealed
from tests.components.register_model.registering import register, versions
from tests.pipelines.cli.registered import write_keys

Fresh = Callable[[str], tuple[str, str]]
WEIGHTS = "model/model.safetensors"


@pytest.fixture
def public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    private, public = write_keys(tmp_path, "ours")
    monkeypatch.setenv("QLORA_SIGNING_KEY", str(private))
    return public


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replaced(uri: str) -> None:
    """Other weights, and a manifest that fits them."""
    flip(Path(uri) / WEIGHTS)
    sealed(Path(uri))


def nothing_is_registered(name: str) -> bool:
    return mlflow_client.connect().search_registered_models(f"name = '{name}'") == []


def test_a_model_and_manifest_replaced_since_the_merge_are_refused(fresh: Fresh, public: Path) -> None:
    uri, key = fresh("replaced")
    judged = digest(uri)
    replaced(uri)
    with pytest.raises(InputError, match=r"manifest.json was altered: its sha256 is .* the merged model said"):
        register("replaced", uri, key, merged_digest=judged)
    assert nothing_is_registered("replaced") and not (Path(uri) / signing.SIGNATURE).exists()


def test_an_adapter_and_manifest_replaced_since_training_are_refused(
    fresh: Fresh, adapter: Path, tmp_path: Path
) -> None:
    uri, key = fresh("adapter-replaced")
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    flip(other / "adapter_model.safetensors")
    sealed(other)
    with pytest.raises(InputError, match=r"other/manifest.json was altered: .* the adapter said"):
        register("adapter-replaced", uri, key, adapter_uri=str(other), adapter_digest=digest(adapter))
    assert nothing_is_registered("adapter-replaced")


def test_an_adapters_file_that_was_replaced_is_refused_where_it_is_registered(
    fresh: Fresh, adapter: Path, tmp_path: Path
) -> None:
    """It has the right size, and is copied, or is next to the model already and stays."""
    uri, key = fresh("adapter-file")
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    flip(other / "adapter_model.safetensors")
    message = "adapter/adapter_model.safetensors was altered"
    with pytest.raises(InputError, match=message):
        register("adapter-file", uri, key, adapter_uri=str(other))
    with pytest.raises(InputError, match=message):
        register("adapter-file", uri, key, adapter_uri=str(adapter))
    assert nothing_is_registered("adapter-file")


EXTRA = ["model/modeling.py", "evil.py", "model/.hidden", "adapter/evil.py", "components/tokenizer/evil.json", "evil/x"]


@pytest.mark.parametrize("name", EXTRA)
def test_an_extra_file_is_refused_before_a_version_is_created(name: str, fresh: Fresh, adapter: Path) -> None:
    uri, key = fresh("extra")
    path = Path(uri) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("evil")
    with pytest.raises(InputError, match=rf"(evil|{name}) is not in the manifest; remove it and run again"):
        register("extra", uri, key, adapter_uri=str(adapter))
    assert nothing_is_registered("extra")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_in_the_place_of_a_file_or_folder_is_refused(what: str, fresh: Fresh, tmp_path: Path) -> None:
    uri, key = fresh("linked")
    path = Path(uri) / ("model" if what == "folder" else WEIGHTS)
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match=f"{path.relative_to(uri)} is a symbolic link"):
        register("linked", uri, key)
    assert nothing_is_registered("linked")


CHANGES: dict[str, Callable[[str], Any]] = {
    "weights": lambda uri: flip(Path(uri) / WEIGHTS),
    "weights and manifest": replaced,
    "an extra file": lambda uri: (Path(uri) / "model" / "modeling.py").touch(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_the_version_and_its_signature_is_not_signed(
    change: str, fresh: Fresh, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, key = fresh("between")
    real = task._write_files

    def late(*given: Any, **named: Any) -> Any:
        CHANGES[change](uri)
        return real(*given, **named)

    monkeypatch.setattr(task, "_write_files", late)
    with pytest.raises(InputError, match=r"was altered|is not in the manifest"):
        register(f"between-{len(change)}", uri, key)
    (version,) = versions(f"between-{len(change)}")
    assert manifest.MANIFEST_TAG not in version.tags and not (Path(uri) / signing.SIGNATURE).exists()


def test_what_changes_while_it_is_signed_fails_its_pull_and_not_the_signature(
    fresh: Fresh, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, key = fresh("while")
    judged = attempts.read(uri).files
    real = mlflow_files.make
    monkeypatch.setattr(mlflow_files, "make", lambda *given: [real(*given), replaced(uri)][0])
    register("while", uri, key)
    files = manifest.read(uri).files
    assert judged.items() <= files.items()
    signed = manifest.read(uri, versions("while")[0].tags[manifest.MANIFEST_TAG]).signed_files
    signing.verify((Path(uri) / signing.SIGNATURE).read_bytes(), signed, str(public))
    assert set(attempts.altered(uri, files)) == {WEIGHTS, attempts.MANIFEST}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_what_is_read_to_make_mlflows_files_is_what_was_judged(
    name: str, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, key = fresh(f"made-from-{name.partition('.')[0]}")
    real = mlflow_files.make

    def late(*given: Any) -> dict[str, bytes]:
        flip(Path(uri) / "model" / name)
        return real(*given)

    monkeypatch.setattr(mlflow_files, "make", late)
    with pytest.raises(InputError, match=f"model/{name} was altered since it was checked"):
        register("made-from", uri, key)


def test_a_planted_registered_json_is_not_taken_over(fresh: Fresh, public: Path) -> None:
    """It lists files that fit it; the MLmodel among them names code of somebody else's to be run."""
    uri, key = fresh("planted")
    evil = b"flavors: {python_function: {loader_module: evil}}"
    (Path(uri) / "MLmodel").write_bytes(evil)
    files = attempts.read(uri).files | {"MLmodel": manifest.entry(evil)}
    planted = manifest.make(uri, files)
    (Path(uri) / manifest.MANIFEST).write_bytes(planted.content)
    register("planted", uri, key)
    tag = versions("planted")[0].tags[manifest.MANIFEST_TAG]
    assert tag != planted.sha256
    registered = manifest.read(uri, tag)
    assert (Path(uri) / "MLmodel").read_bytes() != evil and not attempts.altered(uri, registered.files)


def test_a_manifest_that_another_version_vouches_for_is_checked_against_what_was_judged(
    fresh: Fresh, public: Path
) -> None:
    uri, key = fresh("vouched")
    register("vouched-one", uri, key)
    register("vouched-two", uri, key)
    assert versions("vouched-one")[0].tags[manifest.MANIFEST_TAG] == versions("vouched-two")[0].tags[
        manifest.MANIFEST_TAG
    ]  # fmt: skip
    content = (Path(uri) / manifest.MANIFEST).read_bytes()
    (Path(uri) / manifest.MANIFEST).write_bytes(content + b" ")
    with pytest.raises(InputError, match=r"registered.json was altered"):
        register("vouched-three", uri, key)
    (Path(uri) / manifest.MANIFEST).write_bytes(content)
    replaced(uri)
    with pytest.raises(InputError, match=rf"is registered with another {WEIGHTS} than was judged"):
        register("vouched-four", uri, key)


def test_a_version_of_this_key_that_holds_another_model_is_not_taken_for_the_judged_one(fresh: Fresh) -> None:
    uri, key = fresh("same-key")
    register("same-key", uri, key)
    other, _ = fresh("same-key-other")
    replaced(other)
    with pytest.raises(InputError, match=rf"same-key version 1 is registered with another {WEIGHTS} than was judged"):
        register("same-key", other, key)


@pytest.mark.parametrize("given", ["", "0" * 63, "latest"])
def test_without_a_digest_nothing_is_registered(given: str, fresh: Fresh, adapter: Path) -> None:
    uri, key = fresh("no-digest")
    with pytest.raises(InputError, match=r"merged model .*: give its digest, as the step that made it returned it"):
        register("no-digest", uri, key, merged_digest=given)
    with pytest.raises(InputError, match=r"adapter .*: give its digest, as the step that made it returned it"):
        register("no-digest", uri, key, adapter_uri=str(adapter), adapter_digest=given)


def test_what_registration_adds_is_what_others_allow_next_to_a_model(fresh: Fresh, adapter: Path) -> None:
    uri, key = fresh("added")
    register("added", uri, key, adapter_uri=str(adapter))
    added = set(storage.sizes(uri)) - set(attempts.read(uri).files) - {attempts.MANIFEST}
    assert added and all(manifest.is_added(name) for name in added)
    assert {name.partition("/")[0] for name in added} >= {publish.ADAPTER, "MLmodel", "components"}
    assert manifest.is_added(".MLmodel.0123456789ab.part") and manifest.is_added("adapter/.x.0123456789ab.part")
    assert not manifest.is_added("model/.model.safetensors.0123456789ab.part") and not manifest.is_added("evil.py")
    assert json.loads((Path(uri) / manifest.MANIFEST).read_text())["files"].keys() >= added - {manifest.MANIFEST}
