"""`qlora submit` against a server that speaks v2beta1: what it sends, what it prints, how it exits, and faults."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp_server_api as api
import pytest
import yaml
from click.testing import CliRunner, Result

from pipelines.cli import main
from pipelines.compiled import Compiled
from pipelines.kfp_server import server, signing_in
from pipelines.reference import GOLDEN
from tests.pipelines.kfp_server.api_server import Fault, Kfp, look, task
from tests.pipelines.kfp_server.conftest import SECRETS


def qlora(*arguments: str | Path) -> Result:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(main, [given[0], "--pipeline", str(GOLDEN), *given[1:]])
    assert not any(secret in result.output for secret in SECRETS), result.output
    assert ("Traceback" not in result.output and result.exception is None) or isinstance(result.exception, SystemExit)
    return result


def refused(*arguments: str | Path) -> str:
    result = qlora(*arguments)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.output
    return lines[0].removeprefix("error: ")


def submit(config: Path, *arguments: str) -> dict[str, Any]:
    result = qlora("submit", "--config", config, "--json", *arguments)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found | {"exit_code": result.exit_code, "said": result.stderr}


def test_a_run_has_its_parameters_account_experiment_and_plugin_input(
    kfp: Kfp, run_yaml: Path, pipeline: Compiled
) -> None:
    found = submit(run_yaml, "--set", "learning_rate=1e-3", "--set", "options.train_qlora.max_steps=7",
                   "--service-account", "trainer", "--experiment", "nightly")  # fmt: skip
    run = kfp.only_run()
    assert (found["exit_code"], found["run_id"], found["uploaded"]) == (0, run.run_id, True)
    assert run.runtime_config.parameters == {
        "base_model": "org/base", "dataset_uri": "s3://bucket/data", "model_name": "tickets", "epochs": 2.0,
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
    assert "was there already" in qlora("submit", "--upload-only").output
    assert submit(run_yaml)["uploaded"] is False
    other = tmp_path / "other.yaml"
    other.write_text(GOLDEN.read_text().replace("8Gi", "9Gi"))
    made = CliRunner().invoke(main, ["submit", "--upload-only", "--pipeline", str(other), "--json"])
    assert json.loads(made.output)["uploaded"] is True
    assert len(kfp.versions) == 2 and len(kfp.pipelines) == 1
    # The same content in another layout is the same version.
    other.write_text(yaml.safe_dump_all(list(yaml.safe_load_all(GOLDEN.read_text())), width=1000))
    again = CliRunner().invoke(main, ["submit", "--upload-only", "--pipeline", str(other), "--json"])
    assert json.loads(again.output)["uploaded"] is False


def test_a_server_without_plugins_gets_none(kfp: Kfp, run_yaml: Path) -> None:
    kfp.knows_plugins = False
    assert submit(run_yaml)["exit_code"] == 0
    assert kfp.only_run().plugins_input is None


def steps(*states: str) -> list[api.V2beta1PipelineTaskDetail]:
    """Steps in the pipeline's order, among the nodes that are none."""
    names = ["plan-run", "stage-base-model", "prepare-dataset", "train-qlora", "evaluate-model", "dequantize-and-merge",
             "evaluate-model-2", "register-model"]  # fmt: skip
    shown = [task(name, state) for name, state in zip(names, states, strict=False)]
    return [task("root", "RUNNING"), task("root-driver", "SUCCEEDED"), task("executor", "RUNNING"), *shown]


DONE = ["SUCCEEDED"] * 8


def test_wait_says_each_step_once_and_ends_as_the_run(kfp: Kfp, run_yaml: Path) -> None:
    began, ended = datetime(2026, 1, 1, 12, 0, tzinfo=UTC), datetime(2026, 1, 1, 12, 1, 5, tzinfo=UTC)
    timed = task("plan-run", "SUCCEEDED", start_time=began, end_time=ended)
    kfp.life = [
        look("PENDING"), look("RUNNING", *steps("RUNNING")), look("RUNNING", *steps("RUNNING")),
        look("RUNNING", timed, task("train-qlora", "RUNNING")), look("SUCCEEDED", *steps(*DONE)),
    ]  # fmt: skip
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["outcome"]) == (0, "done")
    said = found["said"].splitlines()
    assert sum(line.split() == ["plan-run", "running"] for line in said) == 1
    assert any(line.split()[:1] == ["plan-run"] and line.endswith("succeeded in 1 min 05 s") for line in said)
    assert not any(word in found["said"] for word in ("driver", "executor", "root"))
    assert any(line.startswith("evaluate-merged") for line in said)  # by the name that people know


def test_a_run_that_the_gate_stopped_exits_3(kfp: Kfp, run_yaml: Path) -> None:
    kfp.life = [look("SUCCEEDED", *steps(*DONE[:5]))]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["outcome"]) == (3, "gate_said_no")
    assert "the gate said no" in found["said"]


