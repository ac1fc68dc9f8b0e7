"""`qlora plan` on config files alone."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from qlora_pipelines.pipelines.cli.main import main

CONFIGS = Path(__file__).parents[2] / "components" / "plan_run" / "configs"


def plan(folder: Path, base: str, *arguments: str, **values: object) -> Result:
    path = folder / "run.yaml"
    run = {"base_model": str(CONFIGS / base), "dataset_uri": "none.jsonl", "model_name": "n", **values}
    path.write_text(yaml.safe_dump(run))
    return CliRunner().invoke(main, ["plan", "--config", str(path), *arguments])


def figures(result: Result) -> dict[str, object]:
    found: dict[str, object] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    ("base", "billions", "smallest"),
    [("llama-2-7b", 6.74, "A10G 24 GB"), ("llama-2-70b", 68.98, "H200 141 GB"), ("mixtral-8x7b", 46.70, "H200 141 GB")],
)
def test_a_plan_from_a_config_file(tmp_path: Path, base: str, billions: float, smallest: str) -> None:
    result = plan(tmp_path, base, "--no-access", "--json")
    assert result.exit_code == 0
    found = figures(result)
    assert round(int(str(found["parameters"])) / 1e9, 2) == billions
    assert found["smallest_gpu"] == smallest
    assert bool(found["verdict"]) == (not smallest)  # where none fits, the change that would make it fit


def test_compare_gpus_and_prices_are_shown(tmp_path: Path) -> None:
    result = plan(tmp_path, "llama-2-7b", "--no-access", "--compare", "--gpus", "4", "--price", "H100 80 GB=2.5")
    assert result.exit_code == 0
    for text in ("FP32           full    25.10", "INT8", "each GPU with FSDP, an estimate: "):
        assert text in result.output
    assert plan(tmp_path, "llama-2-7b", "--price", "H1000=2").exit_code == 2


def test_what_does_not_fit_exits_1_and_says_what_would(tmp_path: Path) -> None:
    result = plan(tmp_path, "llama-2-7b", "--no-access", gpu_memory_gib=8)
    assert result.exit_code == 1
    assert "does not fit a GPU of 8 GiB: 16.9 GiB needed; gradient_checkpointing true would fit" in result.output


def test_without_checkpointing_to_turn_on_shorter_rows_are_named(tmp_path: Path) -> None:
    options = {"train_qlora": {"gradient_checkpointing": True, "batch_tokens": 16384}}
    result = plan(tmp_path, "llama-2-7b", "--no-access", gpu_memory_gib=8, options=options)
    assert result.exit_code == 1
    assert "; batch_tokens " in result.output and " with gradient_accumulation_steps " in result.output


def test_a_base_that_is_cut_over_several_gpus(tmp_path: Path) -> None:
    options = {"train_qlora": {"gradient_checkpointing": True, "batch_tokens": 1024}}
    result = plan(tmp_path, "llama-2-70b", "--no-access", gpu_memory_gib=24, options=options)
    assert result.exit_code == 1
    assert "4 such GPUs would fit, with fsdp true and processes 4; or take" in result.output
    options["train_qlora"] |= {"fsdp": True, "processes": 2}
    result = plan(tmp_path, "llama-2-70b", "--no-access", gpu_memory_gib=24, options=options)
    assert result.exit_code == 0 and "fits a GPU of 24 GiB" in result.output


def base(folder: Path, **values: object) -> Path:
    """A folder with a config.json alone: Llama-2-7B's with other values."""
    path = folder / "base"
    path.mkdir()
    config = json.loads((CONFIGS / "llama-2-7b" / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | values))
    return path


def test_what_config_json_tells_is_said_without_access_too(tmp_path: Path) -> None:
    path = base(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    result = plan(tmp_path, str(path), "--no-access", max_length=8192)
    assert result.exit_code == 1
    for text in (
        f"fatal    weights: base model {path}: its weights are quantised (gptq), and only FP8 and MXFP4 can be brought",
        f"warning  base model: base model {path}: max_length is 8192, and its config.json says 4096 positions: ",
    ):
        assert text in result.output


@pytest.mark.parametrize("model_type", ["t5", "nonsense"])
def test_what_is_no_language_model_is_one_line(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": model_type}))
    result = plan(tmp_path, str(tmp_path / "base"), "--no-access")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.output.startswith("error: ") and result.output.count("\n") == 1


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "bert", "num_hidden_layers": 1}))
    result = plan(tmp_path, str(tmp_path / "base"), "--no-access", max_length=256)
    assert result.exit_code == 1
    assert "bert is an encoder, which sees what follows; give a decoder" in result.output


def test_an_unknown_base_is_one_line(tmp_path: Path) -> None:
    result = plan(tmp_path, "none", "--no-access")
    assert result.exit_code == 1 and result.output.count("error: ") == 1


def test_a_run_without_a_gpu_is_planned_for_the_cpu(tmp_path: Path) -> None:
    result = plan(tmp_path, "llama-2-7b", "--no-access", gpu_count=0)
    assert result.exit_code == 0
    assert "memory on the CPU" in result.output and "and memory is 32Gi" in result.output
    assert "GPU" not in result.output
    found = figures(plan(tmp_path, "llama-2-7b", "--no-access", "--json", gpu_count=0))
    assert found["device"] == "cpu" and found["gpus"] == [] and found["smallest_gpu"] == ""
    result = plan(tmp_path, "llama-2-7b", "--no-access", gpu_count=0, memory="8Gi")
    assert result.exit_code == 1 and "GiB, but memory is 8Gi: set memory " in result.output
    result = plan(tmp_path, "llama-2-7b", gpu_count=0, gpu_memory_gib=24)
    assert result.exit_code == 1
    assert "gpu_count is 0, and gpu_memory_gib 24 is of a GPU: leave one of them out" in result.output
