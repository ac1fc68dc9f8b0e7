"""`qlora trigger`: a run if the data is new, and no second one."""

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_pipelines.components.core.store import storage
from qlora_pipelines.pipelines.cli.server_options import Where, say, server_options, wait
from qlora_pipelines.pipelines.local import workspace
from qlora_pipelines.pipelines.run_file import Run

if TYPE_CHECKING:
    from qlora_pipelines.pipelines.compiler.compiled import Compiled
    from qlora_pipelines.pipelines.triggers.decision import Rules
    from qlora_pipelines.pipelines.triggers.new_data import Look


@click.command("trigger")
@click.option("--config", "path", required=True, type=click.Path(path_type=Path), help="The run's YAML file.")
@click.option("--data", default="", help="Training data to watch. [default: the file's dataset_uri]")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Put over the file's value. May be repeated."
)
@click.option("--min-new-rows", default=0, type=click.IntRange(min=0),
              help="Wait until so many rows are new since the model's last run.")  # fmt: skip
@click.option("--quiet-minutes", default=0.0, type=click.FloatRange(min=0),
              help="Wait until the data was not written to for so long.")  # fmt: skip
@click.option("--max-attempts", default=3, show_default=True, type=click.IntRange(min=1),
              help="Runs of the same training that may fail.")  # fmt: skip
@click.option("--retry-delay", default=10.0, show_default=True, type=click.FloatRange(min=0),
              help="Minutes between a run that failed and the next.")  # fmt: skip
@click.option("--local", "here", is_flag=True, help="Run on this machine, without Kubernetes.")
@click.option("--runs", default=workspace.DEFAULT, type=click.Path(path_type=Path), help="With --local: keeps runs.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--force", is_flag=True, help="Start a run whatever ran before.")
@click.option("--wait", "follow", is_flag=True, help="Follow the run, also one that was at work; exit as it ends.")
@server_options
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
@click.pass_context
def trigger(
    ctx: click.Context,
    path: Path,
    data: str,
    settings: tuple[str, ...],
    min_new_rows: int,
    quiet_minutes: float,
    max_attempts: int,
    retry_delay: float,
    here: bool,
    runs: Path,
    dry_run: bool,
    force: bool,
    follow: bool,
    where: Where,
    as_json: bool,
) -> None:
    r"""Start a run if none was made of this data, base and options; call it as often as you like.

    It lists the data, computes the training_key as plan_run does, and looks for runs with this key. It says one of:
    started; unchanged; running; waiting (the data is still written to, too few rows are new, or a run that failed is
    not tried again yet); cancelled (by a person); failed (too often). Only the last exits 1; with --wait, and with
    --local, it exits as the run ends.

    \b
    Example:
      qlora trigger --config run.yaml --data s3://bucket/conversations --min-new-rows 500 --quiet-minutes 10
      qlora trigger --config pipelines/demo/demo.yaml --local
    """
    from qlora_pipelines.pipelines import run_file, run_parameters
    from qlora_pipelines.pipelines.triggers import new_data
    from qlora_pipelines.pipelines.triggers.decision import Rules

    pipeline = where.pipeline()
    values = run_parameters.override(run_file.read(path), settings, pipeline.parameters)
    values |= {"dataset_uri": data} if data else {}
    run, parameters = run_parameters.check(values, pipeline.parameters)
    rules = Rules(max_attempts, retry_delay * 60, quiet_minutes * 60, min_new_rows, force)
    asked = _Asked(run, parameters, pipeline, new_data.look(run.config), rules, dry_run, follow, as_json)
    found = _here(asked, runs) if here else _on_server(asked, where)
    if as_json:
        click.echo(json.dumps(found))
    ctx.exit(found.get("exit", 1 if found["action"] == "failed" else 0))


@dataclasses.dataclass(frozen=True)
class _Asked:
    run: Run
    parameters: dict[str, Any]
    pipeline: "Compiled"
    look: "Look"
    rules: "Rules"
    dry_run: bool
    follow: bool
    as_json: bool

    def found(self, **more: Any) -> dict[str, Any]:
        """The result so far, as JSON takes it, said at once to people."""
        keys = self.look.keys
        result: dict[str, Any] = {"training_key": keys.training_key, "data_digest": self.look.data_digest, **more}
        action = "would start" if result["action"] == "start" else result["action"]
        line = f"{action}: {result['reason']} (training_key {keys.training_key[:12]})"
        if not self.as_json:
            click.echo("\n".join([line, *([result["url"]] if result.get("url") else [])]))
        return result


def _on_server(asked: _Asked, where: Where) -> dict[str, Any]:
    from qlora_pipelines.pipelines.triggers import decision, new_data
    from qlora_pipelines.pipelines.triggers.on_kubeflow import OnServer

    server = where.server()
    place = OnServer(server, asked.look.keys.training_key, asked.run.config.model_name)
    decided = decision.judge(place, asked.look, asked.rules)
    if decided.action == "start" and not asked.dry_run:
        description = (
            f"Started by qlora trigger: {new_data.files(asked.look.listing)} files at {asked.run.config.dataset_uri},"
            f" data_digest {asked.look.data_digest}"
        )
        came = place.start(where.order(asked.pipeline, asked.parameters, "", description), decided.attempt)
        decided = decided._replace(
            action="started" if came.ours else "running",
            reason=decided.reason if came.ours else f"run {came.run_id} was started at the same moment",
            run_id=came.run_id,
        )
    url = {"url": server.url(decided.run_id)} if decided.run_id else {}
    found = asked.found(**decided._asdict(), **url)
    if asked.follow and not asked.dry_run and decided.action in ("started", "running"):
        found |= wait(server, decided.run_id, asked.pipeline)
    return found


def _here(asked: _Asked, runs: Path) -> dict[str, Any]:
    from qlora_pipelines.pipelines.local import runner, summary
    from qlora_pipelines.pipelines.triggers import decision
    from qlora_pipelines.pipelines.triggers.on_this_machine import Here

    os.environ.setdefault(storage.STORE_VARIABLE, str(runs.absolute() / "store"))  # as runner.run does
    keys = asked.look.keys
    with Here.locked(runs, keys.training_key, asked.run.config.model_name) as place:
        decided = decision.judge(place, asked.look, asked.rules)
        if decided.action != "start" or asked.dry_run or not place.held:
            return asked.found(**decided._asdict())
        found = asked.found(**decided._replace(action="started")._asdict())
        place.begin(decided.attempt, asked.look.data_digest)
        try:
            outcome = runner.run(dataclasses.replace(asked.run, training_key=keys.training_key), runs)
        except KeyboardInterrupt:
            place.end("CANCELED")
            say("cancelled")
            return found | {"outcome": "cancelled", "exit": 4}
        place.end("FAILED" if outcome.error else "SUCCEEDED", str(outcome.folder))
    if not asked.as_json:
        click.echo(summary.text(outcome), err=bool(outcome.error))
    code = 1 if outcome.error else 0 if outcome.registered else 3
    end = {0: "done", 1: "failed", 3: "gate_said_no"}[code]
    return found | {"outcome": end, "exit": code, "folder": str(outcome.folder), "error": outcome.error}