def test_a_run_that_failed_exits_1_with_the_step_and_its_line(kfp: Kfp, run_yaml: Path) -> None:
    kfp.logs["pod-1"] = "loading\n[train_qlora] error: the loss is NaN at step 3\nexit status 1\n"
    failed = task("train-qlora", "FAILED", child_tasks=[api.PipelineTaskDetailChildTask(pod_name="pod-1")])
    kfp.life = [look("FAILED", task("plan-run", "SUCCEEDED"), failed)]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["failed_step"]) == (1, "train-qlora")
    assert found["last_lines"] == ["[train_qlora] error: the loss is NaN at step 3"]


def test_where_the_log_is_gone_the_servers_reason_is_told(kfp: Kfp, run_yaml: Path) -> None:
    failed = task(
        "train-qlora", "FAILED", pod_name="gone", error=api.GoogleRpcStatus(message="OOMKilled (exit code 137)")
    )
    kfp.life = [look("FAILED", failed)]
    assert submit(run_yaml, "--wait")["last_lines"] == ["OOMKilled (exit code 137)"]
    kfp.life = [look("FAILED")]
    found = submit(run_yaml, "--wait")
    assert found["exit_code"] == 1 and found["last_lines"] == [
        "the server gives no reason; the step's log is in the UI"
    ]


def test_a_log_without_an_error_line_is_shown_by_its_end(kfp: Kfp, run_yaml: Path) -> None:
    kfp.logs["pod-1"] = "\n".join(f"line {n}" for n in range(40))
    kfp.life = [look("FAILED", task("train-qlora", "FAILED", pod_name="pod-1"))]
    assert submit(run_yaml, "--wait")["last_lines"] == [f"line {n}" for n in range(25, 40)]


def test_a_cancelled_run_exits_4(kfp: Kfp, run_yaml: Path) -> None:
    kfp.life = [look("RUNNING"), look("CANCELING"), look("CANCELED")]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["outcome"]) == (4, "cancelled")


