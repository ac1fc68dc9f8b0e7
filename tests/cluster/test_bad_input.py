"""What is wrong with a cluster is one clear line, before anything expensive starts; and nothing is lost."""

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import kfp_server_api
import pytest

from qlora_pipelines.pipelines.compiler import kubeflow
from qlora_pipelines.pipelines.placement import STEP_LABEL
from tests.cluster.conftest import RELEASE, Installed
from tests.cluster.kube import ROOT, helm
from tests.cluster.test_form import plan_log, start, terminate, versions
from tests.cluster.test_runs import config, step_pods


@contextlib.contextmanager
def changed(installed: Installed, secret: str, **values: str) -> Iterator[None]:
    """Other values in a secret; none at all: there is no such secret."""
    before = installed.cluster.secret(secret)
    installed.cluster.kubectl("delete", "secret", secret)
    try:
        if values:
            installed.cluster.make_secret(secret, before | values)
        yield
    finally:
        installed.cluster.make_secret(secret, before)


@pytest.mark.parametrize(
    ("secret", "values", "line"),
    [
        ("qlora-s3", {}, "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("qlora-s3", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "check the address, the endpoint and the credentials"),
        ("qlora-mlflow", {}, "refuses this login: check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("qlora-mlflow", {"MLFLOW_TRACKING_PASSWORD": "wrong"}, "refuses this login: check MLFLOW_TRACKING_USERNAME"),
    ],
    ids=["no-s3-secret", "wrong-s3-login", "no-mlflow-secret", "wrong-mlflow-login"],
)
def test_a_login(installed: Installed, tmp_path: Path, secret: str, values: dict[str, str], line: str) -> None:
    run = config(installed, tmp_path, "tiny-login")
    with changed(installed, secret, **values):
        ended = installed.submit(run, tmp_path)
    assert ended["code"] == 1 and ended["failed_step"] == "plan", ended["log"]
    assert len(ended["last_lines"]) == 1 and line in ended["last_lines"][0], ended["last_lines"]
    assert step_pods(installed, ended["run_id"]) == {"plan-run"}


def test_a_bucket_that_is_not_there(installed: Installed, tmp_path: Path) -> None:
    run = config(installed, tmp_path, "tiny-bucket", base_model="s3://no-such-bucket-of-ours/model")
    ended = installed.submit(run, tmp_path)
    assert ended["failed_step"] == "plan" and len(ended["last_lines"]) == 1
    assert "s3://no-such-bucket-of-ours/model" in ended["last_lines"][0]


def test_memory_that_the_plan_knows_is_too_small(installed: Installed, tmp_path: Path) -> None:
    ended = installed.submit(config(installed, tmp_path, "tiny-memory", memory="200Mi"), tmp_path)
    assert ended["failed_step"] == "plan" and len(ended["last_lines"]) == 1
    assert "200Mi" in ended["last_lines"][0] and "memory" in ended["last_lines"][0]


TAKE_ALL_MEMORY = """
import os, time
own, chosen = str(os.getpid()), []
for process in filter(str.isdigit, os.listdir("/proc")):
    command = open(f"/proc/{process}/cmdline").read()
    if process == own or "executor_main" in command:  # the kernel's choice: not this process, but the step
        open(f"/proc/{process}/oom_score_adj", "w").write("0" if process == own else "1000")
        chosen += [] if process == own else [f"/proc/{process}/stat"]
def alive(stat):
    return os.path.exists(stat) and open(stat).read().rpartition(")")[2].split()[0] not in "ZX"
taken = []
while all(map(alive, chosen)):  # when it is killed this ends, or the kernel would choose another one
    taken.append(b"x" * 2**25)
    time.sleep(0.02)
"""


def test_a_step_that_the_kernel_kills_for_its_memory(installed: Installed, tmp_path: Path) -> None:
    """A second process in the evaluation's container takes all that its limit allows."""
    run = config(installed, tmp_path, "tiny-killed", memory="1500Mi", seed=7)
    run["options"]["evaluate_model"] = {"generation_rows": 20, "max_new_tokens": 400}
    took = threading.Thread(target=_take_all_memory, args=(installed,), daemon=True)
    took.start()
    ended = installed.submit(run, tmp_path)
    assert ended["code"] == 1 and ended["failed_step"] == "evaluate-tuned", ended["log"]
    said = "killed, most likely for taking more memory than its limit of 1500Mi: raise memory"
    assert ended["last_lines"] == [said], ended["last_lines"]


def _take_all_memory(installed: Installed) -> None:
    """In the first evaluation's pod that starts from now on."""
    pods = f"{STEP_LABEL}=evaluate-model"
    before = {pod["metadata"]["name"] for pod in installed.cluster.get("pod", selector=pods)}
    while True:
        for pod in installed.cluster.get("pod", selector=pods):
            name = pod["metadata"]["name"]
            if name not in before and pod["status"]["phase"] == "Running":
                time.sleep(1)  # until Python runs in it
                command = ["kubectl", "-n", installed.cluster.namespace, "exec", name, "-c", "main", "--"]
                subprocess.run([*command, "python3", "-c", TAKE_ALL_MEMORY], capture_output=True, check=False)
                return
        time.sleep(0.5)


def test_a_node_selector_that_no_node_has_is_a_warning(installed: Installed, tmp_path: Path) -> None:
    chart = str(ROOT / "charts" / "qlora-pipelines")
    helm("upgrade", RELEASE, chart, "-n", installed.cluster.namespace, "--reuse-values",
         "--set", "runs.listNodes=true", "--wait", "--wait-for-jobs", "--timeout", "10m")  # fmt: skip
    values = config(installed, tmp_path, "tiny-nowhere", node_selector={"no": "node"})
    run_id = start(installed, values | {"options": json.dumps(values["options"])})
    try:
        deadline = time.monotonic() + 300
        while not (said := [line for line in plan_log(installed, run_id) if "] warning: nodes: " in line]):
            assert time.monotonic() < deadline, plan_log(installed, run_id)
            time.sleep(5)
    finally:
        terminate(installed, run_id)
    assert "has label no=node" in said[0] and "will stay Pending" in said[0]


def test_a_pipeline_of_another_version_than_its_image(installed: Installed, tmp_path: Path) -> None:
    compiled = kubeflow.pipeline()
    changed_name = compiled.replace("components.plan_run import task", "components.plan_run import its_task")
    assert changed_name != compiled
    (tmp_path / "other.yaml").write_text(changed_name)
    values = config(installed, tmp_path, "tiny-version")
    ended = installed.submit(values, tmp_path, "--pipeline", "other.yaml")
    # Other tests start the newest version, as the page offers it.
    [uploaded] = [version for version in versions(installed) if version.display_name == ended["version"]]
    kfp_server_api.PipelineServiceApi(installed.kubeflow()).pipeline_service_delete_pipeline_version(
        uploaded.pipeline_id, uploaded.pipeline_version_id
    )
    assert ended["failed_step"] == "plan" and len(ended["last_lines"]) == 1, ended["last_lines"]
    assert "the pipeline and its image are of two versions" in ended["last_lines"][0]


def test_registration_without_mlflow_is_repeated_without_training_again(installed: Installed, tmp_path: Path) -> None:
    cluster, server = installed.cluster, f"deployment/{RELEASE}-mlflow"
    run = config(installed, tmp_path, "tiny-away")

    def stop_before_registration() -> None:
        while all(
            pod["metadata"]["creationTimestamp"] < began
            for pod in cluster.get("pod", selector=f"{STEP_LABEL}=dequantize-and-merge")
        ):
            time.sleep(1)
        cluster.kubectl("scale", server, "--replicas=0")

    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    threading.Thread(target=stop_before_registration, daemon=True).start()
    try:
        ended = installed.submit(run, tmp_path)
    finally:
        cluster.kubectl("scale", server, "--replicas=1")
        cluster.kubectl("rollout", "status", server, "--timeout=300s")
    assert ended["code"] == 1 and ended["failed_step"] == "register", ended["log"]
    assert "MLflow" in ended["last_lines"][0] and "does not answer" in ended["last_lines"][0]
    again = installed.submit(run, tmp_path)
    assert again["code"] == 0, again["log"]
    assert "train-qlora" not in step_pods(installed, again["run_id"])
