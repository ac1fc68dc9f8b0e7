"""Triggers at the same moment: real HTTP, real claims in a store, and a virtual clock, so that any delay is cheap.

In each race some triggers see no run with a key and start one. Requests and the store are slow, pods start and end
late, triggers die halfway. Exactly one run passes plan_run and goes on.
"""

import collections
import random
import threading
import types
from pathlib import Path
from typing import Any

import kfp_server_api as api
import pytest

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.store import claims, storage
from qlora_pipelines.pipelines.compiler.compiled import Compiled
from qlora_pipelines.pipelines.kfp_api import client, runs
from qlora_pipelines.pipelines.kfp_api.runs import RunRequest
from qlora_pipelines.pipelines.triggers import on_kubeflow
from qlora_pipelines.pipelines.triggers.decision import Decision
from qlora_pipelines.pipelines.triggers.on_kubeflow import KubeflowRuns
from tests.pipelines.kfp_api.state import Kfp
from tests.pipelines.kfp_api.virtual_clock import Clock

RACES = 200
Counts = collections.Counter[str]


class Killed(Exception):
    """A trigger's machine is lost, or a pod is killed."""


class Race:
    """One race: the triggers, and the cluster that runs what they create."""

    def __init__(self, kfp: Kfp, pipeline: Compiled, seed: int, counts: Counts) -> None:
        self.kfp, self.pipeline, self.counts = kfp, pipeline, counts
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.clock = Clock()
        self.key = f"{seed:064x}"
        self.passed: list[str] = []
        self.kill_at: dict[str, float] = {}
        self.pod_of = threading.local()
        self.request = RunRequest(pipeline, {"model_name": "tickets"}, "", "races", "mlflow")

    def delay(self, low: float, high: float) -> None:
        with self.lock:
            seconds = self.random.uniform(low, high)
        self.sleep(seconds)

    def sleep(self, seconds: float) -> None:
        """Sleeps. A pod whose run was terminated is killed here, some seconds after that."""
        self.clock.sleep(seconds)
        run_id = getattr(self.pod_of, "run_id", "")
        if run_id in self.kfp.terminated and self.clock.now >= self.kill_at[run_id]:
            raise Killed

    def chance(self, share: float) -> bool:
        with self.lock:
            return self.random.random() < share

    def trigger(self) -> None:
        """What `qlora trigger` does after its decision to start, up to minutes after it listed the runs."""
        self.delay(0, self.random.choice([0.5, 0.5, 5, 40]))
        dies = self.chance(0.15)
        race = self

        class Slow(client.Server):
            def call_once(self, call: Any, *arguments: Any, **options: Any) -> Any:
                race.delay(0, 1.5)
                answer = super().call_once(call, *arguments, **options)
                if call.__name__ == "run_service_terminate_run":
                    race.kill_at[arguments[0]] = race.clock.now + 6 * race.random.random()
                race.delay(0, 25 if race.chance(0.05) else 1.5)
                if dies and call.__name__ == "run_service_create_run":
                    raise Killed
                return answer

        place = KubeflowRuns(Slow(self.kfp.url), self.key, "tickets")
        try:
            decision = place.start(self.request, Decision("start", "no run has this training_key", attempt=1))
            self.counts["started" if decision.action == "started" else "ended by their own trigger"] += 1
        except Killed:
            self.counts["triggers that died"] += 1

    def pod(self, run: api.V2beta1Run) -> None:
        """plan_run of a run: it starts late, claims, works, settles; it is retried if the store is too slow."""
        self.pod_of.run_id = run.run_id
        given = run.runtime_config.parameters
        place, claim = claims.place(given["training_key"], "tickets"), claims.parse(given["claim"])
        try:
            self.delay(0.5, 2 if self.chance(0.7) else 60)
            while True:
                try:
                    written = claims.write(place, claim, run.run_id)
                    self.delay(0, 40 if self.chance(0.5) else 0.1)
                    claims.settle(place, claim, run.run_id, written)
                    break
                except TransientError:
                    self.counts["tries again on a slow store"] += 1
        except Killed:
            run.state = "CANCELED"
        except InputError as lost:
            assert "makes the same model" in str(lost)
            self.counts["ended in plan_run"] += 1
            run.state = "FAILED"
        else:
            self.passed.append(run.run_id)
            run.state = "RUNNING"

    def run(self, triggers: int) -> None:
        """The whole race."""
        self.kfp.created = lambda run: self.clock.spawn(lambda: self.pod(run))
        for _ in range(triggers):
            self.clock.spawn(self.trigger)
        self.counts["triggers"] += triggers
        self.clock.join()


@pytest.fixture
def slow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Race]:
    """A store that is slow, sometimes too slow; the list has the current race."""
    monkeypatch.setenv("QLORA_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(claims, "PAUSE", 30.0)
    monkeypatch.setattr(runs, "LIST_DELAY", 2.0)
    at_work: list[Race] = []
    write, listing = storage.write_bytes, storage.listing

    def slow_write(uri: str, data: bytes) -> None:
        at_work[0].delay(0, 25 if at_work[0].chance(0.1) else 2)
        write(uri, data)
        at_work[0].delay(0, 25 if at_work[0].chance(0.1) else 2)

    def slow_listing(uri: str) -> list[storage.Entry]:
        at_work[0].delay(0, 2)
        found = listing(uri)
        at_work[0].delay(0, 2)
        return found

    monkeypatch.setattr(
        claims, "storage", types.SimpleNamespace(**vars(storage) | {"write_bytes": slow_write, "listing": slow_listing})
    )
    for module in (claims, runs, on_kubeflow, client):
        time = types.SimpleNamespace(sleep=lambda s: at_work[0].sleep(s), monotonic=lambda: at_work[0].clock.now)
        monkeypatch.setattr(module, "time", time)
    return at_work


def test_200_races_and_one_run_survives_each(
    kfp: Kfp, pipeline: Compiled, slow_store: list[Race], capsys: pytest.CaptureFixture[str]
) -> None:
    counts: Counts = collections.Counter()
    for seed in range(RACES):
        kfp.runs.clear()
        kfp.terminated.clear()
        race = Race(kfp, pipeline, seed, counts)
        slow_store[:] = [race]
        race.run(triggers=2 + seed % 4)
        assert len(race.passed) == 1, f"race {seed}: {[(r.run_id[:8], r.state) for r in kfp.runs.values()]}"
        counts["survivors"] += sum(run.state == "RUNNING" for run in kfp.runs.values())
        counts["losers past plan_run"] += len(race.passed) - 1
    with capsys.disabled():
        print(f"\n{RACES} races: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    assert counts["survivors"] == RACES
    # Every way to end occurred.
    assert min(counts[what] for what in ("ended by their own trigger", "ended in plan_run", "triggers that died")) > 0
