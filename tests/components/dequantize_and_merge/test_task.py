import json
import math
from pathlib import Path

import pytest

from components.core import attempts, models
from components.core.config import MergeConfig
from components.core.errors import InputError
from components.dequantize_and_merge import task
from tests.components.conftest import TinyRun


def test_the_result_is_an_ordinary_model(merged_uri: str) -> None:
    folder = Path(merged_uri) / "model"
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert models.load_tokenizer(folder).chat_template
    manifest = attempts.read(merged_uri)
    assert {"model/config.json", "model/model.safetensors", "model/tokenizer.json"} <= set(manifest.files)


def test_it_computes_what_the_adapter_on_nf4_computes(merged_uri: str, adapter: Path, tiny_model: Path) -> None:
    """Nearer to what was trained than the same merge into the 16-bit original."""
    import torch
    from peft import PeftModel

    ids = torch.arange(3, 67).reshape(2, 32)
    with torch.inference_mode():
        trained = PeftModel.from_pretrained(models.load_quantized(tiny_model), str(adapter)).eval()(ids).logits.float()
        merged = models.load_16bit(Path(merged_uri) / "model").eval()(ids).logits.float()
        original = PeftModel.from_pretrained(models.load_16bit(tiny_model), str(adapter)).merge_and_unload()
        into_original = original.eval()(ids).logits.float()
    distance = ((merged - trained).norm() / trained.norm()).item()
    other = ((into_original - trained).norm() / trained.norm()).item()
    assert distance < 0.05  # bfloat16 activations on both sides
    assert distance < other / 4


def test_every_layer_that_training_quantised_is_dequantised_once(merged_uri: str, tiny_model: Path) -> None:
    import torch

    base, merged = models.load_16bit(tiny_model), models.load_16bit(Path(merged_uri) / "model")
    assert torch.equal(base.get_input_embeddings().weight, merged.get_input_embeddings().weight)
    quantised = models.load_quantized(tiny_model)
    names = {name for name, module in quantised.named_modules() if type(module).__name__ == "Linear4bit"}
    assert names == set(models.linear_layers(tiny_model))


def test_a_finished_merge_is_returned_at_once(tiny_run: TinyRun, merged_uri: str, adapter: Path) -> None:
    again = task.run(
        MergeConfig(), base_uri="/no/base", base_revision="", adapter=str(adapter), merge_key=tiny_run.plan.merge_key
    )
    assert again.merged_uri == merged_uri


def test_shards_are_as_large_as_asked(tiny_run: TinyRun, adapter: Path, tiny_model: Path, store: Path) -> None:
    result = task.run(
        MergeConfig(max_shard_gb=0.0001),
        base_uri=str(tiny_model),
        base_revision=tiny_run.plan.base_revision,
        adapter=str(adapter),
        merge_key="shards",
    )
    shards = list((Path(result.merged_uri) / "model").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert models.load_16bit(Path(result.merged_uri) / "model").num_parameters() > 0


def test_an_adapter_of_another_base_is_refused(adapter: Path, tiny_model: Path, store: Path) -> None:
    with pytest.raises(InputError, match=r"trained on revision \S+ of its base, not on other"):
        task.run(
            MergeConfig(), base_uri=str(tiny_model), base_revision="other", adapter=str(adapter), merge_key="other-base"
        )
    assert attempts.find(str(store / "store" / "merged" / "other-base")) is None


def test_an_adapter_with_nan_is_refused(
    tiny_run: TinyRun, adapter: Path, tiny_model: Path, store: Path, tmp_path: Path
) -> None:
    import safetensors.torch

    for file in adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    next(iter(weights.values())).fill_(math.nan)
    safetensors.torch.save_file(weights, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="holds values that are no numbers"):
        task.run(
            MergeConfig(),
            base_uri=str(tiny_model),
            base_revision=tiny_run.plan.base_revision,
            adapter=str(tmp_path),
            merge_key="nan",
        )
    assert attempts.find(str(store / "store" / "merged" / "nan")) is None
