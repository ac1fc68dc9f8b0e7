"""Where steps run: all that only Kubernetes sees, and that kfp.local ignores."""

from kfp import kubernetes
from kfp.dsl import PipelineTask

CONFIG_MAP = "qlora-pipelines"
"""ConfigMap in the runs' namespace with the addresses of store, MLflow and S3."""
CONFIG_KEYS = ("QLORA_STORE", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL_S3")
REGISTRY_KEYS = ("QLORA_MODELS_STORE", "MLFLOW_S3_ENDPOINT_URL", "QLORA_SIGNING_KEY")
"""Further ones that only registration reads."""
SIGNING_SECRET, SIGNING_FOLDER = "qlora-signing-key", "/etc/qlora/signing"
"""Secret with the private key; QLORA_SIGNING_KEY names the file, `/etc/qlora/signing/NAME`. Without both: unsigned."""
ACCELERATOR = "nvidia.com/gpu"


def on_cpu(task: PipelineTask, *, cpu: str = "2", memory: str = "8Gi", cached: bool = False) -> PipelineTask:
    """Places a step that needs no GPU.

    Args:
        task: the step.
        cpu: cores, as Kubernetes writes them.
        memory: request and limit, as Kubernetes writes them.
        cached: whether KFP may reuse an earlier result. Not for a step whose result is an address: what lay there may
            have been deleted since; such steps find their own finished work by key.
    """
    task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(memory)
    task.set_caching_options(cached)
    return kubernetes.use_config_map_as_env(task, CONFIG_MAP, {key: key for key in CONFIG_KEYS}, optional=True)


def on_gpu(task: PipelineTask, *, cpu: str = "4", memory: str = "32Gi", cached: bool = False) -> PipelineTask:
    """Places a step on the GPU pool with one GPU, and shared memory as large as its limit.

    Args:
        task: the step.
        cpu: cores, as Kubernetes writes them.
        memory: request and limit, as Kubernetes writes them.
        cached: as for `on_cpu`.
    """
    task.set_accelerator_type(ACCELERATOR).set_accelerator_limit(1)
    kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory")
    kubernetes.add_toleration(task, key=ACCELERATOR, operator="Exists", effect="NoSchedule")
    return on_cpu(task, cpu=cpu, memory=memory, cached=cached)


def signing(task: PipelineTask) -> PipelineTask:
    """Gives the step that registers the registry's addresses, and the private key where the namespace has one."""
    kubernetes.use_secret_as_volume(task, SIGNING_SECRET, mount_path=SIGNING_FOLDER, optional=True)
    return kubernetes.use_config_map_as_env(task, CONFIG_MAP, {key: key for key in REGISTRY_KEYS}, optional=True)
