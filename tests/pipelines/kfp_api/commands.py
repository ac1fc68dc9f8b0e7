"""Runs a command, and checks that it prints no secret and that an error is one line."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from qlora_pipelines.pipelines.cli.main import main
from qlora_pipelines.pipelines.docgen.reference import GOLDEN

SECRETS = ("a-secret-token", "authservice_session=a-secret-cookie", "a-secret-cookie")


def qlora(*arguments: str | Path) -> Result:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(main, [given[0], "--pipeline", str(GOLDEN), *given[1:]])
    assert not any(secret in result.output for secret in SECRETS), result.output
    assert ("Traceback" not in result.output and result.exception is None) or isinstance(result.exception, SystemExit)
    return result


def refused(*arguments: str | Path) -> str:
    result = qlora(*arguments)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.output
    return lines[0].removeprefix("error: ")


def submit(config: Path, *arguments: str) -> dict[str, Any]:
    result = qlora("submit", "--config", config, "--json", *arguments)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found | {"exit_code": result.exit_code, "said": result.stderr}
