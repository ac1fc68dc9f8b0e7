"""Runs the compiled pipeline on this machine through kfp.local: no Kubernetes, no Docker."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from components.core import storage, tracking
from components.core.config import RunConfig
from components.core.steps import duration

STEP_LINE = re.compile(r"^\s*\[(\w+)\] (.*)$")
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

    `results` holds each step's small results by task name; `error` is the failing step's line, or ''.
    """

    folder: Path
    results: dict[str, dict[str, Any]]
    error: str

    @property
    def registered(self) -> bool:
        """Whether a model version came out."""
        return "register-model" in self.results


def run(config: RunConfig, runs: Path) -> Outcome:
    """Compiles the pipeline and runs it; each step is a process of its own.

    Store and MLflow are those of the environment, else `runs/store` and `runs/mlflow.db`.

    Args:
        config: the whole run.
        runs: folder that keeps runs, and the default store and MLflow database.
    """
    runs = runs.absolute()
    folder = runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.model_name}"
    folder.mkdir(parents=True)
    os.environ.setdefault(storage.STORE_VARIABLE, str(runs / "store"))
    os.environ.setdefault(tracking.URI_VARIABLE, f"sqlite:///{runs / 'mlflow.db'}")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    with (folder / "log.txt").open("w") as log, contextlib.redirect_stdout(_StepLines(log)) as lines:
        try:
            _run_pipeline(config, folder)
            error = ""
        except RuntimeError as failure:
            error = lines.last_error or str(failure)
    results = dict(_results(folder / "tasks"))
    _collect_reports(folder)
    return Outcome(folder, results, error)


def _run_pipeline(config: RunConfig, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kfp import compiler, components, local

        from pipelines.finetune import finetune

        compiler.Compiler().compile(finetune, str(folder / "pipeline.yaml"))
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "tasks"))
        arguments = config.model_dump() | {"options": json.dumps(config.options)}
        with _named_outputs_in_conditions():
            components.load_component_from_file(str(folder / "pipeline.yaml"))(**arguments)


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


class _StepLines(io.TextIOBase):
    """Shows the lines that steps log, with the time since the start; the whole output goes to the log file."""

    def __init__(self, log: TextIO) -> None:
        import sys

        self.log, self.screen = log, sys.stdout
        self.started = time.monotonic()
        self.last_error = ""
        self._line = ""

    def write(self, text: str) -> int:
        self.log.write(text)
        self.log.flush()
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            if found := STEP_LINE.match(line):
                self._show(*found.groups())
        return len(text)

    def _show(self, step: str, message: str) -> None:
        if message.startswith("error: "):
            self.last_error = f"{step}: {message.removeprefix('error: ')}"
            return
        self.screen.write(f"{duration(time.monotonic() - self.started):>11}  {step:<20}  {message}\n")
        self.screen.flush()


def _results(tasks: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(tasks.glob("*/*/executor_output.json")):
        yield path.parent.name, json.loads(path.read_text()).get("parameterValues", {})


def _collect_reports(folder: Path) -> None:
    for (task, artifact), name in REPORTS.items():
        for path in folder.glob(f"tasks/*/{task}/{artifact}"):
            (folder / "reports").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "reports" / name)
