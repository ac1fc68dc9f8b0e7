"""The pipeline as one plain Argo WorkflowTemplate over `qlora step`, for clusters without Kubeflow.

It is made from the compiled pipeline, so steps, wiring and gate are the same, and from `placement.STEPS`, so resources,
secrets and limits are.

Whoever may start the workflow chooses its parameters, and may start it at any of its templates. Argo puts a
parameter's text into a template, and then evaluates the result again. So a step's arguments are base64 from where a
parameter is first named, and each value in a patch of a pod is compared with a pattern where it is put in: what does
not match makes the patch one that Argo refuses.
"""

import importlib
import inspect
import json
from typing import Any

import yaml
from hera.workflows import (
    DAG,
    Artifact,
    ConfigMapEnv,
    Container,
    EmptyDirVolume,
    ExistingVolume,
    NoneArchiveStrategy,
    Parameter,
    RetryStrategy,
    SecretEnv,
    SecretVolume,
    Task,
    WorkflowTemplate,
)
from hera.workflows.models import (
    Backoff,
    Capabilities,
    IntOrString,
    PodSecurityContext,
    ResourceRequirements,
    SeccompProfile,
    SecurityContext,
    ValueFrom,
)

from qlora_pipelines.components.core.config import placement as pool
from qlora_pipelines.components.core.models.base_model import CACHE_VARIABLE
from qlora_pipelines.components.core.store import outcomes
from qlora_pipelines.pipelines import finetune, placement
from qlora_pipelines.pipelines.compiler import ir
from qlora_pipelines.pipelines.placement import Cluster, Needs
from qlora_pipelines.pipelines.tasks import REPORTS

# hera changes how all of this process, kfp included, writes text as YAML. This restores it.
for _dumper in (yaml.Dumper, yaml.representer.SafeRepresenter):
    _dumper.add_representer(str, yaml.representer.SafeRepresenter.represent_str)

INPUTS, FILES = "/tmp/inputs", "/tmp/qlora"
"""Folders of a step's input artifacts and of what it writes.

The kubelet makes the folders above a mounted artifact, and makes them root's. A step could write nothing next to one.
"""
KNOWN_TO_ARGO = {
    "{{$.pipeline_job_uuid}}": "workflow.uid",
    "{{$.pipeline_job_name}}": "workflow.name",
    ir.FINAL_STATUS: "workflow.status",
}
"""Kubeflow's words for what it knows of a run, with Argo's."""
RUN_ID = "{{workflow.uid}}"
FAILURES = {"failures": "workflow.failures"}
"""An option that only an exit task has here: Kubeflow says nothing of the kind."""
_LABEL = '"[-A-Za-z0-9_./]*"'
_TOLERATION = f'("(key|operator|value|effect)": {_LABEL}|"tolerationSeconds": -?[0-9]+)'
CHECKS = {
    "accelerator": pool.RESOURCE,
    "gpu_count": pool.GPU_COUNT,
    "node_selector": f"^[{{]({_LABEL}: {_LABEL}(, )?)*[}}]$",
    "tolerations": f"^[[]([{{]({_TOLERATION}(, )?)*[}}](, )?)*[]]$",
    "cpu": pool.CPU,
    "memory": pool.MEMORY,
}
"""What plan_run decides of a GPU step's pod, and how it is written."""
BASE64 = "^[A-Za-z0-9+/]*=*$"
GPU_LIMIT = (
    f"{{{{=inputs.parameters.accelerator == '' ? '' : inputs.parameters.accelerator matches '{pool.RESOURCE}'"
    f" && inputs.parameters.gpu_count matches '{pool.GPU_COUNT}'"
    """ ? '"' + inputs.parameters.accelerator + '": "' + inputs.parameters.gpu_count + '", '"""
    """ : '"refused": "refused", '}}"""
)
"""An entry of the pod's limits; none where plan_run names no resource."""


