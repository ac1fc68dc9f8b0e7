"""Every kind of adapter, against peft's own merge on an unquantised base: the same bits."""

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading, quantization
from qlora_pipelines.components.core.models.blockwise_quantization import portable_quantization
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.core.store import attempts
from qlora_pipelines.components.dequantize_and_merge import adapter as adapters
from tests.architectures import tiny
from tests.components.dequantize_and_merge.conftest import (
    Merge,
    config_of,
    load,
    save_adapter,
    save_base,
    save_mixtral,
    tensors,
)

LINEAR = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": "all-linear"},
    "rank and alpha patterns": {
        "target_modules": LINEAR,
        "rank_pattern": {"layers.1.self_attn.q_proj": 8, "down_proj": 2},
        "alpha_pattern": {"v_proj": 32},
    },
    "rsLoRA": {"target_modules": LINEAR, "use_rslora": True},
    "DoRA": {"target_modules": LINEAR, "use_dora": True},
    "a bias on B": {"target_modules": ["q_proj", "v_proj"], "lora_bias": True},
    "all biases": {"target_modules": LINEAR, "bias": "all"},
    "biases of adapted layers": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "whole modules": {"target_modules": LINEAR, "modules_to_save": ["lm_head", "input_layernorm"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "trained tokens": {"target_modules": LINEAR, "trainable_token_indices": [3, 319, 7]},
    "trained tokens of the head": {"target_modules": LINEAR, "trainable_token_indices": {"lm_head": [5]}},
    "some layers": {"target_modules": LINEAR, "layers_to_transform": [1]},
}


def by_peft(base: Path, adapter: Path) -> dict[str, Any]:
    """Peft's merge in float32, rounded once."""
    import torch

    merged = PeftModel.from_pretrained(load(base, dtype="float32"), str(adapter)).merge_and_unload()
    return {name: tensor.to(torch.bfloat16) for name, tensor in merged.state_dict().items()}


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    import torch

    assert set(ours) == set(theirs)
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not differing


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_is_pefts_bit_by_bit(kind: str, dtype: str, tmp_path: Path, tiny_model: Path, merge: Merge) -> None:
    base = save_base(tmp_path / "base", tiny_model, dtype)
    adapter = save_adapter(base, tmp_path / "adapter", **KINDS[kind])
    merged = merge(base, adapter)
    assert_equal(tensors(merged), by_peft(base, adapter))
    assert any(not a.equal(b) for a, b in zip(tensors(merged).values(), tensors(base).values(), strict=True))
    assert not config_of(merged)["tie_word_embeddings"]


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=str,
)
def test_tied_weights_that_part_are_two_tensors(
    options: dict[str, Any], tmp_path: Path, tiny_model: Path, merge: Merge
) -> None:
    """peft's merge changes both or leaves the config wrong; the same base untied is what training computed with."""
    base = save_base(tmp_path / "base", tiny_model, tied=True)
    model = load(base)
    model.lm_head.weight = type(model.lm_head.weight)(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path / "untied")
    adapter = save_adapter(base, tmp_path / "adapter", **options)
    merged = merge(base, adapter)
    assert config_of(merged)["tie_word_embeddings"] is False
    assert_equal(tensors(merged), by_peft(tmp_path / "untied", adapter))
    assert not tensors(merged)["lm_head.weight"].equal(tensors(merged)["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    "options",
    [
        {"trainable_token_indices": [3, 319]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {},
    ],
    ids=str,
)
def test_tied_weights_that_stay_are_one_tensor(
    options: dict[str, Any], tmp_path: Path, tiny_model: Path, merge: Merge
) -> None:
    base = save_base(tmp_path / "base", tiny_model, tied=True)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], **options)
    merged = merge(base, adapter)
    theirs = by_peft(base, adapter)
    assert theirs["model.embed_tokens.weight"].equal(theirs.pop("lm_head.weight"))
    assert_equal(tensors(merged), theirs)
    assert config_of(merged)["tie_word_embeddings"] is True


@pytest.mark.parametrize("merge_base", ["original", "dequantized"])
def test_layers_that_are_transposed_in_the_file_are_merged_too(
    merge_base: str, base: Path, tmp_path: Path, merge: Merge
) -> None:
    """GPT-2's Conv1D: held as (in, out), brought to 4 bit as (out, in)."""
    import bitsandbytes.functional as bnb
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4)
    GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(base)  # in place of the Llama, whose tokenizer stays
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["c_attn", "c_proj"])
    seen = load(base, dtype="float32")
    if merge_base == "dequantized":
        quantised = loading.load_quantized(base)
        info = attempts.read(str(adapter)).info | {"quantised": quantization.digests(quantised)}
        attempts.finish(str(adapter), info, {})
        for name in info["quantised"]:
            weight = quantised.get_parameter(name)
            values = bnb.dequantize_4bit(weight.data, weight.quant_state).T.float()
            seen.get_parameter(name).data = values.contiguous()
    theirs = PeftModel.from_pretrained(seen, str(adapter)).merge_and_unload().bfloat16().state_dict()
    theirs.pop("lm_head.weight")
    ours = load(merge(base, adapter, merge_base=merge_base)).state_dict()
    ours.pop("lm_head.weight")
    assert_equal(ours, theirs)


