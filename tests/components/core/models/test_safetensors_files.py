"""One safetensors file, against the library that defines the format."""

import json
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import safetensors_files
from qlora_pipelines.components.core.store import streams


def read(path: Path) -> dict[str, safetensors_files.Stored]:
    return safetensors_files.read_header(streams.Reader(str(path), path.stat().st_size))


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
        read(tmp_path / "model.safetensors")


def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(InputError, match="contradicts itself"):
        read(tmp_path / "model.safetensors")


def test_a_dtype_that_is_not_known_is_named(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1")
    with pytest.raises(InputError, match="a is of dtype F4, which is not known here"):
        read(tmp_path / "model.safetensors")


def test_a_header_longer_than_the_first_read(tmp_path: Path) -> None:
    names = [f"layer.{number}.weight" for number in range(2000)]
    header = safetensors_files.write_header((name, "U8", (1,)) for name in names)
    assert len(header) > safetensors_files.FIRST_READ
    (tmp_path / "model.safetensors").write_bytes(header + bytes(len(names)))
    assert list(read(tmp_path / "model.safetensors")) == names
