"""A run's YAML file: what is trained and how, where the steps run, and the parameters that the pipeline gets."""

import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml

from qlora_pipelines.components.core.config.base import json_text, unknown
from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.errors import InputError

SET_BY_TRIGGER = ("training_key", "claim")
"""Parameters of the pipeline that no file sets."""
NAMES = tuple(PlacedRun.model_fields)
"""Every option that a run's file may have."""
LIMIT = 10_000
"""Bytes that all parameters of one run may have; Kubeflow Pipelines' own limit."""


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a run's file says; `training_key`: what the run must turn out to have, or empty."""

    config: PlacedRun
    training_key: str = ""

    def arguments(self) -> dict[str, Any]:
        """The pipeline's parameters."""
        options = json_text(self.config.options)
        return self.config.model_dump() | {"options": options, "training_key": self.training_key}


def load(path: Path) -> Run:
    """Reads a run's file.

    Raises:
        InputError: not there, not YAML, or an option is wrong; one line.
    """
    values = read(path)
    try:
        return of(values)
    except InputError as error:
        raise InputError(f"config {path}: {error}") from None


def read(path: Path) -> dict[str, Any]:
    """The options in a run's file by name, not checked.

    Raises:
        InputError: not there, or not YAML.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"config {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"config {path}: not text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise InputError(f"config {path}: not YAML{where}") from None
    if not isinstance(values, dict):
        raise InputError(f"config {path}: expected options as NAME: VALUE")
    return {str(name): value for name, value in values.items()}


def of(values: dict[str, Any], known: Collection[str] = NAMES) -> Run:
    """A run from its options by name.

    Args:
        values: the options.
        known: the names that may be given. Those that a run's file cannot have are checked no further.

    Raises:
        InputError: one is unknown, missing or wrong.
    """
    for name in values:
        if name not in known:
            raise InputError(unknown(name, known, RunConfig.renamed))
    fields = {name: value for name, value in values.items() if name in NAMES}
    config = RunConfig.parse(**{name: value for name, value in fields.items() if name in RunConfig.model_fields})
    return Run(PlacedRun.parse(**{"gpu_count": config.for_step("train_qlora").processes} | fields))


def override(values: dict[str, Any], settings: Iterable[str], takes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The values with NAME=VALUE put over them; `options.STEP.NAME=VALUE` sets an option of a step.

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
        place[last] = text
        if takes.get(name, {}).get("parameterType") != "STRING" or name == "options":
            with contextlib.suppress(yaml.YAMLError):  # then it stays text
                place[last] = yaml.safe_load(text)
    return values


def check(values: dict[str, Any], takes: dict[str, dict[str, Any]]) -> tuple[Run, dict[str, Any]]:
    """The run, and its parameters as the API takes them: those that are not the pipeline's own defaults.

    Args:
        values: as `read` and `override` give them.
        takes: the pipeline's parameters, from its spec. One that this installation does not know is passed on.

    Raises:
        InputError: the first thing that is wrong.
    """
    known = [name for name in takes if name not in SET_BY_TRIGGER]
    run = of(values, known)
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
        return value if isinstance(value, str) else json_text(value)
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
