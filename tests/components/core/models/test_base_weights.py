"""Bases that are not whole or not safetensors are refused in one line."""

import json
import shutil
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_weights
from qlora_pipelines.components.core.models.safetensors_files import INDEX, SINGLE
from tests.components.dequantize_and_merge.conftest import load, save_base


@pytest.fixture
def sharded(tmp_path: Path, tiny_model: Path) -> Path:
    load(save_base(tmp_path / "whole", tiny_model)).save_pretrained(tmp_path / "base", max_shard_size="50KB")
    return tmp_path / "base"


def files(base: Path) -> list[Path]:
    return sorted(base.glob("*.safetensors"))


def test_every_tensor_is_found_and_read_as_safetensors_reads_it(sharded: Path) -> None:
    import torch
    from safetensors.torch import load_file

    stored = base_weights.read(str(sharded))
    expected = {name: tensor for file in files(sharded) for name, tensor in load_file(file).items()}
    assert len(files(sharded)) > 1 and set(stored) == set(expected)
    assert all(torch.equal(stored[name].tensor(), tensor) for name, tensor in expected.items())
    name = "model.embed_tokens.weight"
    assert torch.equal(stored[name].tensor(3, 9), expected[name][3:9])


def test_a_missing_shard_is_named(sharded: Path) -> None:
    files(sharded)[1].unlink()
    with pytest.raises(InputError, match=r"model-00002-of-\d+\.safetensors is missing"):
        base_weights.read(str(sharded))


@pytest.mark.parametrize("kept", [0, 5, 40, -1], ids=str)
def test_a_torn_shard_is_named(kept: int, sharded: Path) -> None:
    data = files(sharded)[0].read_bytes()
    files(sharded)[0].write_bytes(data[:kept])
    with pytest.raises(InputError, match=r"model-00001-of-\d+\.safetensors is (torn|no safetensors file)"):
        base_weights.read(str(sharded))


def test_a_tensor_of_the_index_that_no_file_has_is_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.extra"] = files(sharded)[0].name
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model\.extra is in model\.safetensors\.index\.json, but not in"):
        base_weights.read(str(sharded))


def test_a_pickle_is_refused_by_its_name(sharded: Path) -> None:
    for file in files(sharded):
        shutil.move(file, file.with_suffix(".bin"))
    (sharded / INDEX).unlink()
    with pytest.raises(InputError, match=r"only model-00001-of-\d+\.bin; other formats can run code"):
        base_weights.read(str(sharded))


def test_a_single_file_counts_before_an_index_as_in_transformers(sharded: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"model.norm.weight": torch.full((64,), 7.0)}, sharded / SINGLE)
    assert list(base_weights.read(str(sharded))) == ["model.norm.weight"]
    assert load(sharded).model.norm.weight[0] == 7


def test_shards_without_an_index_are_refused(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    with pytest.raises(InputError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json is there"):
        base_weights.read(str(sharded))
