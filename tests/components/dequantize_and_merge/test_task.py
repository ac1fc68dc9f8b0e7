import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import MergeConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model, loading, stop_tokens
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.dequantize_and_merge import task
from tests.components.conftest import TinyRun, digest, sealed


@pytest.fixture
def merge(tiny_run: TinyRun, adapter: Path, tiny_model: Path) -> Callable[..., str]:
    """Merges the tiny run's adapter under a key; whatever else differs is given by name."""

    def run(key: str, config: MergeConfig | None = None, **given: Any) -> str:
        given = {"base_uri": tiny_model, "base_revision": tiny_run.plan.base_revision, "adapter": adapter} | given
        given = {name: str(value) for name, value in given.items()}
        given.setdefault("adapter_digest", digest(given["adapter"]))
        return task.run(config or MergeConfig(), merge_key=key, **given).merged_uri

    return run


def changed_copy(folder: Path, name: str, copy: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a folder with other tensors in one file."""
    import safetensors.torch

    shutil.copytree(folder, copy)
    tensors = safetensors.torch.load_file(copy / name)
    change(tensors)
    safetensors.torch.save_file(tensors, copy / name, metadata={"format": "pt"})
    return sealed(copy) if (copy / attempts.MANIFEST).exists() else copy


def test_the_result_is_an_ordinary_model(merged_uri: str) -> None:
    folder = Path(merged_uri) / "model"
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert loading.load_tokenizer(folder).chat_template
    manifest = attempts.read(merged_uri)
    assert {"model/config.json", "model/model.safetensors", "model/tokenizer.json"} <= set(manifest.files)


def test_answers_are_not_sampled_unless_the_base_says_so(merged_uri: str, tmp_path: Path) -> None:
    """transformers' pipeline samples where the generation config is silent; evaluation does not."""
    import transformers

    folder = Path(merged_uri) / "model"
    pipeline = transformers.pipeline("text-generation", str(folder))
    question = [{"role": "user", "content": "the cat sat on mat"}]
    assert pipeline.model.generation_config.do_sample is False
    assert len({str(pipeline(question, max_new_tokens=8, min_new_tokens=8)) for _ in range(3)}) == 1
    tokenizer = loading.load_tokenizer(folder)
    assert stop_tokens.generation_config(tmp_path, tokenizer) == {"do_sample": False, "eos_token_id": 2}
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6}')
    made = {"do_sample": True, "temperature": 0.6, "eos_token_id": 2}
    assert stop_tokens.generation_config(tmp_path, tokenizer) == made


def test_it_computes_what_the_adapter_on_nf4_computes(merged_uri: str, adapter: Path, tiny_model: Path) -> None:
    """Nearer to what was trained than the same merge into the 16-bit original."""
    import torch
    from peft import PeftModel

    ids = torch.arange(3, 67).reshape(2, 32)
    with torch.inference_mode():
        trained = PeftModel.from_pretrained(loading.load_quantized(tiny_model), str(adapter)).eval()(ids).logits.float()
        merged = loading.load_16bit(Path(merged_uri) / "model").eval()(ids).logits.float()
        original = PeftModel.from_pretrained(loading.load_16bit(tiny_model), str(adapter)).merge_and_unload()
        into_original = original.eval()(ids).logits.float()
    distance = ((merged - trained).norm() / trained.norm()).item()
    other = ((into_original - trained).norm() / trained.norm()).item()
    assert distance < 0.05  # bfloat16 activations on both sides
    assert distance < other / 4


def test_every_layer_that_training_quantised_is_dequantised_once(
    merged_uri: str, adapter: Path, tiny_model: Path
) -> None:
    import torch

    base, merged = loading.load_16bit(tiny_model), loading.load_16bit(Path(merged_uri) / "model")
    assert torch.equal(base.get_input_embeddings().weight, merged.get_input_embeddings().weight)
    quantised = loading.load_quantized(tiny_model)
    names = {name for name, module in quantised.named_modules() if type(module).__name__ == "Linear4bit"}
    assert {f"{name}.weight" for name in names} == set(attempts.read(str(adapter)).info["quantised"])


def test_a_finished_merge_is_returned_at_once(merge: Callable[..., str], tiny_run: TinyRun, merged_uri: str) -> None:
    assert merge(tiny_run.plan.merge_key, base_uri="/no/base", base_revision="") == merged_uri


