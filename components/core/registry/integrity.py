"""Checks that a finished adapter or merged model is what its step made: the same manifest, exactly the listed files.

A step returns the SHA-256 of its manifest as a pipeline value. Write access to the store does not give write access to
pipeline values. Each later step compares what it reads with that digest, so what is signed is what the gate evaluated.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import manifest
from qlora_pipelines.components.core.registry.manifest import Files
from qlora_pipelines.components.core.store import attempts, copies, local_files, storage

GONE, ALTERED, EXTRA = "is gone", "was altered", "is not in the manifest"
LINK, SPECIAL, LINKED = "is a symbolic link", "is not an ordinary file", "has a second hard link"
Known = Callable[[str], bool]
Identity = tuple[int, ...]
"""Changes when a file is written or renamed: the kernel sets the last of its numbers, and no program can set it back.

That of a folder changes when it is renamed, or something in it is made, renamed or removed."""


def digest(work: attempts.Finished) -> str:
    """The sha256 of the manifest of work that this process wrote or found, to be handed on.

    Raises:
        InputError: the manifest now says something else.
    """
    path = storage.join(work.uri, attempts.MANIFEST)
    content, said = storage.read_bytes(path), None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found = json.loads(content)
        said = [found["info"], found["files"]]
    if json.dumps(said, sort_keys=True) != json.dumps([work.info, work.files], sort_keys=True):
        raise InputError(f"{path} was replaced while this step ran; remove its folder, and its work is done again")
    return hashlib.sha256(content).hexdigest()


def read(uri: str, sha256: str, what: str) -> attempts.Finished:
    """Finished work by its manifest, which has this sha256; its `files` include the manifest itself.

    Args:
        uri: folder of the work.
        sha256: what `digest` gave the step that made it.
        what: whose work it is, for the message.

    Raises:
        InputError: no digest is given, or the manifest is gone or another.
    """
    path = storage.join(uri, attempts.MANIFEST)
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise InputError(f"{what} {uri}: give its digest, as the step that made it returned it, not {sha256!r}")
    content = storage.read_bytes(path)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InputError(
            f"{path} was altered: its sha256 is {found[:12]}, the step that made the {what} said {sha256[:12]}"
        )
    files = manifest.parse_files(path, content) | {attempts.MANIFEST: manifest.entry(content)}
    return attempts.Finished(uri, json.loads(content)["info"], files)


def read_file(uri: str, name: str, files: Files) -> bytes:
    """The content of a small file, which has the sha256 that `files` says.

    Raises:
        InputError: it is gone or another.
    """
    content = storage.read_bytes(storage.join(uri, name))
    if manifest.entry(content) != files[name]:
        raise InputError(f"{uri}: {name} {ALTERED} since it was checked")
    return content


def check(uri: str, files: Files, what: str, remedy: str, known: Known) -> None:
    """Reads every file again: they are all there, they are those of the manifest, and there are no others.

    Args:
        uri: the folder that they are in, local or not. In a local one, no link is followed.
        files: size and sha256 by path.
        what: whose files they are, for the message.
        remedy: what to do where one is gone or another, for the message.
        known: which paths may be there besides.

    Raises:
        InputError: a file is missing, changed, or not in the manifest; the first such file is named.
    """
    if storage.is_remote(uri):
        found = _problems_of_objects(uri, files, known)
    else:
        with open_folder(storage.local_path(uri)) as folder:
            found = inspect(folder, files, known)[0]
    _refuse(found, what, remedy)


def _refuse(problems: dict[str, str], what: str, remedy: str) -> None:
    for name, problem in problems.items():
        raise InputError(f"{what}: {name} {problem}; {'remove it and run again' if problem == EXTRA else remedy}")


def _problems_of_objects(uri: str, files: Files, known: Known) -> dict[str, str]:
    present = {entry.path: entry.size for entry in storage.files(uri, hidden=True)}
    found = {shown(name): EXTRA for name in present if name not in files and not known(name)}
    found |= {name: ALTERED if name in present else GONE for name in files if present.get(name) != files[name]["size"]}
    whole = {name: file for name, file in files.items() if name not in found}
    return found | dict.fromkeys(attempts.altered(uri, whole), ALTERED)


@contextlib.contextmanager
def open_folder(path: str | Path, within: int | None = None, *, follow: bool = True) -> Iterator[int]:
    """A descriptor of a folder: whatever becomes of its name, this stays the same folder.

    Args:
        path: the folder.
        within: descriptor of the folder that `path` starts from; None: the working folder.
        follow: whether `path` may end in a symbolic link.

    Raises:
        InputError: it is no folder, or cannot be read.
    """
    with local_files.errors(str(path), "read"):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | (0 if follow else os.O_NOFOLLOW), dir_fd=within)
    try:
        yield folder
    finally:
        os.close(folder)


def inspect(
    folder: int, files: Files, known: Known = lambda _: False, *, single: bool = False
) -> tuple[dict[str, str], dict[str, Identity]]:
    """What differs between a local folder and a manifest, and the identity of each file that was read.

    Every folder and file is opened from the descriptor of the one it is in and no link is followed, so what is hashed
    is in this folder, whoever renames what meanwhile.

    Args:
        folder: descriptor of the folder.
        files: size and sha256 by path.
        known: which paths may be there besides.
        single: whether a file with a second hard link is refused: it can be written through that.

    Returns:
        What is wrong by path, nothing where all is as it should be; and by path the identities of files and folders.

    Raises:
        InputError: something in the folder cannot be read.
    """
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    problems: dict[str, str] = {}
    identities: dict[str, Identity] = {}

    def look(path: str, top: int) -> None:
        name = path.rpartition("/")[2]
        kind = os.stat(name, dir_fd=top, follow_symlinks=False).st_mode
        wanted = stat.S_ISDIR if path in folders else stat.S_ISREG
        if path not in files and path not in folders:
            problem = "" if known(path) else EXTRA
        elif not wanted(kind):
            problem = LINK if stat.S_ISLNK(kind) else SPECIAL
        elif path in folders:
            problem, identities[path] = "", _identity(os.stat(name, dir_fd=top, follow_symlinks=False))
        else:
            # The kind may change between the look and the opening: no link is followed, and no pipe waited for.
            with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=top), "rb") as file:
                found = os.fstat(file.fileno())
                identities[path] = _identity(found)
                same = found.st_size == files[path]["size"] and stat.S_ISREG(found.st_mode)
                same = same and hashlib.file_digest(file, "sha256").hexdigest() == files[path]["sha256"]
            problem = "" if same else ALTERED
            if single and found.st_nlink > 1:
                problem = LINKED
        if problem:
            problems[shown(path)] = problem

    def try_to(path: str, top: int) -> None:
        with local_files.errors(shown(path), "read"), contextlib.suppress(FileNotFoundError):  # gone since the listing
            look(path, top)

    with ThreadPoolExecutor(storage.PARALLEL) as pool:
        for root, below, names, top in os.fwalk(".", dir_fd=folder, onerror=_refuse_unreadable):
            paths = {name: f"{root}/{name}".removeprefix("./") for name in sorted(below + names)}
            list(pool.map(try_to, paths.values(), [top] * len(paths)))
            below[:] = [name for name in below if shown(paths[name]) not in problems]
    problems |= {name: GONE for name in files if name not in problems and name not in identities}
    return dict(sorted(problems.items())), identities


def _refuse_unreadable(error: OSError) -> None:
    raise InputError(f"{shown(str(error.filename))}: cannot be read: {error.strerror}")


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def shown(name: str) -> str:
    """A file's name in one line of text, whatever bytes it has."""
    return name if name.isprintable() else ascii(name)