def manifest(pipeline: dict[str, Any], cluster: Cluster) -> str:
    """The WorkflowTemplate as YAML.

    Args:
        pipeline: the compiled pipeline, without what only Kubeflow's platform sees.
        cluster: what is chosen at compile time.
    """
    definitions = pipeline["root"]["inputDefinitions"]["parameters"]
    tasks: dict[str, Task] = {}

    def value(source: ir.Source, prefix: str = "") -> Any:
        if source.task:
            return tasks[source.task].get_parameter(source.name)
        if source.constant is not None:
            known = KNOWN_TO_ARGO.get(source.constant)
            return f"{{{{{known}}}}}" if known else source.constant
        return _encoded(f"workflow.parameters.{source.name}", prefix)

    with (
        WorkflowTemplate(
            name=finetune.NAME,
            entrypoint="pipeline",
            arguments=[_workflow_parameter(name, definition) for name, definition in definitions.items()],
            security_context=PodSecurityContext(
                run_as_user=placement.USER,
                run_as_group=placement.USER,
                run_as_non_root=True,
                fs_group=placement.USER,
                seccomp_profile=SeccompProfile(type="RuntimeDefault"),
            ),
        ) as workflow,
        DAG(name="pipeline"),
    ):
        for step in ir.tasks(pipeline):
            if step.is_exit:
                workflow.on_exit = _container(step, cluster, at_exit=True)
                continue
            prefixes = {name: prefix for name, (_, prefix) in _flags(step).items()}
            parameters = {name: value(source, prefixes[name]) for name, source in step.parameters.items()}
            if gpus := placement.STEPS[step.step].gpus:
                parameters |= {name: tasks["plan-run"].get_parameter(name) for name in CHECKS}
                parameters |= {} if gpus == "all" else {"gpu_count": gpus}
            artifacts = {name: tasks[each.task].get_artifact(each.name) for name, each in step.artifacts.items()}
            tasks[step.name] = Task(
                name=step.name,
                template=_container(step, cluster),
                when=" && ".join(f"{value(condition)} == true" for condition in step.conditions) or None,
                arguments=parameters | artifacts,
            )
            for name in ir.needs(step):
                # A skipped task has no outputs to refer to. This also skips all tasks that depend on it.
                tasks[name].on_success(tasks[step.name])
    return workflow.to_yaml()


def _workflow_parameter(name: str, definition: dict[str, Any]) -> Parameter:
    default = {"value": definition["defaultValue"]} if definition.get("isOptional") else {}
    if default and definition["parameterType"] == "NUMBER_INTEGER":
        default = {"value": int(default["value"])}  # protobuf has no integers
    return Parameter(name=name, description=definition["description"], **default)


def _options(step: str) -> set[str]:
    """Names of the options of `qlora step STEP`: the fields of the step's config and the arguments of `task.run`."""
    task = importlib.import_module(f"qlora_pipelines.components.{step}.task")
    return {*task.Config.model_fields, *inspect.getfullargspec(task.run).kwonlyargs, "options"}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _flags(step: ir.Task) -> dict[str, tuple[str, str]]:
    """The option that takes each parameter, and what stands before its value there."""
    options = _options(step.step)
    return {name: (_flag(name), "") if name in options else ("--evidence", f"'{name}=' + ") for name in step.parameters}


def _encoded(reference: str, prefix: str = "") -> str:
    """A value in base64: neither Argo nor Kubernetes finds a reference to replace in it."""
    return f"{{{{=sprig.b64enc({prefix}{reference})}}}}"


def _checked(name: str, pattern: str) -> str:
    """An input of a template, or a word that Argo takes neither for a quantity nor for an object nor for base64."""
    return f"{{{{=inputs.parameters.{name} matches '{pattern}' ? inputs.parameters.{name} : 'refused'}}}}"


def _argument(name: str, source: ir.Source, prefix: str) -> str:
    ours = source.task or source.constant is not None
    return _encoded(f"inputs.parameters.{name}", prefix) if ours else _checked(name, BASE64)


def _at_exit(step: ir.Task) -> list[str]:
    """The arguments of an exit template. Argo gives it no inputs, so they name values of the workflow."""
    references = {
        name: f"workflow.parameters.{source.name}" if source.constant is None else KNOWN_TO_ARGO[source.constant]
        for name, source in step.parameters.items()
    }
    return [f"{_flag(name)}={_encoded(reference)}" for name, reference in (references | FAILURES).items()]


