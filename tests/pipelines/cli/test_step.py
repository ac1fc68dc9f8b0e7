"""`qlora step`: the options that stand for lists, objects and dicts, and values in base64."""

import base64
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qlora_pipelines.components.core import runtime
from qlora_pipelines.pipelines.cli.main import main


def qlora(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["step", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare_dataset", "--columns", "{"), "'--columns': not JSON: "),
        (("register_model", "--evidence", "loss"), "'--evidence': not NAME=VALUE: 'loss'"),
        (("register_model", "--evidence", "loss=1=2"), "Missing option '--merged-uri'"),
    ],
)
def test_a_usage_error_names_the_option_and_exits_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pod it is also the container's termination message."""
    (tmp_path / "termination-log").touch()
    monkeypatch.setattr(runtime, "TERMINATION_LOG", tmp_path / "termination-log")
    result = qlora(*arguments)
    assert result.exit_code == 2 and message in result.output, result.output
    assert message in (tmp_path / "termination-log").read_text()


def test_help_says_how_values_are_written() -> None:
    assert "--columns JSON" in qlora("prepare_dataset", "--help").output
    assert "--evidence NAME=VALUE" in qlora("register_model", "--help").output


def test_values_after_base64_are_decoded() -> None:
    text = 'a "b" {{c}} $(D) ü=\n'
    value = base64.b64encode(text.encode()).decode()
    result = qlora("prepare_dataset", "--base64", f"--columns={value}")
    assert "'--columns': not JSON: " in result.output
    evidence = base64.b64encode(b"loss").decode()
    assert (
        "'--evidence': not NAME=VALUE: 'loss'" in qlora("register_model", "--base64", f"--evidence={evidence}").output
    )
    assert "'--columns': not JSON: " in qlora("prepare_dataset", "--columns={", "--base64").output


@pytest.mark.parametrize("value", ["hf_secret", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "refused"])
def test_what_is_not_base64_is_refused_and_not_shown(value: str) -> None:
    result = qlora("plan_run", "--base64", f"--model-name={value}")
    assert result.exit_code == 2 and "--model-name: not base64 of UTF-8 text" in result.output
    assert value not in result.output
