"""A base loads as what its weights are, whatever else is next to them."""

import json
import shutil
from pathlib import Path

import torch

from qlora_pipelines.components.core.models import clean_folder, loading
from tests.components.dequantize_and_merge.conftest import save_adapter


def odd_base(folder: Path, tiny_model: Path) -> Path:
    """The tiny model with an adapter next to it, and a config that asks the hub for its attention."""
    base = shutil.copytree(tiny_model, folder / "base")
    save_adapter(tiny_model, folder / "adapter", target_modules=["q_proj"])
    for path in (folder / "adapter").iterdir():
        shutil.copy(path, base)
    config = json.loads((base / "config.json").read_text()) | {"attn_implementation": "someone/kernel"}
    (base / "config.json").write_text(json.dumps(config))
    return base


def test_an_adapter_and_a_kernel_are_named_and_not_followed(tmp_path: Path, tiny_model: Path) -> None:
    base = odd_base(tmp_path, tiny_model)
    assert clean_folder.found(base) == [
        "adapter_config.json: the adapter next to the model is not loaded",
        'config.json\'s attn_implementation "someone/kernel" is not followed',
    ]
    loaded, plain = loading.load_16bit(base), loading.load_16bit(tiny_model)
    assert loaded.config._attn_implementation == plain.config._attn_implementation == "sdpa"
    ours, theirs = dict(loaded.named_parameters()), dict(plain.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loading.empty_model(base).config._attn_implementation == "sdpa"


def test_a_plain_folder_is_used_where_it_is(tiny_model: Path) -> None:
    assert clean_folder.found(tiny_model) == [] and clean_folder.view(tiny_model) == tiny_model


def test_what_a_part_of_the_config_chooses_counts_too(tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "text_config": {"_attn_implementation": "a/b", "hidden_size": 64}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert len(clean_folder.found(tmp_path)) == 1
    written = json.loads((clean_folder.view(tmp_path) / "config.json").read_text())
    assert written == {"model_type": "gemma3", "text_config": {"hidden_size": 64}}
