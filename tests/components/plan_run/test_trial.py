"""A step on a small model of the base's own kind, in the shapes that transformers' classes have by default."""

from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.models import loading, packable, packed_attention
from qlora_pipelines.components.plan_run import small_model, trial


def tried(kind: str, folder: Path, **options: object) -> trial.Trial:
    """What the trial says of an architecture at its full size."""
    CONFIG_MAPPING[kind]().save_pretrained(folder)
    train = packable.decided(TrainConfig(**options), folder)
    return trial.run(folder, loading.empty_model(folder), train)


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3", "zamba2"])
def test_what_trains_has_no_problem(kind: str, tmp_path: Path) -> None:
    assert tried(kind, tmp_path) == trial.Trial()


def test_layers_that_no_gradient_reaches_are_named(tmp_path: Path) -> None:
    found = tried("deepseek_v32", tmp_path, target_modules="o_proj,indexer.wk")
    assert found.problem.startswith("no gradient reaches ") and "indexer.wk" in found.problem


@pytest.mark.parametrize("kind", ["bert-generation", "paligemma"])
def test_what_sees_the_tokens_that_follow_is_refused(kind: str, tmp_path: Path) -> None:
    assert tried(kind, tmp_path).problem.startswith("what it says of a token changes with the tokens after it")


def test_what_wants_an_image_is_refused(tmp_path: Path) -> None:
    assert tried("blip", tmp_path).problem.startswith("it does not take text alone (")


def test_conversations_that_would_mix_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "its layers are linear_attention; leave packing at auto" in tried("mamba2", tmp_path, packing=True).problem
    monkeypatch.setattr(packed_attention, "unsupported", lambda _: "")  # as if nobody had known
    found = tried("mamba2", tmp_path, packing=True)
    assert found.problem.startswith("packed conversations would mix") and "leave packing at auto" in found.problem


def test_what_the_models_own_code_raises_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    def broken(*_: object, **__: object) -> None:
        raise AttributeError("no such state")

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", broken)
    said = "AttributeError: no such state; where that is no fault of the options, give another base"
    assert tried("llama", tmp_path).problem == said


def test_layers_that_the_small_model_has_not_are_not_tried(tmp_path: Path) -> None:
    found = tried("llama", tmp_path, target_modules="layers.31.self_attn.q_proj")
    assert not found.problem and "matches no linear layer" in found.untried


def test_what_cannot_be_made_small_is_said_and_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "LARGEST", 1000)
    found = tried("llama", tmp_path)
    assert not found.problem and "too many to try" in found.untried


@pytest.mark.parametrize(("kind", "layers"), [("llama", 2), ("qwen3_next", 4), ("gemma3_text", 6), ("deepseek_v3", 4)])
def test_there_is_one_layer_of_each_kind(kind: str, layers: int) -> None:
    config = CONFIG_MAPPING[kind]()
    with torch.device("meta"):
        small = small_model.smaller(config, loading.auto_class(config).from_config(config))
    assert small.num_hidden_layers == layers
    assert small.head_dim == config.head_dim and small.hidden_size < config.hidden_size
