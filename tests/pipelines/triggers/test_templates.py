"""The templates that run `qlora trigger`: each passes its linter or schema, and qlora knows each command."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_pipelines.components import images
from qlora_pipelines.pipelines import placement
from qlora_pipelines.pipelines.cli.trigger import trigger

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "pipelines" / "triggers"
WORKFLOW = ROOT / ".github" / "workflows" / "trigger.yaml"
TEMPLATES = sorted(FOLDER.glob("*.yaml"))


def lint(name: str, *arguments: str | Path) -> str:
    tool = Path(sys.executable).parent / name
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def job_of_the_sensor() -> dict[str, Any]:
    (started,) = load("argo-events.yaml")["spec"]["triggers"]
    job: dict[str, Any] = started["template"]["k8s"]["source"]["resource"]
    return job


def test_there_are_four() -> None:
    assert {path.stem for path in TEMPLATES} == {"argo-events", "cronjob", "github", "gitlab"}


def test_github_by_actionlint_and_zizmor() -> None:
    files = [WORKFLOW, FOLDER / "github.yaml"]
    lint("actionlint", *files)
    lint("zizmor", "--offline", *files)


def test_gitlab_by_its_schema() -> None:
    lint("check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci",
         FOLDER / "gitlab.yaml")  # fmt: skip


def test_the_cronjob_by_kubernetes_schema() -> None:
    assert "passed" in lint("kubernetes-validate", "--strict", FOLDER / "cronjob.yaml")


def test_the_sensor_by_argos_models_and_its_job_by_kubernetes_schema(tmp_path: Path) -> None:
    from hera.events.models import Sensor

    Sensor.model_validate(load("argo-events.yaml"))
    path, job = tmp_path / "job.yaml", job_of_the_sensor()
    job["metadata"]["name"] = "made-by-kubernetes"
    path.write_text(yaml.safe_dump(job))
    assert "passed" in lint("kubernetes-validate", "--strict", path)


def test_sensor_and_cronjob_start_the_same_pod() -> None:
    job = load("cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in job["containers"][0]["volumeMounts"]}
    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in job["volumes"] if "secret" in volume}
    assert {secrets[name]: mounts[name] for name in secrets} == {placement.GCS_SECRET: placement.GCS_FOLDER}
    other = job_of_the_sensor()["spec"]["template"]["spec"]
    for pod in (job, other):
        for words in ("command", "args"):
            pod["containers"][0].pop(words, None)
    assert job == other


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_three_lines_are_to_adapt_and_the_image_is_ours(path: Path) -> None:
    assert 1 <= sum(bool(re.search("# .*adapt", line)) for line in path.read_text().splitlines()[2:]) <= 3
    text = (WORKFLOW if path.stem == "github" else path).read_text()
    assert images.CPU in text


def commands() -> dict[str, list[str]]:
    """The words after `qlora` in each template."""
    cronjob = load("cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    sensor = job_of_the_sensor()["spec"]["template"]["spec"]["containers"][0]
    (run,) = (step["run"] for step in yaml.safe_load(WORKFLOW.read_text())["jobs"]["trigger"]["steps"] if "run" in step)
    github = re.search(r"qlora (trigger .*?) >found", run.replace("\\\n", " "), re.DOTALL)
    assert github
    return {
        "cronjob": [*cronjob["command"], *cronjob["args"]][1:],
        "argo-events": sensor["command"][1:],
        "gitlab": shlex.split(load("gitlab.yaml")["qlora-trigger"]["script"][0])[1:],
        "github": shlex.split(github[1]),
    }


@pytest.mark.parametrize("name", ["argo-events", "cronjob", "github", "gitlab"])
def test_each_command_is_one_that_qlora_knows(name: str) -> None:
    words = commands()[name]
    assert words[0] == "trigger"
    numbers = {"$MIN_NEW_ROWS": "5", "$QUIET_MINUTES": "5", "$WAIT": "--wait"}  # the others are text
    with trigger.make_context(
        "qlora", [numbers.get(word, word) for word in words[1:]], resilient_parsing=False
    ) as made:
        assert made.params["path"] and made.params["local"] is False
