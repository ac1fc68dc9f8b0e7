"""What kfp's compiler makes of the pipeline and of single steps, as YAML."""

import importlib
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qlora_pipelines.pipelines import placement
from qlora_pipelines.pipelines.compiler import shortening
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
    shortening.shorten(built)
    options = KubernetesManifestOptions(
        pipeline_name=finetune.NAME,
        pipeline_display_name=finetune.DISPLAY_NAME,
        pipeline_version_name=f"{finetune.NAME}-{version('qlora-pipelines').replace('+', '-')}",
        include_pipeline_manifest=True,
    )
    return _compiled(built, kubernetes_manifest_format=as_manifests, kubernetes_manifest_options=options)


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
