"""The compiled pipeline as a flat list of steps: what each takes from where, and under which condition it runs."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

CONDITION = re.compile(r"inputs\.parameter_values\['(?P<name>[^']+)'\] == true$")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a value comes from: a parameter of the pipeline, another task's output, or a constant.

    Attributes:
        task: the task whose output it is, or ''.
        name: the output's or the parameter's name.
        constant: the value itself, where it is one.
    """

    task: str = ""
    name: str = ""
    constant: Any = None


@dataclasses.dataclass(frozen=True)
class Task:
    """One step of the pipeline, with what the `If`s around it ask for."""

    name: str
    step: str
    image: str
    parameters: dict[str, Source]
    artifacts: dict[str, Source]
    conditions: tuple[Source, ...]
    outputs: tuple[str, ...]
    output_artifacts: tuple[str, ...]


def tasks(pipeline: dict[str, Any]) -> list[Task]:
    """All steps of a compiled pipeline, in the order in which they may run.

    Args:
        pipeline: the first document of the compiled YAML.
    """
    root = pipeline["root"]
    scope = {name: Source(name=name) for name in root["inputDefinitions"]["parameters"]}
    found = {task.name: task for task in _flatten(pipeline, root["dag"], scope, ())}
    ordered: list[Task] = []
    while found:
        ready = [task for task in found.values() if not _needs(task) & found.keys()]
        ordered += ready
        found = {name: task for name, task in found.items() if task not in ready}
    return ordered


def _needs(task: Task) -> set[str]:
    return {source.task for source in [*task.parameters.values(), *task.artifacts.values(), *task.conditions]} - {""}


def needs(task: Task) -> list[str]:
    """Names of the tasks that have to be done before."""
    return sorted(_needs(task))


def _flatten(
    pipeline: dict[str, Any], dag: dict[str, Any], scope: dict[str, Source], conditions: tuple[Source, ...]
) -> Iterator[Task]:
    for name, task in dag["tasks"].items():
        component = pipeline["components"][task["componentRef"]["name"]]
        given = task.get("inputs", {})
        parameters = {key: _source(value, scope) for key, value in given.get("parameters", {}).items()}
        artifacts = {key: _source(value, scope) for key, value in given.get("artifacts", {}).items()}
        if "dag" in component:
            condition = CONDITION.match(task["triggerPolicy"]["condition"])
            if condition is None:
                raise ValueError(f"{name}: a condition of another form: {task['triggerPolicy']['condition']}")
            asked = parameters[condition["name"]]
            yield from _flatten(pipeline, component["dag"], parameters | artifacts, (*conditions, asked))
            continue
        declared = component.get("inputDefinitions", {})
        outputs = component.get("outputDefinitions", {})
        container = pipeline["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        yield Task(
            name=name,
            step=container["args"][-1],
            image=container["image"],
            # Not what placement registered beside them: that is the pod's, not the step's.
            parameters={key: value for key, value in parameters.items() if key in declared.get("parameters", {})},
            artifacts=artifacts,
            conditions=conditions,
            outputs=tuple(outputs.get("parameters", {})),
            output_artifacts=tuple(outputs.get("artifacts", {})),
        )


def _source(binding: dict[str, Any], scope: dict[str, Source]) -> Source:
    if inner := binding.get("componentInputParameter") or binding.get("componentInputArtifact"):
        return scope[inner]
    if output := binding.get("taskOutputParameter"):
        return Source(output["producerTask"], output["outputParameterKey"])
    if output := binding.get("taskOutputArtifact"):
        return Source(output["producerTask"], output["outputArtifactKey"])
    return Source(constant=binding["runtimeValue"]["constant"])
