"""The logits at supervised positions, of models that give those they are asked for and of those that give all."""

import types

import pytest
import torch

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import supervised_loss


@pytest.mark.parametrize("given", [slice(None), [2, 5]], ids=["all", "as asked"])
def test_the_logits_at_positions(given: list[int] | slice) -> None:
    logits = torch.rand(1, 8, 3)
    outputs = types.SimpleNamespace(logits=logits[:, given])
    assert torch.equal(supervised_loss.at(None, outputs, torch.tensor([2, 5]), 8), logits[0, [2, 5]])


def test_other_logits_are_refused() -> None:
    outputs = types.SimpleNamespace(logits=torch.rand(1, 1, 3))
    with pytest.raises(InputError, match="at other positions"):
        supervised_loss.at(None, outputs, torch.tensor([2, 5]), 8)
