"""Where a run goes: what is refused, and what its pods get."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.placement import PlacedRun, Placement, in_bytes
from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import EvaluateConfig, TrainConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import keys

ROOT = Path(__file__).parents[4]
REQUIRED = {"base_model": "m", "dataset_uri": "d", "model_name": "n"}
OF_GPU_NODES = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
NO_COUNT = "gpu_count: give a whole number from 0 to 99; 0 is the CPU"


def refused(**values: Any) -> str:
    with pytest.raises(InputError) as raised:
        PlacedRun.parse(**REQUIRED | values)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("count", [0, "0"])
def test_without_gpus_pods_ask_for_none_and_keep_off_gpu_nodes(count: object) -> None:
    run = PlacedRun.parse(**REQUIRED, gpu_count=count)
    assert run.on_cpu and run.resource() == "" and run.all_tolerations() == []
    for step, config in (("train_qlora", TrainConfig), ("evaluate_model", EvaluateConfig)):
        assert config.parse(run.options_of(step)).use_cpu
    assert run.options_of("prepare_dataset") == run.options_of("dequantize_and_merge") == "{}"


@pytest.mark.parametrize("count", [1, "2"])
def test_with_gpus_pods_ask_for_them_and_tolerate_their_taint(count: object) -> None:
    spot = {"key": "spot", "operator": "Exists"}
    options = {"train_qlora": {"processes": int(str(count))}}
    run = PlacedRun.parse(**REQUIRED, gpu_count=count, tolerations=json.dumps([spot]), options=options)
    assert run.resource() == "nvidia.com/gpu" and run.all_tolerations() == [OF_GPU_NODES, spot]
    assert json.loads(run.options_of("train_qlora")) == options["train_qlora"]
    assert run.options_of("evaluate_model") == "{}"


def test_pods_get_a_toleration_as_kubernetes_has_it() -> None:
    # A number in Kubeflow's form arrives as 60.0.
    given = {"key": "spot", "tolerationSeconds": 60.0, "effect": "NoExecute", "value": "a"}
    found = PlacedRun.parse(**REQUIRED, tolerations=[given]).all_tolerations()[1]
    assert found == given and '"tolerationSeconds": 60}' in json.dumps(found)
    none = {"key": "spot", "operator": "Exists", "tolerationSeconds": None}
    assert "tolerationSeconds" not in PlacedRun.parse(**REQUIRED, tolerations=[none]).all_tolerations()[1]


def test_a_place_that_is_not_of_gpus_is_honoured_on_the_cpu_too() -> None:
    # As the form of Kubeflow's page and an Argo parameter give them: text.
    place = {"node_selector": '{"pool": "large"}', "tolerations": '[{"key": "batch", "operator": "Exists"}]'}
    run = PlacedRun.parse(**REQUIRED, gpu_count="0", **place)
    assert run.node_selector == {"pool": "large"} and run.all_tolerations() == [{"key": "batch", "operator": "Exists"}]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpu_memory_gib": 24}, "gpu_count is 0, and gpu_memory_gib 24 is of a GPU: leave one of them out"),
        (
            {"node_selector": {"nvidia.com/gpu.product": "NVIDIA-L4"}},
            "node_selector has nvidia.com/gpu.product, a label",
        ),
        ({"node_selector": {"cloud.google.com/gke-accelerator": "nvidia-l4"}}, "a label of GPU nodes"),
        ({"node_selector": {"kubernetes.azure.com/accelerator": "nvidia"}}, "a label of GPU nodes"),
        (
            {"tolerations": [OF_GPU_NODES]},
            "tolerations has one for the taint of GPU nodes, nvidia.com/gpu: leave it out",
        ),
        ({"tolerations": [{"operator": "Exists"}]}, "tolerations has one for the taint of GPU nodes"),
        ({"options": {"train_qlora": {"processes": 2}}}, "gpu_count is 0 but options.train_qlora.processes is 2"),
        ({"options": {"train_qlora": {"use_cpu": False}}}, "gpu_count is 0 but options.train_qlora.use_cpu is false"),
        ({"options": {"train_qlora": {"compute_dtype": "float16"}}}, "compute_dtype float16 is of a GPU"),
        (
            {"options": {"train_qlora": {"attn_implementation": "flash_attention_2"}}},
            "attn_implementation flash_attention_2 is of a GPU",
        ),
    ],
)
def test_what_contradicts_no_gpu_is_refused(values: dict[str, Any], message: str) -> None:
    assert message in refused(gpu_count=0, **values)


@pytest.mark.parametrize("step", ["train_qlora", "evaluate_model"])
def test_a_pod_with_a_gpu_uses_it(step: str) -> None:
    said = refused(options={step: {"use_cpu": True}})
    assert f"gpu_count is 1 but options.{step}.use_cpu is true: leave use_cpu out, gpu_count 0 sets it" in said


@pytest.mark.parametrize("count", [0, 1])
def test_the_place_is_in_no_key_and_the_keys_are_what_they_were(count: int) -> None:
    run = PlacedRun.parse(**REQUIRED, eval_dataset_uri="e", gpu_count=count, memory="64Gi")
    run = run.with_option("train_qlora", "packing", True)  # as the plan decides it
    found = keys.of_run(run, base_revision="revision", data_digest="data", tokenizer_digest="tokenizer")
    assert found.training_key == "2f9c127f95ead9ea13c1e759cf8dfc11d444afa296ea6898aabf5fbcb90718a5"
    assert found.merge_key == "f6fe2f0298b992128330d2946fcd8cf4e287f9e8361e865eada85623163f6780"


def test_what_makes_the_same_model_again_says_nothing_of_the_place() -> None:
    run = PlacedRun.parse(**REQUIRED, lora_r=8, gpu_count=0, memory="64Gi")
    assert run.run_config() == REQUIRED | {"lora_r": 8}
    assert RunConfig.parse(**run.run_config())


@pytest.mark.parametrize(("quantity", "size"), [("64Gi", 64 << 30), ("1.5G", 1_500_000_000), ("512Mi", 512 << 20)])
def test_a_quantity_in_bytes(quantity: str, size: int) -> None:
    assert in_bytes(quantity) == size


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("memory", "64GiB", "memory: Kubernetes writes this 64Gi"),
        ("memory", "64 gb", "memory: Kubernetes writes this 64G"),
        ("memory", "64", "memory: Kubernetes writes this 64Gi"),
        ("memory", "much", "memory: Kubernetes writes this 64Gi"),
        ("memory", "0Gi", "memory: Kubernetes writes this 64Gi"),
        ("node_selector", "{gpu", "node_selector: not JSON"),
        ("node_selector", "[]", "node_selector: Input should be a valid dictionary"),
        ("node_selector", {"a": 1}, "node_selector.a: Input should be a valid string"),
        ("tolerations", "[{]", "tolerations: not JSON"),
        ("tolerations", "{}", "tolerations: Input should be a valid list"),
        ("tolerations", [{"kye": "a"}], "tolerations: number 1: unknown option kye; did you mean key?"),
        ("tolerations", [{"key": "a", "operator": "Is"}], "tolerations: number 1: operator: "),
        ("tolerations", [{"key": "a", "operator": "Exists", "value": "b"}], "operator Exists takes no value"),
        ("tolerations", [{"value": "b"}], "operator Equal needs a key"),
        ("node_selector", {"a b": "c"}, "'a b' is no label key of Kubernetes, such as example.com/pool"),
        ("node_selector", {"a": "b c"}, "a label value of Kubernetes has letters, digits, - _ and . only, 63 at most"),
        ("tolerations", [{"key": "a b"}], "tolerations: number 1: key: 'a b' is no label key of Kubernetes"),
        ("tolerations", [{"key": "a", "value": '"'}], "tolerations: number 1: value: a label value of Kubernetes has"),
        ("memory", "٦٤Gi", "memory: Kubernetes writes this 64Gi"),
        ("cpu", "٤", "cpu: "),
        ("accelerator", "nvidia.com/gpus", "did you mean nvidia.com/gpu?"),
        ("accelerator", "a100", "accelerator: no resource of NVIDIA's device plugin; there are: nvidia.com/gpu"),
        *(("gpu_count", value, NO_COUNT) for value in ("-1", -1, 1.5, "1.5", "two", "", "01", "100", True, None)),
        ("cpu", "four", "cpu: "),
        ("cpu", "0", "cpu: "),
    ],
)
def test_a_wrong_placement_is_one_line_that_helps(name: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        Placement.parse(**{name: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", ["nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb", "nvidia.com/mig-1g.10gb.me"])
def test_slices_of_a_gpu_are_known(value: str) -> None:
    assert Placement.parse(accelerator=value).accelerator == value


def test_what_the_docs_say_to_set_is_taken() -> None:
    table = (ROOT / "docs" / "cluster.md").read_text().partition("| GPU pool |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`([^`]+)`", row)[:2] for row in table.splitlines()[2:]]
    assert len(rows) == 7
    for selector, tolerations in rows:
        found = Placement.parse(node_selector=selector, tolerations=tolerations)
        assert found.node_selector
