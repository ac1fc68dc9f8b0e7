"""Why a run failed, in the words of its steps: the server itself gives little more than a log."""

import re

from kfp_server_api import V2beta1Run

from qlora_pipelines.components.core.runtime import ERROR_MARK
from qlora_pipelines.pipelines.compiler.compiled import Compiled
from qlora_pipelines.pipelines.kfp_api import argo_nodes, run_tasks, runs
from qlora_pipelines.pipelines.kfp_api.client import Server
from qlora_pipelines.pipelines.kfp_api.run_tasks import Task
from qlora_pipelines.pipelines.placement import STEPS
from qlora_pipelines.pipelines.tasks import PLAN, TRAIN

LAST_LINES = 15
KILLED = re.compile(r"(signal: killed|exit status 137)$|OOMKilled|\(exit code 137\)")
"""What Kubeflow's launcher or Argo says of a step that was killed.

Kubeflow starts Python through a shell, which makes 137 of a SIGKILL (128 + 9). The launcher itself lives on.
"""
STARTED, ENDED = "[KFP Executor ", "failed to execute component: "
"""In the first lines of kfp in the step, and in the launcher's last one whatever ended the step."""
LAUNCHER = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d{6} |time=\S+ level=|Error: exit status \d+$")
"""Lines of Kubeflow's launcher and of Argo. Only the one with `ENDED` says what the step did not."""
COMPILED_CODE = "ephemeral_component.py"
"""Where kfp puts the few lines of a step that are in the compiled pipeline; the image has all others."""
NO_REASON = "the server gives no reason; the step's log is in the UI"
PLANNED = re.compile(r"\[plan_run\] memory: (\d.*)$", re.MULTILINE)
"""The line in which plan_run says what training needs."""


def why(server: Server, run: V2beta1Run, pipeline: Compiled, steps: dict[str, Task], failed: str) -> list[str]:
    """Why a run failed: a line, or a few, the first of which says most.

    Args:
        server: where it ran.
        run: the run.
        pipeline: what it ran.
        steps: its steps by the names that people know.
        failed: the one of them that failed; empty: none is known to have.
    """
    if not failed:
        return _lines(run_tasks.message(run)) or argo_nodes.failures(server, run.run_id)[:LAST_LINES] or [NO_REASON]
    step = _known_to_argo(server, run, steps[failed])
    reason, lines = _lines(step.error), _log(server, run, step)
    said = [line for line in lines if not LAUNCHER.match(line)]
    if errors := [line for line in said if ERROR_MARK in line]:
        return [errors[-1] + _of_another_version(said)]
    if hint := _of_another_version(said):
        return [said[-1] + hint]
    last = lines[-LAST_LINES:]
    if any(map(KILLED.search, last)):
        return [_killed(server, run, pipeline, steps, failed)]
    killed = any(map(KILLED.search, reason))
    # Under cgroup v2 the kernel kills all processes of a container at once, and nobody is left to say so.
    cut_off = any(STARTED in line for line in lines) and not any(ENDED in line for line in last)
    if killed or cut_off or step.stopped:
        first = reason[0] if reason and not killed else _killed(server, run, pipeline, steps, failed)
        if last:
            return [f"{first}. Its log ends so:", *last]
        return [first if reason else f"{first}. The server has no log of it; the pod's events may say more"]
    return said[-LAST_LINES:] + [line for line in last if ENDED in line] or reason or last or [NO_REASON]


def _known_to_argo(server: Server, run: V2beta1Run, step: Task) -> Task:
    """A step with what Argo knows of it, if it did not come to report its end."""
    pods = argo_nodes.of_step(server, run.run_id, step.name) if step.stopped else []
    return step._replace(pods=tuple(pod.name for pod in pods), error=pods[-1].message) if pods else step


def _of_another_version(lines: list[str]) -> str:
    """What to do if the error arose where the compiled pipeline calls the image's code; '' if it arose elsewhere."""
    places = [line for line in lines if line.lstrip().startswith('File "')]
    if not places or COMPILED_CODE not in places[-1]:
        return ""
    return "; the pipeline and its image are of two versions: compile it with the version that the image has"


def _killed(server: Server, run: V2beta1Run, pipeline: Compiled, steps: dict[str, Task], failed: str) -> str:
    """What a step that was killed had, what the plan said it would need, and what to change."""
    said = "killed, most likely for taking more memory than its limit"
    task = next(task for task, step in pipeline.steps.items() if step == failed)
    needs = STEPS.get(re.sub(r"-\d+$", "", task).replace("-", "_"))
    if not needs:  # a step of somebody else's pipeline
        return said
    if not needs.gpus:
        return f"{said} of {needs.memory}: raise it in pipelines/placement.py, and compile the pipeline again"
    memory = runs.parameters(run).get("memory") or pipeline.parameters.get("memory", {}).get("defaultValue")
    # The plan's figure is of training.
    plan = steps.get(pipeline.steps.get(PLAN, "")) if task == TRAIN else None
    planned = PLANNED.findall("\n".join(_log(server, run, plan))) if plan else []
    return f"{said} of {memory}{f'; the plan said {planned[-1]}' if planned else ''}: raise memory"


def _log(server: Server, run: V2beta1Run, task: Task) -> list[str]:
    """The lines of a step's last pod of which the server gives any."""
    for pod in reversed(task.pods):
        if lines := [line.rstrip() for line in server.log(run.run_id, pod).split("\n") if line.strip()]:
            return lines
    return []


def _lines(reason: str) -> list[str]:
    return reason.strip().split("\n")[:LAST_LINES] if reason.strip() else []
