"""What a merged model has of its base besides weights and configs."""

import json
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model, model_files

HOLDS = [
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "spiece.model", "tekken.json", "qwen.tiktoken", "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "audio_tokenizer_config.json", "generation_config.json", "config.json", "LICENSE",
    "LICENSE.txt", "NOTICE", "USE_POLICY.md", "configuration.json",
]  # fmt: skip
STALE = [
    "pytorch_model.bin", "pytorch_model.bin.index.json", "model.safetensors.index.json", "model.safetensors",
    "consolidated.safetensors", "consolidated.00.pth", "params.json", "model.gguf", "onnx/model.onnx",
    "onnx/config.json",
    "original/params.json", "training_args.bin", "training_args.json", "trainer_state.json", "optimizer.pt",
    "adapter_config.json", "adapter_model.safetensors", "quantize_config.json", "hf_quant_config.json",
    "all_results.json", "manifest.json", "README.md", ".gitattributes", ".cache/x.json", "flax_model.msgpack",
    "tf_model.h5", "convert.py", "openvino_config.json", "additional_chat_templates/README.md", "runs/events.out",
]  # fmt: skip
TOKENIZER = set(HOLDS[:13])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all of these files, each holding its own name."""
    for name in HOLDS + STALE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"name": name}))
    return tmp_path


def test_what_holds_is_carried_and_what_is_stale_is_not(folder: Path) -> None:
    carried = model_files.carried(folder)
    assert set(carried) == set(HOLDS)
    assert all(content == (folder / name).read_bytes() for name, content in carried.items())
    assert {name for name in carried if model_files.is_tokenizer(name)} == TOKENIZER


def test_another_tokenizer_takes_the_place_of_the_base_s(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "tokenizer.json").write_text("{}")
    (other / "processor_config.json").write_text("{}")
    carried = model_files.carried(folder, other)
    assert set(carried) == set(HOLDS) - TOKENIZER | {"tokenizer.json"}
    assert carried["tokenizer.json"] == b"{}" and carried["processor_config.json"] != b"{}"


def test_named_templates_are_the_tokenizer_s(folder: Path) -> None:
    """Its digest, and what later steps load it from."""
    before = base_model.tokenizer_digest(folder)
    assert "additional_chat_templates/tool_use.jinja" in base_model.tokenizer_files(folder)
    (folder / "additional_chat_templates/tool_use.jinja").write_text("other")
    assert base_model.tokenizer_digest(folder) != before
    copy = folder / "copy"
    copy.mkdir()
    model_files.copy_tokenizer(folder, copy)
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*.*")} == TOKENIZER


@pytest.mark.parametrize(
    ("entries", "kept", "code"),
    [
        ({"AutoConfig": "mine.C"}, {"AutoConfig": "mine.C"}, {"mine.py", "below.py"}),
        ({"AutoConfig": "gone.C", "AutoModel": "below.M"}, {"AutoModel": "below.M"}, {"below.py"}),
        ({"AutoModel": "broken.M"}, {}, set()),
        ({"AutoModel": "other/repository--below.M"}, {}, set()),
        ({"AutoTokenizer": ["below.Slow", None]}, {"AutoTokenizer": ["below.Slow", None]}, {"below.py"}),
        ({"AutoTokenizer": ["below.Slow", "gone.Fast"]}, {}, set()),
        ({"AutoTokenizer": [None, None]}, {}, set()),
        (["below.Slow", None], {"AutoTokenizer": ["below.Slow", None]}, {"below.py"}),
    ],
)
def test_code_is_carried_whole_or_not_named(
    entries: dict[str, object], kept: dict[str, object], code: set[str], tmp_path: Path
) -> None:
    for name, imported in (("mine", "from .below import M"), ("below", "import os"), ("broken", "from .gone import X")):
        (tmp_path / f"{name}.py").write_text(imported)
    for name in ("config", "tokenizer_config", "processor_config"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"auto_map": entries, "a": 1}))
    carried = model_files.carried(tmp_path)
    assert {name for name in carried if name.endswith(".py")} == code
    for name in ("config", "tokenizer_config", "processor_config"):
        found = json.loads(carried[f"{name}.json"])
        assert found == ({"auto_map": kept} if kept else {}) | {"a": 1}
    if entries == kept:
        assert carried["config.json"] == (tmp_path / "config.json").read_bytes()


def test_a_torn_file_is_named(folder: Path) -> None:
    (folder / "processor_config.json").write_text('{"auto_map": ')
    with pytest.raises(InputError, match=r"processor_config\.json: not JSON"):
        model_files.carried(folder)
