"""`qlora init`: a run's YAML file to begin with, every option in it with its default and what it means."""

import json
from pathlib import Path
from typing import Any

import click

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import OPTION_STEPS, STEPS
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models.base_model import is_on_hub
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.pipelines.placement import Placement

FILE = "run.yaml"
WIDTH = 36
"""Column at which the comments begin."""


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--base-model", default="models/my-base", help="Folder, s3:// prefix or Hugging Face id of the base.")
@click.option("--data", default="data/conversations.jsonl", help="Training data: file, folder, s3:// prefix or id.")
@click.option("--model-name", default="", help="Name of the registered model; DIR's name unless given.")
def init(folder: Path, base_model: str, data: str, model_name: str) -> None:
    r"""Write DIR/run.yaml: a run with your model and data, every other option explained.

    \b
    Example:
      qlora init my-model --base-model HuggingFaceTB/SmolLM2-135M-Instruct --data data/conversations.jsonl
    """
    target = folder / FILE
    if target.exists():
        raise InputError(f"{target} is there already: remove it, or give another folder")
    values = {
        "base_model": base_model if is_on_hub(base_model) else _absolute(base_model),
        "dataset_uri": _absolute(data),
        "model_name": model_name or folder.absolute().name,
    }
    RunConfig.parse(**values)
    storage.write_bytes(str(target), text(target, values).encode())
    click.echo(f"{target}: look it over, then\n  qlora plan --config {target}\n  qlora run --config {target}")


def _absolute(uri: str) -> str:
    """A path that is there is written so that it holds wherever the run is started."""
    return str(Path(uri).absolute()) if not storage.is_s3(uri) and Path(uri).exists() else uri


def text(target: Path, values: dict[str, Any]) -> str:
    """The file's text: `values` first, all other options as comments with their defaults.

    Args:
        target: where the file will lie.
        values: the options of `RunConfig` that are set.
    """
    lines = ["# A run of fine-tuning. What it needs, and whether it fits:", f"#   qlora plan --config {target}", ""]
    lines += [_line(RunConfig, name, value) for name, value in values.items()]
    lines += ["", "# Every option below has its default; take away the # in front of what you change."]
    lines += [
        "# " + _line(RunConfig, name, field.default)
        for name, field in RunConfig.model_fields.items()
        if name not in values and name != "options"
    ]
    lines += ["", "# Where the steps go on a cluster; a run on this machine only checks them."]
    lines += ["# " + _line(Placement, name, field.default) for name, field in Placement.model_fields.items()]
    lines += ["", "# options:"]
    typed = RunConfig.model_fields.keys()
    for step in OPTION_STEPS:
        lines.append(f"#   {step}:")
        lines += [
            f"#     {_line(STEPS[step], name, field.default)}"
            for name, field in STEPS[step].model_fields.items()
            if name not in typed
        ]
    return "\n".join(lines) + "\n"


def _line(config: type[Any], name: str, value: Any) -> str:
    written = f"{name}: {json.dumps(value)}"  # JSON is YAML
    return f"{written:<{WIDTH}}  # {config.model_fields[name].description}"
