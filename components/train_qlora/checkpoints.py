"""Checkpoints that outlive their machine: in the store under the training_key, whole or not there.

<store>/checkpoints/<training_key>/step-00000040/<attempt id>/...            a trainer's checkpoint
<store>/checkpoints/<training_key>/step-00000040/<attempt id>/manifest.json  written last
"""

import contextlib
import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import attempts, copies, storage
from qlora_pipelines.components.core.store.attempts import Finished


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training_key.

    Args:
        uri: their folder, local or in a bucket.
        keep: how many whole ones stay.
        made_from: what they are made from, by name: a checkpoint made from anything else is refused.
    """

    uri: str
    keep: int
    made_from: dict[str, Any] = dataclasses.field(default_factory=dict)

    def newest(self, folder: Path) -> tuple[int, Path] | None:
        """The newest checkpoint whose files are all as its manifest says; the others are named in the log.

        Args:
            folder: an empty folder, for a copy of one that is in a bucket.

        Returns:
            Its step and a local folder with it; None where there is none.

        Raises:
            InputError: it is of another base, other data, other options or another version.
            TransientError: the store is away, so that nothing is known of it.
        """
        for place, sizes in sorted(self._attempts().items(), reverse=True):
            try:
                found, local = self._whole(place, sizes, folder / place)
            except TransientError:
                raise
            except InputError as error:
                log(f"checkpoint {place} is not whole: {error}; it is passed over")
                continue
            refuse_other(found.info, self.made_from, found.uri)
            return _step(place), local
        return None

    def last_step(self) -> int:
        """The step of the newest checkpoint that was finished, by its manifest alone; 0: there is none.

        Raises:
            TransientError: the store is away.
        """
        finished = [place for place, sizes in self._attempts().items() if attempts.MANIFEST in sizes]
        return max(map(_step, finished), default=0)

    def save(self, source: Path, step: int) -> None:
        """Stores a trainer's checkpoint, then removes those that are too many.

        Args:
            source: the folder that the trainer wrote; its files are moved away.
            step: optimiser steps made.
        """
        with attempts.attempt(storage.join(self.uri, f"step-{step:08d}")) as attempt:
            for path in source.iterdir():
                shutil.move(path, attempt.folder / path.name)
            attempt.commit({"step": step, **self.made_from})
        self._remove_old()

    def _attempts(self) -> dict[str, dict[str, int]]:
        """Every attempt at a checkpoint by its place, with its files' sizes."""
        found: dict[str, dict[str, int]] = {}
        for entry in storage.files(self.uri, hidden=True):
            if match := re.fullmatch(r"(step-\d{8}/[^/]+)/(.+)", entry.path):
                found.setdefault(match[1], {})[match[2]] = entry.size
        return found

    def _whole(self, place: str, sizes: dict[str, int], folder: Path) -> tuple[Finished, Path]:
        """What a checkpoint's manifest says, and a local folder with its files.

        Raises:
            InputError: what is wrong with it, as far as a listing of its files or their content tells.
        """
        if attempts.MANIFEST not in sizes:
            raise InputError("it was not finished")
        found = attempts.read(storage.join(self.uri, place))
        for name, file in found.files.items():
            if sizes.get(name) != file["size"]:
                raise InputError(f"{name} has {sizes.get(name, 0)} of {file['size']} bytes")
        return found, copies.fetch_work(found, folder)

    def _remove_old(self) -> None:
        """Removes whole checkpoints beyond those to keep, and what dead attempts left."""
        whole = 0
        for place, sizes in sorted(self._attempts().items(), reverse=True):
            step = storage.join(self.uri, place.partition("/")[0])
            if attempts.MANIFEST not in sizes:
                attempts.clear(step)
            else:
                whole += 1
                if whole <= self.keep:
                    continue
                storage.remove(storage.join(self.uri, place), first=attempts.MANIFEST)
            if not storage.is_remote(step):
                with contextlib.suppress(OSError):  # another attempt is in it
                    storage.local_path(step).rmdir()


def _step(place: str) -> int:
    return int(place.partition("/")[0].removeprefix("step-"))


def refuse_other(info: dict[str, Any], made_from: dict[str, Any], what: str) -> None:
    """Refuses work that is under the same key but was made from something else: a key was given by hand.

    Args:
        info: what its manifest says about it.
        made_from: what this run starts from, by name.
        what: the work's address.

    Raises:
        InputError: names what differs.
    """
    for name, value in made_from.items():
        found = info.get(name, 1 if name == "key_format" else value)  # version 0.1 wrote no format
        if found == value:
            continue
        if (name, found) == ("key_format", 1):
            raise InputError(f"{what} is from version 0.1, whose options have other names: give another training_key")
        raise InputError(
            f"{what} was made with {name} {found}, and this run has {value}: its training_key is not this run's; give"
            " another"
        )
