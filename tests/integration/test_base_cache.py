"""Bases that are kept on a volume: fetched once, by content, and whole."""

import os
import time
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.store import storage


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(base_model.CACHE_VARIABLE, str(tmp_path / "keep"))
    return tmp_path / "keep"


def test_a_base_is_fetched_once_and_anew_when_its_files_change(
    own_store: str, tiny_model: Path, keep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"{own_store}/base"
    storage.upload(tiny_model, uri)
    kept = base_model.fetch(uri, tmp_path / "unused")
    names = sorted(path.name for path in tiny_model.iterdir())
    assert sorted(path.name for path in kept.iterdir()) == names and not (tmp_path / "unused").exists()
    weights = kept / "model.safetensors"
    assert weights.read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    first = weights.stat().st_mtime_ns
    capsys.readouterr()
    assert base_model.fetch(uri, tmp_path) == kept and weights.stat().st_mtime_ns == first
    assert f"{len(names)} of {len(names)} files were kept" in capsys.readouterr().out
    weights.write_bytes(b"torn")
    base_model.fetch(uri, tmp_path)
    assert weights.read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    storage.write_bytes(f"{uri}/config.json", (tiny_model / "config.json").read_bytes() + b"\n")
    assert base_model.fetch(uri, tmp_path) != kept


def test_parts_that_nobody_writes_to_any_more_go(own_store: str, tiny_model: Path, keep: Path, tmp_path: Path) -> None:
    uri = f"{own_store}/base"
    storage.upload(tiny_model, uri)
    kept = base_model.fetch(uri, tmp_path)
    for name, age in (("old", 90_000), ("new", 60)):
        (kept / f".{name}.part").write_bytes(b"half")
        os.utime(kept / f".{name}.part", (time.time() - age,) * 2)
    base_model.fetch(uri, tmp_path)
    assert {path.name for path in kept.glob(".*")} == {".new.part"}


def test_a_volume_that_cannot_be_written_is_one_line(own_store: str, tiny_model: Path, keep: Path) -> None:
    storage.upload(tiny_model, f"{own_store}/base")
    keep.write_text("a file where the folder should be")
    with pytest.raises(InputError, match=f"QLORA_BASE_CACHE {keep}: "):
        base_model.fetch(f"{own_store}/base", keep)
