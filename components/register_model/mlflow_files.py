"""What MLflow wants next to the model: MLmodel, the tokenizer's copy, requirements, an example."""

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import yaml

from qlora_pipelines.components.core.models import model_files
from qlora_pipelines.components.core.registry import integrity

COPIES = "components/tokenizer"
REQUIREMENTS = ("mlflow", "transformers", "torch", "accelerate")
CHAT, COMPLETIONS = "llm/v1/chat", "llm/v1/completions"
"""What is asked of a model: messages, or where it has no chat template the beginning of a text."""
EXAMPLES = {
    CHAT: {"messages": [{"role": "user", "content": "What can you do?"}], "max_tokens": 32},
    COMPLETIONS: {"prompt": "What I can do is", "max_tokens": 32},
}
"""Made up: a row of the data could be private."""


def make(uri: str, files: dict[str, dict[str, Any]], created: int, identity: str) -> dict[str, bytes]:
    """The content of every file by path; the same arguments give the same bytes, so several writers do no harm.

    Args:
        uri: the version's folder, with the model below `model/`.
        files: size and sha256 of the model's files by path; what is read is compared with them.
        created: when the version was created, in milliseconds since 1970.
        identity: names the model, in hexadecimal, at least 32 digits.
    """
    config = json.loads(integrity.read_file(uri, "model/config.json", files))
    made = {copy: integrity.read_file(uri, name, files) for copy, name in tokenizer_copies(files).items()}
    requirements = "".join(f"{name}=={version(name).split('+')[0]}\n" for name in REQUIREMENTS)
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    task = CHAT if _chats(uri, files) else COMPLETIONS
    example = json.dumps(EXAMPLES[task]).encode()
    return made | {
        "MLmodel": _mlmodel(config, sum(file["size"] for file in files.values()), created, identity, task).encode(),
        "requirements.txt": requirements.encode(),
        "python_env.yaml": yaml.safe_dump(environment, sort_keys=False).encode(),
        "input_example.json": example,
        "serving_input_example.json": example,
    }


def tokenizer_copies(files: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Where the tokenizer's files are copied to, and from which of a version's files."""
    names = [name.removeprefix("model/") for name in files if name.startswith("model/")]
    return {f"{COPIES}/{name}": f"model/{name}" for name in names if model_files.is_tokenizer(name)}


def _chats(uri: str, files: dict[str, dict[str, Any]]) -> bool:
    """Whether the tokenizer has a chat template: in a file of its own, or in its config."""
    if any(name.startswith("model/chat_template.") for name in files):
        return True
    name = "model/tokenizer_config.json"
    return name in files and bool(json.loads(integrity.read_file(uri, name, files)).get("chat_template"))


def _mlmodel(config: dict[str, Any], size: int, created: int, identity: str, task: str) -> str:
    """Two flavors: transformers, a text-generation pipeline; pyfunc, which speaks the protocol of `task`."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import llm

    kind = "CHAT" if task == CHAT else "COMPLETIONS"
    inputs, outputs = (getattr(llm, f"{kind}_MODEL_{side}_SCHEMA") for side in ("INPUT", "OUTPUT"))
    model = Model(
        utc_time_created=datetime.fromtimestamp(created / 1000, UTC).replace(tzinfo=None),
        model_uuid=identity[:32],
        model_size_bytes=size,
        signature=ModelSignature(inputs=inputs, outputs=outputs),
        saved_input_example_info={
            "artifact_path": "input_example.json",
            "type": "json_object",
            "serving_input_path": "serving_input_example.json",
        },
        metadata={"task": task},
    )
    model.add_flavor(
        "transformers",
        transformers_version=version("transformers"),
        code=None,
        task="text-generation",
        instance_type="TextGenerationPipeline",
        framework="pt",
        pipeline_model_type=config["architectures"][0],
        model_binary="model",
        components=["tokenizer"],
        tokenizer_type="PreTrainedTokenizerFast",
        torch_dtype=f"torch.{config.get('dtype') or config.get('torch_dtype') or 'bfloat16'}",
        inference_task=task,
    )
    pyfunc.add_to_model(model, loader_module="mlflow.transformers", python_env="python_env.yaml")
    return str(model.to_yaml())
