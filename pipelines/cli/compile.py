"""`qlora compile`: the pipeline, or its components, as a cluster takes them."""

import importlib
from pathlib import Path
from typing import Any

import click
import yaml

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.pipelines import placement
from qlora_pipelines.pipelines.placement import Cluster

NEXT = {
    "kubeflow": "upload it in the Kubeflow Pipelines UI",
    "kubernetes": "kubectl apply -f {output}",
    "argo": "kubectl apply -f {output}, then argo submit --from workflowtemplate/qlora-finetune",
}


@click.command("compile")
@click.argument("output", type=click.Path(path_type=Path), default=None, required=False)
@click.option(
    "--format", "form", type=click.Choice(list(NEXT)), default="kubeflow", show_default=True,
    help="A Kubeflow pipeline, Kubernetes manifests of it for GitOps, or a plain Argo WorkflowTemplate.",
)  # fmt: skip
@click.option("--components", is_flag=True, help="Write each step's component.yaml into the folder OUTPUT instead.")
@click.option("--cache-pvc", default="", metavar="NAME", help="Keep base models on this PersistentVolumeClaim.")
@click.option("--disk", default="", metavar="SIZE", help="Most that a step may keep in /tmp, such as 200Gi.")
def compile_pipeline(output: Path | None, form: str, components: bool, cache_pvc: str, disk: str) -> None:
    r"""Write the pipeline for a cluster to OUTPUT (qlora-finetune.yaml).

    \b
    Example:
      qlora compile qlora-finetune.yaml --cache-pvc base-models
      qlora compile --format kubernetes manifests.yaml
      qlora compile --components components-yaml
    """
    if components:
        for path in write_components(output or Path("qlora-components")):
            click.echo(path)
        return
    output = output or Path("qlora-finetune.yaml")
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"{output}: give a name that ends in .yaml")
    cluster = Cluster.parse(cache_pvc=cache_pvc, disk=disk)
    output.parent.mkdir(parents=True, exist_ok=True)
    if form == "argo":
        _write_argo(cluster, output)
    else:
        compile_for(cluster, output, as_manifests=form == "kubernetes")
    click.echo(f"{output}: {NEXT[form].format(output=output)}")


def compile_for(cluster: Cluster, output: Path, *, as_manifests: bool = False) -> None:
    """Writes the compiled pipeline for a cluster.

    Args:
        cluster: what is chosen at compile time.
        output: the file to write.
        as_manifests: a Pipeline and a PipelineVersion for the Kubernetes API, named by the project's version.
    """
    from importlib.metadata import version

    from kfp import compiler, dsl
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    from qlora_pipelines.pipelines import finetune

    with placement.chosen(cluster):
        pipeline = dsl.pipeline(name=finetune.NAME, display_name=finetune.DISPLAY_NAME)(finetune.finetune.pipeline_func)
    options = KubernetesManifestOptions(
        pipeline_name=finetune.NAME,
        pipeline_display_name=finetune.DISPLAY_NAME,
        pipeline_version_name=f"{finetune.NAME}-{version('qlora-pipelines').replace('+', '-')}",
        include_pipeline_manifest=True,
    )
    compiler.Compiler().compile(
        pipeline, str(output), kubernetes_manifest_format=as_manifests, kubernetes_manifest_options=options
    )


def _write_argo(cluster: Cluster, output: Path) -> None:
    import tempfile

    try:
        from qlora_pipelines.pipelines.compiler import argo
    except ModuleNotFoundError as error:
        raise InputError(f"--format argo needs {error.name}: pip install 'qlora-pipelines[argo]'") from None
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "pipeline.yaml"
        compile_for(cluster, compiled)
        pipeline: dict[str, Any] = next(yaml.safe_load_all(compiled.read_text()))
    storage.write_bytes(str(output), argo.manifest(pipeline, cluster).encode())


def write_components(folder: Path) -> list[Path]:
    """Writes each step as a component for other people's pipelines: `FOLDER/STEP/component.yaml`."""
    from kfp import compiler

    written = []
    for step in placement.STEPS:
        path = folder / step / "component.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        component = getattr(importlib.import_module(f"qlora_pipelines.components.{step}.component"), step)
        compiler.Compiler().compile(component, str(path))
        written.append(path)
    return written
