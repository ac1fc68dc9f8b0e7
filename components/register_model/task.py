"""Registers the merged model in MLflow by reference: one version a merge_key and name, then the alias `champion`."""

import json
from importlib.metadata import version
from typing import Any, NamedTuple

import yaml

from components.core import attempts, storage, tracking
from components.core.config import RegisterConfig
from components.core.errors import InputError
from components.core.steps import log

Config = RegisterConfig
KEY_TAG = "qlora.merge_key"
TOKENIZER_FILES = ("tokenizer", "chat_template", "special_tokens", "vocab", "merges", "added_tokens")
REQUIREMENTS = ("mlflow", "transformers", "torch", "accelerate")


class Result(NamedTuple):
    """The version's number, and the URI it is loaded by."""

    model_version: str
    model_uri: str


def run(config: RegisterConfig, *, merged_uri: str, merge_key: str, evidence: dict[str, str]) -> Result:
    """Lays MLflow's files beside the model and creates the version, once.

    Args:
        config: the step's options.
        merged_uri: folder that dequantize_and_merge wrote.
        merge_key: names the merged model; a version with this key is not made again.
        evidence: what the version's tags say of its making.

    Raises:
        InputError: MLflow does not answer, or a file of the model is gone or of another size.
    """
    import mlflow

    client = tracking.client(timeout=60, retries=3)
    finished = attempts.read(merged_uri)
    _check(finished)
    existing = _versions(client, config.model_name, merge_key)
    if not existing:
        _lay_mlmodel(finished)
        try:
            client.create_registered_model(config.model_name)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise InputError(f"MLflow: {error}") from None
        tags = {f"qlora.{name}": value for name, value in sorted(evidence.items())} | {KEY_TAG: merge_key}
        tags["qlora.version"] = version("qlora-pipelines")
        mine = int(client.create_model_version(config.model_name, source=merged_uri, tags=tags).version)
        # Two that registered at once: the lowest version stays, the other takes itself back.
        existing = _versions(client, config.model_name, merge_key)
        if mine != existing[0]:
            client.delete_model_version(config.model_name, str(mine))
    number = str(existing[0])
    _make_champion(client, config.model_name, number)
    log(f"{config.model_name} version {number} is registered, alias champion")
    return Result(number, f"models:/{config.model_name}@champion")


def _check(finished: attempts.Finished) -> None:
    """Checks that every file of the manifest lies there in its size; MLflow would take any address."""
    present = storage.sizes(finished.uri)
    for name, file in finished.files.items():
        if present.get(name) != file["size"]:
            raise InputError(f"merged model {finished.uri}: {name} is gone or not whole; run the merge again")


def _versions(client: Any, name: str, merge_key: str) -> list[int]:
    found = client.search_model_versions(f"name = '{name}' and tags.`{KEY_TAG}` = '{merge_key}'")
    return sorted(int(item.version) for item in found)


def _make_champion(client: Any, name: str, number: str) -> None:
    import mlflow

    try:
        client.set_registered_model_alias(name, "champion", number)
    except mlflow.MlflowException as error:
        # Another that registers the same at the same time may have set it in between: then all is well.
        if tracking.champion(client, name) != number:
            raise InputError(f"MLflow: {error}") from None


def _lay_mlmodel(finished: attempts.Finished) -> None:
    """Writes MLmodel, the tokenizer's copy and the requirements, as `mlflow.transformers.load_model` wants them."""
    config = json.loads(storage.read_bytes(storage.join(finished.uri, "model", "config.json")))
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    for name in finished.files:
        file = name.removeprefix("model/")
        if file.startswith(TOKENIZER_FILES):
            target = storage.join(finished.uri, "components", "tokenizer", file)
            storage.write_bytes(target, storage.read_bytes(storage.join(finished.uri, name)))
    requirements = "".join(f"{name}=={version(name).split('+')[0]}\n" for name in REQUIREMENTS)
    storage.write_bytes(storage.join(finished.uri, "requirements.txt"), requirements.encode())
    mlmodel = {
        "flavors": {
            "transformers": {
                "task": "text-generation",
                "instance_type": "TextGenerationPipeline",
                "framework": "pt",
                "pipeline_model_type": config["architectures"][0],
                "model_binary": "model",
                "components": ["tokenizer"],
                "tokenizer_type": "PreTrainedTokenizerFast",
                "torch_dtype": f"torch.{dtype}",
                "transformers_version": version("transformers"),
                "code": None,
            }
        },
        "mlflow_version": version("mlflow"),
        "model_size_bytes": sum(file["size"] for file in finished.files.values()),
    }
    storage.write_bytes(storage.join(finished.uri, "MLmodel"), yaml.safe_dump(mlmodel, sort_keys=False).encode())
