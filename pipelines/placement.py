"""Where steps run: everything that only Kubernetes sees and that kfp.local ignores."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from qlora_pipelines.components.core.config.base import StepConfig
from qlora_pipelines.components.core.config.placement import LabelKey, LabelValue, MaybeQuantity
from qlora_pipelines.components.core.models.base_model import CACHE_VARIABLE
from qlora_pipelines.components.core.store import outcomes

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

CONFIG_MAP = "qlora-pipelines"
"""ConfigMap in the runs' namespace with the addresses of store and MLflow, and where the store's credentials are."""
CONFIG_KEYS = (
    "QLORA_STORE",
    "MLFLOW_TRACKING_URI",
    "AWS_ENDPOINT_URL_S3",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ENDPOINT",
)
REGISTRY_KEYS = ("QLORA_MODELS_STORE", "MLFLOW_S3_ENDPOINT_URL", "QLORA_SIGNING_KEY")
"""Further keys, which only registration reads."""
HUB_SECRET, HUB_KEYS = "qlora-hub-token", ("HF_TOKEN",)
"""Secrets: all are optional, and each key is the environment variable of its name. This one for gated bases."""
S3_SECRET, S3_KEYS = "qlora-s3", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
AZURE_SECRET, AZURE_KEYS = "qlora-azure", ("AZURE_STORAGE_ACCESS_KEY",)
"""The account's key, by the one name that obstore and MLflow both read.

No AZURE_CLIENT_ID and AZURE_TENANT_ID: AKS' workload identity sets them in pods that do not mention them.
"""
GCS_SECRET, GCS_FOLDER = "qlora-gcs", "/etc/qlora/gcs"
"""Secret with a service account's key; GOOGLE_APPLICATION_CREDENTIALS names the file, `/etc/qlora/gcs/NAME`.

A file, because Google's library, by which MLflow reads gs://, knows no variable with the key itself.
"""
MLFLOW_SECRET, MLFLOW_KEYS = "qlora-mlflow", ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
SIGNING_SECRET, SIGNING_FOLDER = "qlora-signing-key", "/etc/qlora/signing"
"""Secret with the private key; QLORA_SIGNING_KEY names the file, `/etc/qlora/signing/NAME`. Without both: unsigned."""

NOTIFY_SECRET, NOTIFY_KEYS = "qlora-notify", ("QLORA_WEBHOOK_URL", "QLORA_WEBHOOK_FORMAT")
NOTIFY_CONFIG_KEYS = ("KF_PIPELINES_UI_ENDPOINT",)
"""Further keys of the ConfigMap, for the links in a notification."""

RUN_LABEL = "pipeline/runid"
"""Label of Kubeflow's, on every pod of a run: its id, which is also what PIPELINE_JOB_ID_PLACEHOLDER stands for."""
STEP_LABEL = "qlora-pipelines/step"
"""Label of every step's pod, with the step's name: for network policies, and for people who look for a pod."""
BACKOFF = "10s"
"""Before the first retry; twice as long before each further one.

Argo waits so long before it asks whether to retry at all: the end of a step that is not retried is also late by this.
"""
USER = 1000
"""User and group of the images, and of every step's pod."""
CACHE_FOLDER = "/var/cache/qlora"


class Cluster(StepConfig):
    """What is chosen when the pipeline is compiled, because Kubeflow takes no parameter there."""

    cache_pvc: str = Field(
        default="",
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$",
        description="claim of a volume that keeps bases",
    )
    disk: MaybeQuantity = Field(default="", description="most that a step may keep in /tmp, such as 200Gi")
    pod_labels: dict[LabelKey, LabelValue] = Field(default={}, description="labels that every step's pod carries")


@dataclasses.dataclass(frozen=True)
class Needs:
    """What one step's pod needs.

    Attributes:
        cpu: cores that are kept for it, while it may use all that are free; a GPU step's are the run's.
        memory: request and limit; a GPU step's are the run's.
        gpus: "1" or "all", the run's gpu_count, if it goes to the GPU pool; without GPUs it asks for none.
        minutes: after which it is stopped.
        retries: how often it is tried again; plan_run never, so that it reports at once what is wrong, and notify
            never, because it does not fail.
        hub: whether it reads from the Hugging Face Hub, and gets the token.
        mlflow: whether it talks to MLflow, and gets the login.
        signs: whether it registers: gets the registry's addresses and the signing key.
        base: whether it reads the base's weights whole, and gets the volume that keeps them.
        notifies: whether it tells people, and gets the webhook's address.
    """

    cpu: str = "500m"
    memory: str = "8Gi"
    gpus: str = ""
    minutes: int = 6 * 60
    retries: int = 2
    hub: bool = False
    mlflow: bool = False
    signs: bool = False
    base: bool = False
    notifies: bool = False

    @property
    def secrets(self) -> dict[str, tuple[str, ...]]:
        """Names of the secrets that the step reads, each with its keys."""
        secrets = (
            (HUB_SECRET, HUB_KEYS, self.hub),
            (S3_SECRET, S3_KEYS, True),
            (AZURE_SECRET, AZURE_KEYS, True),
            (MLFLOW_SECRET, MLFLOW_KEYS, self.mlflow),
            (NOTIFY_SECRET, NOTIFY_KEYS, self.notifies),
        )
        return {name: keys for name, keys, wanted in secrets if wanted}

    @property
    def secret_folders(self) -> dict[str, str]:
        """Names of the secrets whose files the step reads, each with the folder that it is mounted at."""
        return {GCS_SECRET: GCS_FOLDER} | ({SIGNING_SECRET: SIGNING_FOLDER} if self.signs else {})

    @property
    def window(self) -> int:
        """Seconds for all tries: Kubeflow's `backoff_max_duration` stops a step so long after its first start."""
        return self.seconds * (self.retries + 1)

    @property
    def seconds(self) -> int:
        """Seconds after which a try is stopped."""
        return self.minutes * 60

    @property
    def config_keys(self) -> tuple[str, ...]:
        """The keys of the ConfigMap that the step reads."""
        return CONFIG_KEYS + (REGISTRY_KEYS if self.signs else ()) + (NOTIFY_CONFIG_KEYS if self.notifies else ())


