"""The command `qlora`."""

from typing import Any

import click

from qlora_pipelines.components.core.config.steps import STEPS
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import explain, quiet_libraries
from qlora_pipelines.pipelines.cli import (
    compile,
    gc,
    init,
    mlflow_user,
    plan,
    promote,
    pull,
    run,
    step,
    submit,
    trigger,
)


class _Group(click.Group):
    """Turns an error that the user can fix, in any command, into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (InputError, OSError) as error:
            if not (line := explain(error)):
                raise
            click.echo(f"error: {line}", err=True)
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qlora-pipelines", prog_name="qlora")
def main() -> None:
    r"""QLoRA fine-tuning of language models as a Kubeflow pipeline.

    \b
    Exit codes: 0 done, 1 failed, 2 usage error, 3 rejected by the gate, 4 cancelled.
    """
    quiet_libraries()


@main.group("step")
def step_group() -> None:
    r"""Run one step alone, without Kubeflow.

    \b
    Example:
      qlora step prepare_dataset --listing-uri store/listings/1f.json --tokenizer-uri models/base \
        --train-set train.parquet --eval-set eval.parquet --rejected rejected.jsonl --report data.html
    """


for _command in (
    *(run.run, plan.plan, compile.compile_pipeline, init.init, submit.submit, trigger.trigger),
    *(promote.promote, promote.rollback, pull.pull, gc.gc, mlflow_user.mlflow_user),
):
    main.add_command(_command)
for _name in ("plan_run", *STEPS):
    step_group.add_command(step.make(_name))


def _keep_examples(command: click.Command) -> None:
    r"""Help keeps the line ends of a paragraph that follows a backspace character; raw docstrings write it as \b."""
    command.help = (command.help or "").replace("\\b", "\b")
    for inner in getattr(command, "commands", {}).values():
        _keep_examples(inner)


_keep_examples(main)

if __name__ == "__main__":
    main()
