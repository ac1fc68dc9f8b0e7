"""Steps, operations, hours, cost and disk, and the table of other ways to train."""

from pathlib import Path

import pytest

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.plan_run import architecture, compare, disk, gpus, memory, sampling, time_and_cost

CONFIGS = Path(__file__).parent / "configs"


@pytest.fixture(scope="module")
def llama() -> architecture.Architecture:
    return architecture.read(CONFIGS / "llama-2-7b", TrainConfig(lora_r=64))


def test_steps_are_counted_over_packed_rows() -> None:
    train = TrainConfig(batch_tokens=1000, gradient_accumulation_steps=4, num_train_epochs=3)
    work = time_and_cost.work(train, rows=970, tokens_per_row=100)
    assert (work.tokens, work.packed_rows, work.steps) == (97_000, 100, 75)
    assert work.tokens_in_all == 3 * work.tokens
    assert time_and_cost.work(train.model_copy(update={"max_steps": 5}), 970, 100).steps == 5
    assert time_and_cost.work(train.model_copy(update={"processes": 5}), 970, 100).steps == 15
    assert time_and_cost.work(train.model_copy(update={"packing": False}), 970, 100).packed_rows == 970


def test_operations_are_four_a_frozen_parameter_and_token(llama: architecture.Architecture) -> None:
    train = TrainConfig(lora_r=64)
    work = time_and_cost.work(train, rows=1000, tokens_per_row=512)
    found = time_and_cost.flops(llama, train, work)
    head_and_layers = llama.parameters - 32000 * 4096
    assert llama.active_parameters == pytest.approx(head_and_layers, rel=1e-3)
    assert found == pytest.approx(work.tokens_in_all * (4 * head_and_layers + 6 * llama.trainable), rel=0.05)
    again = time_and_cost.flops(llama, train.model_copy(update={"gradient_checkpointing": True}), work)
    assert again / found == pytest.approx(1.5, rel=0.05)


def test_hours_and_cost_follow_speed_and_price() -> None:
    h100 = next(gpu for gpu in gpus.TABLE if gpu.name.startswith("H100"))
    assert time_and_cost.hours(h100.tflops * 1e12 * 3600, h100, 0.5) == 2
    lines = {line.gpu: line for line in table(20, "bfloat16", {h100.name: 3.0})}
    assert lines[h100.name].cost == pytest.approx(6) and lines["L40S 48 GB"].cost == -1
    assert lines[h100.name].cells() == ("H100 80 GB", 79.6, "fits", "2 h 00 min", "6.00")
    assert not lines["L4 24 GB"].why_not and lines["RTX A4000 16 GB"].why_not == "too small"


def table(gib: int, compute_dtype: str, prices: dict[str, float]) -> list[time_and_cost.OnGpu]:
    h100 = next(gpu for gpu in gpus.TABLE if gpu.name.startswith("H100"))
    return time_and_cost.table(gib << 30, compute_dtype, h100.tflops * 1e12 * 3600, 0.5, prices)


def test_a_gpu_without_bfloat16_says_which_dtype_it_takes() -> None:
    bfloat16, float16 = (
        {line.gpu: line for line in table(10, dtype, {"T4 16 GB": 0.5})} for dtype in ("bfloat16", "float16")
    )
    assert bfloat16["T4 16 GB"].cells() == (
        "T4 16 GB", 15.0, "no bfloat16: set train_qlora.compute_dtype float16", "", "",
    )  # fmt: skip
    assert float16["T4 16 GB"].cells() == ("T4 16 GB", 15.0, "fits", "30 h 25 min", "15.22")
    assert not float16["V100 32 GB"].why_not


def test_no_time_is_shown_as_none() -> None:
    assert time_and_cost.OnGpu("T4 16 GB", 15.0, "", 6.7e-05, 0.0000335).cells()[3:] == ("1 s", "0.00")


def test_the_smallest_gpu_is_named() -> None:
    assert gpus.smallest(1 << 30, "bfloat16").name == "RTX A4000 16 GB"
    assert gpus.smallest(1 << 30, "float16").name == "T4 16 GB"
    assert gpus.smallest(1 << 40, "float16") is None


def test_other_ways_to_train(llama: architecture.Architecture) -> None:
    found = {(method.weights_in, method.trained): method for method in compare.methods(llama)}
    count = llama.parameters
    assert found["FP32", "full"].total == 16 * count == found["16-bit", "full"].total
    assert found["16-bit", "adapter"].weights == 2 * count + memory.adapter_bytes(llama)
    assert found["QLoRA", "adapter"].total < found["INT8", "adapter"].total < found["16-bit", "adapter"].total
    assert all(method.total == method.weights + method.gradients + method.optimiser for method in found.values())


def test_int8_weights_are_what_bitsandbytes_holds() -> None:
    import bitsandbytes as bnb
    import torch

    quantised, scales, _ = bnb.functional.int8_vectorwise_quant(torch.randn(48, 80).to(torch.float16))
    weight = architecture.Weight("w", (48, 80), Quantization(), 2)
    model = architecture.Architecture("", (weight,), (), 1, 80, 10, 1.0)
    planned = next(method for method in compare.methods(model) if method.weights_in == "INT8")
    assert planned.weights == quantised.nbytes + scales.nbytes


def sample(rows: int) -> sampling.Sample:
    return sampling.Sample("messages", rows, 1000.0, 250.0, 0.5, 200, 0, "")


def test_what_is_held_out_is_not_trained_on() -> None:
    config = RunConfig.parse(base_model="m", dataset_uri="d", model_name="n")
    found = time_and_cost.of_run(config, {"train": sample(1000)})
    assert found and found.rows == 900
    given = time_and_cost.of_run(config, {"train": sample(1000), "eval": sample(10)})
    assert given and given.rows == 1000
    assert time_and_cost.of_run(config, {}) is None


def test_disk_by_what_it_holds(llama: architecture.Architecture) -> None:
    train = TrainConfig(lora_r=64, save_total_limit=2)
    found = disk.need(llama, train)
    adapter = 4 * llama.trainable
    assert found["base model"] == found["merged model"] == 2 * llama.parameters
    assert found["checkpoint"] == 3 * adapter  # and two moments in 32 bits
    assert found["store, written by this run"] == 3 * found["checkpoint"] + adapter + found["merged model"]
    assert "pod that prepares" not in found
    files = (5 << 30, 5 << 30, 4 << 30, 1 << 30, 1 << 30)
    hub = disk.need(
        llama, train, base_files=files, copied_files=files, data_files=(7 << 20, 9 << 20), sample=sample(1000)
    )
    assert hub["base model"] == sum(files) and hub["pod that stages"] == sum(files[:4])
    prepared = 1000 * 2000 // 2
    assert hub["store, written by this run"] - found["store, written by this run"] == sum(files) + prepared
    assert hub["pod that prepares"] == (9 << 20) + 1000 * (800 + 1.5 * 2000)
