import json
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import attempts


def finish(key: Path, content: str) -> attempts.Finished:
    with attempts.attempt(str(key)) as attempt:
        (attempt.folder / "weights").write_text(content)
        return attempt.commit({"note": content})


def test_work_is_found_by_its_manifest(tmp_path: Path) -> None:
    assert attempts.find(str(tmp_path / "key")) is None
    done = finish(tmp_path / "key", "hello")
    found = attempts.find(str(tmp_path / "key"))
    assert found == done
    assert found and found.info == {"note": "hello"} and found.files["weights"]["size"] == 5


def test_an_attempt_without_manifest_is_not_there(tmp_path: Path) -> None:
    torn = tmp_path / "key" / "20200101T000000-dead"
    torn.mkdir(parents=True)
    (torn / "weights").write_text("half")
    assert attempts.find(str(tmp_path / "key")) is None
    done = finish(tmp_path / "key", "whole")
    assert attempts.find(str(tmp_path / "key")) == done


def test_two_attempts_do_not_meet(tmp_path: Path) -> None:
    first = finish(tmp_path / "key", "one")
    second = finish(tmp_path / "key", "two")
    assert first.uri != second.uri
    assert (Path(first.uri) / "weights").read_text() == "one"
    assert attempts.find(str(tmp_path / "key")) == min(first, second, key=lambda done: done.uri)


def test_a_failed_attempt_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), attempts.attempt(str(tmp_path / "key")) as attempt:
        (attempt.folder / "weights").write_text("half")
        raise RuntimeError
    assert list((tmp_path / "key").iterdir()) == []


def test_work_that_is_committed_stays_whatever_comes_after(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), attempts.attempt(str(tmp_path / "key")) as attempt:
        (attempt.folder / "weights").write_text("whole")
        done = attempt.commit({})
        raise RuntimeError
    assert attempts.find(str(tmp_path / "key")) == done


def test_work_that_lost_a_file_is_named_and_done_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torn = finish(tmp_path / "key", "one")
    Path(torn.uri, "weights").write_text("o")
    whole = finish(tmp_path / "key", "two")
    assert attempts.find(str(tmp_path / "key")) == whole
    Path(whole.uri, "weights").unlink()
    assert attempts.find(str(tmp_path / "key")) is None
    assert f"{whole.uri} has lost weights: it is no longer taken for finished" in capsys.readouterr().out


def test_reading_what_is_not_whole_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest\.json"):
        attempts.read(str(tmp_path))


def test_the_manifest_names_hashes(tmp_path: Path) -> None:
    done = finish(tmp_path / "key", "hello")
    manifest = json.loads((Path(done.uri) / "manifest.json").read_text())
    assert manifest["files"]["weights"]["sha256"].startswith("2cf24dba5fb0a30e26e83b2ac5b9e29e")


@pytest.mark.parametrize("content", ["", '{"info": {}}', "[]", '{"info": 1, "files": {}}'], ids=repr)
def test_a_damaged_manifest_is_one_line(content: str, tmp_path: Path) -> None:
    done = finish(tmp_path / "key", "hello")
    Path(done.uri, attempts.MANIFEST).write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json is damaged; remove its folder"):
        attempts.find(str(tmp_path / "key"))
