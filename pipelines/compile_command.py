"""`qlora compile`: the pipeline as a cluster takes it."""

from pathlib import Path

import click

from components.core.errors import InputError
from pipelines.placement import Cluster


@click.command("compile")
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path), default=Path("qlora-finetune.yaml"))
@click.option("--cache-pvc", default="", metavar="NAME", help="Keep base models on this PersistentVolumeClaim.")
@click.option("--disk", default="", metavar="SIZE", help="Most that a step may keep in /tmp, such as 200Gi.")
def compile_pipeline(output: Path, cache_pvc: str, disk: str) -> None:
    r"""Write the pipeline for Kubeflow Pipelines to OUTPUT.

    \b
    Example:
      qlora compile qlora-finetune.yaml --cache-pvc base-models
    """
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"{output}: give a name that ends in .yaml")
    cluster = Cluster.parse(cache_pvc=cache_pvc, disk=disk)
    output.parent.mkdir(parents=True, exist_ok=True)
    compile_for(cluster, output)
    click.echo(f"{output}: upload it in the Kubeflow Pipelines UI")


def compile_for(cluster: Cluster, output: Path) -> None:
    """Writes the compiled pipeline for a cluster."""
    from kfp import compiler, dsl

    from pipelines import finetune, placement

    with placement.chosen(cluster):
        pipeline = dsl.pipeline(name=finetune.NAME, display_name=finetune.DISPLAY_NAME)(finetune.finetune.pipeline_func)
    compiler.Compiler().compile(pipeline, str(output))