def test_a_run_that_vanishes_is_said(kfp: Kfp, run_yaml: Path) -> None:
    kfp.life = [look("RUNNING"), {"vanish": True}]
    assert "is no longer on" in refused("submit", "--config", run_yaml, "--wait")


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET .*/runs/", 401, times=3), Fault("GET .*/runs/", 503, times=5), Fault("GET .*/runs/", 0, times=4),
        Fault("GET .*/runs/", 502, times=2, page="<html>Bad Gateway</html>"), Fault("GET .*/runs/", slow=0.6, times=2),
        Fault("GET .*/runs/", 404, times=2), Fault("GET .*/runs/", 429, times=2),
    ],
    ids=["401", "503", "dropped", "a proxy's page", "slow", "404 for a moment", "429"],
)  # fmt: skip
def test_the_wait_survives(kfp: Kfp, run_yaml: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TIMEOUT", (0.5, 0.4))
    kfp.life = [look("RUNNING", *steps("RUNNING")), look("SUCCEEDED", *steps(*DONE))]
    kfp.faults = [fault]
    assert submit(run_yaml, "--wait")["exit_code"] == 0
    assert fault.times == 0


def test_a_renewed_token_is_read_in_the_middle_of_a_wait(
    kfp: Kfp, run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("a-secret-token\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(token))
    kfp.token = "a-secret-token"
    kfp.life = [look("RUNNING", *steps("RUNNING"))] * 3 + [look("SUCCEEDED", *steps(*DONE))]
    refresh = server.time.sleep

    def sleep(seconds: float) -> None:
        if kfp.count("GET .*/runs/") == 2:
            kfp.token = "another"  # the old one is refused from now on
        if kfp.count("GET .*/runs/") == 4:
            token.write_text("another")
        refresh(seconds)

    monkeypatch.setattr(server.time, "sleep", sleep)
    assert submit(run_yaml, "--wait")["exit_code"] == 0
    assert kfp.count("GET .*/runs/") > 4


def test_a_server_that_stays_away_ends_the_wait(kfp: Kfp, run_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.kfp_server import waiting

    monkeypatch.setattr(waiting, "PATIENCE", 0.1)
    monkeypatch.setattr(server.Server.__init__, "__defaults__", ("", "", "", 0.1))
    kfp.faults = [Fault("GET .*/runs/", 503, times=10**6)]
    assert "it is not my day (HTTP status 503)" in refused("submit", "--config", run_yaml, "--wait")
    assert len(kfp.runs) == 1 and not kfp.terminated


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
    monkeypatch.setattr(server, "TIMEOUT", (0.5, 0.4))
    from pipelines.kfp_server import starting

    monkeypatch.setattr(starting, "SETTLED", 0.3)
    kfp.faults = [fault]
    found = submit(run_yaml)
    time.sleep(0.2)
    assert found["run_id"] == kfp.only_run().run_id


@pytest.mark.parametrize("gone", ["version", "pipeline"])
def test_what_was_deleted_on_the_server_is_uploaded_again(
    kfp: Kfp, run_yaml: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = server.Server.once

    def deleting(self: server.Server, call: Any, *arguments: Any, **options: Any) -> Any:
        if call.__name__ == "run_service_create_run" and not kfp.count("POST .*/runs$"):
            kfp.versions.clear()  # between looking it up and creating the run
            if gone == "pipeline":
                kfp.pipelines.clear()
        return once(self, call, *arguments, **options)

    qlora("submit", "--upload-only")
    monkeypatch.setattr(server.Server, "once", deleting)
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
        ("epochs=many", "epochs"),
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


def test_what_is_no_pipeline(tmp_path: Path, kfp: Kfp) -> None:
    for name, content in {"a.yaml": "a: 1", "b.yaml": "[", "c.yaml": ""}.items():
        (tmp_path / name).write_text(content)
        result = CliRunner().invoke(main, ["submit", "--upload-only", "--pipeline", str(tmp_path / name)])
        assert result.exit_code == 1 and "not a compiled pipeline" in result.output
    assert not kfp.requests


def test_wrong_use_exits_2(run_yaml: Path) -> None:
    assert qlora("submit").exit_code == 2
    assert qlora("submit", "--config", run_yaml, "--upload-only").exit_code == 2
    for command in ("submit", "trigger"):
        help_text = CliRunner().invoke(main, [command, "--help"]).output
        assert "Example:" in help_text and "token" not in help_text.lower().replace("tokens", "")


class TestSigningIn:
    """Credentials from the environment and files; never in what is printed (`qlora` checks that each time)."""

    def test_a_token(self, kfp: Kfp, run_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        kfp.token = "a-secret-token"
        assert "does not know this login (401): set QLORA_KFP_TOKEN" in refused("submit", "--config", run_yaml)
        assert kfp.count("healthz") == 2  # a login that never worked is not tried for long
        monkeypatch.setenv("QLORA_KFP_TOKEN", "a-secret-token")
        assert submit(run_yaml)["exit_code"] == 0

    def test_a_session_cookie(self, kfp: Kfp, run_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        kfp.cookie = "authservice_session=a-secret-cookie"
        assert "leads to a login page (302)" in refused("submit", "--config", run_yaml)
        monkeypatch.setenv("QLORA_KFP_COOKIE", "authservice_session=a-secret-cookie")
        assert submit(run_yaml)["exit_code"] == 0

    def test_a_login_page_that_answers_200(self, kfp: Kfp, run_yaml: Path) -> None:
        kfp.faults = [Fault("healthz", 200, page="<html>Log in</html>")]
        assert "answers with a page (text/html)" in refused("submit", "--config", run_yaml)

    def test_what_may_not_be_done(self, kfp: Kfp, run_yaml: Path) -> None:
        kfp.faults = [Fault("POST .*/runs$", 403, message="User is not authorized")]
        assert "this login may not do that" in refused("submit", "--config", run_yaml, "--namespace", "team")

    def test_several_users_need_a_namespace(
        self, kfp: Kfp, run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kfp.multi_user = True
        assert refused("submit", "--config", run_yaml).endswith("serves several users: give --namespace")
        (tmp_path / "namespace").write_text("team\n")
        monkeypatch.setattr(signing_in, "NAMESPACE_PATH", str(tmp_path / "namespace"))
        assert submit(run_yaml)["exit_code"] == 0
        assert next(iter(kfp.pipelines.values())).namespace == "team"

    @pytest.mark.parametrize(
        ("endpoint", "message"),
        [
            ("", "no server is named: give --endpoint"), ("ftp://host", "is no address"),
            ("https://me:a-secret-token@host", "the endpoint holds a password"), ("https://", "is no address"),
        ],
    )  # fmt: skip
    def test_an_endpoint_that_is_none(
        self, run_yaml: Path, endpoint: str, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
        assert message in refused("submit", "--config", run_yaml, "--endpoint", endpoint)

    def test_files_that_are_not_there(self, kfp: Kfp, run_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "CA certificate none.pem: no such file" in refused(
            "submit", "--config", run_yaml, "--ca-cert", "none.pem"
        )
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", "/none/token")
        assert "KF_PIPELINES_SA_TOKEN_PATH names /none/token: No such file" in refused("submit", "--config", run_yaml)
        monkeypatch.setenv("QLORA_KFP_TOKEN", "a-secret-token\nand more")
        assert "holds characters that no token" in refused("submit", "--config", run_yaml)

    def test_nothing_listens(self, run_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server.Server.__init__, "__defaults__", ("", "", "", 0.05))
        message = refused("submit", "--config", run_yaml, "--endpoint", "http://127.0.0.1:9")
        assert message.startswith("http://127.0.0.1:9 does not answer: ") and "0x" not in message
