"""A step's outputs kept and found again: whole, or the work is done again and the log says why."""

import json
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import attempts, connections, outputs, storage


def written(folder: Path) -> dict[str, str]:
    """A step's outputs: a page, an empty file, and a folder with a folder in it."""
    (folder / "scores" / "more").mkdir(parents=True)
    (folder / "report").write_text("<h1>Passed</h1>")
    (folder / "rejected").write_text("")
    (folder / "scores" / "a.parquet").write_bytes(b"a")
    (folder / "scores" / "more" / "b.jsonl").write_bytes(b"b")
    return {name: str(folder / name) for name in ("report", "rejected", "scores")}


def elsewhere(folder: Path) -> dict[str, str]:
    """Where another run wants them; nothing is there yet."""
    return {name: str(folder / f"out-{name}") for name in ("report", "rejected", "scores")}


def content(paths: dict[str, str]) -> dict[str, bytes]:
    found = {}
    for name, path in paths.items():
        files = sorted(Path(path).rglob("*")) if Path(path).is_dir() else [Path(path)]
        found |= {f"{name}/{file.relative_to(path)}": file.read_bytes() for file in files if file.is_file()}
    return found


@pytest.fixture(params=["disk", "bucket"])
def key_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "store" / "key")
    return f"{request.getfixturevalue('bucket')}/store/key"


def test_outputs_are_copied_out_as_they_were(key_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, wanted = written(tmp_path), elsewhere(tmp_path)
    assert outputs.restore(key_uri, wanted, ["passed"]) is None and not capsys.readouterr().out
    outputs.keep(key_uri, made, {"passed": True})
    assert outputs.restore(key_uri, wanted, ["passed"]) == {"passed": True} and content(wanted) == content(made)
    assert f"finished already: {key_uri}/" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["altered", "gone", "manifest", "others", "results"])
def test_damaged_work_is_passed_over_and_leaves_nothing(
    damage: str, key_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, wanted = written(tmp_path), elsewhere(tmp_path)
    outputs.keep(key_uri, made, {"passed": True})
    work = attempts.find(key_uri)
    assert work
    if damage == "altered":
        storage.write_bytes(f"{work.uri}/scores/a.parquet", b"b")
    elif damage == "gone":
        storage.delete(f"{work.uri}/scores/more/b.jsonl")
    elif damage == "manifest":
        storage.write_bytes(f"{work.uri}/manifest.json", b"{")
    elif damage == "others":
        attempts.finish(work.uri, work.info, {"report": work.files["report"]})
    else:
        attempts.finish(work.uri, {"failed": False}, work.files)
    assert outputs.restore(key_uri, wanted, ["passed"]) is None
    said = capsys.readouterr().out
    assert "warning: finished work is damaged and is done again: " in said and len(said.splitlines()) == 1
    assert not any(Path(path).is_file() or content({"": path}) for path in wanted.values() if Path(path).exists())
    outputs.keep(key_uri, made, {"passed": False})
    assert outputs.restore(key_uri, wanted, ["passed"]) == {"passed": False} and content(wanted) == content(made)


def test_a_name_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    made, wanted = written(tmp_path), elsewhere(tmp_path)
    outputs.keep(str(tmp_path / "key"), made, {})
    work = attempts.find(str(tmp_path / "key"))
    assert work
    manifest = Path(work.uri, "manifest.json")
    manifest.write_text(manifest.read_text().replace("scores/a.parquet", "scores/../../a"))
    assert outputs.restore(str(tmp_path / "key"), wanted, []) is None
    assert json.loads(manifest.read_text()) and not (tmp_path.parent / "a").exists() and not (tmp_path / "a").exists()


def test_a_store_that_cannot_be_written_costs_only_the_next_run_its_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").write_text("a file")
    outputs.keep(str(tmp_path / "store" / "key"), written(tmp_path), {})
    assert "warning: not kept, so the same run does it again: " in capsys.readouterr().out


def test_a_store_that_is_away_is_no_reason_to_do_the_work_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_RETRY", {"max_retries": 0})
    for name, value in {
        "ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(InputError):
        outputs.restore("s3://bucket/key", elsewhere(tmp_path), [])
