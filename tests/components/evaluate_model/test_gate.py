import pytest

from components.core.config import EvaluateConfig
from components.evaluate_model import gate


@pytest.mark.parametrize(("tuned", "base", "passed"), [(0.5, 0.6, True), (0.6, 0.605, False), (0.7, 0.6, False)])
def test_tuned_must_be_better_by_the_margin(tuned: float, base: float, passed: bool) -> None:
    verdict = gate.tuned_against_base(tuned, base, EvaluateConfig(min_improvement=0.01))
    assert verdict.passed is passed
    assert f"{tuned:.4f}" in verdict.reason and f"{base:.4f}" in verdict.reason


@pytest.mark.parametrize(("merged", "adapter", "passed"), [(0.6, 0.6, True), (0.605, 0.6, True), (0.62, 0.6, False)])
def test_merging_may_lose_the_tolerance(merged: float, adapter: float, passed: bool) -> None:
    assert gate.merged_against_adapter(merged, adapter, EvaluateConfig(max_merge_loss=0.01)).passed is passed
