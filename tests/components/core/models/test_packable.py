"""`packing: auto` is decided by config.json alone."""

import json
from pathlib import Path

import pytest

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.models import packable
from qlora_pipelines.components.core.store import keys


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "llama"}, ""),
        ({"model_type": "gemma3", "text_config": {"layer_types": ["sliding_attention", "full_attention"]}}, ""),
        ({"model_type": "qwen3_next"}, "qwen3_next is not among the types that were tried packed"),
        ({"model_type": "llama", "layer_types": ["linear_attention"]}, "it has layers of linear_attention"),
        ({"model_type": "gemma3", "text_config": {"attn_logit_softcapping": 50.0}}, "it caps its attention's scores"),
        ({"model_type": "internvl", "text_config": {"model_type": "qwen3"}}, ""),
        ({"model_type": "qwen2_vl", "text_config": {"model_type": "qwen2_vl_text"}}, ""),
        (
            {"model_type": "internvl", "text_config": {"model_type": "gpt_oss"}},
            "gpt_oss in it is not among the types that were tried packed",
        ),
        ({}, "None is not among the types that were tried packed"),
    ],
)
def test_why_conversations_go_alone(config: dict[str, object], why: str) -> None:
    assert packable.why_alone(config) == why


def test_auto_has_the_key_of_what_it_means(tmp_path: Path) -> None:
    def key(packing: object, kind: str) -> str:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        options = {"train_qlora": {"packing": packing}}
        run = RunConfig(base_model="base", dataset_uri="data", model_name="model", options=options)
        run = packable.resolved(run, tmp_path)
        return keys.of_run(run, base_revision="", data_digest="", tokenizer_digest="").training_key

    assert key("auto", "llama") == key(True, "llama") != key(False, "llama")
    assert key("auto", "qwen3_next") == key(False, "qwen3_next")


def test_what_was_chosen_stays(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert packable.decided(TrainConfig(packing=False), tmp_path).packing is False
    assert packable.decided(TrainConfig(), tmp_path).packing is True
