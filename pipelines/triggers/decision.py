"""Whether data calls for a run, the same for Kubeflow Pipelines and this machine."""

import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from qlora_pipelines.components.core.runtime import duration
from qlora_pipelines.pipelines.triggers import new_data
from qlora_pipelines.pipelines.triggers.new_data import Snapshot

ACTIVE = {"", "PENDING", "RUNNING", "PAUSED", "CANCELING", "RUNTIME_STATE_UNSPECIFIED"}


@dataclasses.dataclass(frozen=True)
class EarlierRun:
    """A run with the same training_key: its state, and its claim; `ended` is a Unix time, or 0."""

    run_id: str
    state: str
    attempt: int = 0
    stamp: str = ""
    ended: float = 0.0


class History(Protocol):
    """The runs of one model."""

    def earlier_runs(self) -> list[EarlierRun]:
        """The runs with this training_key so far."""

    def last_data_digest(self) -> str:
        """The data_digest of the model's last run with another training_key that did not fail, or ''."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """When to start: `retry_delay` and `quiet` are seconds."""

    max_attempts: int = 3
    retry_delay: float = 600.0
    quiet: float = 0.0
    min_new_rows: int = 0
    force: bool = False


class Decision(NamedTuple):
    """What to do and why, and the attempt or run that it is about.

    `action` is `start`, `unchanged`, `running`, `waiting`, `cancelled` or `failed`; after a start `started`.
    """

    action: str
    reason: str
    attempt: int = 0
    run_id: str = ""


def from_earlier_runs(earlier: Sequence[EarlierRun], rules: Rules, now: float) -> Decision:
    """What the runs with this training_key call for.

    Args:
        earlier: all of them, also those that another trigger ended.
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
            return Decision("unchanged", f"run {run.run_id} has the same training_key", run.attempt, run.run_id)
    for run in sorted(earlier, key=lambda run: (run.attempt, run.stamp, run.run_id)):
        if run.state in ACTIVE:
            return Decision("running", f"run {run.run_id} has not ended yet", run.attempt, run.run_id)
    # Of the last attempt only the run with the earliest claim counts: triggers ended the others because of it.
    last = min((run for run in earlier if run.attempt == attempt - 1), key=lambda run: (run.stamp, run.run_id))
    wait = last.ended + rules.retry_delay - now
    if last.state == "CANCELED":
        action, reason = "cancelled", f"run {last.run_id} was cancelled; --force starts it again"
    elif attempt > rules.max_attempts:
        times = f"failed {attempt - 1} times, last in run {last.run_id}"
        action, reason = "failed", f"{times}; fix the cause, then --force starts it again"
    elif wait > 0:
        action, reason = "waiting", f"run {last.run_id} failed; the next attempt is in {duration(wait)}"
    else:
        return Decision("start", f"run {last.run_id} failed before", attempt)
    return Decision(action, reason, last.attempt, last.run_id)


def decide(history: History, snapshot: Snapshot, rules: Rules) -> Decision:
    """What the earlier runs and the data call for: is it still being written, and how much of it is new?"""
    decision = from_earlier_runs(history.earlier_runs(), rules, time.time())
    if decision.action != "start" or rules.force:
        return decision
    if snapshot.quiet < rules.quiet:
        age, wanted = duration(snapshot.quiet), duration(rules.quiet)
        return Decision("waiting", f"the data was last written {age} ago; --quiet-minutes asks for {wanted}")
    if rules.min_new_rows and decision.attempt == 1:
        rows = new_data.new_rows(snapshot.listing, history.last_data_digest(), rules.min_new_rows)
        if rows < rules.min_new_rows:
            return Decision("waiting", f"{rows} rows are new; --min-new-rows asks for {rules.min_new_rows}")
    return decision
