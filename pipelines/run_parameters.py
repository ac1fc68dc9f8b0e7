"""A run's parameters from its YAML file and --set, checked against those that the compiled pipeline takes."""

import contextlib
import json
from collections.abc import Iterable
from typing import Any

import yaml

from qlora_pipelines.components.core.config.base import nearest
from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.pipelines import run_file
from qlora_pipelines.pipelines.placement import Placement
from qlora_pipelines.pipelines.run_file import Run

LIMIT = 10_000
"""Bytes that the parameters of one run may have in all; Kubeflow Pipelines' own limit."""
OWN = {*RunConfig.model_fields, *Placement.model_fields}


def override(values: dict[str, Any], settings: Iterable[str], takes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The values with NAME=VALUE put over them; `options.STEP.NAME=VALUE` reaches a step's further options.

    Raises:
        InputError: a setting is not of this form.
    """
    values = json.loads(json.dumps(values, default=str))
    for setting in settings:
        name, equal, text = setting.partition("=")
        if not equal or not name:
            raise InputError(f"--set {setting}: give NAME=VALUE")
        *groups, last = name.split(".")
        if groups and groups[0] != "options":
            raise InputError(f"--set {setting}: only options has parts; give options.STEP.NAME=VALUE")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise InputError(f"--set {setting}: {group} is no group of options in the file")
        is_text = takes.get(name, {}).get("parameterType") == "STRING" and name != "options"
        place[last] = text if is_text else _yaml(text)
    return values


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def check(values: dict[str, Any], takes: dict[str, dict[str, Any]]) -> tuple[Run, dict[str, Any]]:
    """The run, and its parameters as the API takes them: those that are not the pipeline's own defaults.

    Args:
        values: as `run_file.read` and `override` give them.
        takes: the pipeline's parameters, from its spec. One that this installation does not know is handed on.

    Raises:
        InputError: the first thing that is wrong.
    """
    known = [name for name in takes if name not in run_file.SET_BY_TRIGGER]
    for name in values:
        if name not in known:
            raise InputError(f"unknown option {name}{nearest(name, known)}")
    run = run_file.of({name: value for name, value in values.items() if name in OWN})
    found = {
        name: _typed(name, value, takes[name]["parameterType"])
        for name, value in (values | run.arguments()).items()
        if name in values or (name in known and value != takes[name].get("defaultValue"))
    }
    for name in known:
        if name not in found and not takes[name].get("isOptional"):
            raise InputError(f"{name} is required")
    size = len(json.dumps(found).encode())
    if size > LIMIT:
        raise InputError(f"the parameters have {size} bytes and Kubeflow Pipelines takes {LIMIT}: shorten options")
    return run, found


def _typed(name: str, value: Any, kind: str) -> Any:
    if kind == "STRING":
        # The JSON objects of a run's form: `options`, node selectors.
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if kind in ("NUMBER_INTEGER", "NUMBER_DOUBLE"):
        whole = kind == "NUMBER_INTEGER"
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)  # YAML reads 1e-4 as text
        if isinstance(value, int | float) and not isinstance(value, bool) and (not whole or float(value).is_integer()):
            return int(value) if whole else float(value)
        raise InputError(f"{name}: give a {'whole number' if whole else 'number'} (got {value!r})")
    wanted = {"BOOLEAN": bool, "LIST": list, "STRUCT": dict}[kind]
    if not isinstance(value, wanted):
        raise InputError(f"{name}: give a {wanted.__name__} (got {value!r})")
    return value
