"""A Kubernetes with Kubeflow Pipelines and the chart in it. How the cluster was made is not known here.

    KUBECONFIG               the cluster; without it every test skips
    QLORA_TEST_NAMESPACE     where runs take place; `kubeflow` where Kubeflow Pipelines has one user
    QLORA_TEST_OTHER         another team's namespace, where it has several
    QLORA_IMAGE_REGISTRY     of the images cpu and cuda, which every node has or can pull
    QLORA_TEST_S3            address of Kubeflow's S3 as it is reached from here; else a port is forwarded

Kubeflow's own S3 holds the store. Kubeflow's API and MLflow are reached by forwarded ports.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest
import yaml

from tests.cluster.kube import ROOT, Cluster, helm

README = (ROOT / "README.md").read_text()
SECTION = README.partition("## On your cluster\n")[2].partition("\n## ")[0]
RELEASE, BUCKET, S3 = "qlora", "mlpipeline", "http://seaweedfs.kubeflow:9000"
PASSWORDS = {"qlora-mlflow-admin": "administrator-of-mlflow", "qlora-mlflow": "login-of-the-steps"}
"""At MLflow, by secret: what is meant for the steps does not let one in as the administrator."""
EDITOR, AUDIENCE = "default-editor", "pipelines.kubeflow.org"
"""A team's service account, and whom its token is for, where Kubeflow Pipelines has several users."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if reason := _missing():
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing() -> str:
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster"
    return "" if shutil.which("kubectl") else "kubectl is not installed"


@dataclasses.dataclass(frozen=True, eq=False)
class Installed:
    """The chart in a cluster, as a user at a terminal sees it.

    Attributes:
        cluster: with the namespace of the runs.
        environment: what the README exports, MLflow's administrator among it, and the address and login of S3 as it is
            reached from here.
        store: address of the store.
        data: address of the base model and the rows that the tests run with.
    """

    cluster: Cluster
    environment: dict[str, str]
    store: str
    data: str

    def qlora(self, *arguments: str, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
        """Runs `qlora`; what it printed is shown where a test fails."""
        command = [str(Path(sys.executable).with_name("qlora")), *arguments]
        done = subprocess.run(
            command, env=os.environ | self.environment, cwd=folder, capture_output=True, text=True, check=False
        )
        print(f"$ qlora {shlex.join(arguments)}\n{done.stdout}{done.stderr}")
        return done

    def kubeflow(self) -> kfp_server_api.ApiClient:
        """Kubeflow's API, as its page calls it."""
        client = kfp_server_api.ApiClient(kfp_server_api.Configuration(host=self.environment["KF_PIPELINES_ENDPOINT"]))
        if token := self.environment.get("QLORA_KFP_TOKEN"):
            client.set_default_header("authorization", f"Bearer {token}")
        return client

    @property
    def team(self) -> str | None:
        """The namespace, where Kubeflow Pipelines has several users; where it has one, its API takes none."""
        return self.cluster.namespace if "QLORA_KFP_TOKEN" in self.environment else None

    def upload(self, folder: Path, name: str) -> str:
        """Copies a folder to the bucket, from where the pods read it; its address there."""
        uri = f"{self.data}/{name}"
        script = (
            "import sys; from pathlib import Path; from qlora_pipelines.components.core.store import storage;"
            " storage.upload(Path(sys.argv[1]), sys.argv[2])"
        )
        command = [sys.executable, "-c", script, str(folder), uri]
        subprocess.run(command, env=os.environ | self.environment, check=True)
        return uri

    def submit(self, config: dict[str, Any], folder: Path, *arguments: str) -> dict[str, Any]:
        """Starts a run, follows it to its end, and returns what `qlora submit --json` says."""
        (folder / "run.yaml").write_text(yaml.safe_dump(config))
        place = ["--namespace", self.cluster.namespace]
        done = self.qlora("submit", "--config", "run.yaml", "--wait", "--json", *place, *arguments, folder=folder)
        assert done.stdout, done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1])) | {"log": done.stderr, "code": done.returncode}


def commands() -> list[list[str]]:
    """The commands of the README's section, as words."""
    block = SECTION.split("```\n")[1]
    lines = [line for line in block.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    return [[word for word in shlex.split(line) if word != "&"] for line in lines]


@pytest.fixture(scope="session")
def namespace() -> str:
    return os.environ.get("QLORA_TEST_NAMESPACE", "kubeflow")


@pytest.fixture(scope="session")
def installed(namespace: str, tiny_model: Path) -> Iterator[Installed]:
    """The chart in the namespace of the tests."""
    with install(namespace, tiny_model) as found:
        yield found


@contextlib.contextmanager
def install(namespace: str, tiny_model: Path) -> Iterator[Installed]:
    """Makes the secrets and installs by the README's own commands, with this cluster's namespace, logins and S3."""
    cluster, kubeflow = Cluster(namespace), Cluster("kubeflow")
    keys = kubeflow.secret("mlpipeline-minio-artifact")
    place = f"s3://{BUCKET}/qlora-{uuid.uuid4().hex[:8]}"
    given = {
        "AWS_ACCESS_KEY_ID": keys["accesskey"],
        "AWS_SECRET_ACCESS_KEY": keys["secretkey"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": uuid.uuid4().hex,
    }
    with contextlib.ExitStack() as stack:
        for words in commands():
            secret = words[words.index("generic") + 1] if "generic" in words else ""
            passwords = {"MLFLOW_TRACKING_PASSWORD": PASSWORDS[secret]} if secret in PASSWORDS else {}
            words = [_ours(word, namespace, place, given | passwords) for word in words]
            if secret:
                cluster.kubectl("delete", "secret", secret, "--ignore-not-found")
                stack.callback(cluster.kubectl, "delete", "secret", secret)
                cluster.kubectl(*words[words.index("create") :])
            elif words[:2] == ["helm", "install"]:
                helm(*words[1:], "--set", f"store.s3Endpoint={S3}", "--timeout", "10m")
                stack.callback(cluster.kubectl, "delete", "pvc", "-l", f"app.kubernetes.io/instance={RELEASE}")
                stack.callback(helm, "uninstall", RELEASE, "-n", namespace, "--wait")
        s3 = os.environ.get("QLORA_TEST_S3")
        environment = {
            "AWS_ENDPOINT_URL_S3": s3 or f"http://{stack.enter_context(kubeflow.forwarded('seaweedfs', 9000))}",
            "KF_PIPELINES_ENDPOINT": f"http://{stack.enter_context(kubeflow.forwarded('ml-pipeline', 8888))}",
            "MLFLOW_TRACKING_URI": f"http://{stack.enter_context(cluster.forwarded(f'{RELEASE}-mlflow', 5000))}",
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": PASSWORDS["qlora-mlflow-admin"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "QLORA_STORE": f"{place}/store",
        }
        environment |= {name: value for name, value in given.items() if "FLASK" not in name}
        found = Installed(cluster, environment, f"{place}/store", f"{place}/data")
        if kfp_server_api.HealthzServiceApi(found.kubeflow()).healthz_service_get_healthz().multi_user:
            token = cluster.kubectl("create", "token", EDITOR, f"--audience={AUDIENCE}", "--duration=6h")
            environment["QLORA_KFP_TOKEN"] = token.strip()
        found.upload(tiny_model, "tiny")
        yield found


def _ours(word: str, namespace: str, place: str, given: dict[str, str]) -> str:
    key, _, value = word.removeprefix("--from-literal=").partition("=")
    if key in given and value:
        return word.replace(value, given[key])
    return word.replace("s3://models/team-a", f"{place}/store").replace("team-a", namespace)