STEPS = {
    "plan_run": Needs(minutes=60, retries=0, hub=True, mlflow=True),
    "stage_base_model": Needs(hub=True),
    "prepare_dataset": Needs(cpu="1", hub=True),
    "train_qlora": Needs(gpus="all", minutes=7 * 24 * 60, retries=5, mlflow=True, base=True),
    "evaluate_model": Needs(gpus="1", mlflow=True, base=True),
    "dequantize_and_merge": Needs(memory="4Gi"),
    "register_model": Needs(minutes=60, mlflow=True, signs=True),
    "notify": Needs(cpu="100m", memory="1Gi", minutes=15, retries=0, mlflow=True, notifies=True),
}
"""Every step of the pipeline."""


@dataclasses.dataclass(frozen=True)
class Pool:
    """Where the GPU steps go, in values that are known only while a run lasts.

    All come from plan_run, which has checked them, and decides from `gpu_count` whether the pods ask for GPUs. A
    parameter of the run would reach the pods unchecked.
    """

    accelerator: Any
    gpu_count: Any
    node_selector: Any
    tolerations: Any
    cpu: Any
    memory: Any


_cluster: contextvars.ContextVar[Cluster] = contextvars.ContextVar("cluster", default=Cluster())  # noqa: B039, it is frozen


@contextlib.contextmanager
def chosen(cluster: Cluster) -> Iterator[None]:
    """Pipelines that are built inside the block are for this cluster."""
    token = _cluster.set(cluster)
    try:
        yield
    finally:
        _cluster.reset(token)


def place(task: "PipelineTask", pool: Pool | None = None, *, cached: bool = False) -> "PipelineTask":
    """Gives a step everything that its pod needs.

    Args:
        task: a step of `STEPS`.
        pool: the run's GPU pool, for a GPU step.
        cached: whether KFP may reuse an earlier result. Not for a step whose result is an address, where the files may
            have been deleted since; such a step finds its own finished work by key. Training is the exception:
            adapters are kept, and running the step again would take a GPU.
    """
    from kfp import kubernetes

    step = task.component_spec.name
    needs, cluster = STEPS[step.replace("-", "_")], _cluster.get()
    for label, value in {STEP_LABEL: step, **cluster.pod_labels}.items():
        kubernetes.add_pod_label(task, label, value)
    task.set_caching_options(cached)
    if needs.retries:
        window = f"{needs.window}s"
        task.set_retry(needs.retries, backoff_duration=BACKOFF, backoff_factor=2.0, backoff_max_duration=window)
    kubernetes.set_timeout(task, needs.seconds)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, {key: key for key in needs.config_keys}, optional=True)
    kubernetes.use_field_path_as_env(task, outcomes.RUN_VARIABLE, f"metadata.labels['{RUN_LABEL}']")
    for secret, keys in needs.secrets.items():
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
    for secret, folder in needs.secret_folders.items():
        kubernetes.use_secret_as_volume(task, secret, mount_path=folder, optional=True)
    if cluster.disk:
        kubernetes.empty_dir_mount(task, "tmp", "/tmp", size_limit=cluster.disk)
    if cluster.cache_pvc and needs.base:
        kubernetes.mount_pvc(task, cluster.cache_pvc, CACHE_FOLDER)
        task.set_env_variable(CACHE_VARIABLE, CACHE_FOLDER)
    cpu, memory = (pool.cpu, pool.memory) if pool else (needs.cpu, needs.memory)
    task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(memory)
    if pool:
        gpus = pool.gpu_count if needs.gpus == "all" else needs.gpus
        # Where the type turns out to be empty, Kubeflow's driver writes no limit, whatever the count.
        task.set_accelerator_type(pool.accelerator).set_accelerator_limit(gpus)
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory")
        kubernetes.add_toleration_json(task, pool.tolerations)
        kubernetes.add_node_selector_json(task, pool.node_selector)
        # Without this kfp 2.17 does not declare them in the `If` around the step, and the step finds no input there.
        channels = [pool.accelerator, pool.cpu, pool.memory, pool.tolerations, pool.node_selector]
        task.register_pipeline_channels(channels + ([] if isinstance(gpus, str) else [gpus]))
    return task
