"""The folder that a pull fills, next to the one that it becomes.

    .<name>.<start of the manifest's sha256>.<random>/     of this user, and writable by nobody else
        parts                                              its own name, and which parts of which file have arrived
        files/                                             takes the name when every file in it is verified

Who may write in the folder above can put anything there, and rename or remove what is there. So:

- A partial folder is taken up only if the kernel says that it is this user's and that nobody else can write in it, and
  if `parts` says that a pull made it under this very name. Nobody but root can give a folder away, so neither one that
  others made is taken up, nor one of this user's that others moved there. Nothing in it is trusted for that: all of it
  is hashed again.
- It is held open. Every file is opened from the folder that it is in, and no link is followed on any level: what is
  written goes into this folder, whatever its name means by then.
- Until the files are verified, and take their name in one step, they are where nobody else can write.
- When a pull ends, the name means the folder that was verified.

Not guaranteed: what the name means afterwards, where others can write in the folder above; what becomes of a folder of
somebody else's that was there already, and verified; and anything against root or this user's own programs.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import threading
from collections.abc import Collection, Iterator
from io import FileIO
from pathlib import Path

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import integrity
from qlora_pipelines.components.core.registry.manifest import Files

JOURNAL, FILES = "parts", "files"
Part = tuple[str, int]
"""A file's path and where in it the part begins."""


class Partial:
    """A pull's own folder, taken up or made, and locked until it is closed."""

    def __init__(self, target: Path, sha256: str) -> None:
        """Args: target: the folder to make. sha256: of the manifest of what it is to hold.

        Raises:
            InputError: another pull is using it, or others could write in it.
            OSError: it cannot be made.
        """
        self.target = target
        self._noting = threading.Lock()
        with contextlib.ExitStack() as stack:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._parent = stack.enter_context(integrity.open_folder(target.parent))
            prefix = f".{target.name}.{sha256[:12]}."
            candidates = sorted(name for name in os.listdir(self._parent) if name.startswith(prefix))
            if not any(self._take_up(name, stack) for name in candidates):
                self._make(prefix + secrets.token_hex(16), stack)
            self._files = self._open_folder(FILES, self._top, stack)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Lets another pull take it up."""
        self._stack.close()

    def _take_up(self, name: str, stack: contextlib.ExitStack) -> bool:
        """Takes up a folder if an earlier pull of this user made it; says whether it did."""
        try:
            self._open_own(name, stack)
            self._journal = self._open_file(JOURNAL, self._top, stack, make=0)
        except (InputError, FileNotFoundError):
            return False
        self._lock()
        own, *lines = self._journal.readall().decode(errors="replace").split("\n")
        noted = (line.partition(" ") for line in lines)
        self.parts = {(file, int(start)) for start, _, file in noted if file and start.isdigit()}
        return own == name

    def _make(self, name: str, stack: contextlib.ExitStack) -> None:
        os.mkdir(name, 0o700, dir_fd=self._parent)
        self._open_own(name, stack)
        self._journal = self._open_file(JOURNAL, self._top, stack)
        self._lock()
        self.parts = set()
        self.forget([])

    def _open_own(self, name: str, stack: contextlib.ExitStack) -> None:
        self._name, self.path = name, self.target.parent / name
        self._top = stack.enter_context(integrity.open_folder(name, self._parent, follow=False))
        found = os.fstat(self._top)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
            raise InputError(
                f"{self.path}: others can write in it, or its disk keeps no owners and rights; pull to another disk"
            )

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.path}: another pull is running there") from None

    def _open_folder(self, name: str, within: int, stack: contextlib.ExitStack) -> int:
        """A folder in an open one, made where there is none."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=within)
        with self._refusing(name):
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=within)
        stack.callback(os.close, folder)
        return folder

    def _open_file(self, name: str, within: int, stack: contextlib.ExitStack, make: int = os.O_CREAT) -> FileIO:
        """A file in an open folder, to read and write, made where there is none unless `make` is 0."""
        with self._refusing(name):
            # A pipe is not waited for.
            opened = os.open(name, os.O_RDWR | make | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666, dir_fd=within)
            file = stack.enter_context(FileIO(opened, "r+"))
            found = os.fstat(opened)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != os.geteuid():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return file

    @contextlib.contextmanager
    def _refusing(self, name: str) -> Iterator[None]:
        """Names what is not opened because it is a link, has a second hard link, or is no file or folder.

        Raises:
            InputError: it is one of these.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO):
                raise
            raise InputError(
                f"{self.path}: {name} is a link, or no file of this user; remove {self.path} and pull again"
            ) from None

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[FileIO]:
        """A file of the tree, to read and write; folders that it needs are made.

        Raises:
            InputError: something on the way is a link, is hard linked, or is no file or folder.
        """
        *folders, last = name.split("/")
        with contextlib.ExitStack() as stack:
            folder = self._files
            for each in folders:
                folder = self._open_folder(each, folder, stack)
            yield self._open_file(last, folder, stack)

    def make(self, files: Files) -> None:
        """Makes every file in its full size; what has arrived stays."""
        for name, entry in files.items():
            with self.open(name) as file:
                if os.fstat(file.fileno()).st_size != entry["size"]:
                    file.truncate(entry["size"])

    def write(self, name: str, start: int, data: bytes) -> None:
        """Writes a part of a file."""
        with self.open(name) as file:
            done = 0
            while done < len(data):
                done += os.pwrite(file.fileno(), data[done:], start + done)

    def add(self, part: Part) -> None:
        """Notes that a part has arrived, after its bytes.

        After a power cut the note may be there without the bytes; the file's hash then shows it.
        """
        with self._noting:
            self._journal.write(f"{part[1]} {part[0]}\n".encode())
            self.parts.add(part)

    def forget(self, names: Collection[str]) -> None:
        """Notes that no part of these files is here."""
        self.parts = {part for part in self.parts if part[0] not in names}
        self._journal.seek(0)
        self._journal.truncate()
        lines = [self._name, *(f"{start} {name}" for name, start in self.parts)]
        self._journal.write("".join(f"{line}\n" for line in lines).encode())

    def problems(self, files: Files) -> dict[str, str]:
        """What differs between the tree and these files, and nothing else but these; see `integrity.inspect`."""
        return integrity.inspect(self._files, files, single=True)[0]

    def finish(self) -> None:
        """Gives the files, which were verified, the target's name.

        Raises:
            InputError: the name means something else already.
            OSError: likewise, or the disk refuses.
        """
        os.rename(FILES, self.target.name, src_dir_fd=self._top, dst_dir_fd=self._parent)
        named = os.stat(self.target.name, dir_fd=self._parent, follow_symlinks=False)
        if not os.path.samestat(named, os.fstat(self._files)):
            raise InputError(f"{self.target}: somebody put another folder in the place of the verified one")
        with contextlib.suppress(OSError):  # all is well, if something is left there
            os.unlink(JOURNAL, dir_fd=self._top)
            os.rmdir(self._name, dir_fd=self._parent)
