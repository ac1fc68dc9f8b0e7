"""A step's log, as text for people and as JSON for programs."""

import json
from pathlib import Path

import pytest

from qlora_pipelines.components.core import runtime
from qlora_pipelines.components.core.errors import InputError


def write_log() -> None:
    with runtime.step("a_step"):
        progress = runtime.Progress("scoring", 4)
        progress.at(1)  # too soon after the start
        progress.every = 0
        progress.at(2, "loss 0.5")
        progress.at(4)
        runtime.log("the base is gated", "warning")
        raise InputError("no such file")


@pytest.fixture(autouse=True)
def _own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.STEP_VARIABLE, "")
    monkeypatch.setattr(runtime, "_current", "qlora")


def test_people_read_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        write_log()
    assert capsys.readouterr().out.splitlines() == [
        "[a_step] scoring: 2/4, loss 0.5, 0 s left",
        "[a_step] scoring: 4/4 in 0 s",
        "[a_step] warning: the base is gated",
        "[a_step] error: no such file",
    ]


def test_programs_read_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(runtime.FORMAT_VARIABLE, "json")
    with pytest.raises(SystemExit):
        write_log()
    first, *_, warning, error = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first == {
        "step": "a_step", "level": "info", "message": "scoring: 2/4, loss 0.5, 0 s left",
        "what": "scoring", "done": 2, "total": 4, "note": "loss 0.5", "seconds_left": 0.0,
    }  # fmt: skip
    assert warning == {"step": "a_step", "level": "warning", "message": "the base is gated"}
    assert error == {"step": "a_step", "level": "error", "message": "no such file"}
    assert runtime.parse(json.dumps(error)) == error
    assert runtime.ERROR_MARK in runtime.as_text(error) and runtime.ERROR_MARK not in runtime.as_text(warning)


@pytest.mark.parametrize("text", ["", "loading", '{"step": "a_step", "lev{"step": ', '{"loss": 1}'])
def test_what_something_else_wrote_is_no_line(text: str) -> None:
    assert runtime.parse(text) is None


def test_an_error_that_is_not_the_users_leaves_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), runtime.step("a_step"):
        raise ZeroDivisionError
    said = capsys.readouterr()
    assert said.out == "[a_step] error: ZeroDivisionError\n" and "Traceback" in said.err


def test_a_disk_without_room_is_explained() -> None:
    assert runtime.explain(OSError(28, "No space left on device", "/data")) == (
        "/data: No space left on device; give another place, or make room and rights there"
    )
    assert runtime.explain(FileNotFoundError(2, "No such file or directory")) == ""


def test_in_a_pod_the_reason_is_the_containers_termination_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "termination-log"
    monkeypatch.setattr(runtime, "TERMINATION_LOG", file)
    with pytest.raises(SystemExit), runtime.step("a_step"):
        raise InputError("outside a pod")
    assert not file.exists()
    file.touch()
    with runtime.step("a_step"):
        pass
    assert file.read_text() == ""
    with pytest.raises(SystemExit), runtime.step("a_step"):
        raise InputError("no such bucket " + "ü" * 2000)
    assert file.read_text().startswith("no such bucket ü") and file.stat().st_size <= 4096
