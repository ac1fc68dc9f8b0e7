"""Finished work is held against the digest that its step handed on."""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import integrity, manifest
from qlora_pipelines.components.core.store import attempts


@pytest.fixture
def work(tmp_path: Path) -> attempts.Finished:
    with attempts.attempt(str(tmp_path / "key")) as attempt:
        attempt.write("model/weights", b"weights")
        attempt.write("model/config.json", b"{}")
        return attempt.commit({"losses": [1.0, float("nan")], "pair": (1, 2)})


def hold(work: attempts.Finished, tmp_path: Path) -> contextlib.AbstractContextManager[integrity.VerifiedFolder]:
    return integrity.verified_folder(
        integrity.read(work.uri, integrity.digest(work), "work"), tmp_path / "scratch", "work"
    )


def test_the_digest_is_that_of_the_manifest_that_was_written(work: attempts.Finished) -> None:
    path = Path(work.uri) / attempts.MANIFEST
    digest = integrity.digest(work)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == integrity.digest(attempts.read(work.uri))
    found = integrity.read(work.uri, digest, "work")
    assert found.files == work.files | {attempts.MANIFEST: manifest.entry(path.read_bytes())}
    for content in (path.read_bytes().replace(b"weights", b"Weights"), b"{}", b"[]", b"{", b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"manifest.json was replaced while this step ran"):
            integrity.digest(work)
        with pytest.raises(InputError, match=r"manifest.json was altered: its sha256 is .* the work said"):
            integrity.read(work.uri, digest, "work")


def swap_and_put_back(path: Path) -> None:
    path.rename(path.parent.parent / "aside")
    path.write_bytes(b"another")
    path.unlink()
    (path.parent.parent / "aside").rename(path)


def write_and_write_back(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"another")
    path.write_bytes(b"weights")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap_folder_and_put_back(path: Path) -> None:
    """The files keep their identity, and what was loaded were others all the same."""
    path.parent.rename(path.parent.parent / "aside")
    path.parent.mkdir()
    path.parent.rmdir()
    (path.parent.parent / "aside").rename(path.parent)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"Weights"),
        swap_and_put_back,
        write_and_write_back,
        swap_folder_and_put_back,
        lambda path: (path.parent / "more").touch(),
        lambda path: path.unlink(),
    ],
    ids=["written", "swapped and put back", "written and written back", "folder swapped", "more", "less"],
)
def test_a_local_folder_that_changes_while_it_is_read_is_refused(
    change: Callable[[Path], object], work: attempts.Finished, tmp_path: Path
) -> None:
    time.sleep(0.02)  # the kernel's clock ticks
    with hold(work, tmp_path) as held:
        held.check_unchanged()
        change(held.path / "model" / "weights")
        message = "work .*(changed while it was read|was altered|is not in the manifest|is gone)"
        with pytest.raises(InputError, match=message):
            held.check_unchanged()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="without /proc a folder is loaded from by its name")
def test_a_folder_that_takes_the_name_meanwhile_is_not_loaded_from(work: attempts.Finished, tmp_path: Path) -> None:
    with hold(work, tmp_path) as held:
        key = held.path.parent
        key.rename(tmp_path / "aside")
        shutil.copytree(tmp_path / "aside", key)
        (held.path / "model" / "weights").write_bytes(b"another")
        assert (held.folder / "model" / "weights").read_bytes() == b"weights"
        held.check_unchanged()


@pytest.mark.parametrize("name", ["model/more", "more", "model/.hidden", ".model.0123456789ab.part"])
def test_an_extra_file_is_refused(name: str, work: attempts.Finished, tmp_path: Path) -> None:
    (Path(work.uri) / name).touch()
    message = f"work .*: {name} is not in the manifest; remove it and run again"
    with pytest.raises(InputError, match=message), hold(work, tmp_path):
        pass


def test_names_that_are_no_text_are_shown_in_one_line(work: attempts.Finished, tmp_path: Path) -> None:
    for name in (b"two\nlines", b"\xff"):
        path = os.path.join(os.fsencode(work.uri), name)
        Path(os.fsdecode(path)).touch()
        message = r"'(two\\nlines|\\udcff)' is not in the manifest"
        with pytest.raises(InputError, match=message) as error, hold(work, tmp_path):
            pass
        assert "\n" not in str(error.value)
        os.unlink(path)


def test_a_sign_of_life_that_stayed_is_no_extra_file(work: attempts.Finished, tmp_path: Path) -> None:
    (Path(work.uri) / attempts.ALIVE).touch()
    with hold(work, tmp_path) as held:
        held.check_unchanged()
