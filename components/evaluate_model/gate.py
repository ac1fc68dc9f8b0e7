"""The gate: a pure function of losses, so that it can be tested without a model."""

from typing import NamedTuple

from components.core.config import EvaluateConfig


class Verdict(NamedTuple):
    """Whether the model goes on, and why, in one sentence."""

    passed: bool
    reason: str


def tuned_against_base(tuned: float, base: float, config: EvaluateConfig) -> Verdict:
    """The tuned model must be better than the base by a margin.

    Differences of loss in nats a token are logarithms of a ratio of perplexities (0.01 is 1 %), so a margin means the
    same whether losses are large or small.

    Args:
        tuned: loss of the tuned model, nats a supervised token.
        base: the base's, on the same rows.
        config: holds the margin, `min_improvement`.
    """
    passed = base - tuned >= config.min_improvement
    return Verdict(
        passed,
        f"{'Passed' if passed else 'Failed'}: the tuned loss is {tuned:.4f} nats a token, the base's {base:.4f};"
        f" at least {config.min_improvement:g} below was asked for.",
    )


def merged_against_adapter(merged: float, adapter: float, config: EvaluateConfig) -> Verdict:
    """Merging must not have lost what was trained.

    Args:
        merged: loss of the merged model, nats a supervised token.
        adapter: that of the adapter on the base in NF4, on the same rows.
        config: holds the tolerance, `max_merge_loss`.
    """
    passed = merged - adapter <= config.max_merge_loss
    return Verdict(
        passed,
        f"{'Passed' if passed else 'Failed'}: the merged loss is {merged:.4f} nats a token, the adapter's"
        f" {adapter:.4f}; at most {config.max_merge_loss:g} above was allowed.",
    )
