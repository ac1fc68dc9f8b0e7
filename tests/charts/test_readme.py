"""The README's way from a cluster to a first report: each command agrees with the chart.

`tests/test_docs.py` sees to those of qlora.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.charts.rendering import NAMESPACE, RELEASE, Object, environment, helm, of_kind, pods, render

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = README.partition("## On your cluster\n")[2].partition("\n## ")[0]


def commands() -> list[list[str]]:
    """The section's commands as words."""
    [block] = re.findall(r"```\n(.*?)```", SECTION, re.DOTALL)
    lines = [line for line in block.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    return [[word for word in shlex.split(line) if word != "&"] for line in lines]


def options(words: list[str], name: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == name] + [
        word.partition("=")[2] for word in words if word.startswith(f"{name}=")
    ]


@pytest.fixture(scope="module")
def installed() -> list[Object]:
    """What `helm install` of the section makes."""
    [words] = [words for words in commands() if words[:2] == ["helm", "install"]]
    assert words[2] == RELEASE and (Path(__file__).parents[2] / words[3] / "Chart.yaml").exists()
    given: dict[str, Any] = {}
    for setting in options(words, "--set"):
        for key, value in helm.parse_set_string(setting).items():
            given.setdefault(key, {}).update(value)
    return render(given)


def test_every_command_is_one_that_is_checked_here() -> None:
    kinds = [
        ("kubectl", "create"),
        ("kubectl", "port-forward"),
        ("helm", "install"),
        ("helm", "test"),
        ("qlora",),
        ("export",),
    ]
    for words in commands():
        assert any(kind[0] == words[0] and kind[-1] in words for kind in kinds), words
        namespace = [] if words[0] in ("qlora", "export") else [NAMESPACE]
        assert options(words, "-n") in (namespace, ["kubeflow"]), words
        assert options(words, "--namespace") in ([], [NAMESPACE])


def test_the_secrets_are_those_that_the_pods_need(installed: list[Object]) -> None:
    secrets: dict[str, dict[str, str]] = {}
    for words in commands():
        if "create" in words:
            pairs = [pair.partition("=") for pair in options(words, "--from-literal")]
            secrets[words[words.index("generic") + 1]] = {key: value for key, _, value in pairs}
    used = set()
    for pod in pods(installed):
        for container in pod.containers:
            environment(container, installed, secrets)  # raises where one that is not optional is missing
            used |= {
                variable["valueFrom"]["secretKeyRef"]["name"]
                for variable in container["env"]
                if "valueFrom" in variable
            }
    assert secrets.keys() <= used


def test_the_services_are_there(installed: list[Object]) -> None:
    own = {found["metadata"]["name"]: str(found["spec"]["ports"][0]["port"]) for found in of_kind(installed, "Service")}
    kubeflow = {"ml-pipeline": "8888", "ml-pipeline-ui": "80"}  # of KFP's own manifests
    for words in commands():
        if "port-forward" in words:
            service = words[-2].removeprefix("service/")
            there = own if options(words, "-n") == [NAMESPACE] else kubeflow
            assert words[-1].rpartition(":")[2] == there[service]
