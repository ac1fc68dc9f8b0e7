"""`qlora init`: a run's YAML file to begin with, every option in it explained; or an older file brought up to date."""

import json
import re
from pathlib import Path
from typing import Any

import click
import yaml

from qlora_pipelines.components.core.config.base import StepConfig, unknown
from qlora_pipelines.components.core.config.placement import Placement
from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import OPTION_STEPS, STEPS
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models.base_model import is_on_hub
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.pipelines import run_file

FILE = "run.yaml"
WIDTH = 36
"""Column at which the comments begin."""
_CONFIGS: list[type[StepConfig]] = [RunConfig, *STEPS.values()]
RENAMED = {old: new for config in _CONFIGS for old, new in config.renamed.items()}
_OLD = "|".join(RENAMED)
_COMMENTED = re.compile(rf"^# +({_OLD}): *\S+[ \r]*(?:#.*)?$", re.MULTILINE)
"""An option that is commented out: one value after its name, so that no sentence is taken for one."""
_IN_JSON = re.compile(rf'"({_OLD})\\?"\s*:')
"""A name where `options` is JSON text, its quotes perhaps escaped."""


@click.command()
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--base-model", default="models/my-base", help="Folder, prefix in a bucket or Hugging Face id of the base."
)
@click.option(
    "--data", default="data/conversations.jsonl", help="Training data: file, folder, prefix in a bucket or id."
)
@click.option("--model-name", default="", help="Name of the registered model; DIR's name unless given.")
@click.option("--upgrade", "old", metavar="FILE", type=click.Path(path_type=Path),
              help="Rename the options of a run's file of version 0.1, and change nothing else in it.")  # fmt: skip
def init(folder: Path | None, base_model: str, data: str, model_name: str, old: Path | None) -> None:
    r"""Write DIR/run.yaml: a run with your model and data, every other option explained.

    \b
    Example:
      qlora init my-model --base-model HuggingFaceTB/SmolLM2-135M-Instruct --data data/conversations.jsonl
      qlora init --upgrade my-model/run.yaml
    """
    if (folder is None) == (old is None):
        raise click.UsageError("give either DIR or --upgrade FILE")
    if old:
        _upgrade(old)
        return
    assert folder
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


def _upgrade(path: Path) -> None:
    known = [*run_file.NAMES, *RunConfig.renamed]
    for name in run_file.read(path):
        if name not in known:
            raise InputError(f"{path} is not a run's file: {unknown(name, known, {})}")
    text = path.read_bytes().decode()
    found = sorted(old_names(path, text).items())
    if not found:
        click.echo(f"{path} is up to date: nothing was changed")
        return
    new = text
    for start, name in reversed(found):
        new = new[:start] + RENAMED[name] + new[start + len(name) :]
    storage.write_bytes(str(path.resolve()), new.encode())
    click.echo(f"{path} is rewritten:")
    for start, name in found:
        line = text.count("\n", 0, start) + 1
        click.echo(f"  line {line}: {name} is now {RENAMED[name]}")


def old_names(path: Path, text: str) -> dict[int, str]:
    """The options' names of version 0.1 in a run's file, by the position at which each begins.

    Options that are commented out, as `qlora init` writes them, are among them.

    Args:
        path: the file's, for the error.
        text: its text, a YAML mapping.

    Raises:
        InputError: an option is there under both its names.
    """
    root: Any = yaml.compose(text)
    groups: list[tuple[dict[str, str], Any]] = [(RunConfig.renamed, root)]
    found = {match.start(1): match[1] for match in _COMMENTED.finditer(text)}
    for key, value in root.value:
        if key.value == "options" and isinstance(value, yaml.MappingNode):
            groups += [(STEPS[step.value].renamed, given) for step, given in value.value if step.value in STEPS]
        elif key.value == "options":
            inside = _IN_JSON.finditer(text, value.start_mark.index, value.end_mark.index)
            found |= {match.start(1): match[1] for match in inside}
    for renamed, group in groups:
        names = {key.value: key.start_mark for key, _ in group.value} if isinstance(group, yaml.MappingNode) else {}
        for old in names.keys() & renamed.keys():
            if renamed[old] in names:
                raise InputError(f"{path} has both {old} and {renamed[old]}: remove one of them")
            found[text.index(old, names[old].index)] = old
    return found


def _absolute(uri: str) -> str:
    """A path that is there is written so that it holds wherever the run is started."""
    return str(Path(uri).absolute()) if not storage.is_remote(uri) and Path(uri).exists() else uri


def text(target: Path, values: dict[str, Any]) -> str:
    """The file's text: `values` first, all other options as comments with their defaults.

    Args:
        target: where the file will be.
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
