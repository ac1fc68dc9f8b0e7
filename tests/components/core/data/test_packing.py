from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_pipelines.components.core.data import chat_template, packing
from qlora_pipelines.components.core.data.chat_template import Encoded
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading, packed_attention


@given(st.lists(st.integers(1, 120), max_size=200), st.integers(1, 100))
def test_every_item_is_in_one_row_and_no_row_is_too_full(lengths: list[int], capacity: int) -> None:
    rows = packing.pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[index] for index in row) <= capacity
    assert rows == packing.pack(lengths, capacity)
    short = [length for length in lengths if length <= capacity]
    assert len(rows) <= 11 / 9 * max(1, -(-sum(short) // capacity)) * 1.5 + 1 + len(lengths) - len(short)


def encoded(tokens: int, seed: int) -> Encoded:
    import torch

    ids = torch.randint(3, 250, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    half = tokens // 2
    return Encoded(ids, [chat_template.IGNORED] * half + ids[half:])


CONVERSATIONS = [encoded(5, 0), encoded(17, 1), encoded(2, 2), encoded(40, 3)]


def plain_logits(net: object, conversation: Encoded) -> object:
    import torch

    return net(input_ids=torch.tensor([conversation.input_ids]), use_cache=False).logits[0]


@pytest.mark.parametrize("window", [None, 8])
def test_packed_logits_are_those_of_each_conversation_alone(tiny_model: Path, window: int | None) -> None:
    """No conversation sees another, with full attention and with a sliding window shorter than the conversation."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    net = MistralForCausalLM(
        MistralConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=window,
        )
    ).eval()
    with torch.no_grad():
        order = packing.pack([len(item.input_ids) for item in CONVERSATIONS], 64)[0]
        alone = torch.cat([plain_logits(net, CONVERSATIONS[index]) for index in order])
        packed_attention.enable(net)
        inputs = packing.collate(packing.rows(CONVERSATIONS, 64))
        labels = inputs.pop("labels")
        packed = net(**inputs, use_cache=False).logits[0]
    assert labels.shape == (1, len(packed)) == (1, 64)
    assert torch.allclose(packed, alone, rtol=1e-5, atol=1e-5)


def test_labels_that_count_are_the_supervised_tokens() -> None:
    inputs = packing.collate(packing.rows(CONVERSATIONS, 64))
    assert (inputs["labels"] != chat_template.IGNORED).sum() == sum(item.supervised for item in CONVERSATIONS)
    assert inputs["cu_seq_lens_q"].tolist() == [0, 40, 57, 62, 64]
    assert inputs["position_ids"][0, [0, 40, 57, 62]].tolist() == [0, 0, 0, 0]


def test_a_conversation_alone_does_not_look_packed() -> None:
    assert set(packing.collate(packing.rows(CONVERSATIONS[:1], 64))) == {"input_ids", "labels", "position_ids"}


@pytest.mark.parametrize("kind", ["stablelm", "nemotron"])
def test_layers_that_hand_no_borders_on_pack_too(kind: str) -> None:
    """Their decoder layers drop keyword arguments; each row has its own borders, one conversation has none."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.architectures import tiny

    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(tiny.config(kind, {"pad_token_id": 0})).eval()
    with torch.no_grad():
        alone = [plain_logits(net, item) for item in CONVERSATIONS]
        packed_attention.enable(net)
        for items in (CONVERSATIONS[:2], CONVERSATIONS[2:3], CONVERSATIONS[1:4]):
            inputs = packing.collate([packing.joined(items)])
            inputs.pop("labels")
            wanted = torch.cat([alone[CONVERSATIONS.index(item)] for item in items])
            assert torch.allclose(net(**inputs, use_cache=False).logits[0], wanted, rtol=1e-4, atol=1e-4)


def test_an_architecture_that_would_mix_conversations_is_refused(tiny_model: Path) -> None:
    net = loading.load_16bit(tiny_model)
    net.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(InputError, match="llama cannot be trained on packed conversations"):
        packed_attention.enable(net)


def test_an_architecture_that_caps_its_scores_is_refused_for_that(tiny_model: Path) -> None:
    net = loading.load_16bit(tiny_model)
    net.config.attn_logit_softcapping = 50.0
    with pytest.raises(InputError, match="it caps its attention's scores"):
        packed_attention.enable(net)


def test_the_own_attention_comes_back_after_packing(tiny_model: Path) -> None:
    net = loading.load_16bit(tiny_model)
    before = net.config._attn_implementation
    with pytest.raises(ZeroDivisionError), packed_attention.enabled(net):
        assert net.config._attn_implementation == packed_attention.NAME
        1 / 0  # noqa: B018
    assert net.config._attn_implementation == before


def test_what_cannot_keep_conversations_apart_is_refused() -> None:
    """Attention of its own that transformers would leave in place, and sinks that a kernel without them would drop."""
    from transformers import AutoModelForCausalLM, GPTJConfig, GptOssConfig

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    configs = {
        "its attention cannot be exchanged": GPTJConfig(vocab_size=64, n_embd=16, n_layer=1, n_head=2, rotary_dim=4),
        "its attention has sinks": GptOssConfig(vocab_size=64, hidden_size=16, intermediate_size=16, **sizes),
    }
    for why, config in configs.items():
        with pytest.raises(InputError, match=why):
            packed_attention.enable(AutoModelForCausalLM.from_config(config))


def test_a_layer_with_a_mask_of_its_own_is_refused() -> None:
    import torch

    query = torch.zeros(1, 1, 2, 4)
    borders = torch.tensor([0, 2])
    for own in ({"attention_mask": torch.ones(2, 2)}, {"attention_mask": None, "s_aux": torch.zeros(1)}):
        with pytest.raises(InputError, match="Linear has a mask or sinks of its own"):
            packed_attention.attention_forward(torch.nn.Linear(1, 1), query, query, query, cu_seq_lens_q=borders, **own)
