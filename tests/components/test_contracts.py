"""What every component folder must be; found by globbing, so a new step is held to it at once."""

import ast
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from docstring_parser import parse

from qlora_pipelines.components.core.config.placement import Placement
from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import OPTION_STEPS
from qlora_pipelines.pipelines.docgen import reference
from qlora_pipelines.pipelines.finetune import finetune
from qlora_pipelines.pipelines.run_file import SET_BY_TRIGGER

ROOT = Path(__file__).parents[2]
STEPS = reference.STEPS
STANDARD = {"typing"}


def task(step: str) -> Any:
    return importlib.import_module(f"qlora_pipelines.components.{step}.task")


def arguments(step: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(reference.component(step).python_func).parameters)


def test_there_are_seven_steps_and_each_has_the_same_shape() -> None:
    assert len(STEPS) >= 7
    for step in STEPS:
        folder = ROOT / "components" / step
        assert {"component.py", "task.py", "README.md", "__init__.py"} <= {path.name for path in folder.iterdir()}
        assert (folder / "__init__.py").read_text() == "", f"{step}/__init__.py must stay empty"


@pytest.mark.parametrize("step", STEPS)
def test_a_folder_is_named_as_its_function(step: str) -> None:
    assert reference.component(step).python_func.__name__ == step


@pytest.mark.parametrize("step", STEPS)
def test_component_imports_nothing_heavy(step: str) -> None:
    tree = ast.parse((ROOT / "components" / step / "component.py").read_text())
    imported = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            imported |= (
                {node.module} if node.module != "qlora_pipelines.components" else {alias.name for alias in node.names}
            )
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    assert imported <= {"kfp", "images"} | STANDARD


@pytest.mark.parametrize("step", STEPS)
def test_component_defaults_are_the_configs(step: str) -> None:
    fields = task(step).Config.model_fields
    for name, argument in arguments(step).items():
        if name not in fields or name == "options":
            continue
        if fields[name].is_required():
            assert argument.default is inspect.Parameter.empty, f"{name} is required by the config"
        else:
            assert argument.default == fields[name].default, name


@pytest.mark.parametrize("step", STEPS)
def test_every_argument_and_output_is_documented(step: str) -> None:
    doc = parse(reference.component(step).python_func.__doc__)
    assert {param.arg_name for param in doc.params} == set(arguments(step))
    assert all(param.description for param in doc.params)
    artifacts = {name for name in arguments(step)}
    returned = reference.returns(reference.component(step).python_func.__doc__)
    assert set(reference.component(step).component_spec.outputs or {}) <= artifacts | set(returned)


@pytest.mark.parametrize("step", STEPS)
def test_component_returns_what_its_task_returns(step: str) -> None:
    returned = reference.component(step).python_func.__annotations__["return"]._fields
    assert returned == task(step).Result._fields


@pytest.mark.parametrize("step", STEPS)
def test_every_option_is_described_and_the_config_is_frozen(step: str) -> None:
    config = task(step).Config
    assert config.model_config["frozen"] and config.model_config["extra"] == "forbid"
    assert all(field.description for field in config.model_fields.values())


@pytest.mark.parametrize("step", STEPS)
def test_task_takes_its_paths_by_name(step: str) -> None:
    first, *others = inspect.signature(task(step).run).parameters.values()
    assert first.name == "config"
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in others)


def test_the_pipelines_parameters_are_a_runs_options() -> None:
    parameters = inspect.signature(finetune.pipeline_func).parameters
    assert not set(RunConfig.model_fields) & set(Placement.model_fields)
    fields = RunConfig.model_fields | Placement.model_fields
    assert set(parameters) == {*fields, *SET_BY_TRIGGER}
    assert all(parameters[name].default == "" for name in SET_BY_TRIGGER)
    for name, parameter in parameters.items():
        if name in SET_BY_TRIGGER:
            continue
        if fields[name].is_required():
            assert parameter.default is inspect.Parameter.empty
        elif name == "options":
            assert json.loads(parameter.default) == fields[name].default
        else:
            assert parameter.default == fields[name].default, name


def test_a_typed_parameter_of_a_step_is_one_of_the_run_too() -> None:
    """Else its value could be set neither in the form nor, being refused there, in options."""
    for step in OPTION_STEPS:
        typed = set(arguments(step)) & set(task(step).Config.model_fields) - {"options"}
        assert typed == set(task(step).Config.model_fields) & set(RunConfig.model_fields), step


def test_gpus_and_images_are_named_in_one_place() -> None:
    for path in [*ROOT.glob("components/**/*.py"), *ROOT.glob("pipelines/**/*.py")]:
        text = path.read_text()
        if path.name != "placement.py":
            assert "set_accelerator" not in text and "set_memory" not in text, path
            assert "kubernetes." not in text.replace("kubernetes.io", ""), path
        if path.name != "images.py":
            assert "ghcr.io" not in text, path