def test_shards_are_as_large_as_asked(merge: Callable[..., str]) -> None:
    folder = Path(merge("shards", MergeConfig(max_shard_gb=0.0001))) / "model"
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert loading.load_16bit(folder).num_parameters() > 0


def test_an_adapter_of_another_base_is_refused(merge: Callable[..., str], store: Path) -> None:
    with pytest.raises(InputError, match=r"trained on revision \S+ of its base, not on other"):
        merge("other-base", base_revision="other")
    assert attempts.find(str(store / "store" / "merged" / "other-base")) is None


def test_the_base_is_that_which_evaluation_recommends(
    merge: Callable[..., str], tiny_run: TinyRun, merged_uri: str
) -> None:
    """Under one key, a model merged into the other base is not taken for the one that is wanted."""

    def recommended(base: str, merge_base: str = "auto") -> str:
        return merge(tiny_run.plan.merge_key, MergeConfig.parse({"merge_base": merge_base}), recommended_base=base)

    assert recommended("") == recommended("dequantized") == recommended("original", "dequantized") == merged_uri
    original = recommended("original")
    assert original != merged_uri and original == recommended("original") == recommended("", "original")
    assert attempts.read(merged_uri).info["merge_base"] == "dequantized"
    assert attempts.read(original).info["merge_base"] == "original"
    with pytest.raises(InputError, match="recommended_base is 'best'; it must be dequantized, original or empty"):
        recommended("best")


@pytest.mark.parametrize(
    ("device", "note"), [("cpu", "another base$"), ("cuda:0", "another base, or a GPU that rounds")]
)
def test_a_weight_that_is_not_what_training_had_is_named(
    device: str, note: str, merge: Callable[..., str], adapter: Path, tiny_model: Path, store: Path, tmp_path: Path
) -> None:
    def change(weights: dict[str, Any]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][3, 3] += 0.5

    base = changed_copy(tiny_model, "model.safetensors", tmp_path / "base", change)
    revision = base_model.resolve(str(base), "")
    copy = sealed(Path(shutil.copytree(adapter, tmp_path / "adapter")), device=device, base_revision=revision)
    message = rf"layers\.1\.mlp\.up_proj\.weight of the base, brought to 4 bit, is not what training had: {note}"
    with pytest.raises(InputError, match=message):
        merge("altered", base_uri=base, base_revision=revision, adapter=copy)
    assert not list((store / "store" / "merged" / "altered").iterdir())


def test_a_model_that_fits_no_disk_is_refused_before_anything_is_written(
    merge: Callable[..., str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "free_bytes", lambda uri: 1000)
    with pytest.raises(InputError, match=r"the merged model needs 0\.00 GB, and the disk has 0\.00 GB left"):
        merge("no-room")
    assert not (store / "store" / "merged" / "no-room").exists()


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"quantised": None}, "does not say how training held its base; train it again"),
        ({"quantised": {"model.layers.9.mlp.up_proj.weight": "0"}}, r"training quantised model\.layers\.9"),
    ],
    ids=str,
)
def test_a_manifest_that_does_not_fit_is_refused(
    info: dict[str, object], message: str, merge: Callable[..., str], adapter: Path, tmp_path: Path
) -> None:
    copy = sealed(shutil.copytree(adapter, tmp_path / "adapter"), **info)
    with pytest.raises(InputError, match=message):
        merge("manifest", adapter=copy)


def test_rows_that_bitsandbytes_computes_wrongly_on_a_cpu_are_refused() -> None:
    shapes = {"a.weight": (64, 128), "b.weight": (64, 96)}
    with pytest.raises(InputError, match=r"b\.weight has rows of 96, no multiple of 64"):
        task._check_widths({"device": "cpu"}, dict.fromkeys(shapes, ""), shapes)
    task._check_widths({"device": "cuda"}, dict.fromkeys(shapes, ""), shapes)


def test_an_adapter_with_nan_is_refused(merge: Callable[..., str], adapter: Path, store: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, Any]) -> None:
        next(iter(weights.values())).fill_(math.nan)

    copy = changed_copy(adapter, "adapter_model.safetensors", tmp_path / "adapter", change)
    with pytest.raises(InputError, match="has values that are not finite"):
        merge("nan", adapter=copy)
    assert attempts.find(str(store / "store" / "merged" / "nan")) is None
