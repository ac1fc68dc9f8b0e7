"""The state of a test server: what it has, how it fails, and how its runs proceed."""

import dataclasses
import re
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import kfp_server_api as api


class Answer(Exception):
    """An error: status and message, as grpc-gateway writes them."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclasses.dataclass
class Fault:
    """What goes wrong with the next `times` requests that match: the answer is `status`, or there is none (0).

    `slow` seconds pass first; `done`: the server does what was asked all the same.
    """

    match: str
    status: int = 0
    times: int = 1
    slow: float = 0.0
    done: bool = False
    page: str = ""
    message: str = "it is not my day"


@dataclasses.dataclass
class Kfp:
    """A server's state. `life` has a run's changes, one per request for the run; the last stays."""

    token: str = ""
    cookie: str = ""
    multi_user: bool = False
    knows_plugins: bool = True
    metadata: bool = True
    """Whether it has ML Metadata; one without lists what the steps reported (full_view.py)."""
    newest_sdk: str = "kfp-9"
    pipelines: dict[str, api.V2beta1Pipeline] = dataclasses.field(default_factory=dict)
    versions: dict[str, api.V2beta1PipelineVersion] = dataclasses.field(default_factory=dict)
    experiments: dict[str, api.V2beta1Experiment] = dataclasses.field(default_factory=dict)
    runs: dict[str, api.V2beta1Run] = dataclasses.field(default_factory=dict)
    workflows: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Argo's nodes by id, for every run; only the v1beta1 API shows them."""
    logs: dict[str, str] = dataclasses.field(default_factory=dict)
    life: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    faults: list[Fault] = dataclasses.field(default_factory=list)
    requests: list[str] = dataclasses.field(default_factory=list)
    terminated: list[str] = dataclasses.field(default_factory=list)
    created: Callable[[api.V2beta1Run], None] = lambda run: None
    url: str = ""
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)

    def count(self, match: str) -> int:
        """How many requests matched."""
        return sum(bool(re.search(match, request)) for request in self.requests)

    def only_run(self) -> api.V2beta1Run:
        """The one run there is."""
        (run,) = self.runs.values()
        return run


def now() -> datetime:
    """The time in whole seconds, as the server keeps it."""
    return datetime.now(UTC).replace(microsecond=0)


def task(name: str, state: str, **more: Any) -> api.V2beta1PipelineTaskDetail:
    """A node of a run as the server lists it."""
    return api.V2beta1PipelineTaskDetail(display_name=name, state=state, task_id=str(uuid.uuid4()), **more)


def look(state: str, *tasks: api.V2beta1PipelineTaskDetail, **more: Any) -> dict[str, Any]:
    """A run's state at one request, for `Kfp.life`."""
    return {"state": state, "run_details": api.V2beta1RunDetails(task_details=list(tasks)), **more}
