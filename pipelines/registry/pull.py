"""Brings a registered version's files here: several parts at a time, taken up where an earlier pull ended, verified.

.<name>.<start of the manifest's sha256>/   while it comes, beside the folder that it becomes
    .parts                                  which parts of which file are there
"""

import contextlib
import fcntl
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import manifest, signing
from qlora_pipelines.components.core.registry.manifest import Registered
from qlora_pipelines.components.core.store import storage, transfer

JOURNAL, LOCK = ".parts", ".lock"
Part = tuple[str, int]


def pull(version: Registered, folder: Path, arrived: Callable[[int], None] = lambda _: None) -> bool:
    """Makes a folder with exactly a version's files; it appears under its name when all of them are verified.

    Args:
        version: what its manifest says, already checked against the registry's tag.
        folder: what to make.
        arrived: told of every number of bytes that is here, those of an earlier pull first.

    Returns:
        Whether anything was copied: a folder that holds the version already is only verified.

    Raises:
        InputError: the folder is something else, there is no room, or a file is gone, not readable, or not the one that
            was registered; it is named. What has come is kept for the next try.
    """
    if folder.exists():
        _check_present(version, folder)
        return False
    partial = folder.parent / f".{folder.name}.{version.sha256[:12]}"
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}") from None
    with _alone(partial):
        journal = _Journal(partial / JOURNAL)
        _check_room(version, journal, partial)
        _fetch(version, partial, journal, arrived)
        _verify(version, partial, journal)
        (partial / manifest.MANIFEST).write_bytes(version.content)
        if signing.SIGNATURE in transfer.sizes(version.uri):
            signature = storage.read_bytes(storage.join(version.uri, signing.SIGNATURE))
            (partial / signing.SIGNATURE).write_bytes(signature)
        (partial / JOURNAL).unlink()
        (partial / LOCK).unlink()
        partial.rename(folder)
    return True


class _Journal:
    """Which parts are in place: a line each, written after the part's bytes.

    A line that lies (the machine lost power before the bytes were on disk) is found out by the file's hash.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        lines = path.read_text().splitlines() if path.exists() else []
        self.earlier = {(name, int(start)) for start, _, name in (line.partition(" ") for line in lines) if name}

    def add(self, part: Part) -> None:
        with self._lock, self.path.open("a") as file:
            file.write(f"{part[1]} {part[0]}\n")

    def forget(self, name: str) -> None:
        with self._lock:
            lines = self.path.read_text().splitlines()
            self.path.write_text("".join(f"{line}\n" for line in lines if line.partition(" ")[2] != name))


@contextlib.contextmanager
def _alone(partial: Path) -> Iterator[None]:
    with (partial / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{partial}: another pull is at work there") from None
        yield


def _parts(name: str, size: int) -> list[tuple[Part, int]]:
    return [((name, start), min(transfer.PART, size - start)) for start in range(0, size, transfer.PART)]


def _check_room(version: Registered, journal: _Journal, partial: Path) -> None:
    parts = [part for name, file in version.files.items() for part in _parts(name, file["size"])]
    needed = sum(size for part, size in parts if part not in journal.earlier)
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise InputError(f"{partial.parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def _fetch(version: Registered, partial: Path, journal: _Journal, arrived: Callable[[int], None]) -> None:
    missing: list[Part] = []
    for name, file in version.files.items():
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        for part, size in _parts(name, file["size"]):
            if part in journal.earlier:
                arrived(size)
            else:
                missing.append(part)

    def fetch(part: Part) -> int:
        name, start = part
        size = min(transfer.PART, int(version.files[name]["size"]) - start)
        data = transfer.read_range(storage.join(version.uri, name), start, size)
        if len(data) != size:
            raise InputError(f"{version.uri}: {name} is not whole")
        try:
            with (partial / name).open("r+b") as file:
                file.seek(start)
                file.write(data)
            journal.add(part)
        except OSError as error:
            raise InputError(f"{partial}: {error.strerror}; what has come is kept, pull again") from None
        return size

    with ThreadPoolExecutor(transfer.PARALLEL) as pool:
        jobs = {pool.submit(fetch, part) for part in missing}
        try:
            while jobs:
                done, jobs = wait(jobs, timeout=0.5, return_when=FIRST_EXCEPTION)
                for job in done:
                    arrived(job.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _verify(version: Registered, partial: Path, journal: _Journal) -> None:
    """Compares every file's hash; one that an earlier pull had a part in is fetched once more before it is blamed."""
    for name in _differing(version, partial):
        journal.forget(name)
        if any(part[0] == name for part in journal.earlier):
            only = manifest.Registered(version.uri, {name: version.files[name]}, version.sha256, version.content)
            journal.earlier = {part for part in journal.earlier if part[0] != name}
            _fetch(only, partial, journal, lambda _: None)
            if not _differing(only, partial):
                continue
            journal.forget(name)
        raise InputError(f"{version.uri}: {name} was altered: it is not the file that was registered")


def _differing(version: Registered, folder: Path) -> list[str]:
    def differs(name: str) -> bool:
        path, file = folder / name, version.files[name]
        return bool(path.stat().st_size != file["size"] or storage.sha256_file(path) != file["sha256"])

    with ThreadPoolExecutor(transfer.PARALLEL) as pool:
        return [name for name, found in zip(version.files, pool.map(differs, version.files), strict=True) if found]


def _check_present(version: Registered, folder: Path) -> None:
    present = folder / manifest.MANIFEST
    if not present.is_file() or present.read_bytes() != version.content:
        raise InputError(f"{folder} is there already and is not this version; give another folder, or remove it")
    for name in version.files:
        if not (folder / name).is_file():
            raise InputError(f"{folder}: {name} is gone; remove the folder and pull again")
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    for name in sorted(here - version.signed_files.keys() - {signing.SIGNATURE}):
        raise InputError(f"{folder}: {name} is none of the registered files; remove it and pull again")
    for name in _differing(version, folder):
        raise InputError(f"{folder}: {name} was altered; remove the folder and pull again")