def _container(step: ir.Task, cluster: Cluster, *, at_exit: bool = False) -> Container:
    needs, options, flags = placement.STEPS[step.step], _options(step.step), _flags(step)
    inputs = [] if at_exit else [*flags, *(CHECKS if needs.gpus else ())]
    artifacts = {
        name: _flag(name) if name in options else f"--reports={REPORTS[source.task]}"
        for name, source in step.artifacts.items()
    }
    outputs = [name for name in step.output_artifacts if name in options]
    return Container(
        name=step.name,
        image=step.image,
        command=["qlora"],
        args=[
            "step",
            step.step,
            *(f"{option}={INPUTS}/{name}" for name, option in artifacts.items()),
            *(f"{_flag(name)}={FILES}/{name}" for name in outputs),
            f"--results={FILES}/results",
            "--base64",
            *(
                _at_exit(step)
                if at_exit
                else (
                    f"{option}={_argument(name, step.parameters[name], prefix)}"
                    for name, (option, prefix) in flags.items()
                )
            ),
        ],
        inputs=[
            *(Parameter(name=name) for name in inputs),
            *(_input(name, source) for name, source in step.artifacts.items()),
        ],
        outputs=[
            *(Parameter(name=name, value_from=ValueFrom(path=f"{FILES}/results/{name}")) for name in step.outputs),
            *(_output(name) for name in outputs),
        ],
        env=_environment(needs, cluster),
        security_context=SecurityContext(
            allow_privilege_escalation=False, capabilities=Capabilities(drop=["ALL"]), run_as_non_root=True
        ),
        volumes=_volumes(needs, cluster),
        labels={placement.STEP_LABEL: step.step.replace("_", "-"), **cluster.pod_labels},
        active_deadline_seconds=needs.seconds,
        retry_strategy=_retry(needs) if needs.retries else None,
        **_resources(needs, cluster),
    )


def _input(name: str, source: ir.Source) -> Artifact:
    # What was in no archive is root's when Argo has fetched it, and nobody else's to read.
    return Artifact(name=name, path=f"{INPUTS}/{name}", mode=0o644 if source.name == "report" else None)


def _output(name: str) -> Artifact:
    # Argo's UI shows a report only if it is not in an archive.
    return Artifact(name=name, path=f"{FILES}/{name}", archive=NoneArchiveStrategy() if name == "report" else None)


def _retry(needs: Needs) -> RetryStrategy:
    # `Always` also retries a pod that is lost with its node; max_duration as in placement.py.
    backoff = Backoff(duration=placement.BACKOFF, factor=IntOrString(root=2), max_duration=f"{needs.window}s")
    return RetryStrategy(limit=needs.retries, retry_policy="Always", backoff=backoff)


def _environment(needs: Needs, cluster: Cluster) -> list[Any]:
    plain = {outcomes.RUN_VARIABLE: RUN_ID} | ({"KFP_RETRY_INDEX": "{{retries}}"} if needs.retries else {})
    if cluster.cache_pvc and needs.base:
        plain[CACHE_VARIABLE] = placement.CACHE_FOLDER
    configured = [
        ConfigMapEnv(name=key, config_map_name=placement.CONFIG_MAP, config_map_key=key, optional=True)
        for key in needs.config_keys
    ]
    secrets = [
        SecretEnv(name=key, secret_name=name, secret_key=key, optional=True)
        for name, keys in needs.secrets.items()
        for key in keys
    ]
    return [*configured, *secrets, plain]


def _volumes(needs: Needs, cluster: Cluster) -> list[Any]:
    found: list[Any] = []
    if needs.gpus:
        found.append(EmptyDirVolume(name="shm", mount_path="/dev/shm", medium="Memory"))
    for secret, folder in needs.secret_folders.items():
        found.append(SecretVolume(name=secret, mount_path=folder, secret_name=secret, optional=True))
    if cluster.cache_pvc and needs.base:
        found.append(ExistingVolume(name="bases", mount_path=placement.CACHE_FOLDER, claim_name=cluster.cache_pvc))
    return found


def _resources(needs: Needs, cluster: Cluster) -> dict[str, Any]:
    """The container's resources, or for a GPU step the patch of its pod: only there Argo takes parameters."""
    checked = {name: _checked(name, pattern) for name, pattern in CHECKS.items()}
    cpu, memory = (checked["cpu"], checked["memory"]) if needs.gpus else (needs.cpu, needs.memory)
    both = {"memory": memory} | ({"ephemeral-storage": cluster.disk} if cluster.disk else {})
    requests = {"cpu": cpu} | both
    if not needs.gpus:
        # Not hera's Resources, which refuses decimal units such as 200G.
        return {"resources": ResourceRequirements.model_validate({"requests": requests, "limits": both})}
    # The blank keeps the brace of JSON apart from those of Argo.
    resources = f'{{"requests": {json.dumps(requests)}, "limits": {{ {GPU_LIMIT}{json.dumps(both)[1:]}}}'
    # Selector and tolerations are JSON themselves, so they have no quotes around them.
    place = f'"nodeSelector": {checked["node_selector"]}, "tolerations": {checked["tolerations"]}'
    return {"pod_spec_patch": f'{{{place}, "containers": [{{"name": "main", "resources": {resources}}}]}}'}
