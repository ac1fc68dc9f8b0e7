"""What the tests of pull, promote, rollback and gc share."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from qlora_pipelines.components.core.config.steps import RegisterConfig
from qlora_pipelines.components.core.registry import integrity
from qlora_pipelines.components.core.store import attempts
from qlora_pipelines.components.register_model import task
from qlora_pipelines.pipelines.cli.main import main
from tests.conftest import Merged

Make = Callable[[str, str], Merged]


def qlora(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    """The one line with which a command refuses."""
    result = qlora(*arguments)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.output, result.output
    return lines[0].removeprefix("error: ")


def register(make: Make, store: str, key: str, **others: Any) -> tuple[str, task.Result]:
    uri, _ = make(store, key)
    given = {"merged_digest": integrity.digest(attempts.read(uri))}
    given |= {"evidence": {"training_key": f"training-{key}", "data_digest": f"data-{key}"}} | others
    return uri, task.run(RegisterConfig(model_name="tickets"), merged_uri=uri, merge_key=key, **given)


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    private = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    paths = folder / f"{name}.pem", folder / f"{name}.pub"
    paths[0].write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    paths[1].write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return paths


def aged(path: Path, days: float) -> None:
    for each in [path, *path.rglob("*")]:
        os.utime(each, (time.time() - days * 86400,) * 2)
