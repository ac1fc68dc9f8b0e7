"""Runs by training_key on this machine: the attempts are kept next to the runs, and a lock keeps out a second process.

    RUNS/triggers/<training_key>-<model name>.json    the attempts
    RUNS/triggers/<training_key>-<model name>.lock    held during a run

The system frees the lock when its process dies, so an attempt without an end and without a lock has died.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import filelock

from qlora_pipelines.components.core.store import storage
from qlora_pipelines.pipelines.triggers.decision import EarlierRun


@dataclasses.dataclass(frozen=True)
class LocalRuns:
    """The attempts at one training_key for one model name; `locked`: no other process is working on them."""

    path: Path
    model_name: str
    locked: bool

    @classmethod
    @contextlib.contextmanager
    def lock(cls, runs: Path, training_key: str, model_name: str) -> Iterator[Self]:
        """Holds the lock during the block, if no other process does: `locked` says which."""
        path = runs / "triggers" / f"{training_key}-{model_name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path.with_name(f"{path.stem}.lock"), timeout=0)
        with contextlib.ExitStack() as held:
            with contextlib.suppress(filelock.Timeout):
                held.enter_context(lock)
            yield cls(path, model_name, lock.is_locked)

    def earlier_runs(self) -> list[EarlierRun]:
        """The attempts so far. One without an end is running, or died: the lock tells."""
        unknown = "FAILED" if self.locked else "RUNNING"
        found = [
            EarlierRun(
                item["folder"], item["state"] or unknown, item["attempt"], ended=item["ended"] or item["started"]
            )
            for item in self._read()
        ]
        if not self.locked and not any(run.state == "RUNNING" for run in found):
            found.append(EarlierRun("of another process", "RUNNING", len(found) + 1))
        return found

    def last_data_digest(self) -> str:
        """The data_digest of this model's last run with another training_key that did not fail, or ''."""
        found = [
            (item["started"], item["data_digest"])
            for path in self.path.parent.glob("*.json")
            if path != self.path and path.stem.partition("-")[2] == self.model_name
            for item in json.loads(path.read_text())
            if item["state"] == "SUCCEEDED"
        ]
        return str(max(found)[1]) if found else ""

    def begin(self, attempt: int, data_digest: str) -> None:
        """Writes down an attempt."""
        begun = {"attempt": attempt, "started": time.time(), "data_digest": data_digest}
        self._write([*self._read(), begun | {"state": "", "ended": 0.0, "folder": f"of attempt {attempt}"}])

    def end(self, state: str, folder: str = "") -> None:
        """Writes down how the last attempt ended."""
        items = self._read()
        items[-1] |= {"state": state, "ended": time.time()} | ({"folder": folder} if folder else {})
        self._write(items)

    def _read(self) -> list[dict[str, Any]]:
        return json.loads(self.path.read_text()) if self.path.exists() else []

    def _write(self, items: list[dict[str, Any]]) -> None:
        storage.write_bytes(str(self.path), json.dumps(items, indent=1).encode())
