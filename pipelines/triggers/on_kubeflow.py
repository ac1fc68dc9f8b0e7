"""Runs by training_key on a server: found, and started once even if two triggers start at the same moment.

The API has no lock and no unique names. So a trigger creates a run and reads the list again. Of the runs with the same
key the earliest goes on; each trigger ends only its own run. A run that another trigger does not see in time is stopped
in plan_run, by its claim (`components/core/store/claims.py`). Both use the same order, so one run always goes on.
"""

import dataclasses
import re
import time

from kfp_server_api import V2beta1Run

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import claims
from qlora_pipelines.components.core.store.claims import Claim
from qlora_pipelines.pipelines.kfp_api import runs
from qlora_pipelines.pipelines.kfp_api.client import Server, filter_by
from qlora_pipelines.pipelines.kfp_api.runs import RunRequest
from qlora_pipelines.pipelines.triggers.decision import ACTIVE, Decision, EarlierRun

KEY_CHARACTERS = 12
"""Characters of the training_key at the end of a run's name."""
TERMINATE_WITHIN = 10.0
"""Seconds after the request for a run in which it may still be ended here; later it may be past plan_run."""
_DIGEST = re.compile(r"data_digest ([0-9a-f]{64})")


@dataclasses.dataclass(frozen=True)
class KubeflowRuns:
    """The runs with one training_key that register under one name."""

    server: Server
    training_key: str
    model_name: str

    def earlier_runs(self) -> list[EarlierRun]:
        """All of them."""
        found = self._named(f"-{self.training_key[:KEY_CHARACTERS]}")
        return [_earlier(run) for run in found if self._has_key(run)]

    def last_data_digest(self) -> str:
        """The data_digest of the last run of this model with another training_key that did not fail, or ''."""
        for run in reversed(self._named(f"{self.model_name[:150]}-")):
            found = _DIGEST.search(run.description or "")
            if found and not self._has_key(run) and run.state not in ("FAILED", "CANCELED", "CANCELING"):
                return found[1]
        return ""

    def start(self, request: RunRequest, decision: Decision) -> Decision:
        """Starts a run, unless another trigger starts one with the same key and attempt at this moment.

        Args:
            request: the run, without name, training_key and claim.
            decision: why, and which attempt it is.

        Returns:
            The decision with the run that goes on: `started` if it is this one, else `running`.

        Raises:
            InputError: the server does not accept it.
        """
        claim = claims.new(decision.attempt)
        parameters = {**request.parameters, "training_key": self.training_key, "claim": str(claim)}
        name = runs.unique_name(self.model_name, self.training_key[:KEY_CHARACTERS])
        requested = time.monotonic()
        run, _ = runs.start(self.server, dataclasses.replace(request, parameters=parameters, name=name))
        time.sleep(runs.LIST_DELAY)
        rivals = [
            other
            for other in self.earlier_runs()
            if other.attempt == decision.attempt and (other.state in ACTIVE or other.state == "SUCCEEDED")
        ]
        first = min(rivals, key=lambda other: (other.stamp, other.run_id), default=None)
        if first is None or first.run_id == run.run_id or time.monotonic() - requested > TERMINATE_WITHIN:
            return decision._replace(action="started", run_id=run.run_id)
        runs.terminate(self.server, run.run_id)
        reason = f"run {first.run_id} was started at the same moment"
        return decision._replace(action="running", reason=reason, run_id=first.run_id)

    def _named(self, part: str) -> list[V2beta1Run]:
        """The model's runs with `part` in their names, the earliest first."""
        found = runs.list_runs(self.server, filter_by("display_name", part, "IS_SUBSTRING"))
        return [run for run in found if runs.parameters(run).get("model_name") == self.model_name]

    def _has_key(self, run: V2beta1Run) -> bool:
        return bool(runs.parameters(run).get("training_key") == self.training_key)


def _earlier(run: V2beta1Run) -> EarlierRun:
    try:
        claim = claims.parse(str(runs.parameters(run).get("claim", "")))
    except InputError:
        claim = Claim(0, "")
    # The server gives a run that has not ended an end too: the Unix epoch.
    ended = max((at.timestamp() for at in (run.finished_at, run.created_at) if at), default=0.0)
    return EarlierRun(run.run_id, runs.state(run), claim.attempt, claim.stamp, ended)