@dataclasses.dataclass(frozen=True)
class VerifiedFolder:
    """A local folder with exactly the files of finished work; see `verified_folder`.

    `folder` is what to load from. `path` is the same folder by its own name, for what shows it to people.
    """

    folder: Path
    path: Path
    check_unchanged: Callable[[], None]
    """Checks that what was loaded since is what was verified: due before anything is made of it. InputError: it is not.
    """


@contextlib.contextmanager
def verified_folder(
    work: attempts.Finished, scratch: Path, what: str, known: Known = lambda path: path == attempts.ALIVE
) -> Iterator[VerifiedFolder]:
    """A local folder with exactly the files of finished work, verified.

    From a bucket, the manifest's files are copied into a folder that is this user's alone, and the copy is verified:
    nobody else can change it before it is loaded.

    A local store is read where it is; a copy would double the disk. The folder is held open and loaded from by its
    descriptor, so that no other can take its name meanwhile (where there is no /proc, as on macOS, it is loaded from by
    name). Each file is hashed before it is loaded and again by `check_unchanged`, and all files and folders in it must
    have kept their identity: so neither what is replaced for good nor what is replaced, or written, and put back is
    missed. Weights may stay mapped from the file until the model is gone, hence the second check is due after the last
    use, not after loading. Not guaranteed: against root; against a program that has had the file mapped for writing
    since before the first check, whose writes the kernel need not see; against two writes within one tick of the
    kernel's clock, a few milliseconds, that the first check falls in between; where a file server stamps wrong times.
    A store in a bucket has none of these gaps.

    Args:
        work: as `read` gives it.
        scratch: an empty folder that only this user can write, for the copy.
        what: whose work it is, for the message.
        known: which paths may be there besides; they are not copied.

    Raises:
        InputError: a file is missing, changed, or not in the manifest.
    """
    remote = storage.is_remote(work.uri)
    path = _download(work, scratch, what, known) if remote else storage.local_path(work.uri)
    with open_folder(path) as opened:

        def verify() -> dict[str, Identity]:
            problems, identities = inspect(opened, work.files, known)
            _refuse(problems, f"{what} {work.uri}", "remove the folder, and its work is done again")
            return identities

        identities = verify()

        def check_unchanged() -> None:
            if not remote and verify() != identities:
                raise InputError(f"{what} {work.uri}: a file changed while it was read; run again")

        pinned = Path(f"/proc/self/fd/{opened}")
        yield VerifiedFolder(pinned if not remote and pinned.exists() else path, path, check_unchanged)


def _download(work: attempts.Finished, scratch: Path, what: str, known: Known) -> Path:
    entries = list(storage.files(work.uri, hidden=True))
    extra = [entry.path for entry in entries if entry.path not in work.files and not known(entry.path)]
    _refuse({shown(name): EXTRA for name in extra}, f"{what} {work.uri}", "")
    present = {entry.path for entry in entries}
    return copies.download(work.uri, scratch, [entry for entry in copies.entries(work) if entry.path in present])
