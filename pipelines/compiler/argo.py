"""The pipeline as one plain Argo WorkflowTemplate over `qlora step`, for clusters without Kubeflow.

It is made from the compiled pipeline, so steps, wiring and gate are the same, and from `placement.STEPS`, so resources,
secrets and limits are. The models of hera check every field.
"""

import json
from typing import Any

import yaml
from hera.workflows import models

from qlora_pipelines.components.core.models.base_model import CACHE_VARIABLE
from qlora_pipelines.pipelines import finetune, placement
from qlora_pipelines.pipelines.cli import step
from qlora_pipelines.pipelines.compiler import ir
from qlora_pipelines.pipelines.placement import Cluster, Needs

# hera changes how all of this process writes text as YAML, kfp too: put it back.
for _dumper in (yaml.Dumper, yaml.representer.SafeRepresenter):
    _dumper.add_representer(str, yaml.representer.SafeRepresenter.represent_str)

FILES = "/tmp/qlora"
REPORTS = ("plan", "data", "training", "tuned", "merged")
"""In MLflow they are numbered in this order."""
RUN_ID = "{{$.pipeline_job_uuid}}"
TOLERATIONS = [{"key": placement.ACCELERATOR, "operator": "Exists", "effect": "NoSchedule"}]


def manifest(pipeline: dict[str, Any], cluster: Cluster) -> str:
    """The WorkflowTemplate as YAML.

    Args:
        pipeline: the compiled pipeline, without what only Kubeflow's platform sees.
        cluster: what is chosen at compile time.
    """
    tasks = ir.tasks(pipeline)
    template = models.WorkflowTemplate(
        api_version="argoproj.io/v1alpha1",
        kind="WorkflowTemplate",
        metadata=models.ObjectMeta(name=finetune.NAME),
        spec=models.WorkflowSpec(
            entrypoint="pipeline",
            arguments=models.Arguments(parameters=_parameters(pipeline["root"]["inputDefinitions"]["parameters"])),
            security_context=models.PodSecurityContext(
                run_as_user=placement.USER,
                run_as_group=placement.USER,
                run_as_non_root=True,
                fs_group=placement.USER,
            ),
            templates=[
                models.Template(name="pipeline", dag=models.DAGTemplate(tasks=[_dag_task(task) for task in tasks])),
                *(_template(task, cluster) for task in tasks),
            ],
        ),
    )
    return yaml.safe_dump(template.model_dump(by_alias=True, exclude_none=True, mode="json"), sort_keys=False)


def _parameters(definitions: dict[str, Any]) -> list[models.Parameter]:
    defaults = {"tolerations": TOLERATIONS}
    said = {"tolerations": "All tolerations of a GPU step, a JSON list."}
    return [
        models.Parameter(
            name=name,
            description=said.get(name, definition["description"]),
            value=_text(defaults.get(name) or _default(definition)) if definition.get("isOptional") else None,
        )
        for name, definition in definitions.items()
    ]


def _default(definition: dict[str, Any]) -> Any:
    # Protobuf knows no whole numbers.
    value = definition["defaultValue"]
    return int(value) if definition["parameterType"] == "NUMBER_INTEGER" else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _reference(source: ir.Source) -> str:
    if source.task:
        return f"{{{{tasks.{source.task}.outputs.parameters.{source.name}}}}}"
    if source.constant is not None:
        return "{{workflow.uid}}" if source.constant == RUN_ID else _text(source.constant)
    return f"{{{{workflow.parameters.{source.name}}}}}"


def _dag_task(task: ir.Task) -> models.DAGTask:
    # Of a task that was skipped no output can be asked: `Succeeded` leaves out all that comes after it.
    return models.DAGTask(
        name=task.name,
        template=task.name,
        depends=" && ".join(f"{name}.Succeeded" for name in ir.needs(task)) or None,
        when=" && ".join(f"{_reference(condition)} == true" for condition in task.conditions) or None,
        arguments=models.Arguments(
            parameters=[models.Parameter(name=name, value=_reference(s)) for name, s in task.parameters.items()],
            artifacts=[
                models.Artifact(name=name, from_=f"{{{{tasks.{source.task}.outputs.artifacts.{source.name}}}}}")
                for name, source in task.artifacts.items()
            ],
        ),
    )


def _template(task: ir.Task, cluster: Cluster) -> models.Template:
    needs = placement.STEPS[task.step]
    options = {parameter.name for parameter in step.make(task.step).params}
    retries = {"KFP_RETRY_INDEX": "{{retries}}"} if needs.retries else {}
    return models.Template(
        name=task.name,
        inputs=models.Inputs(
            parameters=[models.Parameter(name=name) for name in task.parameters],
            artifacts=[models.Artifact(name=name, path=f"{FILES}/in/{name}") for name in task.artifacts],
        ),
        outputs=models.Outputs(
            parameters=[
                models.Parameter(name=name, value_from=models.ValueFrom(path=f"{FILES}/results/{name}"))
                for name in task.outputs
            ],
            artifacts=[_output(name) for name in task.output_artifacts if name in options],
        ),
        active_deadline_seconds=models.IntOrString(root=needs.hours * 3600),
        retry_strategy=_retry(needs) if needs.retries else None,
        container=models.Container(
            name="main",
            image=task.image,
            command=["qlora"],
            args=["step", task.step, *_arguments(task, options), f"--results={FILES}/results"],
            env=_environment(needs, cluster, retries),
            resources=None if needs.gpus else _resources(needs, cluster),
            volume_mounts=_mounts(needs, cluster) or None,
        ),
        volumes=_volumes(needs, cluster) or None,
        pod_spec_patch=_gpu_patch(needs.gpus.replace("all", "{{workflow.parameters.gpu_count}}"), cluster)
        if needs.gpus
        else None,
    )


