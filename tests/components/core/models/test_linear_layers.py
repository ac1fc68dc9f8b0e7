"""What is linear, adapted and held in 4 bit, on the shapes of real architectures, without weights."""

import re
from collections.abc import Iterable
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import linear_layers, loading, lora
from tests.architectures import tiny


def empty(name: str) -> Any:
    """A tiny model of an architecture on the meta device."""
    import torch

    config = tiny.config(name, {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    with torch.device("meta"):
        return loading.auto_class(config).from_config(config, dtype=torch.bfloat16)


def kinds(names: Iterable[str]) -> set[str]:
    """Names without the numbers of their layers."""
    return {re.sub(r".*layers\.\d+\.", "", name) for name in names}


def adapted(name: str, **options: Any) -> tuple[set[str], Any]:
    """The layers that get an adapter, and peft's config."""
    model = empty(name)
    found = lora.put_on(model, lora.config(TrainConfig(**options), model), low_cpu_mem_usage=True)
    return kinds(lora.adapted_layers(found)), found.active_peft_config


ATTENTION = {f"self_attn.{part}_proj" for part in "qkvo"}


def test_experts_are_no_layers_and_shared_ones_are() -> None:
    """peft would adapt the fused experts for `all-linear`, and drop the layers that have the names of theirs."""
    shared = {f"mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")}
    dense = {f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    found, config = adapted("glm4_moe")
    assert found == ATTENTION | shared | dense
    assert not config.target_parameters
    assert adapted("qwen3_moe")[0] == adapted("mixtral")[0] == ATTENTION


def test_named_targets_stay_what_they_are() -> None:
    found, config = adapted("glm4_moe", target_modules="q_proj,shared_experts.down_proj")
    assert found == {"self_attn.q_proj", "mlp.shared_experts.down_proj"}
    assert not config.target_parameters
    with pytest.raises(InputError, match="gate_proj matches no linear layer"):
        adapted("qwen3_moe", target_modules="gate_proj")


def test_a_router_is_adapted_only_if_named_and_never_in_4_bit() -> None:
    model = empty("qwen2_moe")
    routers = {"mlp.shared_expert_gate"}
    assert kinds(linear_layers.named(model)) - kinds(linear_layers.adapted(model)) == routers
    assert not routers & kinds(linear_layers.quantised(model))
    assert adapted("qwen2_moe", target_modules="shared_expert_gate")[0] == routers


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("phimoe", "mlp.router"),  # a subclass that returns a tuple
        ("llama4_text", "feed_forward.router"),
        ("deepseek_v4", "self_attn.o_a_proj"),  # one that is cut into groups
        ("gemma3n_text", "altup.prediction_coefs"),  # plain ones, whose weights are used directly
        ("mamba", "mixer.x_proj"),
        ("longcat_flash", "mlp.router.classifier"),
        ("deepseek_v32", "self_attn.indexer.wq_b"),  # picks tokens: no gradient comes through
    ],
)
def test_what_is_no_linear_layer_is_left_alone(name: str, odd: str) -> None:
    model = empty(name)
    assert any(own.endswith(odd) for own, _ in model.named_modules())
    assert odd not in kinds(linear_layers.adapted(model)) | kinds(linear_layers.quantised(model))


@pytest.mark.parametrize("name", ["minimax_m3_vl", "molmo2", "hrm_text"])
def test_what_transformers_joins_or_splits_is_left_alone(name: str) -> None:
    """Its shared experts, its MLP, its queries, keys and values: a checkpoint has no tensor to merge into."""
    model = empty(name)
    odd = linear_layers.converted(model)
    assert odd and not odd & {*linear_layers.adapted(model), *linear_layers.quantised(model)}
    assert any(layer.endswith("self_attn.o_proj") for layer in linear_layers.adapted(model))


@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral", "deepseek_v4"])
def test_what_transformers_only_renames_is_not(name: str) -> None:
    assert not linear_layers.converted(empty(name))


def test_rows_that_end_inside_a_block_are_adapted_and_not_in_4_bit() -> None:
    model = empty("doge")  # 32 inputs
    assert "self_attn.dt_proj" in kinds(linear_layers.adapted(model)) - kinds(linear_layers.quantised(model))


def test_where_text_has_no_config_of_its_own_names_tell_what_looks_at_images() -> None:
    model = empty("git")
    assert kinds(linear_layers.not_language(model)) and not linear_layers.not_language(model) & {
        own for own, _ in model.named_parameters() if own.startswith(("git.encoder.", "git.embeddings.", "output."))
    }
    assert all(layer.startswith("git.encoder.") for layer in linear_layers.adapted(model))


def test_a_mamba_gets_adapters_where_peft_and_its_kernels_take_them() -> None:
    assert adapted("mamba")[0] == {"mixer.in_proj"}
    assert adapted("falcon_h1")[0] == ATTENTION | {"mamba.in_proj"} | {
        f"feed_forward.{part}_proj" for part in ("gate", "up", "down")
    }


@pytest.mark.parametrize("name", ["gemma3", "mistral3", "qwen3_5", "llama4"])
def test_what_does_not_read_text_is_left_alone(name: str) -> None:
    model = empty(name)
    layers = [*linear_layers.adapted(model), *linear_layers.quantised(model)]
    assert layers and all("language_model" in layer for layer in layers)
    others = linear_layers.not_language(model)
    assert others == {
        own for own, _ in model.named_parameters() if "language_model" not in own and "lm_head" not in own
    } | {own for own in others if own not in dict(model.named_parameters())}
    assert len(linear_layers.kept(model)) < 12  # whole parts, not each of their layers


def test_targets_have_the_names_that_people_know_where_those_say_enough() -> None:
    assert adapted("llama")[1].target_modules == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    in_full = adapted("gemma3")[1].target_modules  # the vision tower has a q_proj too
    assert "q_proj" not in in_full and "model.language_model.layers.0.self_attn.q_proj" in in_full


def test_layers_that_look_at_images_are_left_alone() -> None:
    model = empty("mllama")
    looking = {name for name, _ in model.named_modules() if ".cross_attn." in name}
    assert looking and not looking & {*linear_layers.adapted(model), *linear_layers.quantised(model)}