def test_experts_that_transformers_fuses_go_over_under_their_names_in_the_checkpoint(
    tmp_path: Path, tiny_model: Path, merge: Merge
) -> None:
    """transformers 5 renames a Mixtral's router and fuses its experts when it loads them."""
    base = save_mixtral(tmp_path / "base", tiny_model)
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in tensors(base)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["gate"])
    merged = merge(base, adapter)
    assert set(tensors(merged)) == set(tensors(base))
    router = "model.layers.1.block_sparse_moe.gate.weight"
    assert not tensors(merged)[router].equal(tensors(base)[router])
    assert_equal(load(merged).state_dict(), by_peft(base, adapter))


def test_a_tensor_that_transformers_does_not_know_goes_over_as_it_is(base: Path, tmp_path: Path, merge: Merge) -> None:
    import torch
    from safetensors.torch import save_file

    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    extra = {"model.mtp.weight": torch.randn(5, 3), "model.steps": torch.arange(4)}
    save_file(tensors(base) | extra, base / "model.safetensors", metadata={"format": "pt"})
    merged = tensors(merge(base, adapter))
    assert all(merged[name].equal(tensor) for name, tensor in extra.items())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_grown_vocabulary_comes_along(tied: bool, tmp_path: Path, tiny_model: Path, merge: Merge) -> None:
    import torch

    base = save_base(tmp_path / "base", tiny_model, tied=tied)
    adapter = save_adapter(
        base, tmp_path / "adapter", lambda model: model.resize_token_embeddings(328), target_modules=["q_proj"]
    )
    merged = merge(base, adapter)
    grown = load(base)
    grown.resize_token_embeddings(328)
    theirs = PeftModel.from_pretrained(grown, str(adapter)).merge_and_unload()
    ours = load(merged)
    assert config_of(merged)["vocab_size"] == 328 and config_of(merged)["tie_word_embeddings"] is tied
    assert torch.equal(ours(torch.arange(310, 328)[None]).logits, theirs(torch.arange(310, 328)[None]).logits)


def test_a_head_that_knows_fewer_tokens_than_there_are_embeddings_stays_so(tmp_path: Path, merge: Merge) -> None:
    tiny.save_model("mllama", tmp_path / "base")
    adapter = save_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=r".*self_attn\.q_proj")
    merged = merge(tmp_path / "base", adapter)
    rows = {
        name: tensor.shape[0]
        for name, tensor in tensors(merged).items()
        if name.endswith(("embed_tokens.weight", "lm_head.weight"))
    }
    assert sorted(rows.values()) == [512, 520]
    assert config_of(merged)["text_config"]["vocab_size"] == 512


def test_dora_on_the_quantised_base_uses_the_weights_that_training_saw(
    tmp_path: Path, tiny_model: Path, merge: Merge
) -> None:
    """The norm is that of the dequantised weight: the merge equals peft's on a base that holds exactly those."""
    import bitsandbytes.functional as bnb
    import torch
    from safetensors.torch import save_file

    base = save_base(tmp_path / "base", tiny_model)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules="all-linear", use_dora=True)
    seen, digests = tensors(base), {}
    for name in [name for name in seen if name.endswith("proj.weight")]:
        with portable_quantization():
            packed, state = bnb.quantize_4bit(seen[name], quant_type="nf4", compress_statistics=True)
        seen[name], digests[name] = bnb.dequantize_4bit(packed, state), quantization.digest(packed, state)
    info = attempts.read(str(adapter)).info | {"quantised": digests, "quantization": vars(Quantization())}
    attempts.finish(str(adapter), info, {})
    save_base(tmp_path / "seen", tiny_model)
    save_file(seen, tmp_path / "seen" / "model.safetensors", metadata={"format": "pt"})
    assert_equal(tensors(merge(base, adapter, merge_base="dequantized")), by_peft(tmp_path / "seen", adapter))
    assert torch.isfinite(seen["lm_head.weight"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["q_proj"], "init_lora_weights": "olora"}, "init_lora_weights = olora changed the base"),
        (
            {"target_modules": ["q_proj"], "use_qalora": True, "qalora_group_size": 16},
            "use_qalora = true is not known here",
        ),
        (
            {"target_modules": ["q_proj"], "target_parameters": ["self_attn.o_proj.weight"]},
            r'target_parameters = \["self_attn.o_proj.weight"\] is not known here',
        ),
        (
            {"target_modules": ["embed_tokens"], "use_dora": True},
            "embed_tokens lacks or has too much of lora_magnitude_vec",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_merged_is_refused_by_name(
    options: dict[str, Any], message: str, base: Path, tmp_path: Path, merge: Merge
) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", **options)
    with pytest.raises(InputError, match=message):
        merge(base, adapter)


def test_every_default_of_peft_is_one_that_is_known() -> None:
    """Or each adapter of a newer peft would be refused."""
    left = {option: value for option, value in LoraConfig().to_dict().items() if option not in adapters.KNOWN_OPTIONS}
    assert {option: value for option, value in left.items() if value not in (None, {}, [], False)} == adapters.DEFAULTS
