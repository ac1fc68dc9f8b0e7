"""The base model by name: a local folder, a prefix in an object store, or a Hugging Face id."""

import contextlib
import os
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qlora_pipelines.components.core.data import hub
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import model_files
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import addresses, attempts, copies, keys, local_files, storage

LAYOUT = 2
"""Of a staged base, which files are copied; 2: also named chat templates, licence and code."""
IN_16BIT = "16bit"
"""The folder of a revision in which the store has what `stage_base_model` made of quantised weights."""
CONVERSION = 1
"""Of these copies, how they are made; another number makes them anew."""
IN_PLACE = "in-place"
"""Stands for the name where the store has such a copy of a base that is used where it is."""
CACHE_VARIABLE = "QLORA_BASE_CACHE"
"""Names a folder that outlives a pod and keeps bases, such as a mounted volume."""
DIGEST = "sha256-"
"""How the revision of a base begins that is used where it is."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


def is_on_hub(base_model: str) -> bool:
    """Whether the name is a Hugging Face id rather than a folder or a prefix."""
    looks_like_id = re.fullmatch(r"[\w.-]+/[\w.-]+", base_model) is not None
    return looks_like_id and not base_model.startswith(".") and not os.path.exists(base_model)


def resolve(base_model: str, revision: str) -> str:
    """The revision that names exactly these files: a commit on the hub, else a digest of the files' listing.

    Raises:
        InputError: there is no such model, or a revision is asked of a folder.
    """
    if is_on_hub(base_model):
        return hub_files(base_model, revision)[0]
    entries = storage.listing(base_model)
    if not entries:
        raise InputError(
            f"base model {base_model}: no such folder; give a folder with a model, {addresses.KINDS} or a Hugging Face"
            " id"
        )
    check_names(base_model, [entry.path for entry in entries])
    found = DIGEST + keys.digest([[entry.path, entry.size, entry.etag] for entry in entries])
    if revision not in ("", found):
        raise InputError(
            f"base model {base_model}: its files are not those of revision {revision[:19]}; they are {found[:19]}"
        )
    return found


def fetch(base_uri: str, folder: Path, revision: str = "") -> Path:
    """A local folder with a base's files: the very folder where it is local, else a copy that may have been kept.

    A staged base starts work only if every byte is as its manifest says. With QLORA_BASE_CACHE, copies are kept there
    by content, so that a base of other files is another folder; they are compared again each time. A file has its name
    when it is whole, so whoever fetches at the same time, or was cut short, does no harm.

    Args:
        base_uri: a folder or a prefix in an object store.
        folder: where the copy goes if none is kept.
        revision: what `resolve` found, of a base that is used where it is.

    Raises:
        InputError: the base, or the folder that keeps bases, cannot be read or written; or its bytes are others.
    """
    if not storage.is_remote(base_uri):
        check(base_uri, revision)
        return storage.local_path(base_uri)
    entries, keep = _entries(base_uri, revision), os.environ.get(CACHE_VARIABLE, "")
    if not keep:
        return copies.download(base_uri, folder, entries)
    kept = Path(keep) / keys.digest([[entry.path, entry.size, entry.etag] for entry in entries])
    try:
        _remove_torn(Path(keep))
        with ThreadPoolExecutor(storage.PARALLEL) as pool:
            whole = list(pool.map(lambda entry: _is_kept(kept, base_uri, entry), entries))
        copies.download(base_uri, kept, [entry for entry, there in zip(entries, whole, strict=True) if not there])
    except OSError as error:
        raise InputError(
            f"{CACHE_VARIABLE} {keep}: {error.strerror}; the volume must have room, and user {os.getuid()} may write it"
        ) from None
    log(f"base: {sum(whole)} of {len(entries)} files were kept in {keep}")
    return kept


def _is_kept(kept: Path, base_uri: str, entry: storage.Entry) -> bool:
    return copies.is_copy(local_files.join_local(kept, entry.path), storage.file_uri(base_uri, entry), entry)


def check(base_uri: str, revision: str = "") -> list[storage.Entry]:
    """Compares a base where it is: a staged one with its manifest, another with its revision.

    A local one is read for that. What is in an object store need not be the bytes that come, so these are compared as
    they are read: by `verified.Reader`.

    Args:
        base_uri: a folder or a prefix in an object store.
        revision: what `resolve` found; a commit, or '', says nothing of a base that is not staged.

    Returns:
        Its files.

    Raises:
        InputError: a file is gone, not whole, or another.
    """
    if storage.is_remote(base_uri):
        return _entries(base_uri, revision)
    if work := _staged(base_uri):
        attempts.check_files(
            base_uri, work.files, f"base model {base_uri}", "remove its folder, and it is staged again"
        )
    elif revision.startswith(DIGEST):
        resolve(base_uri, revision)
    return list(storage.files(base_uri))


def _staged(base_uri: str) -> attempts.Finished | None:
    """What the manifest of a base says that stage_base_model copied; None of any other."""
    return attempts.read(base_uri) if attempts.MANIFEST in storage.sizes(base_uri) else None


def _entries(base_uri: str, revision: str = "") -> list[storage.Entry]:
    """The files of a base in an object store: by their sha256 where it was staged, else by their ETag."""
    if work := _staged(base_uri):
        return copies.entries(work)
    if revision.startswith(DIGEST):
        resolve(base_uri, revision)
    return storage.listing(base_uri)


def _remove_torn(keep: Path) -> None:
    """Removes what pods left behind that ended while they fetched: parts that nobody wrote to for a day."""
    for part in keep.glob(f"*/.*{local_files.PART}"):
        with contextlib.suppress(FileNotFoundError):  # somebody else was first, or it is whole now
            if time.time() - part.stat().st_mtime > 86_400:
                part.unlink()


def check_names(base_model: str, names: Iterable[str]) -> None:
    """Checks that the names in a folder are those of a model: a config and safetensors, no pickle in their place.

    Raises:
        InputError: says what is missing.
    """
    here = [name for name in names if "/" not in name]
    if "config.json" not in here:
        raise InputError(f"base model {base_model}: no config.json there")
    if not any(name.endswith(".safetensors") for name in here):
        pickles = [name for name in here if name.endswith(PICKLES)]
        instead = f", only {pickles[0]}" if pickles else ""
        raise InputError(
            f"base model {base_model}: no *.safetensors there{instead}; other formats can run code and are refused"
        )


def place_in_store(base_model: str, revision: str) -> str:
    """Where the store keeps a revision of a base; manifests below it say whether it is there whole."""
    if revision.startswith(DIGEST):
        return storage.join(storage.root(), "bases", IN_PLACE, revision)
    if not hub.is_commit(revision):
        raise InputError(f"base model {base_model}: {revision!r} is no commit, and cannot name a folder of the store")
    return storage.join(storage.root(), "bases", base_model.replace("/", "--"), revision)


def in_16bit(base_model: str, revision: str) -> attempts.Finished | None:
    """The 16-bit copy that the store has of a base with quantised weights."""
    place = storage.join(place_in_store(base_model, revision), IN_16BIT)
    return attempts.find(place, conversion=CONVERSION)


def staged(base_model: str, revision: str) -> attempts.Finished | None:
    """A revision of a hub's base that the store has whole; one that an earlier version copied has not all its files."""
    return attempts.find(place_in_store(base_model, revision), layout=LAYOUT)


