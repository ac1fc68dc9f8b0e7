import os
import time
from pathlib import Path

import pytest

from qlora_pipelines.components.core.store import attempts, streamed_attempts


def test_files_and_their_hashes_are_in_the_manifest(tmp_path: Path) -> None:
    key = str(tmp_path / "key")
    with streamed_attempts.attempt(key) as attempt:
        attempt.write("model/weights", b"hello")
        assert attempts.find(key) is None
        done = attempt.commit({"note": "n"})
    assert attempts.find(key) == done
    assert done.files["model/weights"]["sha256"].startswith("2cf24dba5fb0a30e26e83b2ac5b9e29e")
    assert sorted(path.name for path in Path(done.uri).iterdir()) == ["manifest.json", "model"]


def test_work_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), streamed_attempts.attempt(str(tmp_path / "key")) as attempt:
        attempt.write("whole", b"hello")
        with attempt.open("half") as writer:
            writer.write(b"he")
            raise RuntimeError
    assert list((tmp_path / "key").iterdir()) == []


def test_work_that_is_committed_stays_whatever_comes_after(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), streamed_attempts.attempt(str(tmp_path / "key")) as attempt:
        attempt.write("weights", b"hello")
        done = attempt.commit({})
        raise RuntimeError
    assert attempts.find(str(tmp_path / "key")) == done


def test_what_a_dead_attempt_left_is_removed_and_a_living_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_attempts, "BEAT", 0.05)
    monkeypatch.setattr(streamed_attempts, "DEAD_AFTER", 0.5)
    key = tmp_path / "key"
    dead = key / "20200101T000000-dead"
    dead.mkdir(parents=True)
    (dead / "weights").write_text("half")
    (dead / streamed_attempts.ALIVE).touch()
    hour_ago = time.time() - 3600
    os.utime(dead / streamed_attempts.ALIVE, (hour_ago, hour_ago))
    living = streamed_attempts.StreamedAttempt(str(key))
    living.write("weights", b"mine")
    with streamed_attempts.attempt(str(key)) as attempt:
        assert not dead.exists()
        done = attempt.commit({})
    assert (Path(living.uri) / "weights").read_bytes() == b"mine"
    assert attempts.find(str(key)) == done
    living.commit({})
    assert len(list(key.iterdir())) == 2


def test_one_that_was_killed_a_moment_ago_is_removed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_attempts, "BEAT", 0.05)
    monkeypatch.setattr(streamed_attempts, "DEAD_AFTER", 0.3)
    killed = tmp_path / "key" / "20200101T000000-dead"
    killed.mkdir(parents=True)
    (killed / streamed_attempts.ALIVE).touch()
    with streamed_attempts.attempt(str(tmp_path / "key")) as attempt:
        assert killed.exists()
        attempt.commit({})
    assert not killed.exists()


def test_only_work_that_says_what_is_wanted_is_found(tmp_path: Path) -> None:
    key = str(tmp_path / "key")
    with streamed_attempts.attempt(key) as attempt:
        attempt.commit({"merge_base": "original"})
    assert attempts.find(key, merge_base="dequantized") is None
    assert attempts.find(key, merge_base="original") is not None