def _arguments(task: ir.Task, options: set[str]) -> list[str]:
    """The step's inputs and outputs as options; what is none of them is evidence or a report of registration."""
    found = []
    for name in task.parameters:
        value = f"{{{{inputs.parameters.{name}}}}}"
        found.append(f"{_flag(name)}={value}" if name in options else f"--evidence={name}={value}")
    for name in task.artifacts:
        path, report = f"{FILES}/in/{name}", name.removesuffix("_report")
        given = f"{_flag(name)}={path}" if name in options else f"--reports={REPORTS.index(report) + 1}-{report}={path}"
        found.append(given)
    return found + [f"{_flag(name)}={FILES}/{name}" for name in task.output_artifacts if name in options]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _output(name: str) -> models.Artifact:
    # Argo's UI shows a page only if it is no archive.
    archive = models.ArchiveStrategy(none=models.NoneStrategy()) if name == "report" else None
    return models.Artifact(name=name, path=f"{FILES}/{name}", archive=archive)


def _retry(needs: Needs) -> models.RetryStrategy:
    # `Always` also tries again where the pod is gone with its node; max_duration as in placement.py.
    return models.RetryStrategy(
        limit=models.IntOrString(root=needs.retries),
        retry_policy="Always",
        backoff=models.Backoff(duration="60s", factor=models.IntOrString(root=2), max_duration=f"{needs.window}s"),
    )


def _environment(needs: Needs, cluster: Cluster, more: dict[str, str]) -> list[models.EnvVar]:
    configured = [
        models.EnvVar(
            name=key,
            value_from=models.EnvVarSource(
                config_map_key_ref=models.ConfigMapKeySelector(name=placement.CONFIG_MAP, key=key, optional=True)
            ),
        )
        for key in needs.config_keys
    ]
    secret = [
        models.EnvVar(
            name=key,
            value_from=models.EnvVarSource(
                secret_key_ref=models.SecretKeySelector(name=name, key=key, optional=True),
            ),
        )
        for name, keys in needs.secrets.items()
        for key in keys
    ]
    if cluster.cache_pvc and needs.base:
        more = more | {CACHE_VARIABLE: placement.CACHE_FOLDER}
    return configured + secret + [models.EnvVar(name=name, value=value) for name, value in more.items()]


def _resources(needs: Needs, cluster: Cluster) -> models.ResourceRequirements:
    disk = {"ephemeral-storage": cluster.disk} if cluster.disk else {}
    memory = {"memory": needs.memory}
    return models.ResourceRequirements.model_validate(
        {"requests": {"cpu": needs.cpu} | memory | disk, "limits": memory | disk}
    )


def _gpu_patch(gpus: str, cluster: Cluster) -> str:
    """Resources, selector and tolerations of a GPU step: Argo takes parameters there only in a patch of the pod."""
    memory = {"memory": "{{workflow.parameters.memory}}"}
    disk = {"ephemeral-storage": cluster.disk} if cluster.disk else {}
    resources = {
        "requests": {"cpu": "{{workflow.parameters.cpu}}"} | memory | disk,
        "limits": {"{{workflow.parameters.accelerator}}": gpus} | memory | disk,
    }
    containers = json.dumps([{"name": "main", "resources": resources}])
    # The two parameters are JSON themselves, so no quotes around them.
    return (
        f'{{"nodeSelector": {{{{workflow.parameters.node_selector}}}},'
        f' "tolerations": {{{{workflow.parameters.tolerations}}}}, "containers": {containers}}}'
    )


def _mounts(needs: Needs, cluster: Cluster) -> list[models.VolumeMount]:
    paths = {"shm": "/dev/shm", "signing-key": placement.SIGNING_FOLDER, "bases": placement.CACHE_FOLDER}
    return [models.VolumeMount(name=volume.name, mount_path=paths[volume.name]) for volume in _volumes(needs, cluster)]


def _volumes(needs: Needs, cluster: Cluster) -> list[models.Volume]:
    found = []
    if needs.gpus:
        found.append(models.Volume(name="shm", empty_dir=models.EmptyDirVolumeSource(medium="Memory")))
    if needs.signs:
        key = models.SecretVolumeSource(secret_name=placement.SIGNING_SECRET, optional=True)
        found.append(models.Volume(name="signing-key", secret=key))
    if cluster.cache_pvc and needs.base:
        claim = models.PersistentVolumeClaimVolumeSource(claim_name=cluster.cache_pvc)
        found.append(models.Volume(name="bases", persistent_volume_claim=claim))
    return found
