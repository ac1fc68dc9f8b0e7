"""The model card: what the model is for, what it was made of, how good it is, how to make it again."""

import json
from pathlib import Path

import yaml

TEMPLATE = Path(__file__).with_name("model_card.jinja")
GATES, BOUNDS = ("tuned", "merged"), ("mean", "low", "high")
MEASURES = ("loss", "exact_match")
"""Known of the base too, and shown as results on a model hub."""
ABOUT_THE_GATE = ("rows", "groups", "confidence", "reference_loss", "checks", "checks_failed")
"""Figures of a gate that do not measure a model."""


def make(name: str, facts: dict[str, str]) -> bytes:
    """The card of a version, from its tags alone; the same tags give the same bytes.

    Args:
        name: of the registered model.
        facts: the version's tags without their prefix `qlora.`.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    run = json.loads(facts.get("run_config") or "{}")
    base = facts.get("base_model", "")
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name="held-out rows",
            metric_type=measure,
            metric_value=float(facts[measure]),
        )
        for measure in MEASURES
        if float(facts.get(measure, -1)) >= 0
    ]
    data = ModelCardData(
        base_model=base if _is_hub_id(base) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["qlora", "lora"],
        model_name=name,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        base=base or "a base model",
        facts=facts,
        run=run,
        merged=_gate(facts, "merged"),
        models=_models(facts),
        gates=_gates(facts),
        config=yaml.safe_dump(run, sort_keys=False, width=1000) if run else "# the run's configuration was not kept\n",
    )
    return str(card).encode()


def figures(facts: dict[str, str]) -> dict[str, float]:
    """The numbers that the gates went by, by name; those of a gate's own figures begin with `tuned_` or `merged_`."""
    names = (f"{prefix}{measure}" for measure in MEASURES for prefix in ("", "base_"))
    of_gates = {f"{gate}_{name}": value for gate in GATES for name, value in _gate(facts, gate).items()}
    return {name: float(facts[name]) for name in names if facts.get(name)} | of_gates


def _gate(facts: dict[str, str], gate: str) -> dict[str, float]:
    values = json.loads(facts.get(f"{gate}_figures") or "{}")
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _models(facts: dict[str, str]) -> list[list[str]]:
    """A table with one row per model and one column per measure; of the base only loss and exact match are known."""
    base, merged = (
        {measure: float(facts[prefix + measure]) for measure in MEASURES if facts.get(prefix + measure)}
        for prefix in ("base_", "")
    )
    models = {"base": base, "tuned": _gate(facts, "tuned"), "merged": _gate(facts, "merged") | merged}
    names = dict.fromkeys(name for found in models.values() for name in found)
    measures = [name for name in names if "." not in name and name not in ABOUT_THE_GATE]
    rows = [
        [model, *(f"{found[name]:.4f}" if found.get(name, -1) >= 0 else "" for name in measures)]
        for model, found in models.items()
        if found
    ]
    return [["model", *measures], ["---"] * (len(measures) + 1), *rows] if rows else []


def _gates(facts: dict[str, str]) -> list[list[str]]:
    """A table with one row per check of each gate."""
    rows = []
    for gate in GATES:
        found = _gate(facts, gate)
        for check in (name.removesuffix(".passed") for name in found if name.endswith(".passed")):
            bounds = [found.get(f"{check}.{bound}") for bound in BOUNDS]
            shown = ["too few groups" if bound is None else f"{bound:.4f}" for bound in bounds]
            passed = "passed" if found[f"{check}.passed"] else "failed"
            rows.append([f"{gate}: {check.replace('_', ' ')}", *shown, f"{found[f'{check}.groups']:g}", passed])
    return [["gate", "better by", "at least", "at most", "groups", "verdict"], ["---"] * 6, *rows] if rows else []


def _is_hub_id(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/")) and ":" not in base
