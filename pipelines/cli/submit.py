"""`qlora submit`: a run on Kubeflow Pipelines."""

import json
from pathlib import Path
from typing import Any

import click

from qlora_pipelines.pipelines.cli.server_options import ServerOptions, server_options, wait


@click.command("submit")
@click.option("--config", "path", type=click.Path(path_type=Path), help="The run's YAML file.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE",
              help="Replace the file's value; also options.STEP.NAME=VALUE. May be repeated.")  # fmt: skip
@click.option("--wait", "follow", is_flag=True, help="Follow the run; the exit code says how it ended.")
@click.option("--upload-only", is_flag=True, help="Upload the pipeline if its content is new there, and start no run.")
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    path: Path | None,
    settings: tuple[str, ...],
    follow: bool,
    upload_only: bool,
    as_json: bool,
    **server_values: Any,
) -> None:
    r"""Start a run on Kubeflow Pipelines, whether or not the same ran before.

    \b
    Example:
      export KF_PIPELINES_ENDPOINT=https://kubeflow.example.org/pipeline
      qlora submit --config run.yaml --set learning_rate=0.0001 --wait
      qlora submit --upload-only
    """
    if bool(path) == upload_only:
        raise click.UsageError("give either --config run.yaml or --upload-only")
    from qlora_pipelines.pipelines import run_file
    from qlora_pipelines.pipelines.kfp_api import pipeline_versions, runs

    options = ServerOptions(**server_values)
    pipeline = options.pipeline()
    if path is None:
        version = pipeline_versions.ensure(options.connect(), pipeline)
        done = "uploaded" if version.uploaded else "is already there"
        click.echo(json.dumps(version._asdict()) if as_json else f"{version.name} {done}")
        return
    values = run_file.override(run_file.read(path), settings, pipeline.parameters)
    _, parameters = run_file.check(values, pipeline.parameters)
    name = runs.unique_name(str(parameters["model_name"]))
    request = options.request(pipeline, parameters, name, f"Started by qlora submit from {path.name}")
    server = options.connect()
    run, version = runs.start(server, request)
    result: dict[str, Any] = {
        "run_id": run.run_id,
        "name": name,
        "url": server.url(run.run_id),
        "version": version.name,
        "uploaded": version.uploaded,
    }
    if not as_json:
        click.echo(f"started {name} of {version.name}\n{result['url']}")
    if follow:
        result |= wait(server, run.run_id, pipeline)
    if as_json:
        click.echo(json.dumps(result))
    ctx.exit(result.get("exit", 0))
