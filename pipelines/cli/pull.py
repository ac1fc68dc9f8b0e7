"""`qlora pull`: a registered version's files, verified.

While files arrive, they are in a folder next to the one that it becomes:

    .<name>.<start of the manifest's sha256>/
        .parts                                which parts of which file have arrived
"""

import fcntl
import json
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import yaml

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import manifest, mlflow_client, signing, versions
from qlora_pipelines.components.core.registry.manifest import Manifest
from qlora_pipelines.components.core.store import attempts, models_store, storage
from qlora_pipelines.pipelines.local import workspace

JOURNAL, LOCK = ".parts", ".lock"
Part = tuple[str, int]
"""A file's path and where in it the part begins."""


@click.command("pull")
@click.argument("uri", metavar="models:/NAME@ALIAS")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Folder to make; it appears when whole.")
@click.option("--public-key", default="", envvar=signing.VERIFYING_VARIABLE, show_envvar=True,
              help="PEM file; an unsigned version, or one signed otherwise, is refused.")  # fmt: skip
@click.option("--kserve", is_flag=True, help="Print an InferenceService; without --to nothing is copied.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def pull(uri: str, folder: Path | None, public_key: str, kserve: bool, as_json: bool) -> None:
    r"""Copy a registered version here and verify it: hashes against the registry, and the signature.

    A pull that was cut short is resumed. The registry is $MLFLOW_TRACKING_URI; the files are read from the bucket
    itself, with your own AWS credentials.

    \b
    Example:
      qlora pull models:/ticket-parser@champion --to models/ticket-parser
      qlora pull models:/ticket-parser@champion --kserve | kubectl apply -f -
    """
    if folder is None and not kserve:
        raise click.UsageError("give --to DIR, --kserve, or both")
    workspace.use_existing()
    version = versions.resolve(mlflow_client.connect(with_store=False), uri)
    models_store.use()
    registered = manifest.of_version(version)
    found: dict[str, Any] = {
        "name": version.name,
        "version": str(version.version),
        "source": registered.uri,
        "files": len(registered.files),
        "bytes": registered.size,
        "signature": check_signature(registered, public_key),
    }
    if folder is not None:
        label = f"{version.name} version {version.version}"
        with click.progressbar(length=registered.size, label=label, file=sys.stderr) as bar:
            copied = copy(registered, folder.absolute(), bar.update)
        serve = shlex.join(["vllm", "serve", str(folder / manifest.MODEL), "--served-model-name", version.name])
        found |= {"folder": str(folder), "copied": copied, "serve": serve}
    if kserve:
        found["kserve"] = inference_service(version.name, registered.uri)
    click.echo(json.dumps(found) if as_json else _text(found))


def _text(found: dict[str, Any]) -> str:
    if "kserve" in found:
        return str(found["kserve"]).rstrip()  # for kubectl, so nothing else
    state = "copied and verified" if found["copied"] else "was there already, verified"
    return (
        f"{found['folder']}: {found['name']} version {found['version']} {state},"
        f" {found['files']} files, {found['bytes'] / 1e9:.2f} GB; {found['signature']}\n{found['serve']}"
    )


def check_signature(version: Manifest, public_key: str) -> str:
    """Says how the version is signed, after checking it where a public key is given.

    Raises:
        InputError: a public key is given and the version is unsigned, or signed otherwise.
    """
    signed = signing.SIGNATURE in storage.sizes(version.uri)
    if not public_key:
        return "signed, not checked: no public key is given" if signed else "unsigned"
    if not signed:
        raise InputError(f"{version.uri} is unsigned, but the public key {public_key} is to verify it")
    signature = storage.read_bytes(storage.join(version.uri, signing.SIGNATURE))
    signing.verify(signature, version.signed_files, public_key)
    return f"signed by the key {signing.fingerprint(signature)[:12]}"


def inference_service(name: str, source: str) -> str:
    """A KServe InferenceService that serves a version with the Hugging Face runtime, as YAML.

    Raises:
        InputError: the model is in a local folder, which a cluster cannot read.
    """
    from qlora_pipelines.pipelines.placement import ACCELERATOR

    if not storage.is_s3(source):
        raise InputError(f"{source} is a local folder; KServe reads an s3:// address")
    model = {
        "modelFormat": {"name": "huggingface"},
        "args": [f"--model_name={name}"],
        "storageUri": storage.join(source, manifest.MODEL),
        "resources": {"limits": {ACCELERATOR: "1"}},
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:53].strip("-") or "model"},
        "spec": {"predictor": {"model": model}},
    }
    return str(yaml.safe_dump(service, sort_keys=False))


