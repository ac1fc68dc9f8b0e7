"""Every step as a command: its config's fields and its paths are the options."""

import importlib
import inspect
import json
import typing
from pathlib import Path
from typing import Any

import click
from docstring_parser import parse

from qlora_pipelines.components.core.runtime import step
from qlora_pipelines.components.core.store import storage


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


class _Pair(click.ParamType[Any]):
    """One entry of a dict; the option is given once for each."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, equals, content = str(value).partition("=")
        if not equals:
            self.fail(f"not NAME=VALUE: {value!r}", param, ctx)
        return name, content


def make(name: str) -> click.Command:
    """The command that runs step `name` alone, without kfp."""
    task = importlib.import_module(f"qlora_pipelines.components.{name}.task")
    paths = [
        parameter
        for parameter in inspect.signature(task.run).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]

    def call(as_json: bool, results: Path | None, **given: Any) -> None:
        path_values = {parameter.name: given.pop(parameter.name) for parameter in paths}
        path_values |= {name: dict(value) for name, value in path_values.items() if isinstance(value, tuple)}
        more = "{}" if "options" in task.Config.model_fields else given.pop("options")
        with step(name):
            if results:
                results.mkdir(parents=True, exist_ok=True)
            config = task.Config.parse(more, **{option: value for option, value in given.items() if value is not None})
            found = task.run(config, **path_values)._asdict()
        for result, value in found.items() if results else ():
            storage.write_bytes(
                str(results / result), (value if isinstance(value, str) else json.dumps(value)).encode()
            )
        click.echo(json.dumps(found) if as_json else "\n".join(f"{key}: {value}" for key, value in found.items()))

    return click.Command(
        name,
        params=[
            *_path_options(paths, _described(task.run)),
            *_config_options(task.Config),
            *_MORE_OPTIONS[: "options" not in task.Config.model_fields],
            click.Option(
                ["--results"],
                type=click.Path(file_okay=False, path_type=Path),
                help="Folder to write each result to, as a file of its name.",
            ),
            click.Option(["--json", "as_json"], is_flag=True, help="Print the results as one line of JSON."),
        ],
        callback=call,
        help=(task.__doc__ or "").strip().splitlines()[0],
    )


_MORE_OPTIONS = [click.Option(["--options"], default="{}", help="More of these options, as one JSON object.")]


def _path_options(paths: list[inspect.Parameter], described: dict[str, str]) -> list[click.Option]:
    return [
        click.Option(
            [_flag(path.name), path.name],
            type=_Pair() if typing.get_origin(path.annotation) is dict else _type(path.annotation),
            multiple=typing.get_origin(path.annotation) is dict,
            required=path.default is inspect.Parameter.empty,
            default=path.default if path.default not in (inspect.Parameter.empty, {}) else None,
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
