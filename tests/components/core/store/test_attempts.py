import json
import os
import time
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


def test_files_are_streamed_to_their_place_and_named_in_the_manifest(tmp_path: Path) -> None:
    key = str(tmp_path / "key")
    with attempts.attempt(key) as attempt:
        attempt.write("model/weights", b"hello")
        (attempt.folder / "note").write_text("in the folder")
        assert attempts.find(key) is None
        done = attempt.commit({"note": "n"})
    assert attempts.find(key) == done
    assert done.files["model/weights"]["sha256"].startswith("2cf24dba5fb0a30e26e83b2ac5b9e29e")
    assert sorted(path.name for path in Path(done.uri).iterdir()) == ["manifest.json", "model", "note"]
    assert done.files.keys() == {"model/weights", "note"}


def test_a_file_that_is_cut_short_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), attempts.attempt(str(tmp_path / "key")) as attempt:
        attempt.write("whole", b"hello")
        with attempt.open("half") as writer:
            writer.write(b"he")
            raise RuntimeError
    assert list((tmp_path / "key").iterdir()) == []


def test_an_attempt_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    with attempts.attempt(str(tmp_path / "key")) as attempt:
        attempt.write("whole", b"hello")
    assert list((tmp_path / "key").iterdir()) == []


def killed(key: Path, seconds_ago: float) -> Path:
    """What an attempt leaves that was killed so long ago."""
    folder = key / "20200101T000000-dead"
    folder.mkdir(parents=True)
    for path in (folder / "weights", folder / attempts.ALIVE):
        path.write_text("half")
        os.utime(path, (time.time() - seconds_ago,) * 2)
    return folder


def test_what_a_dead_attempt_left_is_removed_and_a_living_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "BEAT", 0.05)
    monkeypatch.setattr(attempts, "DEAD_AFTER", 0.5)
    key = tmp_path / "key"
    dead = killed(key, 3600)
    living = attempts.Attempt(str(key))
    living.write("weights", b"mine")
    time.sleep(0.7)
    with attempts.attempt(str(key)) as attempt:
        assert not dead.exists()
        done = attempt.commit({})
    assert (Path(living.uri) / "weights").read_bytes() == b"mine"
    assert attempts.find(str(key)) == done
    living.commit({})
    assert len(list(key.iterdir())) == 2


def test_one_that_was_killed_a_moment_ago_is_removed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "BEAT", 0.05)
    monkeypatch.setattr(attempts, "DEAD_AFTER", 0.3)
    moment_ago = killed(tmp_path / "key", 0)
    with attempts.attempt(str(tmp_path / "key"), wait=True) as attempt:
        assert moment_ago.exists()
        attempt.commit({})
    assert not moment_ago.exists()


def test_dead_attempts_next_to_finished_work_are_cleared_and_leave_no_trace(tmp_path: Path) -> None:
    done = finish(tmp_path / "key", "hello")
    dead = killed(tmp_path / "key", 50)
    attempts.clear(str(tmp_path / "key"))
    assert dead.exists(), "it may be alive"
    for path in dead.iterdir():
        os.utime(path, (time.time() - 90,) * 2)
    attempts.clear(str(tmp_path / "key"))
    assert [path.name for path in (tmp_path / "key").iterdir()] == [Path(done.uri).name]


def test_only_work_that_says_what_is_wanted_is_found(tmp_path: Path) -> None:
    done = finish(tmp_path / "key", "original")
    assert attempts.find(str(tmp_path / "key"), note="dequantized") is None
    assert attempts.find(str(tmp_path / "key"), note="original") == done


@pytest.mark.parametrize("content", ["hallo", "hello!", "hell", None], ids=str)
def test_a_file_that_is_not_the_one_of_the_manifest_is_named(content: str | None, tmp_path: Path) -> None:
    done = finish(tmp_path / "key", "hello")
    attempts.check_files(done.uri, done.files, "work", "do it again")
    weights = Path(done.uri, "weights")
    weights.unlink() if content is None else weights.write_text(content)
    why = "is not the file that its manifest lists" if content == "hallo" else "is gone or not whole"
    with pytest.raises(InputError, match=f"work: weights {why}; do it again"):
        attempts.check_files(done.uri, done.files, "work", "do it again")


@pytest.mark.parametrize("content", ["", '{"info": {}}', "[]", '{"info": 1, "files": {}}'], ids=repr)
def test_a_damaged_manifest_is_one_line(content: str, tmp_path: Path) -> None:
    done = finish(tmp_path / "key", "hello")
    Path(done.uri, attempts.MANIFEST).write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json is damaged; remove its folder"):
        attempts.find(str(tmp_path / "key"))
