"""Every step as a command: its config's fields and its paths are the options."""

import base64
import functools
import importlib
import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any

import click
from docstring_parser import parse

from qlora_pipelines.components.core import runtime
from qlora_pipelines.components.core.step import step

REPLACED = re.compile(r"{{|\$\(")
"""The start of what Argo and Kubernetes replace in text."""


class _Command(click.Command):
    """A command whose options after `--base64` have encoded values.

    Argo evaluates `{{...}}` in a pod's arguments, and Kubernetes replaces `$(VARIABLE)`, secrets among them. Neither
    finds anything in base64. But later steps get some of these texts through plan_run's results, in which Argo would
    find them; so plan_run takes none, except in its options, whose JSON it writes without them (`json_text`).
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return self._parse_args(ctx, args)
        except click.UsageError as error:
            runtime.terminated(error.format_message())
            raise

    def _parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--base64" in args:
            at = args.index("--base64")
            args = args[:at] + [_decoded(ctx, each) for each in args[at + 1 :]]
            found = [arg for arg in args if REPLACED.search(arg) and not arg.startswith("--options=")]
            if self.name == "plan_run" and found:
                option = found[0].partition("=")[0]
                raise click.UsageError(f"{option}: leave out {{{{ and $(, which Argo and Kubernetes would replace", ctx)
        return super().parse_args(ctx, args)


def _decoded(context: click.Context, argument: str) -> str:
    option, _, value = argument.partition("=")
    try:
        return f"{option}={base64.b64decode(value, validate=True).decode()}"
    except ValueError:  # without the value, which may be what Kubernetes put in
        raise click.UsageError(f"{option}: not base64 of UTF-8 text", context) from None


def make(name: str) -> click.Command:
    """The command that runs step `name` alone, without kfp."""
    task = importlib.import_module(f"qlora_pipelines.components.{name}.task")
    fields = task.Config.model_fields
    arguments = {
        key: argument
        for key, argument in inspect.signature(task.run).parameters.items()
        if argument.kind is inspect.Parameter.KEYWORD_ONLY
    }
    described = {each.arg_name: each.description or "" for each in parse(task.run.__doc__ or "").params}

    def call(as_json: bool, results: Path | None, **given: Any) -> None:
        more = "{}" if "options" in fields else given.pop("options")
        with step(name):
            if results:
                results.mkdir(parents=True, exist_ok=True)
            config = {key: value for key, value in given.items() if key not in arguments and value is not None}
            found = task.run(task.Config.parse(more, **config), **{key: given[key] for key in arguments})._asdict()
        for result, value in found.items() if results else ():
            (results / result).write_text(value if isinstance(value, str) else json.dumps(value))
        click.echo(json.dumps(found) if as_json else "\n".join(f"{key}: {value}" for key, value in found.items()))

    options: list[click.Parameter] = [
        _argument_option(each, described[key].replace("\n", " ")) for key, each in arguments.items()
    ]
    for key, field in fields.items():
        default = "" if field.is_required() else f" [default: {json.dumps(field.default)}]"
        options.append(_option(key, field.annotation, field.description + default, required=field.is_required()))
    for old, new in task.Config.renamed.items():
        refuse = functools.partial(_refuse_old_name, new=_flag(new))
        options.append(click.Option([_flag(old)], hidden=True, expose_value=False, callback=refuse))
    if "options" not in fields:
        options.append(click.Option(["--options"], default="{}", help="More of these options, as one JSON object."))
    options += [
        click.Option(
            ["--results"],
            type=click.Path(file_okay=False, path_type=Path),
            help="Folder to write each result to, as a file of its name.",
        ),
        click.Option(
            ["--base64"], is_flag=True, expose_value=False, help="The values of the options after it are in base64."
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the results as one line of JSON."),
    ]
    return _Command(name, params=options, callback=call, help=(task.__doc__ or "").strip().split("\n")[0])


def _argument_option(argument: inspect.Parameter, description: str) -> click.Option:
    if typing.get_origin(argument.annotation) is dict:  # once per entry
        more: dict[str, Any] = {"multiple": True, "callback": _to_dict, "metavar": "NAME=VALUE"}
        return _option(argument.name, str, description, **more)
    if argument.default is inspect.Parameter.empty:
        return _option(argument.name, argument.annotation, description, required=True)
    return _option(argument.name, argument.annotation, description, default=argument.default)


def _option(name: str, annotation: Any, description: str, **more: Any) -> click.Option:
    kind = annotation if annotation in (int, float, bool) else str
    if typing.get_origin(annotation) in (list, dict):
        kind, more = _from_json, more | {"metavar": "JSON"}
    return click.Option([_flag(name), name], type=kind, help=description, **more)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse_old_name(context: click.Context, option: click.Parameter, value: str | None, *, new: str) -> None:
    if value is not None:
        raise click.UsageError(f"{option.opts[0]} is now {new}", context)


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"not JSON: {error}") from None


def _to_dict(context: click.Context, option: click.Parameter, entries: tuple[str, ...]) -> dict[str, str]:
    for entry in entries:
        if "=" not in entry:
            raise click.BadParameter(f"not NAME=VALUE: {entry!r}")
    return dict(entry.split("=", 1) for entry in entries)
