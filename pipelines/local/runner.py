"""Runs the compiled pipeline on this machine through kfp.local: no Kubernetes, no Docker."""

import contextlib
import dataclasses
import io
import json
import os
import re
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import yaml

from qlora_pipelines.components.core import runtime
from qlora_pipelines.components.core.store import outcomes
from qlora_pipelines.pipelines.compiler import compiled, ir
from qlora_pipelines.pipelines.compiler.compiled import Compiled
from qlora_pipelines.pipelines.local import progress, workspace
from qlora_pipelines.pipelines.local.progress import Screen
from qlora_pipelines.pipelines.run_file import Run
from qlora_pipelines.pipelines.tasks import REGISTER, REPORTS, End

# What kfp.local logs around each task, without its colours.
TASK_BEGAN, TASK_ENDED = (
    re.compile(r"Executing task '(.+)'$"),
    re.compile(r"Task '(.+)' finished with status '?(\w+)'?$"),
)
COLOUR = re.compile(r"\x1b\[\d+m")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a local run ended.

    `results` holds each step's small results by task name; `error` is the failing step's line, or ''; `registry` is the
    MLflow to name to later commands, or '' where they find it by themselves.
    """

    folder: Path
    results: dict[str, dict[str, Any]]
    error: str
    registry: str

    @property
    def end(self) -> End:
        """DONE, FAILED or GATE_SAID_NO; a run that is cancelled has no outcome."""
        return End.FAILED if self.error else End.DONE if REGISTER in self.results else End.GATE_SAID_NO


def run(wanted: Run, runs: Path, runner: Any = None) -> Outcome:
    """Compiles the pipeline and runs it; each step is a process of its own, or a container.

    Store and MLflow are those of the environment, else `runs/store` and `runs/mlflow.db`.

    Args:
        wanted: the whole run; of its place only `gpu_count` 0, the CPU, has an effect here.
        runs: folder for runs, the default store and the MLflow database.
        runner: how kfp.local runs a step, such as its DockerRunner; None is a process.

    Raises:
        OSError: that folder cannot be written.
    """
    from kfp import components, local

    runs = runs.absolute()
    folder = _new_folder(runs, wanted.config.model_name)
    (folder / "tasks").mkdir()
    registry = workspace.use(runs)
    pipeline = compiled.from_code()
    run_id = f"{re.sub('[^A-Za-z0-9._-]', '_', folder.name)[:150]}-{secrets.token_hex(4)}"
    (folder / "pipeline.yaml").write_text(_for_this_machine(pipeline, run_id))
    local.init(runner or local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "tasks"))
    finetune = components.load_component_from_file(str(folder / "pipeline.yaml"))
    shown = progress.screen(sys.stdout, pipeline.steps)
    with (
        contextlib.closing(shown),
        (folder / "log.txt").open("w") as log,
        contextlib.redirect_stdout(_Log(log, shown)) as lines,
    ):
        try:
            finetune(**wanted.arguments())
            error = ""
        except (RuntimeError, ValueError) as failure:
            # kfp.local counts a container that is already gone as one that succeeded, and then misses its outputs.
            if isinstance(failure, ValueError) and not lines.last_error:
                raise
            error = lines.last_error or str(failure)
    results = {
        path.parent.name: json.loads(path.read_text()).get("parameterValues", {})
        for path in sorted(folder.glob("tasks/*/*/executor_output.json"))
    }
    for task, name in REPORTS.items():
        for path in folder.glob(f"tasks/*/{task}/report"):
            (folder / "reports").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "reports" / f"{name}.html")
    return Outcome(folder, results, error, registry)


def _new_folder(runs: Path, name: str) -> Path:
    runs.mkdir(parents=True, exist_ok=True)
    stem, number = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}", 1
    while True:
        folder = runs / (f"{stem}-{number}" if number > 1 else stem)
        with contextlib.suppress(FileExistsError):  # another run began in this second
            folder.mkdir()
            return folder
        number += 1


def _for_this_machine(pipeline: Compiled, run_id: str) -> str:
    """The pipeline with what kfp.local needs, and with steps that log as JSON and know their run."""
    environment = {
        runtime.FORMAT_VARIABLE: "json",
        outcomes.RUN_VARIABLE: run_id,
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
    }
    for executor in pipeline.spec["deploymentSpec"]["executors"].values():
        executor["container"]["env"] = [{"name": name, "value": value} for name, value in environment.items()]
    for _, (*around, task) in ir.walk(pipeline.spec):
        # Retries are for lost pods; here a step would wait for minutes to fail in the same way again.
        task.pop("retryPolicy", None)
        for group in around:
            if "triggerPolicy" in group:
                _name_outputs(group)
    return yaml.safe_dump_all(pipeline.documents, sort_keys=False)


def _name_outputs(condition: dict[str, Any]) -> None:
    """Writes the outputs of tasks in a condition as TASK--OUTPUT.

    The compiler writes `pipelinechannel--evaluate-model-passed`. kfp.local 2.17 looks for an input of the pipeline with
    that name, finds none, and skips the tasks inside. Kubeflow itself does not have this bug.
    """
    policy = condition["triggerPolicy"]
    for name, source in condition["inputs"]["parameters"].items():
        if output := source.get("taskOutputParameter"):
            named = f"'{output['producerTask']}--{output['outputParameterKey']}'"
            policy["condition"] = policy["condition"].replace(f"'{name}'", named)


class _Log(io.TextIOBase):
    """Takes what a run prints: all of it goes to the log file, and what steps do and log to the screen."""

    def __init__(self, log: TextIO, screen: Screen) -> None:
        self.log, self.screen = log, screen
        self.last_error = ""
        self._line = ""

    def write(self, text: str) -> int:
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            self.log.write(self._read(line) + "\n")
        self.log.flush()
        return len(text)

    def _read(self, text: str) -> str:
        """Shows what a line says, and returns it as text for the log file."""
        bare = COLOUR.sub("", text).strip()
        if line := runtime.parse(bare):
            if line["level"] == "error":
                self.last_error = f"{line['step']}: {line['message']}"
            else:
                self.screen.said(line)
            return f"    {runtime.as_text(line)}"
        if found := TASK_BEGAN.search(bare):
            self.screen.began(found[1])
        elif found := TASK_ENDED.search(bare):
            self.screen.ended(found[1], found[2] == "SUCCESS")
        return text
