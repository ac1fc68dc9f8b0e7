import hashlib
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import streams


def test_a_file_appears_under_its_name_when_whole(tmp_path: Path) -> None:
    pieces = [bytes([number]) * 1000 for number in range(20)]
    with streams.writing(str(tmp_path / "folder" / "file")) as writer:
        for piece in pieces:
            writer.write(piece)
        assert not (tmp_path / "folder" / "file").exists()
    whole = b"".join(pieces)
    assert writer.file == {"size": 20_000, "sha256": hashlib.sha256(whole).hexdigest()}
    assert (tmp_path / "folder" / "file").read_bytes() == whole
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


def test_a_file_given_up_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), streams.writing(str(tmp_path / "file")) as writer:
        writer.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_bytes_from_any_place_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    reader = streams.Reader(str(tmp_path / "file"), 100)
    assert reader.read(10, 5) == bytes(range(10, 15)) and reader.read(100, 0) == b""
    with pytest.raises(InputError, match="ends at byte 100, and 104 were expected"):
        reader.read(90, 14)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        streams.Reader(str(tmp_path / "none"), 1)
