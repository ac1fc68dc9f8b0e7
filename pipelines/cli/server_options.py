"""What `qlora submit` and `qlora trigger` share: the options for the server, and following a run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.pipelines.tasks import End

if TYPE_CHECKING:
    from qlora_pipelines.pipelines.compiler.compiled import Compiled
    from qlora_pipelines.pipelines.kfp_api.client import Server
    from qlora_pipelines.pipelines.kfp_api.runs import RunRequest

OPTIONS = [
    click.option("--endpoint", default="", help="Address of Kubeflow Pipelines. [default: $KF_PIPELINES_ENDPOINT]"),
    click.option("--namespace", default="", help="Namespace of the run, where the server has several users."),
    click.option("--experiment", default="", envvar="KF_PIPELINES_DEFAULT_EXPERIMENT_NAME",
                 help="Experiment to run in. [default: the pipeline's name]"),
    click.option("--service-account", default="", help="Kubernetes service account of the run's pods."),
    click.option("--ca-cert", default="", envvar="SSL_CERT_FILE", metavar="FILE",
                 help="Authority that signed the server's certificate, in PEM. [default: $SSL_CERT_FILE]"),
    click.option("--mlflow-experiment", default="",
                 help="Experiment of KFP's MLflow plugin, where it is on. [default: qlora-training]"),
    click.option("--pipeline", "pipeline_path", type=click.Path(path_type=Path), metavar="FILE",
                 help="A compiled pipeline. [default: this installation's]"),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """The values of these options. There is none for credentials: those come from the environment."""

    endpoint: str
    namespace: str
    experiment: str
    service_account: str
    ca_cert: str
    mlflow_experiment: str
    pipeline_path: Path | None

    def connect(self) -> "Server":
        """The server, signed in."""
        from qlora_pipelines.pipelines.kfp_api.client import Server

        return Server(self.endpoint, self.namespace, self.ca_cert)

    def pipeline(self) -> "Compiled":
        """The pipeline to run."""
        from qlora_pipelines.pipelines.compiler import compiled

        return compiled.from_file(self.pipeline_path) if self.pipeline_path else compiled.from_code()

    def request(self, pipeline: "Compiled", parameters: dict[str, Any], name: str, description: str) -> "RunRequest":
        """What to start a run with."""
        from qlora_pipelines.components.core.registry.training_runs import EXPERIMENT
        from qlora_pipelines.pipelines.kfp_api.runs import RunRequest

        return RunRequest(
            pipeline=pipeline,
            parameters=parameters,
            name=name,
            description=description,
            experiment=self.experiment or pipeline.name,
            service_account=self.service_account,
            mlflow_experiment=self.mlflow_experiment or EXPERIMENT,
        )


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command, whose further keyword arguments they are."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def say(line: str) -> None:
    """Prints a line of progress to stderr: stdout has only the result."""
    click.echo(line, err=True)


def wait(server: "Server", run_id: str, pipeline: "Compiled") -> dict[str, Any]:
    """Follows a run and reports how it ended; `exit` is the exit code. `unknown`: it could not be followed."""
    from qlora_pipelines.pipelines.kfp_api import watch

    try:
        finished = watch.follow(server, run_id, pipeline, say)
    except KeyboardInterrupt:
        say(f"no longer followed; the run goes on: {server.url(run_id)}")
        return {"outcome": "unknown", "exit": 1}
    except InputError as error:
        say(f"error: {error}")
        return {"outcome": "unknown", "exit": 1}
    if finished.outcome is End.FAILED:
        first, *others = finished.last_lines
        say("\n  ".join([f"error: {finished.failed_step or 'the run'} failed: {first}", *others]))
    elif finished.outcome is End.GATE_SAID_NO:
        say("Not registered: rejected by the gate; the run's reports say why.")
    return finished._asdict() | {"outcome": finished.outcome.name.lower(), "exit": int(finished.outcome)}
