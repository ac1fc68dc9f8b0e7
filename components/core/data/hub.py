"""Data sets on the Hugging Face hub: `org/name`, `org/name@revision`, or `hf://datasets/org/name@revision/path`.

A revision is resolved to its commit, so that the address cannot come to mean other data.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from qlora_pipelines.components.core.errors import InputError, first_line
from qlora_pipelines.components.core.store.storage import Entry, sha256_file

PREFIX = "hf://datasets/"
DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""Files beside the data that `datasets` writes of it."""
_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.%-]+))?(/(?P<path>.+))?")


class Source(NamedTuple):
    """A data set on the hub; `path` is a file or folder in it, or empty."""

    name: str
    revision: str
    path: str


def parse(uri: str) -> Source | None:
    """The data set that an address names, or None where it is an address of another kind."""
    long = uri.startswith(PREFIX)
    found = _ID.fullmatch(uri.removeprefix(PREFIX))
    if found is None or (not long and (found["path"] or uri.startswith(".") or os.path.exists(uri))):
        return None
    return Source(found["name"], (found["revision"] or "main").replace("%2F", "/"), found["path"] or "")


def listing(source: Source, suffixes: tuple[str, ...]) -> tuple[str, list[Entry]]:
    """The address at its commit, and the data files there, told apart by sha256 (LFS) or by git's blob id.

    Of a whole data set with files of several splits, those whose path says `train` are taken.

    Raises:
        InputError: the hub does not give it.
    """
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().dataset_info(
            source.name, revision=source.revision, files_metadata=True, timeout=20
        )
    except Exception as error:  # the hub's client raises many unrelated kinds
        but = "no file or folder of that name here, and "
        raise InputError(f"data {source.name}: {why(error, source.revision, but)}") from None
    below = source.path.rstrip("/")
    entries = [
        Entry(file.rfilename, file.size or 0, f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}")
        for file in info.siblings or []
        if file.rfilename.endswith(suffixes)
        and not file.rfilename.endswith(DESCRIPTIONS)
        and (not below or f"{file.rfilename}/".startswith(f"{below}/"))
    ]
    train = [entry for entry in entries if re.search(r"(^|[/_.-])train([/_.-]|$)", entry.path)]
    path = f"/{below}" if below else ""
    return f"{PREFIX}{source.name}@{info.sha}{path}", sorted(train if train and not below else entries)


def fetch(uri: str, path: str, etag: str, folder: Path) -> Path:
    """Downloads one listed file and checks its content.

    Raises:
        InputError: the hub does not give it, or gives other content.
    """
    import huggingface_hub

    source = parse(uri)
    assert source is not None
    try:
        found = Path(
            huggingface_hub.hf_hub_download(
                source.name, path, repo_type="dataset", revision=source.revision, local_dir=folder
            )
        )
    except Exception as error:  # as above
        raise InputError(f"data {uri}: {why(error, source.revision)}") from None
    if f"{etag.partition(':')[0]}:{_content(found, etag)}" != etag:
        raise InputError(f"data {uri}: {path} is not the file that was listed; start a new run")
    return found


def read(uri: str, path: str, offset: int, size: int) -> bytes:
    """Some bytes of one listed file, without the rest.

    Raises:
        InputError: the hub does not give them.
    """
    import huggingface_hub
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    source = parse(uri)
    assert source is not None
    if not size:
        return b""
    url = huggingface_hub.hf_hub_url(source.name, path, repo_type="dataset", revision=source.revision)
    wanted = {"Range": f"bytes={offset}-{offset + size - 1}"}
    try:
        answer = get_session().get(url, headers=build_hf_headers() | wanted, follow_redirects=True, timeout=20)
        hf_raise_for_status(answer)
    except Exception as error:  # as above
        raise InputError(f"data {uri}: {why(error, source.revision)}") from None
    data = bytes(answer.content)
    return data if answer.status_code == 206 else data[offset : offset + size]


def _content(path: Path, etag: str) -> str:
    if etag.startswith("sha256:"):
        return sha256_file(path)
    data = path.read_bytes()  # only small files are not in LFS
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def why(error: Exception, revision: str, but: str = "") -> str:
    """What the hub's client says when it refuses, in words a person can act on: it raises many unrelated kinds.

    Args:
        error: what it raised.
        revision: that was asked for.
        but: what else a name that the hub does not know could have meant.
    """
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return "it is gated: ask for access on its page on the hub, and set HF_TOKEN to a token of that account"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub has no revision {revision} of it; give a branch, a tag or a commit"
    return f"{but}the Hugging Face hub says: {first_line(error)}"
