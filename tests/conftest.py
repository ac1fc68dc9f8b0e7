"""What tests share: a tiny model made here, a store and an MLflow of the test's own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_pipelines.components.core.runtime import quiet_libraries

quiet_libraries()

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


LONG = ("test_runner", "test_docs", "test_on_this_machine", "test_several_processes", "test_main")
"""Modules that start whole runs, or several processes: first, or all but one worker wait for them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of two layers in bfloat16, with a tokenizer that chats."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(
        ["the cat sat on the mat", "one two three four five", "assistant user system"], trainer
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,  # the tied head is frozen: with small embeddings no answer could become likely
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def conversation(question: str, answer: str) -> dict[str, object]:
    """A row of one question and one answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    """Writes rows, one a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


Merged = tuple[str, str]
"""Address and key of a merged model."""


@pytest.fixture
def make_merged(tiny_model: Path) -> Callable[[str, str], Merged]:
    """Makes a merged model in a store under a key, as dequantize_and_merge does: the tiny model itself."""
    from qlora_pipelines.components.core.store import attempts

    def make(store: str, key: str) -> Merged:
        with attempts.attempt(f"{store}/merged/{key}") as attempt:
            shutil.copytree(tiny_model, attempt.folder / "model")
            return attempt.commit({"merge_key": key, "training_key": f"training-{key}"}).uri, key

    return make


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, with store and MLflow in it and named by the environment."""
    monkeypatch.setenv("QLORA_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path
