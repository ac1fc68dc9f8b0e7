"""What the tests of registered models share."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from qlora_pipelines.components.core.config.steps import RegisterConfig
from qlora_pipelines.components.core.registry import integrity, mlflow_client
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.register_model import task
from qlora_pipelines.pipelines.cli.main import main
from tests.conftest import Merged
from tests.integration.servers import Proxy

Make = Callable[[str, str], Merged]
MakeProxy = Callable[[str], Proxy]


QLORA = str(Path(sys.executable).parent / "qlora")


def qlora(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def register(name: str, merged: Merged, **others: Any) -> task.Result:
    uri, key = merged
    given = {"merged_digest": integrity.digest(attempts.read(uri))}
    given |= {"evidence": {"training_key": f"t-{key}", "data_digest": f"d-{key}", "loss": "0.5"}} | others
    return task.run(RegisterConfig(model_name=name), merged_uri=uri, merge_key=key, **given)


def aliases(name: str) -> dict[str, str]:
    return {alias: str(to) for alias, to in mlflow_client.connect().get_registered_model(name).aliases.items()}


def versions(name: str) -> list[Any]:
    return list(mlflow_client.connect().search_model_versions(f"name = '{name}'"))


def plant(private_key: Path) -> dict[str, str]:
    """Secrets that a run has in its environment, and that nothing it writes may show."""
    return {
        "AWS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
        "MLFLOW_TRACKING_PASSWORD": os.environ["MLFLOW_TRACKING_PASSWORD"],
        "HF_TOKEN": "hf_planted_token",
        "QLORA_SIGNING_KEY": private_key.read_text().splitlines()[1],
    }


def check_hidden(planted: dict[str, str], name: str, folders: list[Path], stores: list[str], said: str) -> int:
    """Looks for planted secrets in files, objects, the version and its run; returns how many texts it read."""
    client = mlflow_client.connect()
    version = versions(name)[0]
    texts = [said, str(version), str(client.get_registered_model(name))]
    texts += [str(client.get_run(version.run_id).to_dictionary())] if version.run_id else []
    texts += [file.read_bytes().decode("latin-1") for each in folders for file in each.rglob("*") if file.is_file()]
    texts += [storage.read_bytes(f"{uri}/{path}").decode("latin-1") for uri in stores for path in storage.sizes(uri)]
    for what, secret in planted.items():
        assert len(secret) > 10 and not any(secret in text for text in texts), what
    return len(texts)


STRANGER = """
import sys, mlflow
pipeline = mlflow.transformers.load_model(sys.argv[1])
print(pipeline([{"role": "user", "content": "the cat sat on mat"}], max_new_tokens=4)[0]["generated_text"][-1]["role"])
assert "qlora_pipelines.components.core" not in sys.modules
"""
