import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import manifest, mlflow_client
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.components.register_model import task
from tests.components.conftest import TinyRun
from tests.components.register_model.registering import Killed, aliases, kill_after, register, versions


def test_once_a_key_and_name(tiny_run: TinyRun, merged_uri: str) -> None:
    first = register("once", merged_uri, tiny_run.plan.merge_key)
    again = register("once", merged_uri, tiny_run.plan.merge_key)
    assert first == again == ("1", "models:/once@champion", "champion")
    version = mlflow_client.connect().get_model_version_by_alias("once", "champion")
    assert version.tags["qlora.merge_key"] == tiny_run.plan.merge_key
    assert version.tags["qlora.loss"] == "0.5"
    assert version.tags["qlora.signed_by"] == "no"
    assert version.tags["qlora.outcome"] == "champion"
    assert version.source == merged_uri
    assert aliases("once") == {"champion": "1", "candidate": "1"}


def test_every_file_is_in_the_manifest_and_the_tag_is_its_hash(fresh: Callable[[str], tuple[str, str]]) -> None:
    uri, key = fresh("manifest")
    register("manifest", uri, key)
    tags = versions("manifest")[0].tags
    content = (Path(uri) / manifest.MANIFEST).read_bytes()
    assert hashlib.sha256(content).hexdigest() == tags["qlora.manifest_sha256"]
    listed = json.loads(content)["files"]
    there = {path.relative_to(uri).as_posix() for path in Path(uri).rglob("*") if path.is_file()}
    assert there == set(listed) | {manifest.MANIFEST}
    for name, file in listed.items():
        assert storage.sha256_file(Path(uri) / name) == file["sha256"], name


def test_the_same_model_under_a_second_name_shares_its_files(fresh: Callable[[str], tuple[str, str]]) -> None:
    uri, key = fresh("shared")
    register("shared-one", uri, key)
    before = (Path(uri) / manifest.MANIFEST).read_bytes()
    register("shared-two", uri, key, evidence={"loss": "0.4"})
    assert (Path(uri) / manifest.MANIFEST).read_bytes() == before
    one, two = versions("shared-one")[0], versions("shared-two")[0]
    assert one.tags["qlora.manifest_sha256"] == two.tags["qlora.manifest_sha256"]
    assert (one.tags["qlora.loss"], two.tags["qlora.loss"]) == ("0.5", "0.4")


def test_two_names_at_once_write_the_same_files(fresh: Callable[[str], tuple[str, str]]) -> None:
    uri, key = fresh("two-names")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: register(name, uri, key, evidence={"loss": f"0.{len(name)}"}), ["na", "nam"]))
    digest = hashlib.sha256((Path(uri) / manifest.MANIFEST).read_bytes()).hexdigest()
    assert [versions(name)[0].tags["qlora.manifest_sha256"] for name in ("na", "nam")] == [digest, digest]
    whole = manifest.read(uri, digest)
    assert all(storage.sha256_file(Path(uri) / name) == file["sha256"] for name, file in whole.files.items())


def test_six_at_once_make_one_version(fresh: Callable[[str], tuple[str, str]], adapter: Path) -> None:
    uri, key = fresh("race")
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: register("race", uri, key, adapter_uri=str(adapter)), range(6)))
    assert len(versions("race")) == 1
    (version,) = versions("race")
    assert set(results) == {task.Result(str(version.version), "models:/race@champion", "champion")}
    assert aliases("race") == {"champion": str(version.version), "candidate": str(version.version)}
    client = mlflow_client.connect()
    runs = client.search_runs([client.get_experiment_by_name("race").experiment_id])
    assert [run.info.run_id for run in runs] == [version.run_id]
    assert manifest.read(uri, version.tags["qlora.manifest_sha256"])


