"""Generates files from the code: the compiled pipeline, the tables of the READMEs, the chart's schema of a run.

python -m qlora_pipelines.pipelines.docgen.reference          write them (`make golden`)
python -m qlora_pipelines.pipelines.docgen.reference --check  exit 1 and name the files that are stale (`make check`)
"""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docstring_parser import parse

from qlora_pipelines.pipelines import placement
from qlora_pipelines.pipelines.compiler import kubeflow
from qlora_pipelines.pipelines.compiler.kubeflow import component
from qlora_pipelines.pipelines.docgen import chart, models
from qlora_pipelines.pipelines.docgen.markdown import put_table, table

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "pipelines" / "golden" / "qlora-finetune.yaml"
_FOUND = {path.parent.name for path in (ROOT / "components").glob("*/component.py")}
STEPS = [*placement.STEPS, *sorted(_FOUND - placement.STEPS.keys())]
"""In the order in which a run makes them; steps outside the pipeline come last."""


def step_readme(step: str) -> str:
    """A step's README, from its component's docstring and its config class."""
    task = importlib.import_module(f"qlora_pipelines.components.{step}.task")
    docstring, spec = component(step).python_func.__doc__, component(step).component_spec
    doc, returned = parse(docstring), returns(docstring)
    described = {param.arg_name: str(param.description) for param in doc.params}
    inputs = [
        [f"`{name}`", _type(value.type), _default(value), described[name]]
        for name, value in (spec.inputs or {}).items()
    ]
    outputs = [
        [f"`{name}`", _type(value.type), returned.get(name) or described[name]]
        for name, value in (spec.outputs or {}).items()
    ]
    options = [
        [f"`{name}`", "required" if field.is_required() else f"`{json.dumps(field.default)}`", field.description]
        for name, field in task.Config.model_fields.items()
    ]
    sections = [
        f"# {step}",
        str(doc.short_description),
        *([details] if (details := (task.__doc__ or "").strip()) else []),
        "## Inputs",
        "\n".join(table(["name", "type", "default", "what it is"], inputs)),
        "## Outputs",
        "\n".join(table(["name", "type", "what it is"], outputs)),
        "## Options",
        "\n".join(table(["name", "default", "what it does"], options)),
        f"Alone, without Kubeflow: `qlora step {step} --help`.",
    ]
    return "\n\n".join(sections) + "\n"


def returns(docstring: str | None) -> dict[str, str]:
    """What a component's docstring says of each output, under `Returns:`."""
    section = (docstring or "").partition("Returns:")[2]
    pairs = (line.strip().partition(": ") for line in section.strip().split("\n"))
    return {name: text for name, _, text in pairs if text}


def _type(name: str) -> str:
    return name.removeprefix("system.").partition("@")[0].lower()


def _default(value: Any) -> str:
    if not value.optional:
        return "required"
    return "none" if value.default is None else f"`{json.dumps(value.default)}`"


def readme_with_table(readme: str) -> str:
    """The README with a new table of steps between the two marks."""
    rows = [
        [
            f"[{step}](components/{step}/README.md)",
            str(parse(component(step).python_func.__doc__).short_description).rstrip("."),
            ", ".join(f"`{name}`" for name in component(step).component_spec.outputs or {}),
        ]
        for step in STEPS
    ]
    return put_table(readme, "steps", table(["step", "what it does", "what comes out"], rows))


def files() -> Iterator[tuple[Path, str]]:
    """Every generated file with the content it should have."""
    yield GOLDEN, kubeflow.pipeline()
    for step in STEPS:
        yield ROOT / "components" / step / "README.md", step_readme(step)
    yield from chart.files()
    yield ROOT / "docs" / "models.md", models.page(ROOT / "tests" / "architectures" / "expected.json")
    readme = ROOT / "README.md"
    yield readme, readme_with_table(readme.read_text())


def main() -> None:
    """Writes the files, or with `--check` names those that are stale."""
    stale = [(path, text) for path, text in files() if not path.exists() or path.read_text() != text]
    for path, text in stale:
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        print(path.relative_to(ROOT), "is stale: run make golden" if "--check" in sys.argv else "written")
    sys.exit(1 if stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
