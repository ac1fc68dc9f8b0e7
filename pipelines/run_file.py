"""A run's YAML file: what is trained and how, and where its steps are placed, in one list of names."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from qlora_pipelines.components.core.config.base import nearest
from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.pipelines.placement import Placement

SET_BY_TRIGGER = ("training_key", "claim")
"""Parameters of the pipeline that no file sets."""


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a run's file says; `training_key`: what the run must turn out to have, or empty."""

    config: RunConfig
    placement: Placement
    training_key: str = ""

    def arguments(self) -> dict[str, Any]:
        """The pipeline's parameters."""
        config = self.config.model_dump() | {"options": json.dumps(self.config.options)}
        return config | self.placement.model_dump() | {"training_key": self.training_key}


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


def of(values: dict[str, Any]) -> Run:
    """A run from its options by name.

    Raises:
        InputError: one is unknown, missing or wrong.
    """
    known = [*RunConfig.model_fields, *Placement.model_fields]
    for name in values:
        if name not in known:
            raise InputError(f"unknown option {name}{nearest(str(name), known)}")
    placed = {name: value for name, value in values.items() if name in Placement.model_fields}
    config = RunConfig.parse(**{name: value for name, value in values.items() if name not in placed})
    processes = config.for_step("train_qlora").processes
    placement = Placement.parse(**{"gpu_count": processes} | placed)
    if processes != int(placement.gpu_count):
        raise InputError(
            f"gpu_count is {placement.gpu_count} but options.train_qlora.processes is {processes}: training runs one"
            " process a GPU, so leave gpu_count out or give both the same"
        )
    return Run(config, placement)
