import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data import tokenized
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.core.registry import champion, mlflow_client
from qlora_pipelines.components.core.store import attempts
from qlora_pipelines.components.evaluate_model import score_table, scored_models, task
from tests.components.conftest import TinyRun, sealed
from tests.components.dequantize_and_merge.conftest import save_adapter
from tests.components.evaluate_model.conftest import Judge, altered


def registered(adapter_uri: str, merged_uri: str) -> str:
    """A version of the model `judged` in MLflow, as register_model makes it."""
    import mlflow

    client = mlflow_client.connect()
    try:
        client.create_registered_model("judged")
    except mlflow.MlflowException as error:
        assert error.error_code == "RESOURCE_ALREADY_EXISTS"
    tags = {"qlora.adapter_uri": adapter_uri} if adapter_uri else {}
    return str(client.create_model_version("judged", source=merged_uri, tags=tags).version)


def as_another_training(folder: Path, key: str = "another") -> Path:
    """Finished work whose manifest names another training key."""
    manifest = json.loads((folder / attempts.MANIFEST).read_text())
    manifest["info"]["training_key"] = key
    file = manifest["files"].get("adapter_model.safetensors")
    if file:
        file["size"] = (folder / "adapter_model.safetensors").stat().st_size
    (folder / attempts.MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_the_champions_adapter_is_scored_on_the_same_base(
    judged: task.Result, judge: Judge, adapter: Path, tmp_path: Path
) -> None:
    """A champion with the same weights is neither beaten nor lost to; one that was damaged a little is beaten."""
    same = as_another_training(Path(shutil.copytree(adapter, tmp_path / "same")))
    config = EvaluateConfig(generation_rows=2, max_new_tokens=4)
    version = registered(str(same), "")
    result = judge(config, model_name="judged", champion_version=version)
    assert result.passed and f"nats per token, 0.0000 below that of champion {version} " in result.reason
    found = score_table.read(str(tmp_path / "scores"), f"champion {version}")
    assert found.scores.loss == pytest.approx(result.loss) and len(found.answers) == 2
    idle = altered(adapter, tmp_path / "idle", lambda name, value: value * (0.5 if "lora_B" in name else 1))
    version = registered(str(as_another_training(idle, "idle")), "")
    assert judge(model_name="judged", champion_version=version).passed
    worse = judge(adapter=str(idle), model_name="judged", champion_version=registered(str(same), ""))
    assert not worse.passed and "above that of champion" in worse.reason


def test_a_champion_without_a_stored_adapter_is_scored_through_its_merged_files(
    judge: Judge, merged_uri: str, tmp_path: Path
) -> None:
    merged = as_another_training(Path(shutil.copytree(merged_uri, tmp_path / "merged")))
    version = registered("", str(merged))
    result = judge(model_name="judged", champion_version=version)
    assert re.search(f"nats per token, .* that of champion {version} ", result.reason), "the tokenizer is the same"


def without_merges(rules: str) -> str:
    """A tokenizer of the same vocabulary that writes byte by byte."""
    found = json.loads(rules)
    found["model"]["merges"] = []
    return json.dumps(found)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("chat_template.jinja", lambda template: template.replace("<|im_start|>", "<|im_start|>\n")),
        ("tokenizer.json", without_merges),
    ],
    ids=["template", "tokens"],
)
def test_a_champion_that_writes_differently_is_compared_in_bits_per_byte(
    file: str, change: Callable[[str], str], judge: Judge, merged_uri: str, tmp_path: Path
) -> None:
    merged = as_another_training(Path(shutil.copytree(merged_uri, tmp_path / "merged")))
    path = merged / "model" / file
    path.write_text(change(path.read_text()))
    version = registered("", str(sealed(merged)))
    result = judge(model_name="judged", champion_version=version)
    assert re.search(f"bits per byte, .* that of champion {version} ", result.reason)
    tuned, other = (
        score_table.read(str(tmp_path / "scores"), name).scores for name in ("tuned", f"champion {version}")
    )
    assert other.bytes.tolist() == tuned.bytes.tolist()
    assert (other.tokens.sum() > tuned.tokens.sum()) == (file == "tokenizer.json")


@pytest.mark.parametrize("options", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_a_champions_adapter_may_be_of_another_kind(
    options: dict[str, Any], judge: Judge, tiny_run: TinyRun, adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    other = save_adapter(tiny_model, tmp_path / "other", target_modules=["q_proj"], **options)
    attempts.finish(str(other), attempts.read(str(adapter)).info | {"training_key": "other"}, {})
    version = registered(str(other), "")
    result = judge(model_name="judged", champion_version=version)
    found = score_table.read(str(tmp_path / "scores"), f"champion {version}").scores
    alone = PeftModel.from_pretrained(loading.load_quantized(tiny_model), str(other)).eval()
    rows = tokenized.read(str(tiny_run.folder / "eval.parquet"), tiny_run.data.dataset_digest)
    expected = scored_models.score_model(
        "alone", EvaluateConfig(generation_rows=0), alone, loading.load_tokenizer(tiny_model), rows
    )
    assert found.loss == pytest.approx(expected.scores.loss, abs=1e-3) and result.passed


def test_a_champion_whose_files_are_gone_is_an_error_before_anything_is_scored(
    judge: Judge, adapter: Path, tmp_path: Path
) -> None:
    torn = as_another_training(Path(shutil.copytree(adapter, tmp_path / "torn")))
    (torn / "adapter_model.safetensors").unlink()
    version = registered(str(torn), str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=f"champion {version} of judged: its files are gone from .*torn and .*nowhere"):
        judge(model_name="judged", champion_version=version, base_uri="nowhere")


def test_a_champion_that_mlflow_no_longer_knows_is_an_error(judge: Judge) -> None:
    registered("", "nowhere")
    with pytest.raises(InputError, match=r"champion 99 of judged: .*not found"):
        judge(model_name="judged", champion_version="99")


def test_a_champion_out_of_this_very_training_is_not_compared(
    judged: task.Result, judge: Judge, adapter: Path, merged_uri: str
) -> None:
    version = registered(str(adapter), merged_uri)
    found = champion.find("judged", version)
    assert found.adapter_for(attempts.read(str(adapter)).info) == found.adapter
    assert found.adapter_for(attempts.read(str(adapter)).info | {"base_revision": "another"}) is None
    assert "champion" not in judge(model_name="judged", champion_version=version).reason
