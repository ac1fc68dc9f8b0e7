"""What a person reads at the end of a local run."""

import re
import shlex
from typing import Any

from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.pipelines.local.runner import Outcome
from qlora_pipelines.pipelines.tasks import EVALUATE_MERGED, EVALUATE_TUNED, REGISTER


def text(outcome: Outcome) -> str:
    """The closing lines: the table base / tuned / merged, what was registered or why not, and where things are."""
    lines = _table(outcome.results.get(EVALUATE_TUNED), outcome.results.get(EVALUATE_MERGED))
    if outcome.error:
        return "\n".join([*lines, f"error: {outcome.error}", f"The whole log: {outcome.folder / 'log.txt'}"])
    reports = f"Reports:  {outcome.folder / 'reports'}"
    if registered := outcome.results.get(REGISTER):
        lines += [f"Registered {registered['model_uri']} (version {registered['model_version']})"]
        if registered["outcome"] != "champion":
            lines += [f"It stays {registered['outcome']}"]
        lines += [reports, f"Next:     {_pull(outcome, registered['model_uri'])}"]
    else:
        judged = outcome.results.get(EVALUATE_MERGED) or outcome.results[EVALUATE_TUNED]
        lines += ["Not registered: rejected by the gate.", judged["reason"], reports]
    return "\n".join(lines)


def _pull(outcome: Outcome, uri: str) -> str:
    """The command that fetches the model, verified."""
    registry = f"{mlflow_client.URI_VARIABLE}={outcome.registry} " if outcome.registry else ""
    name = re.split("[/@]", uri.removeprefix("models:/"))[0]
    return registry + shlex.join(["qlora", "pull", uri, "--to", name])


def _table(tuned: dict[str, Any] | None, merged: dict[str, Any] | None) -> list[str]:
    if not tuned:
        return []
    rows = [("base", tuned["reference_loss"], tuned["reference_exact_match"])]
    rows += [(name, it["loss"], it["exact_match"]) for name, it in (("tuned", tuned), ("merged", merged)) if it]
    head = f"{'model':<8} {'loss':>8} {'exact match':>12}"
    lines = [f"{name:<8} {loss:>8.4f} {'not asked' if match < 0 else f'{match:.0%}':>12}" for name, loss, match in rows]
    return ["", head, "-" * len(head), *lines, ""]
