"""Writes what is made from the code: the compiled pipeline, the tables of the READMEs, the chart's schema of a run.

python -m qlora_pipelines.pipelines.docgen.reference          write them anew (`make golden`)
python -m qlora_pipelines.pipelines.docgen.reference --check  exit 1 and name the files that are stale (`make check`)
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docstring_parser import parse

from qlora_pipelines.pipelines.docgen import chart

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "pipelines" / "golden" / "qlora-finetune.yaml"
_ORDER = [
    "plan_run",
    "stage_base_model",
    "prepare_dataset",
    "train_qlora",
    "evaluate_model",
    "dequantize_and_merge",
    "register_model",
]
_FOUND = sorted(path.parent.name for path in (ROOT / "components").glob("*/component.py"))
STEPS = sorted(_FOUND, key=lambda step: _ORDER.index(step) if step in _ORDER else len(_ORDER))
"""In the order in which a run makes them; steps outside the pipeline come last."""
TABLE_START, TABLE_END = "<!-- steps -->", "<!-- /steps -->"


def compiled() -> str:
    """The pipeline as Kubeflow Pipelines takes it."""
    from kfp import compiler

    from qlora_pipelines.pipelines.finetune import finetune

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(finetune, str(path))
        return path.read_text()


def component(step: str) -> Any:
    """The kfp component of a step."""
    return getattr(importlib.import_module(f"qlora_pipelines.components.{step}.component"), step)


def step_readme(step: str) -> str:
    """A step's README, from its component's docstring and its config class."""
    task = importlib.import_module(f"qlora_pipelines.components.{step}.task")
    doc = parse(component(step).python_func.__doc__)
    spec = component(step).component_spec
    described = {param.arg_name: param.description for param in doc.params}
    lines = [f"# {step}", "", f"{doc.short_description}", "", *_module_details(task), "## Inputs", ""]
    lines += _table(
        ["name", "type", "default", "what it is"],
        (
            [f"`{name}`", _type(value.type), _default(value), described[name]]
            for name, value in (spec.inputs or {}).items()
        ),
    )
    lines += ["", "## Outputs", ""]
    returned = returns(component(step).python_func.__doc__)
    lines += _table(
        ["name", "type", "what it is"],
        (
            [f"`{name}`", _type(value.type), returned.get(name) or described[name]]
            for name, value in (spec.outputs or {}).items()
        ),
    )
    lines += ["", "## Options", ""]
    lines += _table(
        ["name", "default", "what it does"],
        (
            [f"`{name}`", "required" if field.is_required() else f"`{json.dumps(field.default)}`", field.description]
            for name, field in task.Config.model_fields.items()
        ),
    )
    lines += ["", f"Alone, without Kubeflow: `qlora step {step} --help`.", ""]
    return "\n".join(lines)


def returns(docstring: str | None) -> dict[str, str]:
    """What a component's docstring says of each output, under `Returns:`."""
    section = (docstring or "").partition("Returns:")[2]
    pairs = (line.strip().partition(": ") for line in section.strip().splitlines())
    return {name: text for name, _, text in pairs if text}


def _module_details(task: Any) -> list[str]:
    text = (task.__doc__ or "").strip()
    return [text, ""] if text else []


def _type(name: str) -> str:
    return name.removeprefix("system.").partition("@")[0].lower()


def _default(value: Any) -> str:
    if not value.optional:
        return "required"
    return "none" if value.default is None else f"`{json.dumps(value.default)}`"


def _table(head: list[str], rows: Any) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]


def readme_with_table(readme: str) -> str:
    """The README with its table of steps made anew between the two marks."""
    before, _, rest = readme.partition(TABLE_START)
    _, _, after = rest.partition(TABLE_END)
    rows = []
    for step in STEPS:
        spec = component(step).component_spec
        outputs = ", ".join(f"`{name}`" for name in spec.outputs or {})
        doc = parse(component(step).python_func.__doc__)
        rows.append([f"[{step}](components/{step}/README.md)", str(doc.short_description).rstrip("."), outputs])
    table = "\n".join(_table(["step", "what it does", "what comes out"], rows))
    return f"{before}{TABLE_START}\n{table}\n{TABLE_END}{after}"


def files() -> Iterator[tuple[Path, str]]:
    """Every made file with the content it should have."""
    yield GOLDEN, compiled()
    for step in STEPS:
        yield ROOT / "components" / step / "README.md", step_readme(step)
    yield from chart.files()
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
