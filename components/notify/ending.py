"""What became of a run, from what its steps left and what Kubeflow or Argo says of it.

A step's own word comes first. What Kubeflow 2.17 says is often not how the steps ended: it brings the state of a group
of steps up to date only when a container ends. A run that the gate stopped, or whose last steps came from its cache, is
still RUNNING there, and so is one whose pod was killed; one that needed a second try can stay FAILED. Argo knows how
the workflow ended, but not what happened in it.
"""

import contextlib
import dataclasses
import json
import math
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import attempts, outcomes, storage
from qlora_pipelines.components.core.store.outcomes import Outcome

REGISTERED, REJECTED, FAILED, CANCELLED, UNKNOWN = "registered", "rejected", "failed", "cancelled", "unknown"
_SUCCEEDED = ("SUCCEEDED", "COMPLETE")
_FAILED = ("FAILED", "ERROR")
_CANCELLED = ("CANCELED", "CANCELLED")
"""Words of kfp.local, of Kubeflow (ML Metadata's) and of Argo, in capitals."""
SHUTDOWN = "workflow shutdown with strategy"
"""Argo's message of a node in a workflow that somebody stopped."""
PLAN, EVALUATE, REGISTER = "plan_run", "evaluate_model", "register_model"


@dataclasses.dataclass(frozen=True)
class Ending:
    """What became of a run.

    Attributes:
        outcome: registered, rejected, failed, cancelled, or unknown where the store does not say.
        reason: why, in one line.
        step: the step that failed, or ''.
        version: the registered version's number, or ''.
        model_uri: what it is loaded by, or ''.
        page: its page in MLflow, or ''.
        figures: what evaluation measured, by name.
    """

    outcome: str
    reason: str
    step: str = ""
    version: str = ""
    model_uri: str = ""
    page: str = ""
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


def find(steps: dict[str, Outcome], state: str, failures: str) -> Ending:
    """What became of a run.

    Args:
        steps: what its steps left, by name; those that Kubeflow found in its cache left nothing.
        state: Kubeflow's or Argo's word for how it ended; '': not known.
        failures: Argo's list of failed nodes, as JSON; '': none.
    """
    state = state.upper()
    nodes = _nodes(failures)
    stopped = state in _CANCELLED or any(SHUTDOWN in str(node.get("message")) for node in nodes)
    if (registered := steps.get(REGISTER)) and registered.ended == outcomes.DONE:
        return _registered(registered.facts)
    for outcome in steps.values():
        if outcome.ended == outcomes.FAILED:
            return Ending(FAILED, outcome.error, outcome.step)
    for outcome in steps.values():
        if outcome.ended == outcomes.RUNNING:
            why = _of_node(nodes, outcome.step) or "cancelled, killed, or out of time"
            if stopped:
                return Ending(CANCELLED, f"cancelled during {outcome.step}", outcome.step)
            return Ending(FAILED, f"{outcome.step} was stopped before it could say why: {why}", outcome.step)
    if (judged := steps.get(EVALUATE)) and judged.facts.get("passed") is False:
        return _rejected(judged.facts)
    if stopped:
        return Ending(CANCELLED, "cancelled")
    if state in _FAILED:
        return Ending(FAILED, _of_node(nodes) or "no step said why; it may have been killed, or its pod never started")
    if PLAN not in steps:  # which is never cached: the store is away, or the step never began
        return Ending(UNKNOWN, "the store does not say how the steps ended; see in MLflow whether it registered")
    # Neither registered nor failed: the gate said no, and Kubeflow took the verdict from its cache.
    if earlier := _earlier_verdict(steps[PLAN]):
        return _rejected(earlier, earlier_run=True)
    if state in _SUCCEEDED:
        return Ending(REJECTED, "the gate said no, by a verdict of an earlier run")
    return Ending(FAILED, "nothing was registered, and no step said why")


def _registered(facts: dict[str, Any]) -> Ending:
    version, outcome = str(facts.get("model_version", "")), str(facts.get("outcome", ""))
    return Ending(
        REGISTERED,
        f"version {version} is registered, {outcome}",
        version=version,
        model_uri=str(facts.get("model_uri", "")),
        page=str(facts.get("page", "")),
        figures=_numbers(facts.get("figures", {})),
    )


def _rejected(facts: dict[str, Any], *, earlier_run: bool = False) -> Ending:
    reason = str(facts.get("reason", "the gate said no"))
    against = "base" if facts.get("model", "adapter") == "adapter" else "adapter"
    figures = {
        f"{against}_loss": facts.get("reference_loss"),
        "loss": facts.get("loss"),
        f"{against}_exact_match": facts.get("reference_exact_match"),
        "exact_match": facts.get("exact_match"),
    }
    return Ending(
        REJECTED, f"{reason}{' (judged in an earlier run)' if earlier_run else ''}", figures=_numbers(figures)
    )


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
    """The figures that were measured: a share of right answers is -1 where none was generated."""
    found = {}
    for name, value in figures.items():
        with contextlib.suppress(TypeError, ValueError):  # it has none
            found[name] = round(float(value), 4)
    return {name: value for name, value in found.items() if value >= 0 and math.isfinite(value)}


def _earlier_verdict(plan: Outcome) -> dict[str, Any] | None:
    """The last verdict on this run's models, where that is no: of the merged model, or else of the adapter."""
    for model, name in _KEYS.items():
        if not (key := plan.facts.get(name)):
            continue
        try:
            uri = storage.join(storage.root(), "evaluations", str(key))
            found = [entry for entry in storage.files(uri) if entry.path.endswith(f"/{attempts.MANIFEST}")]
            if found:
                last = max(found, key=lambda entry: entry.modified)
                info = attempts.read(storage.join(uri, last.path.rpartition("/")[0])).info
                return None if info.get("passed") else info | {"model": model}
        except InputError:  # the store is away, or gc took it meanwhile
            return None
    return None


_KEYS = {"merged model": "merge_key", "adapter": "training_key"}
"""What is judged, and the key of plan_run under which its evaluations are kept."""


def _nodes(failures: str) -> list[dict[str, Any]]:
    """Argo's failed nodes that have a message. Argo writes the JSON list as a JSON text once more."""
    try:
        found = json.loads(failures or "[]")
        found = json.loads(found) if isinstance(found, str) else found
    except ValueError:
        return []
    return [node for node in found or [] if isinstance(node, dict) and node.get("message")]


def _of_node(nodes: list[dict[str, Any]], step: str = "") -> str:
    """What Argo says of the node of a step, or of the first node that failed; '' where it says nothing."""
    for node in nodes:
        if not step or str(node.get("templateName", "")).startswith(step.replace("_", "-")):
            return outcomes.without_secrets(f"{node.get('displayName', '')}: {node['message']}".split("\n")[0])
    return ""
