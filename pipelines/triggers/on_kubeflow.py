"""Runs by training_key on a server: found, and started once though two triggers start at the same moment.

The API has no lock and no unique names. So a run is created, the list is read again, and of those with the same key the
earliest goes on; each trigger ends its own run only. One that comes too late to be seen by the other is stopped in
plan_run, by its claim (`components/core/store/claims.py`), and by the same order: the two do not disagree and end both.
"""

import dataclasses
import re
import time

from kfp_server_api import V2beta1Run

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import claims
from qlora_pipelines.components.core.store.claims import Claim
from qlora_pipelines.pipelines.kfp_api import pipeline_versions, runs
from qlora_pipelines.pipelines.kfp_api.client import Server, equals
from qlora_pipelines.pipelines.kfp_api.runs import Order
from qlora_pipelines.pipelines.triggers.decision import ACTIVE, Earlier

SHOWN = 12
"""Characters of the training_key that a run's name ends with."""
DECIDE_WITHIN = 10.0
"""Seconds after its creation was asked for in which a run may be ended here; later it may be past plan_run."""
_DIGEST = re.compile(r"data_digest ([0-9a-f]{64})")


@dataclasses.dataclass(frozen=True)
class Started:
    """What came of starting: the run that goes on, and whether it is the one started here."""

    run_id: str
    ours: bool
    version: pipeline_versions.Version


@dataclasses.dataclass(frozen=True)
class OnServer:
    """The runs with one training_key that register under one name."""

    server: Server
    training_key: str
    model_name: str

    def earlier(self) -> list[Earlier]:
        """All of them."""
        wanted = equals("display_name", f"-{self.training_key[:SHOWN]}", "IS_SUBSTRING")
        return [_earlier(run) for run in runs.listed(self.server, wanted) if self._is_of(run)]

    def former_digest(self) -> str:
        """The data_digest of the last run of this model on other data that did not fail, or ''."""
        wanted = equals("display_name", f"{self.model_name[:150]}-", "IS_SUBSTRING")
        for run in reversed(runs.listed(self.server, wanted)):
            given = runs.parameters(run)
            other = given.get("training_key") != self.training_key and given.get("model_name") == self.model_name
            found = _DIGEST.search(run.description or "")
            if found and other and run.state not in ("FAILED", "CANCELED", "CANCELING"):
                return found[1]
        return ""

    def start(self, order: Order, attempt: int) -> Started:
        """Starts a run, unless another trigger starts one of the same key and attempt at this moment.

        Args:
            order: the run, without name, training_key and claim.
            attempt: as `triggering.decide` counts.

        Raises:
            InputError: the server does not take it.
        """
        claim = claims.new(attempt)
        given = {**order.parameters, "training_key": self.training_key, "claim": str(claim)}
        name = runs.unique_name(self.model_name, self.training_key[:SHOWN])
        asked = time.monotonic()
        run, version = runs.start(self.server, dataclasses.replace(order, parameters=given, name=name))
        time.sleep(runs.SETTLED)
        rivals = [
            other
            for other in self.earlier()
            if other.attempt == attempt and (other.state in ACTIVE or other.state == "SUCCEEDED")
        ]
        first = min(rivals, key=lambda other: (other.stamp, other.run_id), default=None)
        if first is None or first.run_id == run.run_id or time.monotonic() - asked > DECIDE_WITHIN:
            return Started(run.run_id, ours=True, version=version)
        runs.end(self.server, run.run_id)
        return Started(first.run_id, ours=False, version=version)

    def _is_of(self, run: V2beta1Run) -> bool:
        given = runs.parameters(run)
        return bool(given.get("training_key") == self.training_key and given.get("model_name") == self.model_name)


def _earlier(run: V2beta1Run) -> Earlier:
    try:
        claim = claims.parse(str(runs.parameters(run).get("claim", "")))
    except InputError:
        claim = Claim(0, "")
    # A run that has not ended has a time of end all the same: the Unix epoch.
    ended = max((at.timestamp() for at in (run.finished_at, run.created_at) if at), default=0.0)
    return Earlier(run.run_id, runs.state_of(run), claim.attempt, claim.stamp, ended)
