import dataclasses
from pathlib import Path

import pytest

from components.core import attention, packing
from tests.core.test_packing import CONVERSATIONS, plain_logits


def model(folder: Path, **config: object) -> object:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    loaded = AutoConfig.from_pretrained(folder, **config)
    return AutoModelForCausalLM.from_config(loaded, dtype=torch.float32).train()


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
