"""The command `qlora`."""

import json
from pathlib import Path
from typing import Any

import click

from qlora_pipelines.components.core.config.steps import STEPS
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import of_a_place, quiet_libraries
from qlora_pipelines.pipelines import run_file
from qlora_pipelines.pipelines.cli import compile, gc, init, plan, promote, pull, step, submit, trigger
from qlora_pipelines.pipelines.local import workspace

GATE_SAID_NO, CANCELLED = 3, 4


class _Group(click.Group):
    """Turns an `InputError` of any command, and a path that cannot be written, into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)
        except OSError as error:
            if not (line := of_a_place(error)):
                raise
            click.echo(f"error: {line}", err=True)
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qlora-pipelines", prog_name="qlora")
def main() -> None:
    r"""QLoRA fine-tuning of language models as a Kubeflow pipeline.

    \b
    Exit codes: 0 done, 1 failed, 2 wrong use, 3 the gate said no, 4 cancelled.
    """
    quiet_libraries()


@main.command()
@click.option("--config", required=True, type=click.Path(path_type=Path), help="The run's YAML file.")
@click.option("--runs", default=workspace.DEFAULT, type=click.Path(path_type=Path), help="Folder that keeps runs.")
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
        click.echo(f"\ncancelled; go on where it stopped: qlora run --config {config}", err=True)
        ctx.exit(CANCELLED)
    click.echo(summary.text(outcome), err=bool(outcome.error))
    if as_json:
        click.echo(json.dumps({"folder": str(outcome.folder), "error": outcome.error, "results": outcome.results}))
    ctx.exit(1 if outcome.error else 0 if outcome.registered else GATE_SAID_NO)


main.add_command(compile.compile_pipeline)
main.add_command(init.init)
main.add_command(plan.plan)
main.add_command(promote.promote)
main.add_command(promote.rollback)
main.add_command(pull.pull)
main.add_command(gc.gc)
main.add_command(submit.submit)
main.add_command(trigger.trigger)


@main.group("step")
def step_group() -> None:
    r"""Run one step alone, without Kubeflow.

    \b
    Example:
      qlora step prepare_dataset --listing-uri store/listings/1f.json --tokenizer-uri models/base \
        --train-set train.parquet --eval-set eval.parquet --rejected rejected.jsonl --report data.html
    """


for _name in ["plan_run", *STEPS]:
    step_group.add_command(step.make(_name))


def _keep_examples(command: click.Command) -> None:
    """Help keeps the line ends of a paragraph after a backspace character; raw docstrings hold its name."""
    command.help = (command.help or "").replace("\\b", "\b")
    for inner in getattr(command, "commands", {}).values():
        _keep_examples(inner)


_keep_examples(main)

if __name__ == "__main__":
    main()
