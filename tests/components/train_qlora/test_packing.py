import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core import chat, models
from components.core.chat import Encoded
from components.core.errors import InputError
from components.train_qlora import attention, packing


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
    return Encoded(ids, [chat.IGNORED] * half + ids[half:])


CONVERSATIONS = [encoded(5, 0), encoded(17, 1), encoded(2, 2), encoded(40, 3)]


def model(folder: Path, **config: object) -> object:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    loaded = AutoConfig.from_pretrained(folder, **config)
    return AutoModelForCausalLM.from_config(loaded, dtype=torch.float32).train()


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
        attention.use(net)
        inputs = packing.collate(packing.rows(CONVERSATIONS, 64))
        labels = inputs.pop("labels")
        packed = net(**inputs, use_cache=False).logits[0]
    assert labels.shape == (1, len(packed)) == (1, 64)
    assert torch.allclose(packed, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_loss_and_gradients_are_those_of_the_plain_loss(tiny_model: Path, dtype: str, tolerance: float) -> None:
    """Packed, the head at supervised positions only: equal to the sum over conversations with all logits."""
    import torch

    from components.train_qlora.trainer import PackedTrainer

    net = model(tiny_model).to(getattr(torch, dtype))
    count = sum(conversation.supervised for conversation in CONVERSATIONS)
    total = 0
    for conversation in CONVERSATIONS:
        logits = plain_logits(net, conversation)[:-1].float()
        targets = torch.tensor(conversation.labels[1:])
        total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    (total / count).backward()
    expected = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    net.zero_grad()

    attention.use(net)
    trainer = PackedTrainer.__new__(PackedTrainer)
    trainer.args = dataclasses.make_dataclass("Args", ["average_tokens_across_devices"])(False)
    loss = trainer.compute_loss(
        net, packing.collate(packing.rows(CONVERSATIONS, 64)), num_items_in_batch=torch.tensor(count)
    )
    loss.backward()
    assert loss.item() == pytest.approx((total / count).item(), rel=tolerance)
    for name, parameter in net.named_parameters():
        distance = (parameter.grad - expected[name]).norm() / expected[name].norm().clamp(min=1e-12)
        assert distance.item() <= tolerance, name


def test_labels_that_count_are_the_supervised_tokens() -> None:
    inputs = packing.collate(packing.rows(CONVERSATIONS, 64))
    assert (inputs["labels"] != chat.IGNORED).sum() == sum(item.supervised for item in CONVERSATIONS)
    assert inputs["cu_seq_lens_q"].tolist() == [0, 40, 57, 62, 64]
    assert inputs["position_ids"][0, [0, 40, 57, 62]].tolist() == [0, 0, 0, 0]


def test_an_architecture_that_would_mix_conversations_is_refused(tiny_model: Path) -> None:
    net = models.load_16bit(tiny_model)
    net.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(InputError, match="llama cannot be trained on packed conversations"):
        attention.use(net)