def copy(version: Manifest, folder: Path, arrived: Callable[[int], None] = lambda _: None) -> bool:
    """Makes a folder with exactly a version's files; it appears under its name when all of them are verified.

    Args:
        version: its manifest, already checked against the registry's tag.
        folder: what to make.
        arrived: called with every number of bytes that is here, those of an earlier pull first.

    Returns:
        Whether anything was copied: a folder that holds the version already is only verified.

    Raises:
        InputError: the folder is something else, there is no room, or a file is gone, not readable, or not the one that
            was registered; it is named. What has arrived is kept for the next try.
    """
    if folder.exists():
        _check_present(version, folder)
        return False
    partial = folder.parent / f".{folder.name}.{version.sha256[:12]}"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with (partial / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _fetch_verified(version, partial, arrived)
            (partial / manifest.MANIFEST).write_bytes(version.content)
            if signing.SIGNATURE in storage.sizes(version.uri):
                signature = storage.read_bytes(storage.join(version.uri, signing.SIGNATURE))
                (partial / signing.SIGNATURE).write_bytes(signature)
            (partial / JOURNAL).unlink()
            (partial / LOCK).unlink()
            partial.rename(folder)
    except BlockingIOError:
        raise InputError(f"{partial}: another pull is at work there") from None
    except OSError as error:
        raise InputError(f"{partial}: {error.strerror}; what has arrived is kept, pull again") from None
    return True


class _Journal:
    """Which parts have arrived: one line each, written after the part's bytes.

    After a power cut a line may be there without the bytes; the file's hash then shows it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        path.touch()
        lines = (line.partition(" ") for line in path.read_text().splitlines())
        self.parts = {(name, int(start)) for start, _, name in lines if name}

    def add(self, part: Part) -> None:
        with self._lock, self.path.open("a") as file:
            file.write(f"{part[1]} {part[0]}\n")
            self.parts.add(part)

    def forget(self, names: Iterable[str]) -> None:
        self.parts = {part for part in self.parts if part[0] not in names}
        self.path.write_text("".join(f"{start} {name}\n" for name, start in self.parts))


def _fetch_verified(version: Manifest, partial: Path, arrived: Callable[[int], None]) -> None:
    journal = _Journal(partial / JOURNAL)
    resumed = bool(journal.parts)
    _fetch(version, partial, journal, arrived)
    differing = attempts.altered(str(partial), version.files)
    if differing and resumed:  # perhaps only what the earlier pull left: fetched once more before it is blamed
        journal.forget(differing)
        _fetch(version, partial, journal, lambda _: None)
        differing = attempts.altered(str(partial), version.files)
    if differing:
        journal.forget(differing)
        raise InputError(f"{version.uri}: {differing[0]} was altered: it is not the file that was registered")


def _fetch(version: Manifest, partial: Path, journal: _Journal, arrived: Callable[[int], None]) -> None:
    """Fetches the parts that have not arrived, several at a time."""
    sizes = {
        (name, start): min(storage.PART, file["size"] - start)
        for name, file in version.files.items()
        for start in range(0, file["size"], storage.PART)
    }
    missing = [part for part in sizes if part not in journal.parts]
    needed, free = sum(sizes[part] for part in missing), shutil.disk_usage(partial).free
    if needed > free:
        raise InputError(f"{partial.parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    for name in version.files:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).touch()
    arrived(sum(sizes.values()) - needed)

    def fetch(part: Part) -> int:
        name, start = part
        data = storage.read_range(storage.join(version.uri, name), start, sizes[part])
        if len(data) != sizes[part]:
            raise InputError(f"{version.uri}: {name} is not whole")
        with (partial / name).open("r+b") as file:
            file.seek(start)
            file.write(data)
        journal.add(part)
        return len(data)

    with ThreadPoolExecutor(storage.PARALLEL) as pool:
        for size in pool.map(fetch, missing):  # where one fails, it cancels those that have not begun
            arrived(size)


def _check_present(version: Manifest, folder: Path) -> None:
    """Checks that a folder holds this version and nothing else."""
    present = folder / manifest.MANIFEST
    if not present.is_file() or present.read_bytes() != version.content:
        raise InputError(f"{folder} is there already and is not this version; give another folder, or remove it")
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    for name in sorted(version.files.keys() - here):
        raise InputError(f"{folder}: {name} is gone; remove the folder and pull again")
    for name in sorted(here - version.signed_files.keys() - {signing.SIGNATURE}):
        raise InputError(f"{folder}: {name} is none of the registered files; remove it and pull again")
    for name in attempts.altered(str(folder), version.files):
        raise InputError(f"{folder}: {name} was altered; remove the folder and pull again")
