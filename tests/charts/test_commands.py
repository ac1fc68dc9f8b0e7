"""The programs that the chart's pods call take their arguments: a renamed option fails here, not in a cluster."""

import ast
from pathlib import Path
from typing import Any

import click
import mlflow.cli
import pytest

from qlora_pipelines.pipelines import run_file
from qlora_pipelines.pipelines.cli.main import main
from qlora_pipelines.pipelines.compiler import compiled
from qlora_pipelines.pipelines.docgen.reference import GOLDEN
from tests.charts.rendering import EXAMPLES, Object, merged, of_kind, pods, render, values

PROGRAMS = {"qlora": main, "mlflow": mlflow.cli.cli}


def parse(program: click.Command, words: list[str]) -> None:
    """Parses a command line as click does, down to the last command, and runs nothing."""
    context = program.make_context(program.name, list(words))
    while isinstance(program, click.Group):
        name, program, words = program.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[assignment]
        context = program.make_context(name, list(words), parent=context)


VARIANTS: list[dict[str, Any]] = [
    *[values(example) for example in EXAMPLES],
    merged(values("full"), {"pipeline.disk": "200Gi", "triggers.tickets.maxAttempts": 5, "gc.dryRun": True}),
]


@pytest.mark.parametrize("given", VARIANTS)
def test_every_program_takes_its_arguments(given: dict[str, Any]) -> None:
    for pod in pods(render(given)):
        for container in pod.containers:
            words = [*container["command"], *container.get("args", [])]
            if words[:2] == ["python", "-c"]:
                ast.parse(words[2])
            else:
                parse(PROGRAMS[words[0]], words[1:])


def test_an_unknown_option_would_be_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(main, ["gc", "--weeks", "1"])


def test_trigger_reads_the_config_it_is_given(tmp_path: Path) -> None:
    pipeline = compiled.from_file(GOLDEN)
    objects = render(values("full"))
    maps = {found["metadata"]["name"]: found["data"] for found in of_kind(objects, "ConfigMap")}
    for name, trigger in values("full")["triggers"].items():
        path = tmp_path / "run.yaml"
        path.write_text(maps[f"qlora-trigger-{name}"]["run.yaml"])
        _, given = run_file.check(run_file.read(path), pipeline.parameters)
        assert given["model_name"] == trigger["config"]["model_name"]


def uploading_job(given: dict[str, Any]) -> Object:
    [job] = [job for job in of_kind(render(given), "Job") if "-upload-" in job["metadata"]["name"]]
    return job


def test_the_pipeline_is_compiled_for_the_volume_of_the_chart() -> None:
    job = uploading_job(values("full"))
    [compiling] = job["spec"]["template"]["spec"]["initContainers"]
    assert [*compiling["command"], *compiling["args"]] == [
        "qlora",
        "compile",
        "/tmp/pipeline.yaml",
        "--cache-pvc",
        "qlora-model-cache",
    ]
    [uploading] = job["spec"]["template"]["spec"]["containers"]
    assert uploading["args"][-4:-2] == ["--pipeline", "/tmp/pipeline.yaml"]
    registry = {"name": "QLORA_IMAGE_REGISTRY", "value": "ghcr.io/qlora-pipelines"}
    assert registry in compiling["env"] and registry in uploading["env"]
    plain = uploading_job(values("minimal"))
    assert "initContainers" not in plain["spec"]["template"]["spec"]
