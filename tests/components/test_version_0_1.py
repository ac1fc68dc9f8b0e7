"""What version 0.1 left: its adapters stay readable, and work under a key that was given by hand is refused."""

import json
import shutil
from pathlib import Path

import pytest

from qlora_pipelines.components.core.config.steps import EvaluateConfig, MergeConfig, TrainConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import champion
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.dequantize_and_merge import task as merge
from qlora_pipelines.components.evaluate_model import task as evaluate
from tests.components.conftest import TinyRun, digest
from tests.components.train_qlora.test_task import train

IN_MANIFEST = {
    "base_revision", "dataset_digest", "quant_type", "double_quant", "compute_dtype", "lora_r", "lora_alpha",
    "lora_dropout", "use_rslora", "use_dora", "target_modules", "modules_to_save", "optimizer", "learning_rate",
    "lr_schedule", "warmup_share", "epochs", "max_steps", "packing", "batch_tokens", "gradient_accumulation_steps",
    "weight_decay", "max_grad_norm", "seed", "processes", "fsdp", "config", "quantization", "quantised", "losses",
    "device", "peak_mib", "versions", "training_key", "base_uri",
}  # fmt: skip
"""What the manifest of an adapter held in version 0.1."""


def as_version_0_1(manifest: Path) -> dict[str, object]:
    """Rewrites a manifest as version 0.1 wrote it, with the options' old names and no format of the keys."""
    content = json.loads(manifest.read_text())
    info = content["info"]
    del info["key_format"]
    for values in (info, info.get("config", {})):
        for old, new in TrainConfig.renamed.items():
            if new in values:
                values[old] = values.pop(new)
    manifest.write_text(json.dumps(content))
    return info


@pytest.fixture
def old_adapter(adapter: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(adapter, tmp_path / "old"))
    assert as_version_0_1(folder / attempts.MANIFEST).keys() == IN_MANIFEST
    return folder


def test_its_adapter_is_merged(tiny_run: TinyRun, old_adapter: Path, merged_uri: str, tiny_model: Path) -> None:
    made = merge.run(
        MergeConfig(),
        base_uri=str(tiny_model),
        base_revision=tiny_run.plan.base_revision,
        adapter=str(old_adapter),
        adapter_digest=digest(old_adapter),
        merge_key="of-version-0.1",
    )
    weights = "model/model.safetensors"
    assert (Path(made.merged_uri) / weights).read_bytes() == (Path(merged_uri) / weights).read_bytes()


def test_its_adapter_is_evaluated_and_can_be_the_champion(
    tiny_run: TinyRun, adapter: Path, old_adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    found = evaluate.run(
        EvaluateConfig(generation_rows=0),
        eval_set=str(tiny_run.folder / "eval.parquet"),
        dataset_digest=tiny_run.data.dataset_digest,
        base_uri=str(tiny_model),
        adapter=str(old_adapter),
        adapter_digest=digest(old_adapter),
        scores=str(tmp_path / "scores"),
        report=str(tmp_path / "report.html"),
    )
    assert found.passed
    registered = champion.Champion("champion 1", attempts.read(str(old_adapter)), None)
    today = attempts.read(str(adapter)).info
    assert registered.adapter_for(today) == registered.adapter and registered.is_trained_as(today)


def test_its_work_under_the_same_key_is_refused(tiny_run: TinyRun, tiny_model: Path, tmp_path: Path) -> None:
    """Somebody gave the key by hand: the keys of this version are others, so it is never found by chance."""
    config = TrainConfig(max_steps=3, batch_tokens=256, learning_rate=0.01, save_steps=2)
    train(tiny_run, tiny_model, tmp_path, config, "of-0.1")
    [adapter] = Path(storage.join(storage.root(), "adapters", "of-0.1")).glob("*/manifest.json")
    as_version_0_1(adapter)
    with pytest.raises(InputError, match=r"adapters/of-0\.1/\S+ is from version 0\.1, .*: give another training_key$"):
        train(tiny_run, tiny_model, tmp_path, config, "of-0.1")
    adapter.unlink()
    [checkpoint] = Path(storage.join(storage.root(), "checkpoints", "of-0.1")).glob("*/*/manifest.json")
    as_version_0_1(checkpoint)
    with pytest.raises(InputError, match=r"step-00000002/\S+ is from version 0\.1, .*: give another training_key$"):
        train(tiny_run, tiny_model, tmp_path, config, "of-0.1")
