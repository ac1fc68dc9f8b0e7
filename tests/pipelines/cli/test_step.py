"""`qlora step`: the options that stand for lists, objects and dicts."""

import pytest
from click.testing import CliRunner, Result

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
def test_a_usage_error_names_the_option_and_exits_2(arguments: tuple[str, ...], message: str) -> None:
    result = qlora(*arguments)
    assert result.exit_code == 2 and message in result.output, result.output


def test_help_says_how_values_are_written() -> None:
    assert "--columns JSON" in qlora("prepare_dataset", "--help").output
    assert "--evidence NAME=VALUE" in qlora("register_model", "--help").output
