"""Takes from the compiled pipeline what only readers need, or what stands there twice.

Kubeflow writes a step's code, signature and place into the Workflow object six times or more, and the retries that its
controller adds double that. Above 1 MiB Argo compresses the state in the object, and from then on Kubeflow's API shows
the states of all tasks as they were before. The pipeline's own inputs keep both: they are the form.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any

_UNUSED = ("import kfp", "from kfp.dsl import *")
"""Imports that kfp adds to each component; those here write `dsl.`."""


def shorten(pipeline: Any) -> None:
    """Shortens a pipeline that kfp has built, and changes nothing of what it does."""
    spec = pipeline.pipeline_spec
    for component in spec.components.values():
        for definitions in (component.input_definitions, component.output_definitions):
            for definition in (*definitions.parameters.values(), *definitions.artifacts.values()):
                definition.ClearField("description")
    _require_what_is_given(spec)
    for executor in spec.deployment_spec["executors"].fields.values():
        command = executor.struct_value["container"]["command"]
        *start, source = [part.string_value for part in command.values]
        command.Clear()
        command.extend([re.sub(r" {2,}", " ", part) for part in start] + [_plain(source)])
    for platform in pipeline.platform_spec.platforms.values():
        for executor in platform.deployment_spec.executors.values():
            _name_once(executor)


def _require_what_is_given(spec: Any) -> None:
    """Takes the default of an input that all of a step's tasks give.

    Tasks with the same code are one component to Kubeflow's compiler, which keeps the signature of either.
    """
    executors = spec.deployment_spec["executors"].fields
    code = {
        name: executors[component.executor_label].SerializeToString(deterministic=True)
        for name, component in spec.components.items()
        if component.executor_label
    }
    given: dict[bytes, set[str]] = {}
    for name, task in _tasks(spec):
        if name in code:
            mine = set(task.inputs.parameters)
            given[code[name]] = given.get(code[name], mine) & mine
    for name, same in code.items():
        for parameter, definition in spec.components[name].input_definitions.parameters.items():
            if parameter in given[same]:
                definition.ClearField("default_value")
                definition.ClearField("is_optional")


def _tasks(spec: Any) -> Iterator[tuple[str, Any]]:
    """Every task of every DAG, with the name of its component."""
    for component in (spec.root, *spec.components.values()):
        for task in component.dag.tasks.values():
            yield task.component_ref.name, task


def _plain(source: str) -> str:
    """A component's code without docstring, comments and imports that it does not need, as Python itself writes it.

    In JSON in JSON a double quote and the end of a line take several characters. Python's own form has the fewest.
    """
    module = ast.parse(source)
    [function] = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    if ast.get_docstring(function):
        del function.body[0]
    module.body = [node for node in module.body if ast.unparse(node) not in _UNUSED]
    return ast.unparse(module)


def _name_once(placed: Any) -> None:
    """Takes the second form of the names of secrets and of the ConfigMap; Kubeflow's driver reads either."""
    for kind in ("secretAsEnv", "secretAsVolume", "configMapAsEnv"):
        for source in placed[kind].values if kind in placed else ():
            for name in ("secretName", "configMapName"):
                if name in source.struct_value:
                    del source.struct_value[f"{name}Parameter"]
