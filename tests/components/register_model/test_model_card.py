import json
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.components.conftest import TinyRun
from tests.components.register_model.registering import register


def test_the_card_names_use_data_figures_and_how_to_make_it_again(
    fresh: Callable[[str], tuple[str, str]], tiny_run: TinyRun, tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard

    uri, key = fresh("card")
    tuned = {"rows": 60, "confidence": 0.95, "loss": 0.52, "exact_match": 0.7, "rouge_l": 0.8, "checks": 2}
    tuned |= {"better_than_base.mean": 0.38, "better_than_base.low": 0.31, "better_than_base.high": 0.44}
    tuned |= {"better_than_base.groups": 60, "better_than_base.passed": 1.0, "slice_x.groups": 9, "slice_x.passed": 1.0}
    merged = {"rows": 60, "confidence": 0.95, "loss": 0.5, "exact_match": 0.75}
    figures = {"tuned_figures": json.dumps(tuned), "merged_figures": json.dumps(merged)}
    register("card", uri, key, evidence={"run_config": tiny_run.plan.run_config} | figures)
    card = ModelCard.load(f"{uri}/README.md")
    assert card.data.base_model == "org/tiny" and card.data.library_name == "transformers"
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "loss": 0.5, "exact_match": 0.75
    }  # fmt: skip
    for heading in ("Intended use", "Training data", "Evaluation", "How to make it again"):
        assert f"## {heading}" in card.text
    for row in (
        "| model | loss | exact_match | rouge_l |", "| base | 0.9000 |  |  |", "| tuned | 0.5200 | 0.7000 | 0.8000 |",
        "| merged | 0.5000 | 0.7500 |  |", "| tuned: better than base | 0.3800 | 0.3100 | 0.4400 | 60 | passed |",
        "| tuned: slice x | too few groups | too few groups | too few groups | 9 | passed |",
    ):  # fmt: skip
        assert f"\n{row}\n" in card.text, card.text
    assert "On 60 held-out rows" in card.text and "with 0.95 confidence each" in card.text
    written = yaml.safe_load(card.text.split("```")[1])
    again = type(tiny_run.config).parse(**written)
    decided = tiny_run.config.with_option("train_qlora", "packing", True)  # by the plan
    assert again == decided.model_copy(update={"base_revision": tiny_run.plan.base_revision})
