"""`qlora submit` against a server that speaks v2beta1: what it sends, what it prints, how it exits, and faults."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from qlora_pipelines.pipelines.cli.main import main
from qlora_pipelines.pipelines.compiler.compiled import Compiled
from qlora_pipelines.pipelines.docgen.reference import GOLDEN
from qlora_pipelines.pipelines.kfp_api import client
from tests.pipelines.kfp_api.commands import qlora, refused, submit
from tests.pipelines.kfp_api.state import Fault, Kfp


def test_a_run_has_its_parameters_account_experiment_and_plugin_input(
    kfp: Kfp, run_yaml: Path, pipeline: Compiled
) -> None:
    found = submit(run_yaml, "--set", "learning_rate=1e-3", "--set", "options.train_qlora.max_steps=7",
                   "--service-account", "trainer", "--experiment", "nightly")  # fmt: skip
    run = kfp.only_run()
    assert (found["exit_code"], found["run_id"], found["uploaded"]) == (0, run.run_id, True)
    assert run.runtime_config.parameters == {
        "base_model": "org/base", "dataset_uri": "s3://bucket/data", "model_name": "tickets", "num_train_epochs": 2.0,
        "learning_rate": 0.001, "options": '{"train_qlora": {"max_steps": 7}}',
    }  # fmt: skip
    assert run.service_account == "trainer"
    assert kfp.experiments[run.experiment_id].display_name == "nightly"
    assert run.plugins_input == {"mlflow": {"experiment_name": "qlora-training"}}
    (version,) = kfp.versions.values()
    assert version.display_name == pipeline.version == found["version"]
    assert version.pipeline_spec == pipeline.spec
    assert found["url"] == f"{kfp.url}/#/runs/details/{run.run_id}"


def test_the_same_content_is_uploaded_once(kfp: Kfp, run_yaml: Path, tmp_path: Path) -> None:
    assert "uploaded" in qlora("submit", "--upload-only").output
    assert "is already there" in qlora("submit", "--upload-only").output
    assert submit(run_yaml)["uploaded"] is False
    other = tmp_path / "other.yaml"
    other.write_text(GOLDEN.read_text().replace("8Gi", "9Gi"))
    made = CliRunner().invoke(main, ["submit", "--upload-only", "--pipeline", str(other), "--json"])
    assert json.loads(made.output)["uploaded"] is True
    assert len(kfp.versions) == 2 and len(kfp.pipelines) == 1
    # The same content, formatted differently, is the same version.
    other.write_text(yaml.safe_dump_all(list(yaml.safe_load_all(GOLDEN.read_text())), width=1000))
    again = CliRunner().invoke(main, ["submit", "--upload-only", "--pipeline", str(other), "--json"])
    assert json.loads(again.output)["uploaded"] is False


def test_a_server_without_plugins_gets_none(kfp: Kfp, run_yaml: Path) -> None:
    kfp.knows_plugins = False
    assert submit(run_yaml)["exit_code"] == 0
    assert kfp.only_run().plugins_input is None


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST .*/runs$", 503, done=True), Fault("POST .*/runs$", 0, done=True), Fault("POST .*/runs$", 504),
        Fault("POST .*/runs$", 0), Fault("POST .*/runs$", slow=0.6, done=True),
    ],
    ids=["503 after it was done", "dropped after it was done", "504", "dropped", "slow and done"],
)  # fmt: skip
def test_a_run_whose_creation_got_no_answer_is_there_once(
    kfp: Kfp, run_yaml: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT", (0.5, 0.4))
    from qlora_pipelines.pipelines.kfp_api import runs

    monkeypatch.setattr(runs, "LIST_DELAY", 0.3)
    kfp.faults = [fault]
    found = submit(run_yaml)
    time.sleep(0.2)
    assert found["run_id"] == kfp.only_run().run_id


@pytest.mark.parametrize("gone", ["version", "pipeline"])
def test_what_was_deleted_on_the_server_is_uploaded_again(
    kfp: Kfp, run_yaml: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_once = client.Server.call_once

    def deleting(self: client.Server, call: Any, *arguments: Any, **options: Any) -> Any:
        if call.__name__ == "run_service_create_run" and not kfp.count("POST .*/runs$"):
            kfp.versions.clear()  # between looking it up and creating the run
            if gone == "pipeline":
                kfp.pipelines.clear()
        return call_once(self, call, *arguments, **options)

    qlora("submit", "--upload-only")
    monkeypatch.setattr(client.Server, "call_once", deleting)
    assert submit(run_yaml)["uploaded"] is True
    assert len(kfp.versions) == 1 and len(kfp.runs) == 1


def test_a_server_too_old_for_the_pipeline_says_so(kfp: Kfp, run_yaml: Path) -> None:
    kfp.newest_sdk = "kfp-2.0.0"
    message = refused("submit", "--config", run_yaml)
    assert "unknown field in the platform spec" in message and "upgrade Kubeflow Pipelines" in message
    assert not kfp.runs


def test_an_address_without_the_api(kfp: Kfp, run_yaml: Path) -> None:
    kfp.faults = [Fault("healthz", 404)]
    assert "has no v2beta1 API" in refused("submit", "--config", run_yaml)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lerning_rate=1", "unknown option lerning_rate; did you mean learning_rate?"),
        ("training_key=ab", "unknown option training_key"),
        ("epochs=3", "epochs is now num_train_epochs"),
        ("options.train_qlora.lr_schedule=linear", "options.train_qlora.lr_schedule is now lr_scheduler_type"),
        ("num_train_epochs=many", "num_train_epochs"),
        ("max_length=1.5", "max_length"),
        ("options.train_qlora.max_step=1", "did you mean max_steps?"),
        ("options.trian_qlora.max_steps=1", "did you mean train_qlora?"),
        ("learning_rate", "--set learning_rate: give NAME=VALUE"),
        ("train.max_steps=1", "only options has parts"),
        (f"base_revision={'x' * 10000}", "Kubeflow Pipelines takes 10000"),
    ],
)
def test_a_wrong_parameter_is_one_line_before_anything_is_sent(
    kfp: Kfp, run_yaml: Path, setting: str, message: str
) -> None:
    assert message in refused("submit", "--config", run_yaml, "--set", setting)
    assert not kfp.requests


def test_a_missing_parameter_is_named(kfp: Kfp, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("base_model: b\ndataset_uri: d\n")
    assert refused("submit", "--config", tmp_path / "run.yaml") == "model_name is required"


def test_a_file_that_is_not_a_pipeline(tmp_path: Path, kfp: Kfp) -> None:
    for name, content in {"a.yaml": "a: 1", "b.yaml": "[", "c.yaml": ""}.items():
        (tmp_path / name).write_text(content)
        result = CliRunner().invoke(main, ["submit", "--upload-only", "--pipeline", str(tmp_path / name)])
        assert result.exit_code == 1 and "not a compiled pipeline" in result.output
    assert not kfp.requests


def test_a_usage_error_exits_2(run_yaml: Path) -> None:
    assert qlora("submit").exit_code == 2
    assert qlora("submit", "--config", run_yaml, "--upload-only").exit_code == 2
    for command in ("submit", "trigger"):
        help_text = CliRunner().invoke(main, [command, "--help"]).output
        assert "Example:" in help_text and "token" not in help_text.lower().replace("tokens", "")
