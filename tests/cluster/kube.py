"""kubectl, helm and forwarded ports, for the tests on a cluster."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.integration.servers import free_port

ROOT = Path(__file__).parents[2]
Object = dict[str, Any]
TIMEOUT = 600
"""Seconds that Helm waits for pods and jobs."""


class Cluster:
    """The cluster that KUBECONFIG names, and one namespace in it."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """What kubectl prints."""
        command = ["kubectl", "-n", self.namespace, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def get(self, kind: str, name: str = "", selector: str = "") -> Any:
        """An object, or a list of them."""
        found = json.loads(
            self.kubectl("get", kind, *filter(None, [name]), *(["-l", selector] if selector else []), "-o", "json")
        )
        return found if name else found["items"]

    def apply(self, *objects: Object) -> None:
        """Makes objects, or changes them."""
        for each in objects:
            self.kubectl("apply", "-f", "-", stdin=json.dumps(each))

    def secret(self, name: str) -> dict[str, str]:
        """A secret's values."""
        return {key: base64.b64decode(value).decode() for key, value in self.get("secret", name)["data"].items()}

    def make_secret(self, name: str, values: dict[str, str]) -> None:
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values})

    @contextlib.contextmanager
    def forwarded(self, service: str, port: int) -> Iterator[str]:
        """The local address, HOST:PORT, of a service's port; forwarded anew where its pod is replaced."""
        local = free_port()
        command = f"kubectl -n {self.namespace} port-forward service/{service} {local}:{port}"
        loop = ["sh", "-c", f"while :; do {command}; sleep 1; done"]
        with subprocess.Popen(loop, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0) as process:
            try:
                deadline = time.monotonic() + 60
                while not _listens(local):
                    assert time.monotonic() < deadline, f"{command}: no port within a minute"
                    time.sleep(0.2)
                yield f"127.0.0.1:{local}"
            finally:
                os.killpg(process.pid, signal.SIGTERM)

    def job_log(self, name: str, timeout: int = 300) -> tuple[bool, str]:
        """Waits for a job's end; whether it succeeded, and what its pods printed."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            status = self.get("job", name).get("status", {})
            kinds = {each["type"] for each in status.get("conditions", []) if each["status"] == "True"}
            if kinds & {"Complete", "Failed"}:
                return "Complete" in kinds, self.kubectl("logs", f"job/{name}", "--all-containers", check=False)
            time.sleep(2)
        raise AssertionError(f"job {name} did not end within {timeout} s: {self.kubectl('describe', 'job', name)}")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def helm(*words: str) -> str:
    """Runs a command of Helm's, with its library for Python where Helm is not installed; what it prints."""
    if shutil.which("helm"):
        done = subprocess.run(["helm", *words], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, f"helm {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout
    import helm_python

    verb, release, *rest = words
    options = {name: value for name, value in itertools.pairwise(rest) if name.startswith("-")}
    with contextlib.closing(helm_python.Config(namespace=options["-n"])) as config:
        if verb in ("install", "upgrade"):
            chart, values = str(ROOT / rest[0]), _values(options.get("-f"), rest)
            wait = "watcher" if "--wait" in rest else None
            if verb == "install":
                config.install(chart, release, values, wait=wait, timeout=TIMEOUT)
            else:
                config.upgrade(
                    chart, release, values, wait=wait, timeout=TIMEOUT, reuse_values="--reuse-values" in rest
                )
            if "--wait-for-jobs" in rest:  # which its watcher does not
                for job in Cluster(options["-n"]).get("job", selector=f"app.kubernetes.io/instance={release}"):
                    succeeded, log = Cluster(options["-n"]).job_log(job["metadata"]["name"], TIMEOUT)
                    assert succeeded, log
        elif verb == "test":
            return str(config.test(release, timeout=TIMEOUT, logs=True)["logs"])
        else:
            config.uninstall(release, wait="watcher", timeout=TIMEOUT)
    return ""


def _values(file: str | None, words: list[str]) -> Object:
    """What `-f` and `--set` say."""
    import helm_python

    values: Object = yaml.safe_load(Path(file).read_text()) if file else {}
    for setting in (value for name, value in itertools.pairwise(words) if name == "--set"):
        for key, value in helm_python.parse_set_string(setting).items():
            values.setdefault(key, {}).update(value)
    return values
