"""Bases that are not whole or not safetensors are refused in one line."""

import json
import shutil
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import safetensors_files
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

    stored = safetensors_files.read_base(str(sharded))
    expected = {name: tensor for file in files(sharded) for name, tensor in load_file(file).items()}
    assert len(files(sharded)) > 1 and set(stored) == set(expected)
    assert all(torch.equal(stored[name].tensor(), tensor) for name, tensor in expected.items())
    name = "model.embed_tokens.weight"
    assert torch.equal(stored[name].tensor(3, 9), expected[name][3:9])


def test_what_is_written_is_read_by_safetensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    values = {"a": torch.randn(3, 5), "b": torch.ones(7).bfloat16(), "c": torch.tensor(4)}
    dtypes = {"a": "F32", "b": "BF16", "c": "I64"}
    header = safetensors_files.write_header((name, dtypes[name], tuple(value.shape)) for name, value in values.items())
    data = b"".join(value.view(-1).view(torch.uint8).numpy().tobytes() for value in values.values())
    (tmp_path / "file.safetensors").write_bytes(header + data)
    found = load_file(tmp_path / "file.safetensors")
    assert all(torch.equal(found[name], value) for name, value in values.items())


def test_a_missing_shard_is_named(sharded: Path) -> None:
    files(sharded)[1].unlink()
    with pytest.raises(InputError, match=r"model-00002-of-\d+\.safetensors is missing"):
        safetensors_files.read_base(str(sharded))


@pytest.mark.parametrize("kept", [0, 5, 40, -1], ids=str)
def test_a_torn_shard_is_named(kept: int, sharded: Path) -> None:
    data = files(sharded)[0].read_bytes()
    files(sharded)[0].write_bytes(data[:kept])
    with pytest.raises(InputError, match=r"model-00001-of-\d+\.safetensors is (torn|no safetensors file)"):
        safetensors_files.read_base(str(sharded))


def test_a_tensor_of_the_index_that_no_file_has_is_named(sharded: Path) -> None:
    index = json.loads((sharded / safetensors_files.INDEX).read_text())
    index["weight_map"]["model.extra"] = files(sharded)[0].name
    (sharded / safetensors_files.INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model\.extra is in model\.safetensors\.index\.json, but not in"):
        safetensors_files.read_base(str(sharded))


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 a pickle in a zip, as torch.save writes it",
        b"\x80\x02}q\x00.",
        (9).to_bytes(8, "little") + b"no header",
        (2).to_bytes(8, "little") + b"[]",
        (12).to_bytes(8, "little") + b'{"a": "what"',
    ],
    ids=repr,
)
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is no safetensors file"):
        safetensors_files.read_base(str(tmp_path))


def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(InputError, match="contradicts itself"):
        safetensors_files.read_base(str(tmp_path))


def test_a_pickle_is_refused_by_its_name(sharded: Path) -> None:
    for file in files(sharded):
        shutil.move(file, file.with_suffix(".bin"))
    (sharded / safetensors_files.INDEX).unlink()
    with pytest.raises(InputError, match=r"only model-00001-of-\d+\.bin; other formats can run code"):
        safetensors_files.read_base(str(sharded))
