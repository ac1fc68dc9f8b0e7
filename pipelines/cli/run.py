"""`qlora run`: the whole pipeline on this machine."""

import json
from pathlib import Path

import click

from qlora_pipelines.pipelines import run_file
from qlora_pipelines.pipelines.local import workspace
from qlora_pipelines.pipelines.tasks import End


@click.command("run")
@click.option("--config", required=True, type=click.Path(path_type=Path), help="The run's YAML file.")
@click.option("--runs", default=workspace.DEFAULT, type=click.Path(path_type=Path), help="Folder for runs.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
@click.pass_context
def run(ctx: click.Context, config: Path, runs: Path, as_json: bool) -> None:
    r"""Run the whole pipeline on this machine, without Kubernetes or Docker.

    Models go to $QLORA_STORE (RUNS/store), the registry is $MLFLOW_TRACKING_URI (RUNS/mlflow.db).

    \b
    Example:
      qlora run --config pipelines/demo/demo.yaml
    """
    from qlora_pipelines.pipelines.local import runner, summary

    try:
        outcome = runner.run(run_file.load(config), runs)
    except KeyboardInterrupt:
        click.echo(f"\ncancelled; to resume: qlora run --config {config}", err=True)
        ctx.exit(End.CANCELLED)
    click.echo(summary.text(outcome), err=bool(outcome.error))
    if as_json:
        click.echo(json.dumps({"folder": str(outcome.folder), "error": outcome.error, "results": outcome.results}))
    ctx.exit(outcome.end)
