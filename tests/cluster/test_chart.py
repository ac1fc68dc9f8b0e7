"""The chart on a cluster: its tests, its jobs, its triggers, and an upgrade."""

import json
import time
import uuid
from pathlib import Path
from typing import Any

import kfp_server_api
import mlflow
import pytest
import yaml
from mlflow.server import get_app_client

from tests.cluster.conftest import RELEASE, Installed
from tests.cluster.kube import ROOT, helm
from tests.cluster.test_runs import config

TRIGGERS = 10


def test_the_release_reaches_store_mlflow_and_kubeflow(installed: Installed) -> None:
    printed = helm("test", RELEASE, "-n", installed.cluster.namespace, "--logs")
    for what in ("store", "mlflow", "kfp"):
        assert f"ok      {what}: " in printed, printed


def test_the_upload_job_brings_the_pipeline(installed: Installed) -> None:
    [job] = installed.cluster.get("job", selector="app.kubernetes.io/component=upload")
    succeeded, log = installed.cluster.job_log(job["metadata"]["name"])
    assert succeeded and ("uploaded" in log or "is already there" in log), log


def test_a_job_makes_the_user_that_steps_log_in_as(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    [job] = installed.cluster.get("job", selector="app.kubernetes.io/component=mlflow-user")
    succeeded, log = installed.cluster.job_log(job["metadata"]["name"])
    login = installed.cluster.secret("qlora-mlflow")
    user = login["MLFLOW_TRACKING_USERNAME"]
    assert succeeded and f"user {user}: " in log, log
    assert login["MLFLOW_TRACKING_PASSWORD"] not in log
    for name, value in (installed.environment | login).items():
        monkeypatch.setenv(name, value)
    users = get_app_client("basic-auth", installed.environment["MLFLOW_TRACKING_URI"])
    assert users.get_user(user).is_admin is False
    with pytest.raises(mlflow.MlflowException, match="Permission denied"):
        users.create_user("another", "a-long-password-of-another")


def test_a_new_password_of_the_steps_counts_after_an_upgrade(installed: Installed) -> None:
    cluster, chart = installed.cluster, str(ROOT / "charts" / "qlora-pipelines")
    before = cluster.secret("qlora-mlflow")
    for login in (before | {"MLFLOW_TRACKING_PASSWORD": "another-login-of-the-steps"}, before):
        cluster.make_secret("qlora-mlflow", login)
        helm("upgrade", RELEASE, chart, "-n", cluster.namespace, "--reuse-values",
             "--wait", "--wait-for-jobs", "--timeout", "10m")  # fmt: skip
        printed = helm("test", RELEASE, "-n", cluster.namespace, "--logs")
        assert "ok      mlflow: " in printed, printed


def runs_named(installed: Installed, name: str) -> list[Any]:
    api = kfp_server_api.RunServiceApi(installed.kubeflow())
    found = api.run_service_list_runs(page_size=100, sort_by="created_at desc", namespace=installed.team).runs or []
    return [run for run in found if run.display_name.startswith(name)]


def test_ten_triggers_at_once_start_one_run_and_an_upgrade_keeps_the_registry(
    installed: Installed, tmp_path: Path
) -> None:
    """A CronJob of the chart, called ten times from as many pods; Kubernetes' own schedule would call it once."""
    name = f"tiny-often-{uuid.uuid4().hex[:8]}"  # a run of an earlier session would count
    values = {"triggers": {"often": {"schedule": "0 0 1 1 *", "config": config(installed, tmp_path, name)}}}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    chart, file = str(ROOT / "charts" / "qlora-pipelines"), str(tmp_path / "values.yaml")
    before = installed.cluster.get("pvc", f"{RELEASE}-mlflow")["metadata"]["uid"]
    helm("upgrade", RELEASE, chart, "-n", installed.cluster.namespace, "--reuse-values", "-f", file,
         "--wait", "--wait-for-jobs", "--timeout", "10m")  # fmt: skip
    assert installed.cluster.get("pvc", f"{RELEASE}-mlflow")["metadata"]["uid"] == before
    jobs = [f"often-{number}" for number in range(TRIGGERS)]
    cron = installed.cluster.get("cronjob", f"{RELEASE}-trigger-often")
    template = cron["spec"]["jobTemplate"]
    installed.cluster.apply(
        *(
            {"apiVersion": "batch/v1", "kind": "Job", "spec": template["spec"]}
            | {"metadata": {"name": job, "labels": template["metadata"]["labels"]}}
            for job in jobs
        )
    )
    ended = {job: installed.cluster.job_log(job, 900) for job in jobs}
    assert all(succeeded for succeeded, _ in ended.values()), ended
    deadline = time.monotonic() + 600
    while any(run.state in (None, "PENDING", "RUNNING") for run in runs_named(installed, name)):
        assert time.monotonic() < deadline, "the run did not end"
        time.sleep(5)
    states = [run.state for run in runs_named(installed, name)]
    assert states.count("SUCCEEDED") == 1, json.dumps(states)
    installed.cluster.kubectl("delete", "job", *jobs)
