"""Causal attention over one short conversation on a CPU, as batched matrix products.

PyTorch's flash kernel for CPUs is slow on so few rows, in its backward pass in bfloat16 most of all. Up to `MAX_TOKENS`
tokens two plain products forward and four backward took 0.4 to 0.6 of its time, at 500 tokens more than it.
"""

from typing import Any

import torch

MAX_TOKENS = 256
"""Memory grows with the square: a weight per pair of tokens is held from the forward to the backward pass."""


def supports(query: Any, key: Any, dropout: float, sliding_window: int | None) -> bool:
    """Whether to call `attend` for a conversation; its tensors are as `attend` takes them."""
    tokens = key.shape[2]
    return bool(
        query.device.type == "cpu"
        and tokens <= MAX_TOKENS
        and not dropout
        and (sliding_window is None or tokens <= sliding_window)
    )


def attend(query: Any, key: Any, value: Any, scaling: float | None) -> Any:
    """Attention of each token to itself and those before it.

    Args:
        query: shape (1, heads, tokens, head size).
        key: shape (1, key heads, tokens before these + tokens, head size), where key heads divide heads.
        value: as `key`, of value size.
        scaling: factor on the scores; None: 1 / sqrt(head size).

    Returns:
        Shape (1, heads, tokens, value size), in the dtype of `query`.
    """
    return _Attention.apply(query, key, value, query.shape[3] ** -0.5 if scaling is None else scaling)


class _Attention(torch.autograd.Function):  # type: ignore[misc]  # torch has no types here
    """Standard attention and its gradient (Dao et al. 2022, "FlashAttention", section 2.2 and appendix B.2).

    With scaling s, and C the causal mask, 0 where a token may look and -inf where not:

        forward    S = s Q K' + C       P = softmax(S) by rows      O = P V
        backward   dV = P' dO           dP = dO V'                  dS = P * (dP - rowsum(P * dP))
                   dQ = s dS K          dK = s dS' Q

    dS is the softmax's Jacobian, dp_j / ds_k = p_j ((j = k) - p_k), applied to dP. Where P is 0 so is dS: C needs no
    gradient.

    S and the softmax are in float32, as in PyTorch's flash kernels: bfloat16 has 8 significant bits, so a score of 256
    would be off by up to 1, and its weight by a factor of up to e. P and s dS are rounded once, to the tensors' dtype,
    and the other five products run in it. Autocast is off in both directions, as it would bring S down to 16 bit.

    Query heads that share a key head are neighbours, so their rows are stacked: (key heads, heads / key heads * tokens,
    head size). A key is then not copied for each of its heads, and the products over stacked rows sum the gradients of
    K and V over these heads.
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, scaling: float) -> Any:
        heads, tokens, size = query.shape[1:]
        keys, stacked = key.shape[2], (key.shape[1], -1)
        with torch.autocast("cpu", enabled=False):
            scores = torch.bmm(query.float().reshape(*stacked, size), key[0].float().transpose(1, 2))
            scores = scores.view(-1, tokens, keys).mul_(scaling)
            # The first query is at position keys - tokens; what it may not see begins one further.
            scores += torch.full((tokens, keys), -torch.inf).triu_(1 + keys - tokens)
            weights = scores.softmax(-1).to(query.dtype).view(*stacked, keys)
            ctx.save_for_backward(query, key, value, weights)
            ctx.scaling = scaling
            return torch.bmm(weights, value[0]).view(1, heads, tokens, value.shape[3])

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        query, key, value, weights = ctx.saved_tensors
        stacked = (key.shape[1], -1)
        with torch.autocast("cpu", enabled=False):
            gradient = gradient.reshape(*stacked, value.shape[3])
            rows = query.reshape(*stacked, query.shape[3])
            of_value = torch.bmm(weights.transpose(1, 2), gradient)
            of_weights = torch.bmm(gradient, value[0].transpose(1, 2))
            of_scores = torch.ops.aten._softmax_backward_data(of_weights.float(), weights.float(), -1, torch.float32)
            of_scores = of_scores.mul_(ctx.scaling).to(query.dtype)
            of_query = torch.bmm(of_scores, key[0]).view(query.shape)
            of_key = torch.bmm(of_scores.transpose(1, 2), rows)
        return of_query, of_key[None], of_value[None], None
