"""Whether data calls for a run, the same for Kubeflow Pipelines and this machine."""

import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from qlora_pipelines.components.core.runtime import duration
from qlora_pipelines.pipelines.triggers import new_data
from qlora_pipelines.pipelines.triggers.new_data import Look

ACTIVE = {"", "PENDING", "RUNNING", "PAUSED", "CANCELING", "RUNTIME_STATE_UNSPECIFIED"}


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A run with the same training_key: its state, and its claim; `ended` is a Unix time, or 0."""

    run_id: str
    state: str
    attempt: int = 0
    stamp: str = ""
    ended: float = 0.0


class Place(Protocol):
    """Where runs of one training_key run."""

    def earlier(self) -> list[Earlier]:
        """The runs with this key so far."""

    def former_digest(self) -> str:
        """The data_digest of the model's last run on other data that did not fail, or ''."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """When to start: `retry_delay` and `quiet` are seconds."""

    max_attempts: int = 3
    retry_delay: float = 600.0
    quiet: float = 0.0
    min_new_rows: int = 0
    force: bool = False


class Decision(NamedTuple):
    """What to do, why, and of which attempt or run that is said.

    `action` is `start`, `unchanged`, `running`, `waiting`, `cancelled` or `failed`.
    """

    action: str
    reason: str
    attempt: int = 0
    run_id: str = ""


def decide(earlier: Sequence[Earlier], rules: Rules, now: float) -> Decision:
    """What the runs with this training_key call for.

    Args:
        earlier: all of them, also those that another one's trigger ended.
        rules: when to start.
        now: Unix time.
    """
    attempt = max((run.attempt for run in earlier), default=0) + 1
    if rules.force:
        return Decision("start", "forced", attempt)
    if not earlier:
        return Decision("start", "no run has this training_key", attempt)
    for run in earlier:
        if run.state in ("SUCCEEDED", "SKIPPED"):
            return Decision("unchanged", f"run {run.run_id} was made of the same", run.attempt, run.run_id)
    for run in sorted(earlier, key=lambda run: (run.attempt, run.stamp, run.run_id)):
        if run.state in ACTIVE:
            return Decision("running", f"run {run.run_id} is at work on it", run.attempt, run.run_id)
    # Of the last attempt the earliest claim was the one that counted; the others were surplus, and ended as such.
    last = min((run for run in earlier if run.attempt == attempt - 1), key=lambda run: (run.stamp, run.run_id))
    if last.state == "CANCELED":
        reason = f"run {last.run_id} was cancelled; --force starts it again"
        return Decision("cancelled", reason, last.attempt, last.run_id)
    if attempt > rules.max_attempts:
        reason = f"failed {attempt - 1} times, last in run {last.run_id}; mend the reason, then --force starts it again"
        return Decision("failed", reason, last.attempt, last.run_id)
    if (left := last.ended + rules.retry_delay - now) > 0:
        reason = f"run {last.run_id} failed; it is tried again in {duration(left)}"
        return Decision("waiting", reason, last.attempt, last.run_id)
    return Decision("start", f"run {last.run_id} failed before", attempt)


def judge(place: Place, look: Look, rules: Rules) -> Decision:
    """The decision with the data's own say: whether it is still written to, and how much of it is new."""
    decision = decide(place.earlier(), rules, time.time())
    if decision.action != "start" or rules.force:
        return decision
    if look.quiet_for < rules.quiet:
        reason = f"the data was written to {duration(look.quiet_for)} ago; wanted are {duration(rules.quiet)}"
        return Decision("waiting", reason)
    if rules.min_new_rows and decision.attempt == 1:
        rows = new_data.new_rows(look.listing, place.former_digest(), rules.min_new_rows)
        if rows < rules.min_new_rows:
            return Decision("waiting", f"{rows} rows are new, wanted are {rules.min_new_rows}")
    return decision