def hub_files(base_model: str, revision: str) -> tuple[str, list[storage.Entry]]:
    """The commit that a revision means now, and the files of it that a model consists of.

    Raises:
        InputError: the hub does not give it, or it has no safetensors.
    """
    import huggingface_hub

    with hub.errors(f"base model {base_model}", revision, "no folder of that name here, and "):
        info = huggingface_hub.HfApi().model_info(
            base_model, revision=revision or None, files_metadata=True, timeout=10
        )
    files = hub.files(info)
    check_names(base_model, [file.path for file in files])
    return hub.commit(info), [file for file in files if model_files.is_small(file.path) or _is_weights(file.path)]


def origin(base_model: str, revision: str) -> str:
    """The model that a base was made from, as its model card says it; empty: it does not, or cannot be read."""
    import huggingface_hub

    try:
        if is_on_hub(base_model):
            card = huggingface_hub.HfApi().model_info(base_model, revision=revision or None, timeout=10).card_data
        else:
            card = huggingface_hub.ModelCard(storage.read_bytes(storage.join(base_model, "README.md")).decode()).data
        made_from = getattr(card, "base_model", None)
    except Exception:  # a hint only: the library raises many unrelated types, and cards are written by hand
        return ""
    named = made_from[0] if isinstance(made_from, list) and made_from else made_from
    return named if isinstance(named, str) and named != base_model else ""


def _is_weights(path: str) -> bool:
    # `consolidated` are the same weights once more, in Mistral's own format.
    return "/" not in path and path.endswith(".safetensors") and not path.startswith("consolidated")


def small_files(base_model: str, revision: str, folder: Path) -> Path:
    """A local folder with the files of a base that are small: all but its weights.

    Raises:
        InputError: they cannot be read.
    """
    if is_on_hub(base_model):
        import huggingface_hub

        for entry in filter(_is_small, hub_files(base_model, revision)[1]):
            local_files.join_local(folder, entry.path)
            with hub.errors(f"base model {base_model}", revision):
                path = huggingface_hub.hf_hub_download(base_model, entry.path, revision=revision, local_dir=folder)
            if hub.checksum(Path(path), entry.etag) != entry.etag:
                raise InputError(f"base model {base_model}: {entry.path} is not what the hub lists; run again")
        return folder
    if not storage.is_remote(base_model):
        return storage.local_path(base_model)
    return copies.download(base_model, folder, filter(_is_small, _entries(base_model)))


def _is_small(entry: storage.Entry) -> bool:
    return model_files.is_small(entry.path)


def tokenizer_files(folder: Path) -> list[str]:
    """What to keep of a base for steps that need its tokenizer only, its config.json included; paths in the folder."""
    return [name for name in model_files.descriptions(folder) if not name.endswith("index.json")]


def tokenizer_digest(folder: Path) -> str:
    """Names the tokenizer of a base by the content of its files."""
    names = (name for name in tokenizer_files(folder) if name != "config.json")
    return keys.digest({name: storage.sha256_file(folder / name) for name in names})
