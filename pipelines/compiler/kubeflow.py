"""What kfp's compiler makes of the pipeline and of single steps, as YAML."""

import ast
import importlib
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qlora_pipelines.pipelines import placement
from qlora_pipelines.pipelines.placement import Cluster


def pipeline(cluster: Cluster | None = None, *, as_manifests: bool = False) -> str:
    """The pipeline as Kubeflow Pipelines takes it.

    Args:
        cluster: what is chosen at compile time.
        as_manifests: a Pipeline and a PipelineVersion for the Kubernetes API, named by the project's version.
    """
    from kfp import dsl
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    from qlora_pipelines.pipelines import finetune

    with placement.chosen(cluster or Cluster()):
        built = dsl.pipeline(name=finetune.NAME, display_name=finetune.DISPLAY_NAME)(finetune.finetune.pipeline_func)
    _shorten(built.pipeline_spec)
    options = KubernetesManifestOptions(
        pipeline_name=finetune.NAME,
        pipeline_display_name=finetune.DISPLAY_NAME,
        pipeline_version_name=f"{finetune.NAME}-{version('qlora-pipelines').replace('+', '-')}",
        include_pipeline_manifest=True,
    )
    return _compiled(built, kubernetes_manifest_format=as_manifests, kubernetes_manifest_options=options)


def _shorten(spec: Any) -> None:
    """Takes from the steps what only readers need: descriptions and docstrings. The pipeline's own inputs keep theirs.

    Kubeflow writes a step's code and signature into the Workflow object six times or more. Above 1 MiB Argo compresses
    the state in it, and from then on Kubeflow's API shows the states of all tasks as they were before.
    """
    for component in spec.components.values():
        for definitions in (component.input_definitions, component.output_definitions):
            for definition in (*definitions.parameters.values(), *definitions.artifacts.values()):
                definition.ClearField("description")
    for executor in spec.deployment_spec["executors"].fields.values():
        command = executor.struct_value["container"]["command"]
        command[len(command) - 1] = _without_docstring(command[len(command) - 1])


def _without_docstring(source: str) -> str:
    [function] = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    lines = source.splitlines(keepends=True)
    if ast.get_docstring(function):
        del lines[function.body[0].lineno - 1 : function.body[0].end_lineno]
    return "".join(lines)


def component(step: str) -> Any:
    """The kfp component of a step."""
    return getattr(importlib.import_module(f"qlora_pipelines.components.{step}.component"), step)


def component_yaml(step: str) -> str:
    """A step's component.yaml, for other people's pipelines."""
    return _compiled(component(step))


def _compiled(pipeline: Any, **options: Any) -> str:
    from kfp import compiler

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path), **options)
        return path.read_text()
