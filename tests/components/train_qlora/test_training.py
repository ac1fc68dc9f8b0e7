from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.train_qlora import task
from tests.components.conftest import TinyRun
from tests.components.train_qlora.test_task import train

FEW = {"max_steps": 3, "batch_tokens": 256, "learning_rate": 0.01}


def trained(run: TinyRun, base: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """The manifest's info of a short training with these options."""
    key = "-".join(f"{name}={value}" for name, value in options.items())
    train(run, base, folder, TrainConfig(**FEW | options), key)
    return attempts.read(str(folder / "adapter")).info


@pytest.mark.parametrize(
    "options",
    [
        {"quant_type": "fp4"},
        {"double_quant": False},
        {"use_rslora": True},
        {"use_dora": True},
        {"optim": "paged_adamw_8bit"},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.5},
        {"packing": False},
        {"modules_to_save": "embed_tokens"},
        {"gradient_checkpointing": True},
        {"lora_dropout": 0.2, "target_modules": "q_proj,v_proj"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_trains_and_plain_peft_loads_the_result(
    options: dict[str, Any], tiny_run: TinyRun, tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel

    info = trained(tiny_run, tiny_model, tmp_path, **options)
    assert len(info["losses"]) == 3
    assert all(loss > 0 for loss in info["losses"])
    base = loading.load_16bit(tiny_model)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    changed = [p for name, p in loaded.named_parameters() if "lora_B" in name]
    assert changed
    assert all(torch.isfinite(p).all() and p.abs().sum() > 0 for p in changed)


def test_the_manifest_holds_a_digest_of_each_quantised_weight(
    tiny_run: TinyRun, tiny_model: Path, adapter: Path
) -> None:
    from qlora_pipelines.components.core.models import quantization

    info = attempts.read(str(adapter)).info
    assert info["quantised"] == quantization.digests(loading.load_quantized(tiny_model))
    assert len(info["quantised"]) == len(set(info["quantised"].values())) == 14
    fp4 = quantization.Quantization(quant_type="fp4")
    other = quantization.digests(loading.load_quantized(tiny_model, fp4))
    assert not set(other.values()) & set(info["quantised"].values())


def test_a_module_to_save_that_is_none_is_named(tiny_run: TinyRun, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^modules_to_save: embeddings matches no module; this model has "):
        trained(tiny_run, tiny_model, tmp_path, modules_to_save="embeddings")


def test_float16_on_a_cpu_is_refused(tiny_run: TinyRun, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="compute_dtype float16 needs a GPU"):
        trained(tiny_run, tiny_model, tmp_path, compute_dtype="float16")


def test_a_failure_that_would_repeat_is_said_once(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A retry repeats the line without loading anything; a new start tries again."""
    nowhere = tmp_path / "nowhere"
    with pytest.raises(InputError, match=r"no config\.json there"):
        train(tiny_run, nowhere, tmp_path, TrainConfig(), "fails", base_revision="nowhere")
    nowhere.mkdir()
    (nowhere / "config.json").write_text("{}")
    monkeypatch.setenv("KFP_RETRY_INDEX", "1")
    with pytest.raises(InputError, match=r"no config.json there.* \(said by an earlier try; not tried again\)"):
        train(tiny_run, nowhere, tmp_path, TrainConfig(), "fails", base_revision="nowhere")
    monkeypatch.setenv("KFP_RETRY_INDEX", "0")
    with pytest.raises(InputError, match=r"no \*.safetensors there"):
        train(tiny_run, nowhere, tmp_path, TrainConfig(), "fails", base_revision="nowhere")
    assert attempts.find(storage.join(storage.root(), "adapters", "fails")) is None


def test_data_tokenised_for_another_tokenizer_is_refused(tiny_run: TinyRun, tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(InputError, match="was tokenised for another tokenizer than that of"):
        train(tiny_run, other, tmp_path, TrainConfig(**FEW), "other-tokenizer", base_revision="other")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": -1}, "learning_rate: Input should be greater than 0"),
        ({"learning_rate": 3}, "learning_rate: Input should be less than or equal to 0.1"),
        ({"lora_r": 0}, "lora_r: Input should be greater than or equal to 1"),
        ({"lora_r": "many"}, "lora_r: Input should be a valid integer"),
        ({"optim": "sgd"}, "optim: Input should be 'paged_adamw_32bit' or 'paged_adamw_8bit'"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        task.Config.parse("{}", **options)


def test_use_cpu_leaves_a_gpu_alone(tiny_run: TinyRun, tiny_model: Path, tmp_path: Path, a_gpu: None) -> None:
    info = trained(tiny_run, tiny_model, tmp_path, use_cpu=True)
    assert info["device"] == "cpu" and len(info["losses"]) == 3
