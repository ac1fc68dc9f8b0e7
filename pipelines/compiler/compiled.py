"""The compiled pipeline: a name for its content, its parameters and its steps."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.pipelines.compiler import ir, kubeflow
from qlora_pipelines.pipelines.placement import Cluster


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A pipeline as Kubeflow Pipelines takes it: its text, and the documents in it."""

    text: str
    documents: tuple[dict[str, Any], ...]

    @property
    def spec(self) -> dict[str, Any]:
        """The pipeline itself; a second document says what only Kubernetes sees."""
        return self.documents[0]

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return str(self.spec["pipelineInfo"]["name"])

    @property
    def version(self) -> str:
        """Name of this version, made from the content: the same content has the same name."""
        content = json.dumps(self.documents, sort_keys=True).encode()
        return f"{self.name}-{hashlib.sha256(content).hexdigest()[:12]}"

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The pipeline's parameters by name: `parameterType`, and `isOptional` with `defaultValue`."""
        found: dict[str, dict[str, Any]] = self.spec["root"].get("inputDefinitions", {}).get("parameters", {})
        return found

    @property
    def steps(self) -> dict[str, str]:
        """Display names of the tasks, those inside conditions too, in the order in which they can run."""
        return {name: path[-1]["taskInfo"]["name"] for name, path in ir.walk(self.spec)}


def from_code(cluster: Cluster | None = None) -> Compiled:
    """The pipeline of this installation.

    Args:
        cluster: what is chosen at compile time.
    """
    return parse(kubeflow.pipeline(cluster), "the pipeline")


def from_file(path: Path) -> Compiled:
    """A pipeline that was compiled before.

    Raises:
        InputError: the file cannot be read, or is not a compiled pipeline.
    """
    try:
        return parse(path.read_text(), f"pipeline {path}")
    except OSError as error:
        raise InputError(f"pipeline {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"pipeline {path}: not text; give the YAML file of qlora compile") from None


def parse(text: str, what: str) -> Compiled:
    """Reads a compiled pipeline.

    Raises:
        InputError: the text is not a compiled pipeline; `what` names it in the message.
    """
    try:
        documents = list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError:
        documents = []
    spec = documents[0] if documents else None
    if not isinstance(spec, dict) or not {"pipelineInfo", "root", "schemaVersion"} <= set(spec):
        raise InputError(f"{what}: not a compiled pipeline; give the YAML file of qlora compile")
    return Compiled(text, tuple(documents))
