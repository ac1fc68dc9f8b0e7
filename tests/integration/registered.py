"""What the tests of registered models share."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from components.core import tracking
from components.core.config import RegisterConfig
from components.register_model import task
from pipelines.cli import main
from tests.conftest import Merged
from tests.integration.servers import Proxy

Make = Callable[[str, str], Merged]
MakeProxy = Callable[[str], Proxy]


QLORA = str(Path(sys.executable).parent / "qlora")


def qlora(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def register(name: str, merged: Merged, **others: Any) -> task.Result:
    uri, key = merged
    given = {"evidence": {"training_key": f"t-{key}", "data_digest": f"d-{key}", "loss": "0.5"}} | others
    return task.run(RegisterConfig(model_name=name), merged_uri=uri, merge_key=key, **given)


def aliases(name: str) -> dict[str, str]:
    return {alias: str(to) for alias, to in tracking.client().get_registered_model(name).aliases.items()}


def versions(name: str) -> list[Any]:
    return list(tracking.client().search_model_versions(f"name = '{name}'"))


STRANGER = """
import sys, mlflow
pipeline = mlflow.transformers.load_model(sys.argv[1])
print(pipeline([{"role": "user", "content": "the cat sat on mat"}], max_new_tokens=4)[0]["generated_text"][-1]["role"])
assert "components.core" not in sys.modules
"""
