import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.core import tracking
from components.core.config import RegisterConfig
from components.core.errors import InputError
from components.register_model import task
from tests.components.conftest import TinyRun

EVIDENCE = {"base_model": "tiny", "loss": "0.5"}


def register(name: str, merged_uri: str, key: str) -> task.Result:
    return task.run(RegisterConfig(model_name=name), merged_uri=merged_uri, merge_key=key, evidence=EVIDENCE)


def test_once_a_key_and_name(tiny_run: TinyRun, merged_uri: str) -> None:
    first = register("once", merged_uri, tiny_run.plan.merge_key)
    again = register("once", merged_uri, tiny_run.plan.merge_key)
    assert first == again == ("1", "models:/once@champion")
    version = tracking.client().get_model_version_by_alias("once", "champion")
    assert version.tags["qlora.merge_key"] == tiny_run.plan.merge_key
    assert version.tags["qlora.loss"] == "0.5"
    assert version.source == merged_uri


def test_six_at_once_make_one_version(tiny_run: TinyRun, merged_uri: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: register("race", merged_uri, tiny_run.plan.merge_key), range(6)))
    versions = tracking.client().search_model_versions("name = 'race'")
    assert len(versions) == 1
    assert {result.model_version for result in results} == {str(versions[0].version)}


def test_a_missing_file_is_refused_and_nothing_is_registered(
    tiny_run: TinyRun, merged_uri: str, tmp_path: Path
) -> None:
    torn = tmp_path / "torn"
    for path in Path(merged_uri).rglob("*"):
        if path.is_file() and path.name != "model.safetensors":
            target = torn / path.relative_to(merged_uri)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"model/model.safetensors is gone or not whole"):
        register("torn", str(torn), tiny_run.plan.merge_key)
    assert tracking.client().search_registered_models("name = 'torn'") == []


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
assert "components.core" not in sys.modules
"""


def test_a_stranger_with_mlflow_and_transformers_can_use_it(tiny_run: TinyRun, merged_uri: str, tmp_path: Path) -> None:
    import os

    register("stranger", merged_uri, tiny_run.plan.merge_key)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, os.environ["MLFLOW_TRACKING_URI"]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("assistant")
