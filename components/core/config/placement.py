"""Where a run's GPU steps go: what people choose, what their pods get from it, and which choices contradict others."""

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, field_validator, model_validator

from qlora_pipelines.components.core.config.base import StepConfig, json_text, nearest
from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.errors import InputError

ACCELERATOR = "nvidia.com/gpu"
"""What NVIDIA's device plugin calls a GPU; GPU nodes are tainted with the same name."""
GPU_RESOURCES = (ACCELERATOR, "nvidia.com/gpu.shared")
"""What the plugin calls a whole GPU and a time-sliced one; MIG slices are `nvidia.com/mig-PROFILE`."""
GPU_LABEL = re.compile(r"^nvidia\.com/|/(gke-)?accelerator|/instance-gpu-")
"""Labels that only GPU nodes have: GPU feature discovery's, GKE's, EKS' and AKS', Karpenter's."""
GPU_COUNT = r"^(0|[1-9][0-9]?)$"
CPU = r"^([1-9][0-9]*([.][0-9]+)?|0?[.][0-9]*[1-9][0-9]*|[1-9][0-9]*m)$"
MEMORY = r"^[0-9]+([.][0-9]+)?[MGT]i?$"
RESOURCE = r"^nvidia[.]com/(gpu([.]shared)?|mig-[0-9]+g[.][0-9]+gb([.]me)?)$"
"""The same patterns are in the Argo workflow. So they have no backslash, which Argo's expressions would read."""
UNITS = {"M": 10**6, "G": 10**9, "T": 10**12, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


def _quantity(value: object) -> object:
    """A memory or disk size as Kubernetes writes it; an error names the nearest right one."""
    text = str(value)
    if re.fullmatch(MEMORY, text) and float(text.rstrip("MGTi")):
        return text
    found = re.fullmatch(r"\s*([0-9]+(?:[.][0-9]+)?)\s*([mgt])?(i)?b?\s*", text, re.IGNORECASE)
    number, unit, binary = found.groups() if found else ("64", "G", "i")
    meant = f"{number}{(unit or 'G').upper()}{'i' if binary or not unit else ''}"
    raise ValueError(f"Kubernetes writes this {meant if float(number) else '64Gi'}")


def _from_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None


_NAME = r"[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?"


def _label_key(value: str) -> str:
    if re.fullmatch(rf"([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?{_NAME}", value):
        return value
    raise ValueError(f"{value!r} is no label key of Kubernetes, such as example.com/pool")


def _label_value(value: str) -> str:
    if re.fullmatch(f"({_NAME})?", value):
        return value
    raise ValueError("a label value of Kubernetes has letters, digits, - _ and . only, 63 at most")


LabelKey = Annotated[str, AfterValidator(_label_key)]
TaintKey = Annotated[str, AfterValidator(lambda value: _label_key(value) if value else value)]
LabelValue = Annotated[str, AfterValidator(_label_value)]
Quantity = Annotated[str, BeforeValidator(_quantity)]
MaybeQuantity = Annotated[str, BeforeValidator(lambda value: _quantity(value) if value else value)]
NumberAsText = Annotated[str, Field(coerce_numbers_to_str=True)]


def in_bytes(quantity: str) -> int:
    """Bytes of a `Quantity`."""
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", quantity).groups()  # type: ignore[union-attr]
    return int(float(number) * UNITS[unit])


class Toleration(StepConfig):
    """One toleration, as in a pod's spec."""

    key: TaintKey = Field("", description="the taint's key; empty with Exists: every taint")
    operator: Literal["Equal", "Exists"] = Field("Equal", description="how the value is compared")
    value: LabelValue = Field("", description="the taint's value")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field("", description="empty: every effect")
    tolerationSeconds: int | None = Field(None, description="seconds that a NoExecute taint is tolerated")

    @model_validator(mode="after")
    def _as_kubernetes_takes_it(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError("operator Exists takes no value")
        if self.operator == "Equal" and not self.key:
            raise ValueError("operator Equal needs a key")
        return self


class Placement(StepConfig):
    """Where a run's GPU steps go: parameters of the pipeline, next to those of `RunConfig`.

    All are text or JSON, even the count: Kubeflow's driver reads a resource from a text parameter only.
    """

    accelerator: str = Field(
        ACCELERATOR, description="Kubernetes resource that counts GPUs; the type of GPU is chosen by node_selector"
    )
    gpu_count: NumberAsText = Field(
        "1",
        pattern=GPU_COUNT,
        description="GPUs of the training pod, and evaluation takes one; 0: both run on the CPU",
    )
    node_selector: Annotated[dict[LabelKey, LabelValue], BeforeValidator(_from_json)] = Field(
        {}, description="labels of the nodes of training and evaluation, a JSON object"
    )
    tolerations: Annotated[list[dict[str, JsonValue]], BeforeValidator(_from_json)] = Field(
        [], description=f"tolerations besides that of {ACCELERATOR}, a JSON list"
    )
    cpu: NumberAsText = Field(
        "4",
        pattern=CPU,
        description="cores of training and of evaluation",
    )
    memory: Quantity = Field("32Gi", description="memory of training and of evaluation, such as 32Gi")

    @field_validator("accelerator")
    @classmethod
    def _known(cls, value: str) -> str:
        if not re.fullmatch(RESOURCE, value):
            raise ValueError(f"no resource of NVIDIA's device plugin{nearest(value, GPU_RESOURCES)}")
        return value

    @field_validator("gpu_count", mode="before")
    @classmethod
    def _counted(cls, value: object) -> object:
        if not re.fullmatch(GPU_COUNT, str(value)):
            raise ValueError("give a whole number from 0 to 99; 0 is the CPU")
        return value

    @field_validator("tolerations")
    @classmethod
    def _check_each(cls, value: list[dict[str, JsonValue]]) -> list[dict[str, JsonValue]]:
        for at, toleration in enumerate(value):
            try:
                Toleration.parse(toleration)
            except InputError as error:
                raise ValueError(f"number {at + 1}: {error}") from None
        return value

    @model_validator(mode="after")
    def _no_gpu_node_without_a_gpu(self) -> Self:
        """A pod without a GPU keeps off GPU nodes; any other place that the user names is taken."""
        if not self.on_cpu:
            return self
        for label in filter(GPU_LABEL.search, self.node_selector):
            raise ValueError(
                f"gpu_count is 0, but node_selector has {label}, a label of GPU nodes: leave one of them out"
            )
        for toleration in self.tolerations:
            if toleration.get("key", "") in ("", ACCELERATOR):
                raise ValueError(
                    f"gpu_count is 0, but tolerations has one for the taint of GPU nodes, {ACCELERATOR}: leave it out"
                )
        return self

    @property
    def on_cpu(self) -> bool:
        """Whether training and evaluation run on the CPU."""
        return self.gpu_count == "0"

    def resource(self) -> str:
        """The resource that the pods ask for; '' without a GPU, and then Kubeflow's driver writes no limit.

        A limit of 0 would do harm: the admission plugin ExtendedResourceToleration, which GKE and EKS use, adds a
        toleration for each extended resource that a pod names, whatever the number.
        """
        return "" if self.on_cpu else self.accelerator

    def all_tolerations(self) -> list[dict[str, JsonValue]]:
        """The pods' tolerations: that of GPU nodes, unless there is no GPU, and the user's."""
        own: dict[str, JsonValue] = {"key": ACCELERATOR, "operator": "Exists", "effect": "NoSchedule"}
        given = [Toleration.parse(each).model_dump(exclude_unset=True, exclude_none=True) for each in self.tolerations]
        return [*([] if self.on_cpu else [own]), *given]


class PlacedRun(Placement, RunConfig):
    """A whole run and where it goes; plan_run's config."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        train = self.for_step("train_qlora")
        if max(1, int(self.gpu_count)) != train.processes:
            advice = "leave processes out" if self.on_cpu else "leave gpu_count out or give both the same"
            raise ValueError(
                f"gpu_count is {self.gpu_count} but options.train_qlora.processes is {train.processes}: training runs"
                f" one process per GPU, and one on the CPU, so {advice}"
            )
        for step in ("train_qlora", "evaluate_model"):
            given = self.for_step(step).use_cpu
            if "use_cpu" in self.options.get(step, {}) and given != self.on_cpu:
                raise ValueError(
                    f"gpu_count is {self.gpu_count} but options.{step}.use_cpu is {json.dumps(given)}: leave use_cpu"
                    " out, gpu_count 0 sets it"
                )
        if self.on_cpu:
            self._check_cpu(train)
        return self

    def _check_cpu(self, train: Any) -> None:
        needs_gpu = {
            f"gpu_memory_gib {self.gpu_memory_gib:g}": self.gpu_memory_gib > 0,
            "options.train_qlora.compute_dtype float16": train.compute_dtype == "float16",
            "options.train_qlora.attn_implementation flash_attention_2": train.attn_implementation != "sdpa",
        }
        for what, wanted in needs_gpu.items():
            if wanted:
                raise ValueError(f"gpu_count is 0, and {what} is of a GPU: leave one of them out")

    def run_config(self) -> dict[str, Any]:
        """The run's options that are not the defaults, without those of its place."""
        return self.model_dump(include=set(RunConfig.model_fields), exclude_defaults=True)

    def options_of(self, step: str) -> str:
        """The options of a step that have no parameter of their own, as JSON."""
        cpu = {"use_cpu": True} if self.on_cpu and step in ("train_qlora", "evaluate_model") else {}
        return json_text(self.options.get(step, {}) | cpu)
