"""The data that a trigger looks at: its keys, whether it is still being written, and how much of it is new."""

import dataclasses
import itertools
import json
import math
import tempfile
from pathlib import Path

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.data import hub, listing, readers
from qlora_pipelines.components.core.data.listing import DataFile, Listing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model, packable, run_tokenizer
from qlora_pipelines.components.core.store import keys, storage
from qlora_pipelines.components.core.store.keys import RunKeys
from qlora_pipelines.components.core.store.storage import Entry


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The data as it is now: the keys of a run on it, its listing, and the seconds since a file was last written."""

    keys: RunKeys
    data_digest: str
    listing: Listing
    quiet: float

    @property
    def files(self) -> int:
        """How many files there are."""
        return sum(len(source["files"]) for source in self.listing.values())


def snapshot(config: RunConfig) -> Snapshot:
    """Lists the data and computes the keys as plan_run does; needs no store.

    Raises:
        InputError: base or data cannot be read, there is no data, or it changed while it was listed.
    """
    before = _stamps(config)
    listed = listing.make(config.dataset_uri, config.eval_dataset_uri)
    digest = listing.data_digest(listed)
    revision = base_model.resolve(config.base_model, config.base_revision)
    with tempfile.TemporaryDirectory() as folder:
        files = base_model.small_files(config.base_model, revision, Path(folder, "base"))
        chat_template = config.for_step("prepare_dataset").chat_template
        tokenizer = base_model.tokenizer_digest(run_tokenizer.make(files, chat_template, Path(folder, "tokenizer")))
        config = packable.resolved(config, files)
    after = _stamps(config)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            raise InputError(
                f"data {name} changed while it was listed: somebody is writing there; try again later, or give"
                " --quiet-minutes"
            )
    made = keys.of_run(config, base_revision=revision, data_digest=digest, tokenizer_digest=tokenizer)
    return Snapshot(made, digest, listed, _quiet_for(after))


def new_rows(now: Listing, former_digest: str, enough: int) -> int:
    """Rows of the training data that a former listing does not have; counting stops at `enough`.

    All rows of a new file count. Of a file that grew, the share of its rows that the new bytes are of all bytes.

    Args:
        now: the data now.
        former_digest: names the former listing in the store. If it is empty or no longer there, all rows are new.
        enough: where to stop.
    """
    former = _former(former_digest)
    source = now["train"]
    rows = 0
    for entry in (Entry(*file) for file in source["files"]):
        old = former.get(entry.path)
        if old == entry:
            continue
        share = 1.0 if old is None else 1 - old.size / entry.size
        if share > 0:
            rows += int(_count(source["uri"], entry, (enough - rows) / share) * share)
        if rows >= enough:
            return enough
    return rows


def _former(digest: str) -> dict[str, Entry]:
    if not digest:
        return {}
    listings, name = storage.join(storage.root(), "listings"), f"{digest}.json"
    if name not in storage.sizes(listings):
        return {}  # removed by qlora gc
    found = json.loads(storage.read_bytes(storage.join(listings, name)))
    return {file[0]: Entry(*file) for file in found["train"]["files"]}


def _count(uri: str, entry: Entry, enough: float) -> int:
    root = uri[: uri.index("@")] if uri.startswith(hub.PREFIX) else ""
    name = f"{root}/{entry.path}" if root else storage.file_uri(uri, entry)
    with tempfile.TemporaryDirectory() as folder:
        files = readers.files(DataFile(name, uri, entry).fetch(Path(folder)), name)
        rows = itertools.chain.from_iterable(records for _, records in files)
        return sum(1 for _ in itertools.islice(rows, math.floor(enough) + 1))


def _stamps(config: RunConfig) -> dict[str, tuple[str, int, float]]:
    """Source, size and time of the last change of each file; of data on the hub, none: at a commit nothing changes."""
    return {
        storage.file_uri(uri, entry): (uri, entry.size, entry.modified)
        for uri in filter(None, (config.dataset_uri, config.eval_dataset_uri))
        if not hub.parse(uri)
        for entry in storage.files(uri)
    }


def _quiet_for(stamps: dict[str, tuple[str, int, float]]) -> float:
    """Seconds since a file was last written, both times by the clock of the file's store."""
    now = {uri: storage.clock(uri) for uri in {uri for uri, _, _ in stamps.values()}}
    return min((max(0.0, now[uri] - written) for uri, _, written in stamps.values()), default=float("inf"))
