"""The compiled pipeline as a flat list of steps: what each takes from where, and under which condition it runs."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

CONDITION = re.compile(r"inputs\.parameter_values\['(?P<name>[^']+)'\] == true$")
FINAL_STATUS = "{{$.final_status}}"
"""Stands for how the other tasks ended, which an exit task is told."""


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
    """One step of the pipeline, with what the `If`s around it ask for; an exit task runs when all others have ended."""

    name: str
    step: str
    image: str
    parameters: dict[str, Source]
    artifacts: dict[str, Source]
    conditions: tuple[Source, ...]
    outputs: tuple[str, ...]
    output_artifacts: tuple[str, ...]
    is_exit: bool = False


def walk(pipeline: dict[str, Any], *around: dict[str, Any]) -> Iterator[tuple[str, tuple[dict[str, Any], ...]]]:
    """Every step of a compiled pipeline by its task's name, in an order in which they can run.

    Args:
        pipeline: the first document of the compiled YAML.
        around: the tasks whose DAG is walked, the outermost first; none: the pipeline's own.

    Yields:
        The task's name, and its spec after those of the tasks around it.
    """
    waiting = dict(_component(pipeline, around[-1])["dag"]["tasks"] if around else pipeline["root"]["dag"]["tasks"])
    while waiting:
        name = next(name for name, task in waiting.items() if not waiting.keys() & set(task.get("dependentTasks", ())))
        path = (*around, waiting.pop(name))
        if "dag" in _component(pipeline, path[-1]):
            yield from walk(pipeline, *path)
        else:
            yield name, path


def tasks(pipeline: dict[str, Any]) -> list[Task]:
    """All steps of a compiled pipeline, in an order in which they can run.

    Args:
        pipeline: the first document of the compiled YAML.

    Raises:
        ValueError: a condition is not of the form `output == True`.
    """
    return [_task(pipeline, name, path) for name, path in walk(pipeline)]


def needs(task: Task) -> list[str]:
    """Names of the tasks that must be done before it."""
    sources = [*task.parameters.values(), *task.artifacts.values(), *task.conditions]
    return sorted({source.task for source in sources} - {""})


def is_exit(task: dict[str, Any]) -> bool:
    """Whether a task runs when all others have ended, however they did."""
    return bool(task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED")


def _component(pipeline: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pipeline["components"][task["componentRef"]["name"]]
    return found


def _task(pipeline: dict[str, Any], name: str, path: tuple[dict[str, Any], ...]) -> Task:
    scope = {name: Source(name=name) for name in pipeline["root"]["inputDefinitions"]["parameters"]}
    conditions: list[Source] = []
    for task in path:
        given = task.get("inputs", {})
        parameters = {key: _source(value, scope) for key, value in given.get("parameters", {}).items()}
        artifacts = {key: _source(value, scope) for key, value in given.get("artifacts", {}).items()}
        scope = parameters | artifacts
        if condition := task.get("triggerPolicy", {}).get("condition"):
            found = CONDITION.match(condition)
            if found is None:
                raise ValueError(f"{name}: a condition of another form: {condition}")
            conditions.append(parameters[found["name"]])
    component = _component(pipeline, path[-1])
    declared = component.get("inputDefinitions", {})
    outputs = component.get("outputDefinitions", {})
    container = pipeline["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
    return Task(
        name=name,
        step=container["args"][-1],
        image=container["image"],
        # Without what placement registered: that is the pod's, not the step's.
        parameters={key: value for key, value in parameters.items() if key in declared.get("parameters", {})},
        artifacts=artifacts,
        conditions=tuple(conditions),
        outputs=tuple(outputs.get("parameters", {})),
        output_artifacts=tuple(outputs.get("artifacts", {})),
        is_exit=is_exit(path[-1]),
    )


def _source(binding: dict[str, Any], scope: dict[str, Source]) -> Source:
    if inner := binding.get("componentInputParameter") or binding.get("componentInputArtifact"):
        return scope[inner]
    if output := binding.get("taskOutputParameter"):
        return Source(output["producerTask"], output["outputParameterKey"])
    if output := binding.get("taskOutputArtifact"):
        return Source(output["producerTask"], output["outputArtifactKey"])
    if "taskFinalStatus" in binding:
        return Source(constant=FINAL_STATUS)
    return Source(constant=binding["runtimeValue"]["constant"])
