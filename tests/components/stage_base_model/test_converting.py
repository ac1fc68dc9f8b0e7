"""Bases with quantised weights get a copy in 16 bit, from a folder, a bucket and the hub."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.config.steps import StageConfig
from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.models import base_model, loading
from qlora_pipelines.components.core.registry import references
from qlora_pipelines.components.core.store import attempts, copies, storage
from qlora_pipelines.components.plan_run import preflight
from qlora_pipelines.components.stage_base_model import converting, task
from tests.architectures import published, tiny
from tests.components.stage_base_model.hub_server import COMMIT, Hub, serve
from tests.conftest import conversation, write_jsonl

Publish = Callable[[Path], None]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Llama in FP8."""
    tiny.save_model("llama", tmp_path / "base")
    published.fp8_blocks(tmp_path / "base", 48, 32)
    return tmp_path / "base"


def stage(name: Path | str, revision: str = "") -> str:
    return task.run(StageConfig(base_model=str(name), base_revision=revision)).base_uri


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("name", "publish"),
    [
        ("llama", published.fp8_blocks),
        ("llama", published.fp8_rows),
        ("llama", published.fp8_tensors),
        ("gpt_oss", published.mxfp4),
    ],
)
def test_the_copy_is_the_16_bit_model_within_the_formats_rounding(name: str, publish: Publish, place: Path) -> None:
    import torch

    tiny.save_model(name, place / "base")
    original = tensors(place / "base")
    publish(place / "base")
    folder = Path(stage(place / "base"))
    found = tensors(folder)
    assert found.keys() == original.keys()
    changed = 0
    for key, tensor in found.items():
        assert tensor.dtype == original[key].dtype and tensor.shape == original[key].shape
        changed += not torch.equal(tensor, original[key])
        off, largest = (tensor.float() - original[key].float()).abs().max(), original[key].float().abs().max()
        assert off <= largest * (0.25 if publish is published.mxfp4 else 0.07)
    assert changed == (8 if name == "gpt_oss" else 28)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert not (folder / "hf_quant_config.json").exists()
    assert (folder / "tokenizer.json").read_bytes() == (place / "base" / "tokenizer.json").read_bytes()
    loading.load_16bit(folder)


def test_fp8_as_transformers_dequantises_it(place: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    tiny.save_model("llama", place / "base")
    published.fp8_blocks(place / "base")
    own = loading.load_16bit(Path(stage(place / "base")))
    read = FineGrainedFP8Config(weight_block_size=(32, 32), dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.bfloat16, quantization_config=read)
    state = theirs.state_dict()
    for name, tensor in own.state_dict().items():
        assert torch.equal(tensor, state[name].to(torch.bfloat16))


def test_it_is_made_once_and_is_its_own_copy_of_other_bytes(base: Path, place: Path) -> None:
    first = stage(base)
    assert stage(base) == first
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    other = stage(base)
    assert other != first and Path(first, attempts.MANIFEST).exists()


def test_a_base_in_16_bit_is_used_in_place(tiny_model: Path, place: Path) -> None:
    assert stage(tiny_model) == str(tiny_model)


def test_from_a_bucket_into_a_bucket(base: Path, s3_place: Path, bucket: str) -> None:
    uri = f"{bucket}/published"
    for path in base.iterdir():
        storage.write_bytes(storage.join(uri, path.name), path.read_bytes())
    made = stage(uri, base_model.resolve(uri, ""))
    assert storage.is_remote(made)
    there = base_model.fetch(made, s3_place / "copy", base_model.resolve(uri, ""))
    shutil.rmtree(s3_place / "store", ignore_errors=True)
    assert loading.read_config(there)["model_type"] == "llama"
    loading.load_16bit(copies.download(made, s3_place / "again"))


def test_from_the_hub_with_scales_in_another_file(base: Path, place: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole = load_file(base / "model.safetensors")
    parts = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    split = [
        {name: t for name, t in whole.items() if name.endswith("_scale_inv") == scales} for scales in (False, True)
    ]
    for part, content in zip(parts, split, strict=True):
        save_file(content, base / part, metadata={"format": "pt"})
    weight_map = {name: part for part, content in zip(parts, split, strict=True) for name in content}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (base / "model.safetensors").unlink()
    files = {path.name: path.read_bytes() for path in base.iterdir()}
    with serve(Hub(files)):
        folder = Path(stage("org/model", COMMIT))
        assert [path.name for path in folder.parent.parent.iterdir() if path.name != "files"] == [base_model.IN_16BIT]
        assert folder.parent.name == base_model.IN_16BIT
        assert Path(stage("org/model", COMMIT)) == folder
    loading.load_16bit(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {parts[0]}


def test_an_attempt_that_is_cut_short_leaves_nothing_that_counts(
    base: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = attempts.Attempt.write

    def fail(self: attempts.Attempt, path: str, data: bytes) -> None:
        if path == "config.json":
            raise KeyboardInterrupt
        write(self, path, data)

    monkeypatch.setattr(attempts.Attempt, "write", fail)
    with pytest.raises(KeyboardInterrupt):
        stage(base)
    assert not [path for path in (place / "store").rglob("*") if path.is_file()]
    monkeypatch.undo()


def test_what_cannot_be_brought_back_is_one_line_with_its_source(base: Path, place: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config))
    (base / "README.md").write_text("---\nbase_model: someone/the-16-bit-model\n---\n# A model\n")
    source = r"quantised \(awq\), and only FP8 and MXFP4 .* model someone/the-16-bit-model$"
    with pytest.raises(InputError, match=source):
        stage(base)
    files = {path.name: path.read_bytes() for path in base.iterdir()}
    with serve(Hub(files, card={"base_model": ["someone/the-16-bit-model"]})), pytest.raises(InputError, match=source):
        stage("org/model", COMMIT)


def test_clean_up_knows_the_copy_by_the_revision_of_its_base(base: Path, place: Path) -> None:
    revision = base_model.resolve(str(base), "")
    assert f"bases/in-place/{revision}" in references.pieces(training_key="", merge_key="m", base_uri=stage(base))


def test_a_full_disk_is_said_before_anything_is_written(
    base: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converting.storage, "free_bytes", lambda _: 1000)
    with pytest.raises(TransientError, match=r"the copy in 16 bit needs 0\.00 GB, and 0\.00 are left"):
        stage(base)


def test_a_step_that_is_given_the_published_files_says_what_to_give(base: Path) -> None:
    with pytest.raises(InputError, match="its weights are quantised; stage_base_model makes a copy of it in 16 bit"):
        loading.load_quantized(base)


def test_the_plan_says_how_large_the_copy_is(base: Path, place: Path) -> None:
    rows = [conversation(f"question {number}", f"answer {number}") for number in range(40)]
    config = PlacedRun(
        base_model=str(base),
        dataset_uri=str(write_jsonl(place / "rows.jsonl", rows)),
        model_name="m",
        max_length=64,
        gpu_count="0",
    )

    def found() -> dict[str, str]:
        return {finding.text: finding.level for finding in preflight.run(config, place / "files").findings}

    (place / "files").mkdir()
    first = found()
    assert "fatal" not in first.values()
    text = f"base model {base}: its weights are quantised (fp8); training gets a copy in 16 bit, 0.0 GiB"
    assert first[text] == "ok" and first[f"{base} will be copied into the store, 0.0 GiB"] == "ok"
    stage(base)
    assert found()[f"{base} is in the store already"] == "ok"
