"""How each step of a run ended: small files in the store, for the step that tells people.

    STORE/runs/<run id>/<step>.json

A file is written when a step begins and again when it ends. So one that still says `running` when the run is over is
of a step that was stopped before it could say anything: cancelled, killed, or out of time. The run's id comes from the
environment and not from a step's inputs: those are part of Kubeflow's cache key. Without it nothing is written, and
where the store fails the step goes on: its work counts, not what is told of it.
"""

import contextlib
import dataclasses
import json
import os
import re
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import storage

RUN_VARIABLE = "QLORA_RUN_ID"
"""The id of the run, set by Kubeflow (placement.py), by the Argo workflow or by the local runner."""
FOLDER = "runs"
RUNNING, DONE, FAILED = "running", "done", "failed"
MOST = 1000
"""Characters of an error that are kept; the step's log has all of it."""
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY")
"""In the names of the variables that hold secrets."""

_told: dict[str, Any] = {}
_begun = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a step left: `running`, `done` or `failed`, the line of its error, and what else it had to say."""

    step: str
    ended: str
    error: str
    facts: dict[str, Any]


def tell(**facts: Any) -> None:
    """Adds to the running step's outcome, which is written when it ends.

    Args:
        **facts: JSON by name, small and without secrets.
    """
    _told.update(facts)


def begin(step: str) -> None:
    """Says in the store that a step of this run has begun."""
    global _begun
    _told.clear()
    _begun = _write(Outcome(step, RUNNING, "", {}))


def end(step: str, error: str) -> None:
    """Says in the store how a step of this run ended.

    Args:
        step: its name.
        error: why it failed, in one line; '': it is done.
    """
    if _begun or not error:  # a store that was away at the start is most likely what failed: do not wait for it again
        _write(Outcome(step, FAILED if error else DONE, without_secrets(error)[:MOST], dict(_told)))


def run_id() -> str:
    """The id of the run that this process belongs to; '': none is known."""
    return os.environ.get(RUN_VARIABLE, "").strip()


def read(run_id: str) -> dict[str, Outcome]:
    """The outcomes of a run by step; one that cannot be read is left out.

    Raises:
        InputError: the store cannot be read.
    """
    found = {}
    uri = _folder(run_id)
    for entry in storage.files(uri):
        with contextlib.suppress(InputError, ValueError, TypeError):  # gone meanwhile, or not written by a step
            content = json.loads(storage.read_bytes(storage.join(uri, entry.path)))
            found[str(content["step"])] = Outcome(**content)
    return found


def without_secrets(text: str) -> str:
    """A text without the logins of addresses in it, and without the secrets of this process' environment."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "...")
    return re.sub(r"://[^@/\s]*@", "://", text)


def _folder(run_id: str) -> str:
    if not _RUN_ID.fullmatch(run_id):
        raise InputError(f"{RUN_VARIABLE} is {run_id!r}: letters, digits, '.', '_' and '-' are expected")
    return storage.join(storage.root(), FOLDER, run_id)


def _write(outcome: Outcome) -> bool:
    if not (run := run_id()):
        return False
    try:
        content = json.dumps(dataclasses.asdict(outcome), indent=1).encode()
        storage.write_bytes(storage.join(_folder(run), f"{outcome.step}.json"), content)
    except (InputError, OSError, TypeError, ValueError) as error:
        log(f"this step's outcome is not in the store, so a notification will not have it: {error}", "warning")
        return False
    return True
