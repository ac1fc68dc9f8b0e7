"""The Hugging Face hub: its files with their checksums, and its errors in one line.

Data sets are `org/name`, `org/name@revision`, or `hf://datasets/org/name@revision/path`. A revision is resolved to its
commit, so that the content of the address cannot change.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from qlora_pipelines.components.core.errors import InputError, first_line
from qlora_pipelines.components.core.store.local_files import check_name, join_local
from qlora_pipelines.components.core.store.storage import Entry, sha256_file

PREFIX = "hf://datasets/"
DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""Files that `datasets` writes next to the data."""
_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.%-]+))?(/(?P<path>.+))?")


class Source(NamedTuple):
    """A data set on the hub; `path` is a file or folder in it, or empty."""

    name: str
    revision: str
    path: str


@contextlib.contextmanager
def errors(what: str, revision: str, otherwise: str = "") -> Iterator[None]:
    """Turns what the hub's client raises, which is of many unrelated types, into one line.

    Args:
        what: what was asked for, such as `data org/name`.
        revision: the revision that was asked for.
        otherwise: what else a name that the hub does not know could have meant.

    Raises:
        InputError: says what to do where that is known.
    """
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    try:
        yield
    except Exception as error:
        reason = f"{otherwise}the Hugging Face hub says: {first_line(error)}"
        if isinstance(error, GatedRepoError):
            reason = "it is gated: ask for access on its page on the hub, and set HF_TOKEN to a token of that account"
        elif isinstance(error, RevisionNotFoundError):
            reason = f"the hub has no revision {revision} of it; give a branch, a tag or a commit"
        raise InputError(f"{what}: {reason}") from None


def files(info: Any) -> list[Entry]:
    """The files of a repository; their `etag` is `sha256:...` (LFS) or git's blob id, `git:...`.

    Args:
        info: what `HfApi.model_info` or `dataset_info` gives with `files_metadata=True`.

    Raises:
        InputError: one has a name that cannot be a file's below a folder.
    """
    return [
        Entry(
            check_name(file.rfilename),
            file.size or 0,
            f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}",
        )
        for file in info.siblings or []
    ]


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit's whole id, of which there is only one content."""
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", revision) is not None


def commit(info: Any) -> str:
    """The commit of what the hub answered; it becomes a folder's name.

    Raises:
        InputError: the answer names none.
    """
    if not is_commit(str(info.sha)):
        raise InputError(f"the hub's answer names {info.sha!r} as commit, which is none: is it a hub?")
    return str(info.sha)


def checksum(path: Path, like: str) -> str:
    """The checksum of a local file, of the same kind as `like`: `sha256:...`, or `git:...`, git's blob id.

    `HfApi.verify_repo_checksums` would list the repository again; a run compares with the listing that it was planned
    with.
    """
    from huggingface_hub.utils.sha import git_hash

    if like.startswith("sha256:"):
        return f"sha256:{sha256_file(path)}"
    return f"git:{git_hash(path.read_bytes())}"  # the hub keeps only files of a few MB outside LFS


def parse(uri: str) -> Source | None:
    """The data set that an address names, or None where it is an address of another kind."""
    match = _ID.fullmatch(uri.removeprefix(PREFIX))
    local = not uri.startswith(PREFIX) and (uri.startswith(".") or os.path.exists(uri))
    if match is None or local or (match["path"] and not uri.startswith(PREFIX)):
        return None
    return Source(match["name"], (match["revision"] or "main").replace("%2F", "/"), match["path"] or "")


def listing(source: Source, data_of: Callable[[list[Entry]], list[Entry]]) -> tuple[str, list[Entry]]:
    """The address at its commit, and the data files there.

    Of a whole data set with files of several splits, those whose path says `train` are taken.

    Args:
        source: the data set.
        data_of: which of its files are data.

    Raises:
        InputError: the hub does not give it.
    """
    import huggingface_hub

    with errors(f"data {source.name}", source.revision, "no file or folder of that name here, and "):
        info = huggingface_hub.HfApi().dataset_info(
            source.name, revision=source.revision, files_metadata=True, timeout=20
        )
    found = [entry for entry in files(info) if not entry.path.endswith(DESCRIPTIONS)]
    uri = f"{PREFIX}{source.name}@{commit(info)}"
    if path := source.path.rstrip("/"):
        return f"{uri}/{path}", sorted(data_of([e for e in found if f"{e.path}/".startswith(f"{path}/")]))
    data = data_of(found)
    train = [entry for entry in data if re.search(r"(^|[/_.-])train([/_.-]|$)", entry.path)]
    return uri, sorted(train or data)


def fetch(uri: str, path: str, etag: str, folder: Path) -> Path:
    """Downloads one listed file and checks its content.

    Raises:
        InputError: the hub does not give it, or gives other content.
    """
    import huggingface_hub

    name, revision, _ = _at_commit(uri)
    join_local(folder, path)
    with errors(f"data {uri}", revision):
        file = huggingface_hub.hf_hub_download(name, path, repo_type="dataset", revision=revision, local_dir=folder)
    if checksum(Path(file), etag) != etag:
        raise InputError(f"data {uri}: {path} is not the file that was listed; start a new run")
    return Path(file)


def read(uri: str, path: str, offset: int, size: int) -> bytes:
    """Some bytes of one listed file, without the rest.

    Raises:
        InputError: the hub does not give them.
    """
    import huggingface_hub

    name, revision, _ = _at_commit(uri)
    with errors(f"data {uri}", revision):
        # With the endpoint, as the library would else keep the one that it was imported with.
        system = huggingface_hub.HfFileSystem(endpoint=huggingface_hub.constants.ENDPOINT)
        file = f"datasets/{name}@{revision}/{path}"
        # Without a cache, which would read five MiB more each time.
        return bytes(system.cat_file(file, start=offset, end=offset + size, cache_type="none")) if size else b""


def _at_commit(uri: str) -> Source:
    source = parse(uri)
    if source is None:
        raise InputError(f"data {uri}: this is not a data set on the hub")
    return source
