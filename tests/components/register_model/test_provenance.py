import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.components.core.store import attempts
from qlora_pipelines.components.register_model import provenance
from tests.components.conftest import TinyRun
from tests.components.register_model.registering import register, versions


def test_the_evidence_is_completed_from_what_the_steps_wrote(
    tiny_run: TinyRun, tiny_model: Path, adapter: Path
) -> None:
    evidence = {
        "run_config": tiny_run.plan.run_config,
        "listing_uri": tiny_run.plan.listing_uri,
        "tuned_figures": json.dumps({"loss": 0.52, "reference": "base", "reference_loss": 0.9}),
        "merged_figures": json.dumps({"loss": 0.500001, "exact_match": 0.75}),
        "base_exact_match": "0.25",
    }
    assert provenance.complete(evidence, attempts.read(str(adapter))) == evidence | {
        "base_model": str(tiny_model),
        "base_revision": tiny_run.plan.base_revision,
        "base_uri": str(tiny_model),
        "data_digest": tiny_run.plan.data_digest,
        "dataset_digest": tiny_run.data.dataset_digest,
        "training_key": tiny_run.plan.training_key,
        "loss": "0.500001",
        "exact_match": "0.75",
        "base_loss": "0.9",
        "adapter_uri": str(adapter),
    }


def test_what_is_given_is_not_derived_and_what_is_not_known_is_left_out() -> None:
    assert provenance.complete({}, None) == {}
    assert provenance.complete({"loss": "1", "merged_figures": '{"loss": 2}'}, None)["loss"] == "1"
    for text in ("{", "[]", "3"):
        with pytest.raises(InputError, match="evidence run_config: a JSON object is expected"):
            provenance.complete({"run_config": text}, None)


def test_the_run_holds_the_data_the_figures_and_the_reports(
    fresh: Callable[[str], tuple[str, str]], tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("QLORA_GIT_COMMIT", "c0ffee")
    uri, key = fresh("proof")
    evidence = {
        "listing_uri": tiny_run.plan.listing_uri,
        "run_config": tiny_run.plan.run_config,
        "merged_figures": json.dumps({"loss": 0.5, "loss_low": 0.4, "loss_high": 0.6, "reason": "passed"}),
    }
    register("proof", uri, key, evidence=evidence, reports={"1-plan": str(tiny_run.folder / "plan.html")})
    client = mlflow_client.connect()
    version = versions("proof")[0]
    run = client.get_run(version.run_id)
    (data,) = run.inputs.dataset_inputs
    assert json.loads(data.dataset.source)["uri"] == str(tiny_run.folder / "rows.jsonl")
    assert tiny_run.plan.data_digest.startswith(data.dataset.digest)
    assert run.data.metrics["merged_loss_low"] == 0.4 and run.data.metrics["loss"] == 0.5
    report = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/reports/1-plan.html")
    assert report == (tiny_run.folder / "plan.html").read_text()
    assert version.tags["qlora.git_commit"] == "c0ffee" and version.tags["qlora.version"]
    folder = mlflow.artifacts.download_artifacts(version.tags["qlora.reports"])
    assert [path.name for path in Path(folder).iterdir()] == ["1-plan.html"]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's code is in a folder of the test's own."""
    monkeypatch.delenv("QLORA_GIT_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "components" / "register_model" / "provenance.py"))


@pytest.mark.usefixtures("elsewhere")
def test_without_a_checkout_there_is_no_commit() -> None:
    assert provenance.git_commit() == ""


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.skipif(not shutil.which("git"), reason="no git here")
def test_the_commit_says_whether_files_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "file").write_text("one")
    git("init", "-q")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    git("tag", "a-tag")
    assert provenance.git_commit() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert provenance.git_commit() == git("rev-parse", "HEAD") + "-dirty"
