from typing import Any

import pytest
import torch

from qlora_pipelines.components.core.models import cpu_attention, packed_attention

HEADS, KEY_HEADS, SIZE = 6, 2, 16


def row(tokens: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key and value of a packed row."""
    torch.manual_seed(0)
    return [
        torch.randn(1, heads, tokens, SIZE, dtype=dtype).requires_grad_() for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]


def plain(query: Any, key: Any, value: Any) -> Any:
    """The formula, in float64: softmax(query key' / sqrt(size)) value over the tokens so far."""
    key, value = (tensor.double().repeat_interleave(HEADS // KEY_HEADS, 1) for tensor in (key, value))
    scores = query.double() @ key.transpose(2, 3) / SIZE**0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("autocast", [False, True])
def test_short_and_long_conversations_follow_the_formula(dtype: torch.dtype, tolerance: float, autocast: bool) -> None:
    """One token, a few, the longest that is short, and one more; values and gradients."""
    lengths = [1, 40, cpu_attention.MAX_TOKENS, cpu_attention.MAX_TOKENS + 1]
    tensors = row(sum(lengths), dtype)
    # A float32 row under autocast is no case of training's: flash would compute it in 16 bit.
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype == torch.bfloat16):
        found = packed_attention.block_diagonal_attention(*tensors, lengths, None, 0.0, None)
    wanted = torch.cat([plain(*part) for part in zip(*(x.split(lengths, 2) for x in tensors), strict=True)], 2)
    wanted = wanted.transpose(1, 2)
    gradient = torch.randn(found.shape)
    theirs = torch.autograd.grad(wanted, tensors, gradient.double(), retain_graph=True)
    ours = torch.autograd.grad(found, tensors, gradient.to(dtype))
    for mine, other in zip((found, *ours), (wanted, *theirs), strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - other).norm() / other.norm() < tolerance


def test_values_may_have_a_size_of_their_own() -> None:
    """As with latent attention (DeepSeek-V3)."""
    query, key, _ = row(8, torch.float32)
    value = torch.randn(1, KEY_HEADS, 8, 5, requires_grad=True)
    ours = cpu_attention.attend(query, key, value, None)
    wanted = plain(query, key, value)
    assert torch.allclose(ours.double(), wanted, atol=1e-6)
    gradients = [torch.autograd.grad(found.sum(), (query, key, value)) for found in (ours, wanted)]
    for mine, other in zip(*gradients, strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_scores_stay_in_float32_under_autocast() -> None:
    """Scores of a few hundred, as some heads have them: in bfloat16 they would be off by one and more."""
    query, key, value = (
        tensor.detach() * scale for tensor, scale in zip(row(64, torch.bfloat16), (16, 16, 1), strict=True)
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = cpu_attention.attend(query, key, value, None)
    wanted = plain(query, key, value)
    assert (found.double() - wanted).norm() / wanted.norm() < 5e-3


@pytest.mark.parametrize(
    ("tokens", "dropout", "window", "taken"),
    [(8, 0.0, None, True), (8, 0.0, 8, True), (9, 0.0, 8, False), (8, 0.1, None, False), (257, 0.0, None, False)],
)
def test_what_goes_the_short_way(tokens: int, dropout: float, window: int | None, taken: bool) -> None:
    assert cpu_attention.supports(*[torch.empty(1, 1, tokens, 4)] * 2, dropout, window) is taken
    assert not cpu_attention.supports(*[torch.empty(1, 1, tokens, 4, device="meta")] * 2, dropout, window)
