"""Checkpoints that outlive their machine: in the store under the training_key, whole or not there.

<store>/checkpoints/<training_key>/step-00000040/<attempt id>/...            a trainer's checkpoint
<store>/checkpoints/<training_key>/step-00000040/<attempt id>/manifest.json  written last
"""

import calendar
import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import attempts, storage

DAY = 24 * 3600


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training_key.

    Args:
        uri: their folder, local or on S3.
        keep: how many whole ones stay.
        made_from: what they are made from, by name: a checkpoint made from anything else is refused.
    """

    uri: str
    keep: int
    made_from: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check_writable(self) -> None:
        """Tries to write, before a model is loaded.

        Raises:
            InputError: the store cannot be written.
        """
        probe = storage.join(self.uri, f".probe-{os.getpid()}")
        storage.write_bytes(probe, b"written by train_qlora, and deleted again")
        storage.delete(probe)

    def newest(self, folder: Path) -> tuple[int, Path] | None:
        """The newest checkpoint whose files are all as its manifest says; the others are named in the log.

        Args:
            folder: an empty folder, for a copy of one that lies on S3.

        Returns:
            Its step and a local folder with it; None where there is none.

        Raises:
            InputError: it is of another base, other data or other options.
        """
        for place, files in sorted(self._attempts().items(), reverse=True):
            uri = storage.join(self.uri, place)
            wrong = self._damage(uri, files)
            if not wrong:
                local = storage.download(uri, folder / place)
                wrong = _altered(local)
                if not wrong:
                    refuse_other(json.loads((local / attempts.MANIFEST).read_text())["info"], self.made_from, uri)
                    return _step(place), local
            log(f"checkpoint {place} is not whole: {wrong}; it is passed over")
        return None

    def save(self, source: Path, step: int) -> None:
        """Stores a trainer's checkpoint, then removes those that are too many.

        Args:
            source: the folder that the trainer wrote; its files are moved away.
            step: optimiser steps made.
        """
        with attempts.attempt(storage.join(self.uri, f"step-{step:08d}")) as attempt:
            for path in source.iterdir():
                shutil.move(path, attempt.folder / path.name)
            for path in attempt.folder.rglob("*"):
                if path.is_file():
                    _sync(path)
            attempt.commit({"step": step, **self.made_from})
        self._remove_old()

    def _attempts(self) -> dict[str, dict[str, int]]:
        """Every attempt at a checkpoint by its place, with its files' sizes."""
        found: dict[str, dict[str, int]] = {}
        for path, size in storage.sizes(self.uri).items():
            if match := re.fullmatch(r"(step-\d{8}/[^/]+)/(.+)", path):
                found.setdefault(match[1], {})[match[2]] = size
        return found

    def _damage(self, uri: str, files: dict[str, int]) -> str:
        """What is wrong with an attempt as far as the listing tells; '' for nothing."""
        if attempts.MANIFEST not in files:
            return "it was not finished"
        try:
            wanted = attempts.read(uri).files
        except (InputError, ValueError, KeyError, TypeError):
            return "its manifest cannot be read"
        for name, file in wanted.items():
            if files.get(name) != file["size"]:
                return f"{name} has {files.get(name, 0)} of {file['size']} bytes"
        return ""

    def _remove_old(self) -> None:
        """Removes whole checkpoints beyond those to keep, and what dead attempts left a day ago."""
        whole = 0
        for place, files in sorted(self._attempts().items(), reverse=True):
            if attempts.MANIFEST in files:
                whole += 1
                if whole <= self.keep:
                    continue
                # The manifest goes first: from then on nobody takes the rest for a checkpoint.
                storage.delete(storage.join(self.uri, place, attempts.MANIFEST))
            elif _age(place) < DAY:
                continue  # another pod may be at it
            for name in files:
                if name != attempts.MANIFEST:
                    storage.delete(storage.join(self.uri, place, name))
            _remove_empty(self.uri, place)


def refuse_other(info: dict[str, Any], made_from: dict[str, Any], what: str) -> None:
    """Refuses work that lies under the same key but was made from something else: a key was given by hand.

    Args:
        info: what its manifest says of it.
        made_from: what this run starts from, by name.
        what: the work's address.

    Raises:
        InputError: names what differs.
    """
    for name, value in made_from.items():
        if name in info and info[name] != value:
            raise InputError(
                f"{what} was made with {name} {info[name]}, and this run has {value}: its training_key is not this"
                " run's; give another"
            )


def _step(place: str) -> int:
    return int(place.partition("/")[0].removeprefix("step-"))


def _age(place: str) -> float:
    """Seconds since an attempt began, from its id."""
    try:
        began = time.strptime(place.rsplit("/", 1)[-1].partition("-")[0], "%Y%m%dT%H%M%S")
    except ValueError:
        return 0.0
    return time.time() - calendar.timegm(began)


def _altered(folder: Path) -> str:
    """The first file whose content is not what the manifest says, in words; '' for none."""
    for name, file in json.loads((folder / attempts.MANIFEST).read_text())["files"].items():
        if storage.sha256_file(folder / name) != file["sha256"]:
            return f"{name} has another content than it was written with"
    return ""


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove_empty(uri: str, place: str) -> None:
    if storage.is_s3(uri):
        return
    folder = storage.local_path(storage.join(uri, place))
    for path in _upwards(folder):
        try:
            path.rmdir()
        except OSError:
            return


def _upwards(folder: Path) -> Iterator[Path]:
    yield from sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
    yield from (folder, folder.parent)
