import json
import math
from pathlib import Path

import pytest

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import attempts
from qlora_pipelines.components.train_qlora import task
from tests.components.conftest import TinyRun


def train(
    run: TinyRun, base: Path, folder: Path, config: TrainConfig, key: str, digest: str = "", **inputs: object
) -> task.Result:
    given = {
        "train_set": str(run.folder / "train.parquet"),
        "dataset_digest": digest or run.data.dataset_digest,
        "base_uri": str(base),
        "base_revision": run.plan.base_revision,
        "training_key": key,
        "adapter": str(folder / "adapter"),
        "report": str(folder / "training.html"),
    }
    if "max_restarts" not in config.model_fields_set:
        config = config.model_copy(update={"max_restarts": 0})  # in this process, which has imported PyTorch already
    return task.run(config, **given | inputs)


def test_the_adapter_is_whole_and_the_loss_fell(tiny_run: TinyRun, adapter: Path) -> None:
    manifest = attempts.read(str(adapter))
    assert manifest.info["training_key"] == tiny_run.plan.training_key
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= set(manifest.files)
    losses = manifest.info["losses"]
    assert losses[-1] < 0.7 * losses[0]
    lora = json.loads((adapter / "adapter_config.json").read_text())
    assert (lora["r"], lora["lora_alpha"]) == (16, 32)
    targets = {name.rsplit(".", 1)[-1] for name in lora["target_modules"]}
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_finished_training_is_returned_without_loading_a_model(
    tiny_run: TinyRun, adapter: Path, tmp_path: Path
) -> None:
    nowhere = tmp_path / "no-such-base"
    planned = tiny_run.config.with_option("train_qlora", "packing", True)  # as the plan decided it
    result = train(tiny_run, nowhere, tmp_path, planned.for_step("train_qlora"), tiny_run.plan.training_key)
    assert result.steps == 30
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == (
        adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_the_same_seed_trains_the_same_adapter(
    tiny_run: TinyRun, adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    train(tiny_run, tiny_model, tmp_path, tiny_run.config.for_step("train_qlora"), "same-again")
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / weights).read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()


def test_a_target_that_matches_no_layer_is_named(tiny_run: TinyRun, tiny_model: Path, tmp_path: Path) -> None:
    config = TrainConfig(target_modules="q_proj,w_proj")
    with pytest.raises(InputError, match="w_proj matches no linear layer; this model has down_proj, gate_proj"):
        train(tiny_run, tiny_model, tmp_path, config, "bad-target")
    assert attempts.find(str(tiny_run.folder / "store" / "adapters" / "bad-target")) is None


def test_data_of_another_digest_is_refused(tiny_run: TinyRun, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its content is not that of dataset_digest 0000"):
        train(tiny_run, tiny_model, tmp_path, TrainConfig(), "bad-data", digest="0000")


def test_a_loss_that_is_no_number_stops_training(tiny_run: TinyRun, tiny_model: Path, tmp_path: Path) -> None:
    import safetensors.torch

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = safetensors.torch.load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(math.nan)
    safetensors.torch.save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="the loss is no number at step 1"):
        train(tiny_run, broken, tmp_path, TrainConfig(max_steps=2), "nan", base_revision="broken")
    assert attempts.find(str(tiny_run.folder / "store" / "adapters" / "nan")) is None
