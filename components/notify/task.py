"""Tells people how a run ended, over a webhook, and ends the training's run in MLflow where nobody else could.

The steps leave their outcomes in the store (core/store/outcomes.py). A webhook that fails is a line in the log, and no
run fails for it: this step ends without an error whatever happens to the message. The webhook's address is a secret, so
no line has any part of it.
"""

from typing import NamedTuple

from qlora_pipelines.components.core.config.steps import NotifyConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import training_runs
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import outcomes
from qlora_pipelines.components.notify import ending, message, webhook
from qlora_pipelines.components.notify.message import Run

Config = NotifyConfig
TRAIN = "train_qlora"


class Result(NamedTuple):
    """What became of the run, '' where there is no webhook; and whether the webhook took the message."""

    outcome: str
    sent: bool


def run(
    config: NotifyConfig,
    *,
    state: str = "",
    failures: str = "",
    model_name: str = "",
    run_name: str = "",
    run_id: str = "",
) -> Result:
    """Finds out how the run ended, and posts it; a training that was stopped in its middle is ended in MLflow.

    Args:
        config: the step's options.
        state: how the run ended, in Kubeflow's or Argo's word; empty: not known.
        failures: what Argo says of the nodes that failed, a JSON list; empty: nothing.
        model_name: name of the registered model in MLflow.
        run_name: the run's name.
        run_id: the run's id, where QLORA_RUN_ID does not say it.
    """
    outcome, sent = "", False
    about = Run(outcomes.run_id() or run_id, run_name, model_name)
    steps = _outcomes(about.id)
    try:
        if hook := webhook.from_environment():
            found = ending.find(steps, state, failures)
            outcome = found.outcome
            log(f"the run's outcome: {outcome}: {found.reason}")
            hook.post(message.make(about, found, hook.form), config.timeout_seconds, config.tries)
            sent = True
        log("the webhook was told" if sent else f"nobody is told: {webhook.URL_VARIABLE} is not set")
    except webhook.HookError as error:
        log(f"the webhook was not told: {error}", "warning")
    except Exception as error:  # no run fails for a message; the error's text may have the address
        log(f"the webhook was not told: {type(error).__name__}", "warning")
    # A terminated container is gone a moment after its SIGTERM. Only this step is still there to tell MLflow.
    stopped = TRAIN in steps and steps[TRAIN].ended == outcomes.RUNNING
    if stopped and training_runs.end(training_runs.RUN_TAG, about.id, training_runs.KILLED):
        log("the training was stopped; its run in MLflow is ended as KILLED")
    return Result(outcome, sent)


def _outcomes(run_id: str) -> dict[str, outcomes.Outcome]:
    """What the steps left; nothing where the store is away, and then the message says less."""
    try:
        found = outcomes.read(run_id) if run_id else {}
        # `qlora step` leaves an outcome of every step, of this one too, which has not ended.
        return {step: outcome for step, outcome in found.items() if step != "notify"}
    except InputError as error:
        log(f"the outcomes of the steps cannot be read: {error}", "warning")
        return {}
