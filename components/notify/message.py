"""The message of a run that ended: JSON for programs, or Slack's form for people."""

import os
import re
from typing import Any, NamedTuple

from qlora_pipelines.components.notify.ending import FAILED, REGISTERED, REJECTED, Ending

UI_VARIABLE = "KF_PIPELINES_UI_ENDPOINT"
"""The address of Kubeflow's page, if people are to get a link to the run."""
JSON, SLACK = "json", "slack"
LONGEST = 2500
"""Characters of a text; Slack cuts at 4000."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Run(NamedTuple):
    """What is known of the run itself; each may be ''."""

    id: str
    name: str
    model: str


def make(run: Run, found: Ending, form: str) -> dict[str, Any]:
    """The message as a JSON object.

    Args:
        run: which run it is about.
        found: what became of it.
        form: `json` or `slack`.
    """
    links = {"model": found.page, "run": _run_page(run.id)}
    links = {name: link for name, link in links.items() if link}
    text = _text(run, found, links)
    if form == SLACK:
        # Slack's escapes for its own marks; there are only these three.
        return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    return {
        "run_id": run.id,
        "run_name": run.name,
        "model": run.model,
        "outcome": found.outcome,
        "reason": found.reason,
        "step": found.step,
        "version": found.version,
        "model_uri": found.model_uri,
        "figures": found.figures,
        "links": links,
        "text": text,
    }


def _text(run: Run, found: Ending, links: dict[str, str]) -> str:
    """A few lines for people, the first of which says most."""
    ends = {REGISTERED: "registered", REJECTED: "rejected by the gate", FAILED: f"failed{_in(found.step)}"}
    lines = [f"{run.model or 'A run'}: {ends.get(found.outcome, found.outcome)}", found.reason]
    if found.figures:
        lines.append(", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in found.figures.items()))
    lines += [f"run {run.name} ({run.id})" if run.name else f"run {run.id}" if run.id else "", *links.values()]
    return "\n".join(filter(None, lines))[:LONGEST]


def _in(step: str) -> str:
    return f" in {step}" if step else ""


def _run_page(run_id: str) -> str:
    address = os.environ.get(UI_VARIABLE, "").rstrip("/")
    return f"{address}/#/runs/details/{run_id}" if address and _UUID.fullmatch(run_id) else ""
