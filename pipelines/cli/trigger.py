"""`qlora trigger`: one run per state of the data."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_pipelines.pipelines.cli.server_options import ServerOptions, say, server_options, wait
from qlora_pipelines.pipelines.local import workspace
from qlora_pipelines.pipelines.run_file import Run
from qlora_pipelines.pipelines.tasks import End

if TYPE_CHECKING:
    from qlora_pipelines.pipelines.triggers.decision import Decision
    from qlora_pipelines.pipelines.triggers.new_data import Snapshot
    from qlora_pipelines.pipelines.triggers.on_this_machine import LocalRuns


@click.command("trigger")
@click.option("--config", "path", required=True, type=click.Path(path_type=Path), help="The run's YAML file.")
@click.option("--data", default="", help="Training data to watch. [default: the file's dataset_uri]")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Replace the file's value. May be repeated."
)
@click.option("--min-new-rows", default=0, type=click.IntRange(min=0),
              help="Wait until this many rows are new since the model's last run.")  # fmt: skip
@click.option("--quiet-minutes", default=0.0, type=click.FloatRange(min=0),
              help="Wait until nobody has written to the data for so long.")  # fmt: skip
@click.option("--max-attempts", default=3, show_default=True, type=click.IntRange(min=1),
              help="How many runs of the same training may fail.")  # fmt: skip
@click.option("--retry-delay", default=10.0, show_default=True, type=click.FloatRange(min=0),
              help="Minutes between a run that failed and the next.")  # fmt: skip
@click.option("--local", is_flag=True, help="Run on this machine, without Kubernetes.")
@click.option("--runs", default=workspace.DEFAULT, type=click.Path(path_type=Path), help="With --local: keeps runs.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--force", is_flag=True, help="Start a run whatever ran before.")
@click.option("--wait", "follow", is_flag=True,
              help="Follow the run, also one that is running already; the exit code says how it ended.")  # fmt: skip
@server_options
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
@click.pass_context
def trigger(
    ctx: click.Context,
    /,
    path: Path,
    data: str,
    settings: tuple[str, ...],
    min_new_rows: int,
    quiet_minutes: float,
    max_attempts: int,
    retry_delay: float,
    local: bool,
    runs: Path,
    dry_run: bool,
    force: bool,
    follow: bool,
    as_json: bool,
    **server_values: Any,
) -> None:
    r"""Start a run if there is none with this data, base and options; call it as often as you like.

    It lists the data, computes the training_key as plan_run does, and looks for runs with this key. It says one of:
    started; unchanged; running; waiting (the data is still being written, too few rows are new, or a failed run is not
    retried yet); cancelled (by a person); failed (too often). Only the last exits 1; with --wait, and with --local, the
    exit code says how the run ended.

    \b
    Example:
      qlora trigger --config run.yaml --data s3://bucket/conversations --min-new-rows 500 --quiet-minutes 10
      qlora trigger --config pipelines/demo/demo.yaml --local
    """
    from qlora_pipelines.pipelines import run_file
    from qlora_pipelines.pipelines.triggers import new_data
    from qlora_pipelines.pipelines.triggers.decision import Rules, decide
    from qlora_pipelines.pipelines.triggers.on_kubeflow import KubeflowRuns
    from qlora_pipelines.pipelines.triggers.on_this_machine import LocalRuns

    options = ServerOptions(**server_values)
    if local and options.pipeline_path:
        raise click.UsageError("--local runs this installation's pipeline; leave out --pipeline")
    pipeline = options.pipeline()
    values = run_file.override(run_file.read(path), settings, pipeline.parameters)
    values |= {"dataset_uri": data} if data else {}
    run, parameters = run_file.check(values, pipeline.parameters)
    rules = Rules(max_attempts, retry_delay * 60, quiet_minutes * 60, min_new_rows, force)
    snapshot = new_data.snapshot(run.config)
    key, model_name = snapshot.keys.training_key, run.config.model_name
    if local:
        workspace.use(runs)
        with LocalRuns.lock(runs, key, model_name) as attempts:
            decision = decide(attempts, snapshot, rules)
            starts = decision.action == "start" and attempts.locked and not dry_run
            result = _report(decision._replace(action="started") if starts else decision, snapshot, as_json)
            if starts:
                attempts.begin(decision.attempt, snapshot.data_digest)
                result |= _run_here(dataclasses.replace(run, training_key=key), runs, attempts, as_json)
    else:
        server = options.connect()
        history = KubeflowRuns(server, key, model_name)
        decision = decide(history, snapshot, rules)
        if decision.action == "start" and not dry_run:
            source = f"{snapshot.files} files at {run.config.dataset_uri}, data_digest {snapshot.data_digest}"
            request = options.request(pipeline, parameters, "", f"Started by qlora trigger: {source}")
            decision = history.start(request, decision)
        result = _report(decision, snapshot, as_json, server.url(decision.run_id) if decision.run_id else "")
        if follow and not dry_run and decision.action in ("started", "running"):
            result |= wait(server, decision.run_id, pipeline)
    if as_json:
        click.echo(json.dumps(result))
    ctx.exit(result.get("exit", 1 if result["action"] == "failed" else 0))


def _report(decision: "Decision", snapshot: "Snapshot", as_json: bool, url: str = "") -> dict[str, Any]:
    """The decision as JSON; without --json it is also printed, because a run may take hours from here."""
    key = snapshot.keys.training_key
    if not as_json:
        action = "would start" if decision.action == "start" else decision.action
        click.echo(f"{action}: {decision.reason} (training_key {key[:12]})")
        if url:
            click.echo(url)
    keys = {"training_key": key, "data_digest": snapshot.data_digest}
    return keys | decision._asdict() | ({"url": url} if url else {})


def _run_here(run: Run, runs: Path, attempts: "LocalRuns", as_json: bool) -> dict[str, Any]:
    from qlora_pipelines.pipelines.local import runner, summary

    try:
        finished = runner.run(run, runs)
    except KeyboardInterrupt:
        attempts.end("CANCELED")
        say("cancelled")
        return {"outcome": "cancelled", "exit": int(End.CANCELLED)}
    attempts.end("FAILED" if finished.error else "SUCCEEDED", str(finished.folder))
    if not as_json:
        click.echo(summary.text(finished), err=bool(finished.error))
    result = {"outcome": finished.end.name.lower(), "exit": int(finished.end)}
    return result | {"folder": str(finished.folder), "error": finished.error}
