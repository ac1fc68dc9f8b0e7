"""Runs the compiled pipeline on this machine through kfp.local: no Kubernetes, no Docker."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import yaml

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.pipelines.local import progress, workspace
from qlora_pipelines.pipelines.local.progress import Screen
from qlora_pipelines.pipelines.run_file import Run

STEP_LINE = re.compile(r"^\s*\[(\w+)\] (.*)$")
# What kfp.local logs around each task; its colours are taken out first.
TASK_BEGAN, TASK_ENDED = (
    re.compile(r"Executing task '(.+)'$"),
    re.compile(r"Task '(.+)' finished with status '?(\w+)'?$"),
)
COLOUR = re.compile(r"\x1b\[\d+m")
REPORTS = {
    ("plan-run", "report"): "1-plan.html",
    ("prepare-dataset", "report"): "2-data.html",
    ("train-qlora", "report"): "3-training.html",
    ("evaluate-model", "report"): "4-tuned.html",
    ("evaluate-model-2", "report"): "5-merged.html",
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a local run ended.

    `results` holds each step's small results by task name; `error` is the failing step's line, or ''; `registry` is the
    MLflow that later commands must be told of, or '' where they find it by themselves.
    """

    folder: Path
    results: dict[str, dict[str, Any]]
    error: str
    registry: str

    @property
    def registered(self) -> bool:
        """Whether a model version came out."""
        return "register-model" in self.results


def run(wanted: Run, runs: Path, runner: Any = None) -> Outcome:
    """Compiles the pipeline and runs it; each step is a process of its own, or a container.

    Store and MLflow are those of the environment, else `runs/store` and `runs/mlflow.db`.

    Args:
        wanted: the whole run; its placement is checked and handed on, and means nothing here.
        runs: folder that keeps runs, and the default store and MLflow database.
        runner: how kfp.local runs a step, such as its DockerRunner; None is a process.

    Raises:
        InputError: that folder cannot be written.
    """
    runs = runs.absolute()
    folder = _new_folder(runs, wanted.config.model_name)
    (folder / "tasks").mkdir()
    registry = workspace.use(runs)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    spec = _compile(folder / "pipeline.yaml")
    shown = progress.on(sys.stdout, progress.titles(spec))
    with (
        contextlib.closing(shown),
        (folder / "log.txt").open("w") as log,
        contextlib.redirect_stdout(_Log(log, shown)) as lines,
    ):
        try:
            _run_pipeline(wanted, folder, runner)
            error = ""
        except (RuntimeError, ValueError) as failure:
            # kfp.local takes a container that is gone already for one that succeeded, and then misses its outputs.
            if isinstance(failure, ValueError) and not lines.last_error:
                raise
            error = lines.last_error or str(failure)
    results = dict(_results(folder / "tasks"))
    _collect_reports(folder)
    return Outcome(folder, results, error, registry)


def _new_folder(runs: Path, name: str) -> Path:
    started = time.strftime("%Y%m%d-%H%M%S")
    for ending in ("", *(f"-{number}" for number in range(2, 100))):
        try:
            folder = runs / f"{started}-{name}{ending}"
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue  # another run began in this second
        except OSError as error:
            raise InputError(f"{runs}: no folder for runs: {error.strerror}") from None
    raise InputError(f"{runs}: no folder for runs: {started}-{name} and its like exist")


def _compile(path: Path) -> dict[str, Any]:
    """Writes the compiled pipeline, without retries, and returns it without what only Kubernetes sees.

    Retries are for pods that are lost; kfp.local would wait minutes to fail in the same way again.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kfp import compiler

        from qlora_pipelines.pipelines.finetune import finetune

        compiler.Compiler().compile(finetune, str(path))
    spec, *rest = yaml.safe_load_all(path.read_text())
    for dag in [spec["root"], *spec["components"].values()]:
        for task in dag.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    path.write_text(yaml.safe_dump_all([spec, *rest], sort_keys=False))
    return dict(spec)


def _run_pipeline(wanted: Run, folder: Path, runner: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kfp import components, local

        runner = runner or local.SubprocessRunner(use_venv=False)
        local.init(runner=runner, pipeline_root=str(folder / "tasks"))
        with _named_outputs_in_conditions():
            components.load_component_from_file(str(folder / "pipeline.yaml"))(**wanted.arguments())


@contextlib.contextmanager
def _named_outputs_in_conditions() -> Iterator[None]:
    """Lets `dsl.If` see named outputs of a task.

    kfp.local 2.17 knows a task's output in a condition only if it is the task's one unnamed output; a named one
    (`evaluate-model-passed`) it seeks among the pipeline's inputs, in vain, and skips the branch. Kubeflow itself does
    not have this fault.
    """
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator

    original = ConditionEvaluator._resolve_pipeline_channel

    def resolve(channel: str, io_store: Any) -> Any:
        task, _, output = channel.removeprefix("pipelinechannel--").rpartition("-")
        try:
            return io_store.get_task_output(task, output)
        except ValueError:
            return original(channel, io_store)

    ConditionEvaluator._resolve_pipeline_channel = staticmethod(resolve)
    try:
        yield
    finally:
        ConditionEvaluator._resolve_pipeline_channel = staticmethod(original)


class _Log(io.TextIOBase):
    """Takes what a run prints: all of it goes to the log file, and what steps do and say to the screen."""

    def __init__(self, log: TextIO, screen: Screen) -> None:
        self.log, self.screen = log, screen
        self.last_error = ""
        self._line = ""

    def write(self, text: str) -> int:
        self.log.write(text)
        self.log.flush()
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            self._read(COLOUR.sub("", line))
        return len(text)

    def _read(self, line: str) -> None:
        if found := STEP_LINE.match(line):
            step, message = found.groups()
            if message.startswith("error: "):
                self.last_error = f"{step}: {message.removeprefix('error: ')}"
            else:
                self.screen.said(message)
        elif found := TASK_BEGAN.search(line):
            self.screen.began(found[1])
        elif found := TASK_ENDED.search(line):
            self.screen.ended(found[1], found[2] == "SUCCESS")


def _results(tasks: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(tasks.glob("*/*/executor_output.json")):
        yield path.parent.name, json.loads(path.read_text()).get("parameterValues", {})


def _collect_reports(folder: Path) -> None:
    for (task, artifact), name in REPORTS.items():
        for path in folder.glob(f"tasks/*/{task}/{artifact}"):
            (folder / "reports").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "reports" / name)
