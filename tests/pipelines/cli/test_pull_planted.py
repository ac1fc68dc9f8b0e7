"""What others put where a pull writes, and where it finds a folder already: nothing of it is trusted."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import manifest
from qlora_pipelines.components.core.registry.manifest import Manifest
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.pipelines.cli import pull
from tests.pipelines.cli.registered import Make, qlora, refused, register, write_keys

PULL = ("pull", "models:/tickets@champion", "--to")


@pytest.fixture
def version(make_merged: Make, store: str) -> Manifest:
    return manifest.read(register(make_merged, store, "one")[0])


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("mine")
    return path


def cut_short(version: Manifest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pull that ends after its first part; gives the tree that it was filling."""

    def read(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_range", read)
        with pytest.raises(KeyboardInterrupt):
            pull.copy(version, folder)
    (partial,) = folder.parent.glob(f".{folder.name}.*/files")
    return partial


def test_what_was_planted_in_a_folder_that_can_be_guessed_is_left_alone(
    version: Manifest, victim: Path, tmp_path: Path
) -> None:
    guessed = tmp_path / f".here.{version.sha256[:12]}"
    for place in (guessed, guessed / "files"):
        (place / "model").mkdir(parents=True)
        (place / "model" / "modeling_evil.py").write_text("evil")
        (place / "model" / "config.json").symlink_to(victim)
    assert qlora(*PULL, tmp_path / "here").exit_code == 0
    assert tree(tmp_path / "here") == set(version.signed_files)
    assert victim.read_text() == "mine"
    assert not (tmp_path / "here" / "model" / "config.json").is_symlink()


@pytest.mark.parametrize(
    "how",
    [
        "open to all", "a link", "moved there", "no pull's",
        pytest.param(
            "of another user", marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
        ),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_this_users_alone_is_not_taken_up(
    how: str, version: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = cut_short(version, tmp_path / "here", monkeypatch).parent
    (planted / "files" / "model" / "modeling_evil.py").write_text("evil")
    if how == "open to all":
        planted.chmod(0o777)
    elif how == "moved there":
        planted = planted.rename(planted.with_name(planted.name[:-1] + ("0" if planted.name[-1] != "0" else "1")))
    elif how == "no pull's":
        (planted / "parts").unlink()
    elif how == "a link":
        planted.rename(tmp_path / "elsewhere")
        planted.symlink_to(tmp_path / "elsewhere")
    else:
        os.chown(planted, 12345, 12345)
    assert pull.copy(version, tmp_path / "here")
    assert tree(tmp_path / "here") == set(version.signed_files)
    assert (planted / "files" / "model" / "modeling_evil.py").exists(), "it is not ours to remove"


def test_the_folder_is_closed_to_others_and_its_name_cannot_be_guessed(
    version: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    for name in ("one", "two"):
        partial = cut_short(version, tmp_path / name, monkeypatch).parent
        assert partial.stat().st_mode & 0o777 == 0o700
        names.add(partial.name.rpartition(".")[2])
    assert len(names) == 2 and all(len(name) == 32 for name in names)
    old = os.umask(0o027)
    try:
        assert pull.copy(version, tmp_path / "three")
    finally:
        os.umask(old)
    assert (tmp_path / "three").stat().st_mode & 0o777 == 0o750


def link(path: Path, other: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(other)


def hard_link(path: Path, other: Path) -> None:
    path.unlink(missing_ok=True)
    path.hardlink_to(other)


def pipe(path: Path, _: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def linked_folder(path: Path, _: Path) -> None:
    moved = path.parent.parent / "moved"
    path.parent.rename(moved)
    path.parent.symlink_to(moved)


PLANTED: dict[str, tuple[str, Callable[[Path, Path], Any]]] = {
    "symbolic link": ("model/config.json", link),
    "hard link": ("model/config.json", hard_link),
    "pipe": ("model/config.json", pipe),
    "linked folder": ("model/config.json", linked_folder),
    "extra file": ("model/modeling.py", lambda path, _: path.touch()),
    "extra hidden file": (".hidden", lambda path, _: path.touch()),
    "extra link": ("model/more", link),
    "extra folder": ("model/more", lambda path, _: path.mkdir()),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_in_a_pull_that_was_cut_short_is_refused_by_name(
    what: str, version: Manifest, victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, plant = PLANTED[what]
    plant(cut_short(version, tmp_path / "here", monkeypatch) / name, victim)
    message = refused(*PULL, tmp_path / "here")
    expected = "model is a link" if what == "linked folder" else name.rpartition("/")[2]
    assert expected in message and "and pull again" in message
    assert victim.read_text() == "mine" and not (tmp_path / "here").exists()


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_in_a_folder_that_was_pulled_is_refused_by_name(
    what: str, version: Manifest, victim: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    assert pull.copy(version, here)
    name, plant = PLANTED[what]
    if plant in (link, hard_link):  # the right bytes, which somebody else can change
        shutil.copyfile(here / "model" / "config.json", victim)
    plant(here / name, victim)
    message = refused(*PULL, here)
    assert f"here: {name} " in message or (what == "linked folder" and "here: model is a symbolic link" in message)


@pytest.mark.parametrize("to", ["a pulled folder", "nothing"])
def test_a_link_is_not_taken_for_the_folder(to: str, version: Manifest, tmp_path: Path) -> None:
    if to == "a pulled folder":
        pull.copy(version, tmp_path / "pulled")
    (tmp_path / "here").symlink_to(tmp_path / "pulled")
    assert "is there already and is no folder" in refused(*PULL, tmp_path / "here")
    assert list(tmp_path.glob(".here.*")) == []


def test_another_folder_in_the_place_of_the_verified_one_is_found_out(
    version: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def swap(source: str, target: str, **folders: int) -> None:
        rename(source, target, **folders)
        rename(tmp_path / "here", tmp_path / "away")
        shutil.copytree(tmp_path / "away", tmp_path / "here")

    monkeypatch.setattr(os, "rename", swap)
    with pytest.raises(InputError, match="somebody put another folder in the place of the verified one"):
        pull.copy(version, tmp_path / "here")


@pytest.mark.parametrize("with_key", [True, False])
def test_the_signature_that_was_read_is_the_one_that_is_written(
    with_key: bool, make_merged: Make, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_keys(tmp_path, "ours")
    monkeypatch.setenv("QLORA_SIGNING_KEY", str(private))
    uri, _ = register(make_merged, store, "one")
    signature = (Path(uri) / "model.sig").read_bytes()
    real, reads = storage.read_range, []

    def replaced(uri: str, start: int, size: int | None) -> bytes:
        reads.append(uri.endswith("model.sig"))
        return b"another" if sum(reads) > 1 and reads[-1] else real(uri, start, size)

    monkeypatch.setattr(storage, "read_range", replaced)
    result = qlora(*PULL, tmp_path / "here", *(["--public-key", public] if with_key else []))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "here" / "model.sig").read_bytes() == signature


def test_a_pulled_folder_has_the_signature_that_was_checked(
    make_merged: Make, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_keys(tmp_path, "ours")
    monkeypatch.setenv("QLORA_SIGNING_KEY", str(private))
    register(make_merged, store, "one")
    assert qlora(*PULL, tmp_path / "here").exit_code == 0
    assert qlora(*PULL, tmp_path / "here", "--public-key", public).exit_code == 0
    (tmp_path / "here" / "model.sig").write_text("another")
    assert "model.sig was altered" in refused(*PULL, tmp_path / "here", "--public-key", public)
    (tmp_path / "here" / "model.sig").unlink()
    assert "model.sig is gone" in refused(*PULL, tmp_path / "here", "--public-key", public)
