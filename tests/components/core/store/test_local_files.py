import errno
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.store import local_files


def test_a_full_disk_is_one_line_and_may_pass() -> None:
    """/dev/full is a device that has no room."""
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(TransientError, match="file: cannot be written: No space left on device"),
        local_files.errors("file", "written"),
    ):
        full.write(b"x")


def test_a_place_that_is_not_there_does_not_come_by_itself(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="cannot be read: No such file or directory") as error,
        local_files.errors("file", "read"),
    ):
        (tmp_path / "none").open()
    assert not isinstance(error.value, TransientError)


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_takes_its_name_when_it_is_whole(sync: bool, tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file"
    for content in ("old", "new"):
        with local_files.replacing(target, sync=sync) as path:
            path.write_text(content)
            assert path.parent == target.parent and path.name.startswith(".")
            assert content == "old" or target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_file_that_fails_leaves_the_one_before_it(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), local_files.replacing(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    def write(name: str, error: OSError | None = None) -> None:
        with local_files.replacing(tmp_path / name) as folder:
            folder.mkdir()
            (folder / "file").write_text("content")
            if error:
                raise error

    write("whole")
    with pytest.raises(OSError):
        write("half", OSError(errno.ENOSPC, "full"))
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["whole", "whole/file"]
