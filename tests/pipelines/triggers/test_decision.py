"""Whether data calls for a run: every state of the earlier runs, without a server."""

import pytest

from qlora_pipelines.pipelines.triggers.decision import EarlierRun, Rules, from_earlier_runs

RULES = Rules(max_attempts=2, retry_delay=600)
NOW = 10_000.0


def run(state: str, attempt: int = 1, stamp: str = "a", ended: float = 0.0) -> EarlierRun:
    return EarlierRun(f"{state.lower()}-{attempt}{stamp}", state, attempt, stamp, ended)


@pytest.mark.parametrize(
    ("earlier", "action", "attempt", "reason"),
    [
        ([], "start", 1, "no run has this training_key"),
        ([run("SUCCEEDED")], "unchanged", 1, "run succeeded-1a has the same training_key"),
        ([run("FAILED"), run("SUCCEEDED", 2)], "unchanged", 2, "run succeeded-2a"),
        ([run("PENDING")], "running", 1, "run pending-1a has not ended yet"),
        ([run("")], "running", 1, "has not ended yet"),
        ([run("CANCELING")], "running", 1, "has not ended yet"),
        ([run("FAILED"), run("RUNNING", 2)], "running", 2, "run running-2a"),
        ([run("FAILED", ended=NOW - 700)], "start", 2, "run failed-1a failed before"),
        ([run("FAILED", ended=NOW - 500)], "waiting", 1, "the next attempt is in 1 min 40 s"),
        ([run("FAILED"), run("FAILED", 2)], "failed", 2, "failed 2 times, last in run failed-2a"),
        ([run("CANCELED")], "cancelled", 1, "run canceled-1a was cancelled; --force starts it again"),
        # Of two that started at the same moment a trigger ended the later one; the earlier one counts.
        ([run("FAILED", ended=NOW - 700), run("CANCELED", stamp="b")], "start", 2, "run failed-1a failed before"),
        ([run("CANCELED"), run("FAILED", stamp="b")], "cancelled", 1, "run canceled-1a"),
        # A run that somebody started by hand with the key but without a claim.
        ([run("FAILED", 0, "")], "start", 1, "failed before"),
    ],
)
def test_what_earlier_runs_call_for(earlier: list[EarlierRun], action: str, attempt: int, reason: str) -> None:
    decision = from_earlier_runs(earlier, RULES, NOW)
    assert (decision.action, decision.attempt) == (action, attempt)
    assert reason in decision.reason


def test_force_starts_whatever_there_is() -> None:
    for earlier in ([], [run("RUNNING")], [run("SUCCEEDED"), run("FAILED", 2)]):
        decision = from_earlier_runs(earlier, Rules(force=True), NOW)
        assert (decision.action, decision.attempt) == ("start", len(earlier) + 1)
