"""The model card: what the model is for, what it was made of, how good it is, how to make it again."""

import json
from typing import Any

import yaml

TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

`{{ base }}` fine-tuned with QLoRA: the base was held in 4 bits, a LoRA adapter was trained on it, and both were merged
into an ordinary 16-bit model. The adapter alone lies in `adapter/`.

## Intended use

To answer what the training data asks, in the form in which it answers: use it with the chat template that is
part of it. Outside that task it was not evaluated. It keeps the base model's limits, and its licence applies.

## Training data

{% for line in data %}- {{ line }}
{% endfor %}
## Evaluation

On {{ rows }} that were not trained on. A loss is nats a supervised token; `tuned` is the adapter on the 4-bit base,
`merged` this model.

{% for row in models %}| {{ row | join(" | ") }} |
{% endfor %}{% if gates %}
What the gates went by: by how much the model is better, between bounds that hold with {{ confidence }} confidence each.

{% for row in gates %}| {{ row | join(" | ") }} |
{% endfor %}{% endif %}
## How to make it again

With qlora-pipelines {{ version }}{{ commit }}:

```
{{ config }}```

as `run.yaml`, and `qlora run --config run.yaml`.

## Where it comes from

| what | value |
|---|---|
{% for key, value in origin %}| {{ key }} | {{ value }} |
{% endfor %}"""
GATES, BOUNDS = ("tuned", "merged"), ("mean", "low", "high")
ABOUT_THE_GATE = ("rows", "groups", "confidence", "reference_loss", "checks", "checks_failed")
"""Figures of a gate that are no measure of a model."""
ORIGIN = {
    "base_model": "base model",
    "base_revision": "base revision",
    "data_digest": "data digest",
    "dataset_digest": "digest of the tokenised sets",
    "training_key": "training key",
    "merge_key": "merge key",
    "pipeline_run_id": "pipeline run",
}


def make(name: str, tags: dict[str, str]) -> bytes:
    """The card of a version, from its tags alone; the same tags give the same bytes.

    Args:
        name: of the registered model.
        tags: the version's tags without their prefix `qlora.`.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    measured = figures(tags)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name="held-out rows",
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in measured.items()
        if metric in ("loss", "exact_match") and value >= 0
    ]
    base = tags.get("base_model", "")
    data = ModelCardData(
        base_model=base if _is_hub_id(base) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["qlora", "lora"],
        model_name=name,
        eval_results=results or None,
    )
    commit = tags.get("git_commit", "")
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        name=name,
        base=base or "a base model",
        data=_data(tags),
        rows=f"{_gate(tags, 'merged')['rows']:g} held-out rows" if "rows" in _gate(tags, "merged") else "held-out rows",
        models=_models(tags),
        gates=_gates(tags),
        confidence=f"{_gate(tags, 'merged').get('confidence', 0):.4g}",
        version=tags.get("version", ""),
        commit=f", commit {commit}" if commit else "",
        config=_config(tags),
        origin=[(text, tags[key]) for key, text in ORIGIN.items() if tags.get(key)],
    )
    return str(card).encode()


def figures(tags: dict[str, str]) -> dict[str, float]:
    """The numbers that the gates went by, by name; those of a gate's own figures begin with `tuned_` or `merged_`."""
    found: dict[str, float] = {}
    for name in ("loss", "base_loss", "exact_match", "base_exact_match"):
        if tags.get(name):
            found[name] = float(tags[name])
    for gate in GATES:
        found |= {f"{gate}_{name}": value for name, value in _gate(tags, gate).items()}
    return found


def _gate(tags: dict[str, str], gate: str) -> dict[str, float]:
    values: dict[str, Any] = json.loads(tags.get(f"{gate}_figures") or "{}")
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _models(tags: dict[str, str]) -> list[list[str]]:
    """A table with a row a model and a column a measure; of the base only loss and exact match are kept."""
    base = {name: float(tags[f"base_{name}"]) for name in ("loss", "exact_match") if tags.get(f"base_{name}")}
    merged = {name: float(tags[name]) for name in ("loss", "exact_match") if tags.get(name)}
    models = {"base": base, "tuned": _gate(tags, "tuned"), "merged": _gate(tags, "merged") | merged}
    names = dict.fromkeys(name for found in models.values() for name in found)
    measures = [name for name in names if "." not in name and name not in ABOUT_THE_GATE]
    rows = [
        [model, *(f"{found[name]:.4f}" if found.get(name, -1) >= 0 else "" for name in measures)]
        for model, found in models.items()
        if found
    ]
    return [["model", *measures], ["---"] * (len(measures) + 1), *rows] if rows else []


def _gates(tags: dict[str, str]) -> list[list[str]]:
    rows = []
    for gate in GATES:
        found = _gate(tags, gate)
        for check in (name.removesuffix(".passed") for name in found if name.endswith(".passed")):
            bounds = [found.get(f"{check}.{bound}") for bound in BOUNDS]
            shown = ["too few groups" if bound is None else f"{bound:.4f}" for bound in bounds]
            passed = "passed" if found[f"{check}.passed"] else "failed"
            rows.append([f"{gate}: {check.replace('_', ' ')}", *shown, f"{found[f'{check}.groups']:g}", passed])
    return [["gate", "better by", "at least", "at most", "groups", "verdict"], ["---"] * 6, *rows] if rows else []


def _data(tags: dict[str, str]) -> list[str]:
    run = json.loads(tags.get("run_config") or "{}")
    lines = [f"`{run[field]}`" for field in ("dataset_uri", "eval_dataset_uri") if run.get(field)]
    return [*lines, f"fixed by the listing of digest `{tags.get('data_digest', 'unknown')}`"]


def _config(tags: dict[str, str]) -> str:
    run = json.loads(tags.get("run_config") or "{}")
    return str(yaml.safe_dump(run, sort_keys=False, width=1000)) if run else "# the run's configuration was not kept\n"


def _is_hub_id(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/", "s3:"))
