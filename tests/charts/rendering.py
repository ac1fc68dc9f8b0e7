"""The chart's manifests as Helm renders them, and what all tests ask of them."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

helm = pytest.importorskip("helm_python", reason="Helm's library has no wheel for this platform")

CHART = Path(__file__).parents[2] / "charts" / "qlora-pipelines"
EXAMPLES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
RELEASE, NAMESPACE = "qlora", "team-a"

Object = dict[str, Any]


class Pod(NamedTuple):
    """A pod that an object of the chart makes: whose it is, its labels and its spec."""

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


@cache
def chart() -> Any:
    return helm.Chart.load(str(CHART))


def values(example: str) -> dict[str, Any]:
    """The values of one of the chart's `ci` files."""
    return dict(yaml.safe_load((CHART / "ci" / f"{example}-values.yaml").read_text()))


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with changes by dotted path: `{"mlflow.enabled": True}`."""
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(base))
    for path, value in changes.items():
        *parents, last = path.split(".")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return result


def render(given: dict[str, Any], release: str = RELEASE) -> list[Object]:
    """All objects, hooks too."""
    rendered = chart().render(given, name=release, namespace=NAMESPACE)
    texts = [text for path, text in sorted(rendered.items()) if path.endswith(".yaml")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def notes(given: dict[str, Any]) -> str:
    """What Helm says after an installation."""
    return str(chart().render(given, name=RELEASE, namespace=NAMESPACE)["qlora-pipelines/templates/NOTES.txt"])


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [found for found in objects if found["kind"] == kind]


def name(found: Object) -> str:
    return f"{found['kind']}/{found['metadata'].get('name') or found['metadata']['generateName']}"


def jobs(objects: list[Object]) -> Iterator[Object]:
    """All jobs, those that schedules and events start too."""
    yield from of_kind(objects, "Job")
    for schedule in of_kind(objects, "CronJob"):
        template = schedule["spec"]["jobTemplate"]
        yield {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": schedule["metadata"]["name"]}} | {
            "spec": template["spec"]
        }
    for sensor in of_kind(objects, "Sensor"):
        for trigger in sensor["spec"]["triggers"]:
            yield trigger["template"]["k8s"]["source"]["resource"]


def pods(objects: list[Object]) -> Iterator[Pod]:
    """Every pod of the chart."""
    for found in [*jobs(objects), *of_kind(objects, "Deployment")]:
        template = found["spec"]["template"]
        yield Pod(name(found), template["metadata"]["labels"], template["spec"])
    for found in of_kind(objects, "Pod"):
        yield Pod(name(found), found["metadata"]["labels"], found["spec"])


def environment(container: dict[str, Any], objects: list[Object], secrets: dict[str, dict[str, str]]) -> dict[str, str]:
    """A container's environment, as Kubernetes makes it of ConfigMaps and secrets.

    Raises:
        KeyError: a secret or key that is not optional is not there.
    """
    maps = {found["metadata"]["name"]: found["data"] for found in of_kind(objects, "ConfigMap")}
    result: dict[str, str] = {}
    for source in container.get("envFrom", []):
        result |= maps[source["configMapRef"]["name"]]
    for variable in container["env"]:
        if "value" in variable:
            result[variable["name"]] = variable["value"]
            continue
        reference = variable["valueFrom"]["secretKeyRef"]
        if reference["key"] in secrets.get(reference["name"], {}) or not reference.get("optional"):
            result[variable["name"]] = secrets[reference["name"]][reference["key"]]
    return result
