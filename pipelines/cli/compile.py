"""`qlora compile`: the pipeline, or its components, as a cluster takes them."""

from pathlib import Path

import click

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.pipelines import placement
from qlora_pipelines.pipelines.compiler import compiled, kubeflow
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
@click.option("--disk", default="", metavar="SIZE", help="Size limit of a step's /tmp, such as 200Gi.")
@click.option("--pod-label", "pod_labels", type=(str, str), multiple=True, metavar="KEY VALUE",
              help="Label of every step's pod; may be given several times.")  # fmt: skip
def compile_pipeline(
    output: Path | None, form: str, components: bool, cache_pvc: str, disk: str, pod_labels: tuple[tuple[str, str], ...]
) -> None:
    r"""Write the pipeline for a cluster to OUTPUT (qlora-finetune.yaml).

    \b
    Example:
      qlora compile qlora-finetune.yaml --cache-pvc base-models
      qlora compile --format kubernetes manifests.yaml
      qlora compile --components components-yaml
    """
    if components:
        if form != "kubeflow" or cache_pvc or disk or pod_labels:
            raise click.UsageError("--components takes no --format, --cache-pvc, --disk or --pod-label")
        output = output or Path("qlora-components")
        for step in placement.STEPS:
            click.echo(_write(output / step / "component.yaml", kubeflow.component_yaml(step)))
        return
    output = output or Path("qlora-finetune.yaml")
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"{output}: give a name that ends in .yaml")
    cluster = Cluster.parse(cache_pvc=cache_pvc, disk=disk, pod_labels=dict(pod_labels))
    text = _argo(cluster) if form == "argo" else kubeflow.pipeline(cluster, as_manifests=form == "kubernetes")
    click.echo(f"{_write(output, text)}: {NEXT[form].format(output=output)}")


def _argo(cluster: Cluster) -> str:
    try:
        from qlora_pipelines.pipelines.compiler import argo
    except ModuleNotFoundError as error:
        raise InputError(f"--format argo needs {error.name}: pip install 'qlora-pipelines[argo]'") from None
    return argo.manifest(compiled.from_code(cluster).spec, cluster)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
