"""Generated parts of the Helm chart: the README's table of values, and the schema of a trigger's run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from qlora_pipelines.components.core.config.placement import Placement
from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import OPTION_STEPS, STEPS
from qlora_pipelines.pipelines.docgen.markdown import put_table, table

FOLDER = Path(__file__).resolve().parents[2] / "charts" / "qlora-pipelines"
_KEYWORDS = {"anyOf", "const", "enum", "items", "type", "minimum", "maximum", "exclusiveMinimum",
          "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems", "pattern", "description",
          "additionalProperties", "properties", "required", "propertyNames", "prefixItems"}  # fmt: skip


def files() -> Iterator[tuple[Path, str]]:
    """Every generated file with the content it should have."""
    readme, schema = FOLDER / "README.md", FOLDER / "values.schema.json"
    yield readme, readme_with_table(readme.read_text(), (FOLDER / "values.yaml").read_text())
    yield schema, schema_with_run(schema.read_text())


def readme_with_table(readme: str, values: str) -> str:
    """The chart's README with a new table of values between the two marks."""
    rows = [[f"`{path}`", f"`{default}`", comment] for path, default, comment in described(values)]
    return put_table(readme, "values", table(["value", "default", "what it is"], rows))


def described(values: str) -> Iterator[tuple[str, str, str]]:
    """Path, default and comment of every value, in the file's order.

    Raises:
        ValueError: a value has no comment.
    """
    lines = values.split("\n")
    for path, line, default in _leaves(yaml.compose(values)):
        comment: list[str] = []
        while line > 0 and lines[line - 1].lstrip().startswith("#"):
            line -= 1
            comment.insert(0, lines[line].lstrip(" #"))
        if not comment:
            raise ValueError(f"{path} in values.yaml has no comment")
        yield path, json.dumps(default), " ".join(comment)


def _leaves(node: Any, above: str = "") -> Iterator[tuple[str, int, Any]]:
    """Path, line and value of every leaf; a mapping in one line is a leaf."""
    for key, value in node.value:
        path = f"{above}{key.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _leaves(value, f"{path}.")
        else:
            yield path, key.start_mark.line, yaml.safe_load(yaml.serialize(value))


def schema_with_run(schema: str) -> str:
    """The values' schema with a new definition of a run: a misspelt option fails at the installation."""
    read = json.loads(schema)
    read["definitions"]["run"] = _run()
    return json.dumps(read, indent=2) + "\n"


def _run() -> dict[str, Any]:
    run: dict[str, Any] = _plain(RunConfig.model_json_schema())
    steps = {step: _plain(config.model_json_schema()) for step, config in STEPS.items()}
    for step in steps.values():
        step.pop("required", None)
        for name in [name for name in step["properties"] if name in run["properties"]]:
            # The bounds of an option that is a parameter are those of its step.
            run["properties"][name] |= step["properties"].pop(name)
    for name, field in _plain(Placement.model_json_schema())["properties"].items():
        # YAML reads the count 2 as a number; Placement takes both.
        run["properties"][name] = field | ({"type": ["string", "number"]} if field["type"] == "string" else {})
    options = {step: steps[step] for step in OPTION_STEPS}
    run["properties"]["options"] = {"type": "object", "additionalProperties": False, "properties": options}
    return run


def _plain(schema: Any) -> Any:
    """A pydantic schema as draft-07 knows it, without titles and marks of our own."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _plain(inner) for name, inner in value.items()} if key == "properties" else _plain(value)
        for key, value in schema.items()
        if key in _KEYWORDS
    }
