"""The model card: what the model is for, what it was made of, how good it is, how to make it again."""

import json
from typing import Any

import yaml

TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{{ base }} fine-tuned with QLoRA: the base was held in 4 bits, a LoRA adapter was trained on it, and both were merged
into an ordinary 16-bit model. The adapter alone lies in `adapter/`.

## Intended use

To answer what the training data asks, in the form in which it answers: use it with the chat template that is
part of it. Outside that task it was not evaluated. It keeps the base model's limits, and its licence applies.

## Training data

{% for line in data %}- {{ line }}
{% endfor %}
## Evaluation

On held-out rows that were not trained on. Losses are nats a supervised token; -1 means that no answer was generated.

| figure | value |
|---|---|
{% for figure, value in figures %}| {{ figure }} | {{ value }} |
{% endfor %}
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
        base=base or "A base model",
        data=_data(tags),
        figures=[(figure, f"{value:.6g}") for figure, value in measured.items()],
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
    for gate in ("tuned", "merged"):
        values: dict[str, Any] = json.loads(tags.get(f"{gate}_figures") or "{}")
        for name, value in values.items():
            if isinstance(value, int | float):
                found[f"{gate}_{name}"] = float(value)
    return found


def _data(tags: dict[str, str]) -> list[str]:
    run = json.loads(tags.get("run_config") or "{}")
    lines = [f"`{run[field]}`" for field in ("dataset_uri", "eval_dataset_uri") if run.get(field)]
    return [*lines, f"fixed by the listing of digest `{tags.get('data_digest', 'unknown')}`"]


def _config(tags: dict[str, str]) -> str:
    run = json.loads(tags.get("run_config") or "{}")
    return str(yaml.safe_dump(run, sort_keys=False, width=1000)) if run else "# the run's configuration was not kept\n"


def _is_hub_id(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/", "s3:"))
