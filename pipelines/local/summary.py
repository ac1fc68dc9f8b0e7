"""What a person reads when a local run has ended."""

import re
import shlex

from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.pipelines.local.runner import Outcome
from qlora_pipelines.pipelines.tasks import EVALUATE_MERGED, EVALUATE_TUNED, REGISTER


def text(outcome: Outcome) -> str:
    """The closing lines: the table base / tuned / merged, what was registered or why not, where things lie."""
    table = _table(outcome)
    lines = ["", *table, ""] if table else []
    if outcome.error:
        lines += [f"error: {outcome.error}", f"The whole log: {outcome.folder / 'log.txt'}"]
        return "\n".join(lines)
    reports = f"Reports:  {outcome.folder / 'reports'}"
    registered = outcome.results.get(REGISTER)
    if registered:
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


def _table(outcome: Outcome) -> list[str]:
    tuned, merged = outcome.results.get(EVALUATE_TUNED), outcome.results.get(EVALUATE_MERGED)
    rows = []
    if tuned:
        rows.append(("base", tuned["reference_loss"], tuned["reference_exact_match"]))
        rows.append(("tuned", tuned["loss"], tuned["exact_match"]))
    if merged:
        rows.append(("merged", merged["loss"], merged["exact_match"]))
    if not rows:
        return []
    head = f"{'model':<8} {'loss':>8} {'exact match':>12}"
    return [head, "-" * len(head), *(f"{n:<8} {loss:>8.4f} {_share(match):>12}" for n, loss, match in rows)]


def _share(value: float) -> str:
    return "not asked" if value < 0 else f"{value:.0%}"
