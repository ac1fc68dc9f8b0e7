"""notify as the pipeline sees it."""

from typing import NamedTuple

from kfp import dsl

from qlora_pipelines.components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def notify(
    state: dsl.PipelineTaskFinalStatus,
    model_name: str,
    run_name: str = "",
    run_id: str = "",
) -> NamedTuple("Notified", outcome=str, sent=bool):
    """Post to a webhook how the run ended: the registered version, or why there is none.

    Args:
        state: How Kubeflow says that the run's other steps ended.
        model_name: Name of the registered model in MLflow.
        run_name: The run's name in Kubeflow.
        run_id: The run's id, where the environment (QLORA_RUN_ID) does not say it.

    Returns:
        outcome: What became of the run, registered, rejected, failed, cancelled or unknown; empty without a webhook.
        sent: Whether the webhook took the message.
    """
    from qlora_pipelines.components.core.runtime import step
    from qlora_pipelines.components.notify import task

    with step("notify"):
        return task.run(task.Config.parse(), state=state.state, model_name=model_name, run_name=run_name, run_id=run_id)
