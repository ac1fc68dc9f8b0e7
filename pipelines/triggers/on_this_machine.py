"""Runs by training_key on this machine: what was tried is kept beside the runs, and a lock holds off a second one.

    RUNS/triggers/<training_key>-<model name>.json    the attempts
    RUNS/triggers/<training_key>-<model name>.lock    held while one runs

The system frees the lock when its process dies, so an attempt without an end and without a lock is one that died.
"""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from qlora_pipelines.pipelines.triggers.decision import Earlier


class Here:
    """The attempts at one training_key for one model name, on this machine."""

    def __init__(self, runs: Path, training_key: str, model_name: str, held: bool) -> None:
        """Use `locked`."""
        self.held = held
        self._folder, self._model_name = runs / "triggers", model_name
        self._path = self._folder / f"{training_key}-{model_name}.json"

    @classmethod
    @contextlib.contextmanager
    def locked(cls, runs: Path, training_key: str, model_name: str) -> Iterator[Self]:
        """Holds the lock while the block lasts, if no other process does: `held` says which."""
        (runs / "triggers").mkdir(parents=True, exist_ok=True)
        with (runs / "triggers" / f"{training_key}-{model_name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                held = False
            yield cls(runs, training_key, model_name, held)

    def earlier(self) -> list[Earlier]:
        """The attempts so far. One that never said how it ended is at work, or died: the lock tells."""
        unknown = "FAILED" if self.held else "RUNNING"
        found = [
            Earlier(item["folder"], item["state"] or unknown, item["attempt"], ended=item["ended"] or item["started"])
            for item in self._read()
        ]
        if not self.held and not any(run.state == "RUNNING" for run in found):
            found.append(Earlier("of another process", "RUNNING", len(found) + 1))
        return found

    def former_digest(self) -> str:
        """The data_digest of this model's last run on other data that did not fail, or ''."""
        found = [
            (item["started"], item["data_digest"])
            for path in self._folder.glob("*.json")
            if path != self._path and path.stem.partition("-")[2] == self._model_name
            for item in json.loads(path.read_text())
            if item["state"] == "SUCCEEDED"
        ]
        return str(max(found)[1]) if found else ""

    def begin(self, attempt: int, data_digest: str) -> None:
        """Notes an attempt."""
        begun = {"attempt": attempt, "started": time.time(), "data_digest": data_digest}
        self._write([*self._read(), begun | {"state": "", "ended": 0.0, "folder": f"of attempt {attempt}"}])

    def end(self, state: str, folder: str = "") -> None:
        """Notes how the last attempt ended."""
        items = self._read()
        items[-1] |= {"state": state, "ended": time.time()} | ({"folder": folder} if folder else {})
        self._write(items)

    def _read(self) -> list[dict[str, Any]]:
        return json.loads(self._path.read_text()) if self._path.exists() else []

    def _write(self, items: list[dict[str, Any]]) -> None:
        aside = self._path.with_suffix(".aside")
        aside.write_text(json.dumps(items, indent=1))
        aside.replace(self._path)
