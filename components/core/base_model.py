"""The base model by name: a local folder, an `s3://` prefix, or a Hugging Face id."""

import os
import re
from pathlib import Path

from components.core import keys, storage
from components.core.errors import InputError

SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
"""What a tokenizer and a config consist of; weights are safetensors."""


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
        return _commit(base_model, revision)
    entries = storage.listing(base_model)
    if not entries:
        raise InputError(
            f"base model {base_model}: no such folder; give a folder with a model, an s3:// prefix or a Hugging Face id"
        )
    names = {entry.path for entry in entries}
    if "config.json" not in names:
        raise InputError(f"base model {base_model}: no config.json there")
    if not any(name.endswith(".safetensors") for name in names):
        raise InputError(f"base model {base_model}: no *.safetensors there; other formats can run code and are refused")
    found = "sha256-" + keys.digest([[entry.path, entry.size, entry.etag] for entry in entries])
    if revision not in ("", found):
        raise InputError(
            f"base model {base_model}: its files are not those of revision {revision[:19]}; they are {found[:19]}"
        )
    return found


def _commit(base_model: str, revision: str) -> str:
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(base_model, revision=revision or None, timeout=20)
    except Exception as error:  # the hub's client raises many unrelated kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"base model {base_model}: no folder of that name here, and the Hugging Face hub says: {reason}"
        ) from None
    if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or []):
        raise InputError(f"base model {base_model}: no *.safetensors there; other formats can run code and are refused")
    return str(info.sha)


def small_files(base_model: str, revision: str, folder: Path) -> Path:
    """A local folder with the config and the tokenizer of a base, without its weights."""
    if is_on_hub(base_model):
        import huggingface_hub

        patterns = SMALL_FILES
        huggingface_hub.snapshot_download(base_model, revision=revision, allow_patterns=patterns, local_dir=folder)
        return folder
    for entry in storage.listing(base_model) if storage.is_s3(base_model) else []:
        if any(Path(entry.path).match(pattern) for pattern in SMALL_FILES) and "/" not in entry.path:
            storage.write_bytes(str(folder / entry.path), storage.read_bytes(storage.join(base_model, entry.path)))
    return folder if storage.is_s3(base_model) else storage.local_path(base_model)