def test_killed_after_any_step_and_run_again_it_is_one_version(
    fresh: Callable[[str], tuple[str, str]], adapter: Path, tiny_run: TinyRun
) -> None:
    report = {"1-plan": str(tiny_run.folder / "plan.html")}
    evidence = {"listing_uri": tiny_run.plan.listing_uri, "data_digest": tiny_run.plan.data_digest}
    kills = 0
    while True:
        name = f"killed-{kills + 1}"
        uri, key = fresh(name)
        register(name, fresh(f"{name}-former")[0], f"{name}-former")
        given = {"adapter_uri": str(adapter), "champion_version": "1", "evidence": evidence, "reports": report}
        with pytest.MonkeyPatch.context() as patch:
            made = kill_after(kills + 1, patch)
            try:
                register(name, uri, key, **dict(given))
                break
            except Killed:
                kills += 1
        result = register(name, uri, key, **dict(given))
        assert result == ("2", f"models:/{name}@champion", "champion"), made
        assert aliases(name) == {"champion": "2", "candidate": "2", "previous": "1"}, made
        version = next(item for item in versions(name) if item.version in (2, "2"))
        assert len(versions(name)) == 2 and version.tags["qlora.outcome"] == "champion", made
        files = manifest.read(uri, version.tags["qlora.manifest_sha256"]).files
        assert "README.md" in files and "adapter/adapter_model.safetensors" in files, made
        run = mlflow_client.connect().get_run(version.run_id)
        assert run.info.status == "FINISHED" and len(run.inputs.dataset_inputs) == 1, made
    print(f"killed after each of {kills} writes, run again: one version each time")
    assert kills > 20


@pytest.mark.parametrize("how", ["gone", "altered"])
def test_a_missing_or_altered_file_is_refused_and_nothing_is_registered(
    how: str, fresh: Callable[[str], tuple[str, str]]
) -> None:
    uri, key = fresh("torn")
    weights = Path(uri) / "model" / "model.safetensors"
    if how == "gone":
        weights.unlink()
    else:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    message = "is gone" if how == "gone" else "was altered"
    with pytest.raises(InputError, match=f"model/model.safetensors {message}; run the merge again"):
        register("torn", uri, key)
    assert mlflow_client.connect().search_registered_models("name = 'torn'") == []


def test_a_version_whose_files_are_gone_says_so(fresh: Callable[[str], tuple[str, str]]) -> None:
    uri, key = fresh("vanished")
    register("vanished", uri, key)
    (Path(uri) / "model" / "config.json").unlink()
    with pytest.raises(InputError, match=r"model/config.json is gone; delete version 1 of vanished"):
        register("vanished", uri, key)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "minio://bucket/merged",
            r"merged model minio://bucket/merged: minio:// is not read here; give it as s3://buck",
        ),
        ("s3://bucket/a/../b", r"an address may not contain \.\."),
        ("store/../../etc", r"an address may not contain \.\."),
    ],
)
def test_an_address_that_is_none(uri: str, message: str, store: Path) -> None:
    with pytest.raises(InputError, match=message):
        register("nowhere", uri, "key", merged_digest="0" * 64)


def test_mlflow_that_does_not_answer(merged_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hidden@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"MLflow at http://127.0.0.1:9 does not answer") as error:
        register("nobody", merged_uri, "key")
    assert "hidden" not in str(error.value)


STRANGER = """
import sys, mlflow, torch, transformers
mlflow.set_tracking_uri(sys.argv[1]); mlflow.set_registry_uri(sys.argv[1])
pipeline = mlflow.transformers.load_model("models:/stranger@champion")
print(pipeline([{"role": "user", "content": "the cat sat on mat"}], max_new_tokens=4)[0]["generated_text"][-1]["role"])
folder = mlflow.artifacts.download_artifacts("models:/stranger@champion")
model = transformers.AutoModelForCausalLM.from_pretrained(folder + "/model")
assert model.dtype == torch.bfloat16 and getattr(model.config, "quantization_config", None) is None
served = mlflow.pyfunc.load_model("models:/stranger@champion")
answer = served.predict(served.input_example)
print(answer[0]["choices"][0]["message"]["role"])
assert "qlora_pipelines.components.core" not in sys.modules
"""


def test_a_stranger_with_mlflow_and_transformers_can_use_it(
    fresh: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    import os

    register("stranger", *fresh("stranger"))
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, os.environ["MLFLOW_TRACKING_URI"]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-2:] == ["assistant", "assistant"]
