"""Every step as a command: its config's fields and its paths are the options."""

import importlib
import inspect
import json
import typing
from typing import Any

import click
from docstring_parser import parse

from components.core.steps import step


class _Json(click.ParamType[Any]):
    """An option whose value is a list or an object, written as JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value  # a default
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            self.fail(f"not JSON: {error}", param, ctx)


def make(name: str) -> click.Command:
    """The command that runs step `name` alone, without kfp."""
    task = importlib.import_module(f"components.{name}.task")
    paths = [
        parameter
        for parameter in inspect.signature(task.run).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]

    def call(as_json: bool, **given: Any) -> None:
        path_values = {parameter.name: given.pop(parameter.name) for parameter in paths}
        with step(name):
            config = task.Config.parse(**{option: value for option, value in given.items() if value is not None})
            found = task.run(config, **path_values)._asdict()
        click.echo(json.dumps(found) if as_json else "\n".join(f"{key}: {value}" for key, value in found.items()))

    return click.Command(
        name,
        params=[
            *_path_options(paths, _described(task.run)),
            *_config_options(task.Config),
            click.Option(["--json", "as_json"], is_flag=True, help="Print the results as one line of JSON."),
        ],
        callback=call,
        help=(task.__doc__ or "").strip().splitlines()[0],
    )


def _path_options(paths: list[inspect.Parameter], described: dict[str, str]) -> list[click.Option]:
    return [
        click.Option(
            [_flag(path.name), path.name],
            type=_type(path.annotation),
            required=path.default is inspect.Parameter.empty,
            default=None if path.default is inspect.Parameter.empty else path.default,
            help=described[path.name],
        )
        for path in paths
    ]


def _config_options(config: Any) -> list[click.Option]:
    return [
        click.Option(
            [_flag(name), name],
            type=_type(field.annotation),
            required=field.is_required(),
            help=field.description + ("" if field.is_required() else f" [default: {json.dumps(field.default)}]"),
        )
        for name, field in config.model_fields.items()
    ]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _type(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (list, dict):
        return _Json()
    return annotation if annotation in (int, float, bool) else str


def _described(function: Any) -> dict[str, str]:
    """What a function's docstring says of each argument."""
    return {
        found.arg_name: (found.description or "").replace("\n", " ") for found in parse(function.__doc__ or "").params
    }
