"""The merged model is loaded and served as its base was: all its files are there, and it stops."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.components.dequantize_and_merge.conftest import Merge, config_of, save_adapter

QUESTION = [{"role": "user", "content": "the cat sat on two"}]


def change(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])


def test_a_processor_and_named_templates_are_there_and_load(base: Path, adapter: Path, merge: Merge) -> None:
    from transformers import AutoTokenizer

    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools[0].name }}")
    change(
        base / "preprocessor_config.json", image_processor_type="SiglipImageProcessor", size={"height": 28, "width": 28}
    )
    change(base / "pytorch_model.bin.index.json", weight_map={})
    merged = merge(base, adapter)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json"):
        assert (merged / name).read_bytes() == (base / name).read_bytes()
    assert not (merged / "pytorch_model.bin.index.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(str(merged))
    assert set(tokenizer.chat_template) == {"default", "tool_use"}
    assert tokenizer.apply_chat_template(QUESTION, tools=[{"name": "a tool"}], tokenize=False) == "a tool"


def test_code_of_its_own_is_there_or_not_named(base: Path, adapter: Path, merge: Merge) -> None:
    from transformers import AutoConfig

    change(base / "config.json", auto_map={"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "gone.MyModel"})
    (base / "mine.py").write_text(
        "from transformers import LlamaConfig\n\nclass MyConfig(LlamaConfig):\n    mine = 1\n"
    )
    merged = merge(base, adapter)
    assert config_of(merged)["auto_map"] == {"AutoConfig": "mine.MyConfig"}
    # As whoever serves it would: only there is the code run.
    assert AutoConfig.from_pretrained(str(merged), trust_remote_code=True).mine == 1


def test_a_base_without_architectures_gets_them(base: Path, adapter: Path, merge: Merge) -> None:
    change(base / "config.json", architectures=None)
    assert config_of(merge(base, adapter))["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("stated", ["config.json", "nowhere", "an empty generation_config.json"])
def test_what_is_served_stops_at_the_end_of_a_turn(stated: str, base: Path, adapter: Path, merge: Merge) -> None:
    """In transformers, and in the pipeline that MLflow makes of it: with an end of text that is another token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    change(base / "tokenizer_config.json", eos_token="<|endoftext|>")
    change(base / "config.json", eos_token_id=2 if stated == "config.json" else None)
    (base / "generation_config.json").unlink(missing_ok=True)
    if stated.startswith("an empty"):
        change(base / "generation_config.json", do_sample=False)
    merged = merge(base, adapter)
    assert json.loads((merged / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    tokenizer, model = AutoTokenizer.from_pretrained(str(merged)), AutoModelForCausalLM.from_pretrained(str(merged))

    def end_of_turn(ids: Any, scores: Any) -> Any:
        """A model that says nothing else."""
        scores[:] = -100.0
        scores[:, 2] = 0.0
        return scores

    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    encoded = tokenizer(prompt, return_tensors="pt")
    wanted = [*encoded["input_ids"][0].tolist(), 2]
    options = {"max_new_tokens": 8, "logits_processor": [end_of_turn]}
    assert model.generate(**encoded, **options)[0].tolist() == wanted
    served = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert served(prompt, return_tensors=True, **options)[0]["generated_token_ids"] == wanted
