"""The base model by name: a local folder, an `s3://` prefix, or a Hugging Face id."""

import contextlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from qlora_pipelines.components.core.data import hub
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import keys, local_files, storage

SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
"""What a tokenizer and a config consist of; weights are safetensors."""
CACHE_VARIABLE = "QLORA_BASE_CACHE"
"""Names a folder that outlives a pod and keeps bases, such as a mounted volume."""
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
            f"base model {base_model}: no such folder; give a folder with a model, an s3:// prefix or a Hugging Face id"
        )
    check_names(base_model, [entry.path for entry in entries])
    found = "sha256-" + keys.digest([[entry.path, entry.size, entry.etag] for entry in entries])
    if revision not in ("", found):
        raise InputError(
            f"base model {base_model}: its files are not those of revision {revision[:19]}; they are {found[:19]}"
        )
    return found


def fetch(base_uri: str, folder: Path) -> Path:
    """A local folder with a base's files: the very folder where it is local, else a copy that may have been kept.

    With QLORA_BASE_CACHE, copies are kept there by content, so that a base of other files is another folder. A file has
    its name when it is whole, so whoever fetches at the same time, or was cut short, does no harm.

    Args:
        base_uri: a folder or an `s3://` prefix.
        folder: where the copy goes if none is kept.

    Raises:
        InputError: the base, or the folder that keeps bases, cannot be read or written.
    """
    keep = os.environ.get(CACHE_VARIABLE, "")
    if not keep or not storage.is_s3(base_uri):
        return storage.download(base_uri, folder)
    entries = storage.listing(base_uri)
    kept = Path(keep) / keys.digest([[entry.path, entry.size, entry.etag] for entry in entries])
    present = storage.sizes(str(kept))
    missing = [entry for entry in entries if present.get(entry.path) != entry.size]
    try:
        _remove_torn(Path(keep))
        storage.download(base_uri, kept, missing)
    except OSError as error:
        raise InputError(
            f"{CACHE_VARIABLE} {keep}: {error.strerror}; the volume must have room, and user {os.getuid()} may write it"
        ) from None
    log(f"base: {len(entries) - len(missing)} of {len(entries)} files were kept in {keep}")
    return kept


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
    """Where the store keeps a revision of a hub's base; the manifest below it says whether it is there whole."""
    return storage.join(storage.root(), "bases", base_model.replace("/", "--"), revision)


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
    return str(info.sha), [file for file in files if "/" not in file.path and _is_wanted(file.path)]


def _is_wanted(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in [*SMALL_FILES, "*.safetensors"])


def small_files(base_model: str, revision: str, folder: Path) -> Path:
    """A local folder with the config and the tokenizer of a base, without its weights.

    Raises:
        InputError: they cannot be read.
    """
    if is_on_hub(base_model):
        import huggingface_hub

        with hub.errors(f"base model {base_model}", revision):
            huggingface_hub.snapshot_download(
                base_model, revision=revision, allow_patterns=SMALL_FILES, local_dir=folder
            )
        return folder
    small = (
        entry
        for entry in storage.files(base_model)
        if any(Path(entry.path).match(pattern) for pattern in SMALL_FILES) and "/" not in entry.path
    )
    return storage.download(base_model, folder, small)


def tokenizer_files(folder: Path) -> list[Path]:
    """What to keep of a base for steps that need its tokenizer only, its config.json included."""
    found = {path for pattern in SMALL_FILES for path in folder.glob(pattern)}
    return sorted(path for path in found if "index.json" not in path.name)


def tokenizer_digest(folder: Path) -> str:
    """Names the tokenizer of a base by the content of its files."""
    return keys.digest(
        {path.name: storage.sha256_file(path) for path in tokenizer_files(folder) if path.name != "config.json"}
    )
