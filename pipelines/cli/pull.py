"""`qlora pull`: a registered version's files, verified."""

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import yaml

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import integrity, manifest, mlflow_client, signing, sources, versions
from qlora_pipelines.components.core.registry.manifest import Files, Manifest
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.pipelines.cli.partial import Partial
from qlora_pipelines.pipelines.local import workspace


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
    itself, with your own credentials there.

    \b
    Example:
      qlora pull models:/ticket-parser@champion --to models/ticket-parser
      qlora pull models:/ticket-parser@champion --kserve | kubectl apply -f -
    """
    if folder is None and not kserve:
        raise click.UsageError("give --to DIR, --kserve, or both")
    workspace.use_existing()
    version = versions.resolve(mlflow_client.connect(with_store=False), uri)
    registered = manifest.of_version(version)
    signature, signed = check_signature(registered, public_key)
    found: dict[str, Any] = {
        "name": version.name,
        "version": str(version.version),
        "source": registered.uri,
        "files": len(registered.files),
        "bytes": registered.size,
        "signature": signed,
    }
    if folder is not None:
        label = f"{version.name} version {version.version}"
        with click.progressbar(length=registered.size, label=label, file=sys.stderr) as bar:
            copied = copy(registered, folder.absolute(), bar.update, signature)
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


def check_signature(version: Manifest, public_key: str) -> tuple[bytes, str]:
    """The content of the version's signature (b"": it is unsigned), and what there is to say of it.

    It is checked where a public key is given. It is read only once: what is checked is what `copy` is to write.

    Raises:
        InputError: a public key is given and the version is unsigned, or signed otherwise.
    """
    if signing.SIGNATURE not in storage.sizes(version.uri):
        if public_key:
            raise InputError(f"{version.uri} is unsigned, but the public key {public_key} is to verify it")
        return b"", "unsigned"
    signature = storage.read_bytes(storage.join(version.uri, signing.SIGNATURE))
    if not public_key:
        return signature, "signed, not checked: no public key is given"
    signing.verify(signature, version.signed_files, public_key)
    return signature, f"signed by the key {signing.fingerprint(signature)[:12]}"


def inference_service(name: str, source: str) -> str:
    """A KServe InferenceService that serves a version with the Hugging Face runtime, as YAML.

    Raises:
        InputError: the model is in a local folder, which a cluster cannot read.
    """
    from qlora_pipelines.components.core.config.placement import ACCELERATOR

    if "://" not in source:
        raise InputError(f"{source} is a local folder, which KServe cannot read; register from a store in a bucket")
    model = {
        "modelFormat": {"name": "huggingface"},
        "args": [f"--model_name={name}"],
        "storageUri": sources.https_uri(storage.join(source, manifest.MODEL)),
        "resources": {"limits": {ACCELERATOR: "1"}},
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:53].strip("-") or "model"},
        "spec": {"predictor": {"model": model}},
    }
    return str(yaml.safe_dump(service, sort_keys=False))


def copy(
    version: Manifest, folder: Path, arrived: Callable[[int], None] = lambda _: None, signature: bytes = b""
) -> bool:
    """Makes a folder with exactly a version's files; it appears under its name when all of them are verified.

    Args:
        version: its manifest, already checked against the registry's tag.
        folder: what to make.
        arrived: called with every number of bytes that is here, those of an earlier pull first.
        signature: content of the signature to write next to them; b"": none.

    Returns:
        Whether anything was copied: a folder that holds the version already is only verified.

    Raises:
        InputError: the folder is something else, there is no room, or a file is gone, not readable, or not the one that
            was registered; it is named. What has arrived is kept for the next try.
    """
    small = {manifest.MANIFEST: version.content} | ({signing.SIGNATURE: signature} if signature else {})
    files = version.files | {name: manifest.entry(content) for name, content in small.items()}
    if os.path.lexists(folder):
        _check_present(folder, files)
        return False
    try:
        with contextlib.closing(Partial(folder, version.sha256)) as partial:
            for name, content in small.items():
                partial.make({name: files[name]})
                partial.write(name, 0, content)
            _fetch_verified(version, files, partial, arrived)
            partial.finish()
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; what has arrived is kept, pull again") from None
    return True


def _fetch_verified(version: Manifest, files: Files, partial: Partial, arrived: Callable[[int], None]) -> None:
    resumed = bool(partial.parts)
    _fetch(version, partial, arrived)
    problems = partial.problems(files)
    altered = [name for name in problems if name in version.files]
    if altered and resumed:  # perhaps only what the earlier pull left: fetched once more before it is blamed
        partial.forget(altered)
        _fetch(version, partial, lambda _: None)
        problems = partial.problems(files)
    for name, problem in problems.items():
        if problem == integrity.ALTERED and name in version.files:
            partial.forget([name])
            raise InputError(f"{version.uri}: {name} was altered: it is not the file that was registered")
        raise InputError(f"{partial.path}: {name} {problem}; remove {partial.path} and pull again")


def _fetch(version: Manifest, partial: Partial, arrived: Callable[[int], None]) -> None:
    """Fetches the parts that have not arrived, several at a time."""
    sizes = {
        (name, start): min(storage.PART, file["size"] - start)
        for name, file in version.files.items()
        for start in range(0, file["size"], storage.PART)
    }
    missing = [part for part in sizes if part not in partial.parts]
    needed, free = sum(sizes[part] for part in missing), shutil.disk_usage(partial.target.parent).free
    if needed > free:
        raise InputError(f"{partial.target.parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    partial.make(version.files)
    arrived(sum(sizes.values()) - needed)

    def fetch(part: tuple[str, int]) -> int:
        name, start = part
        for at, data in storage.stream(storage.join(version.uri, name), start, sizes[part]):
            partial.write(name, at, data)
        partial.add(part)
        return int(sizes[part])

    with ThreadPoolExecutor(storage.PARALLEL) as pool:
        for size in pool.map(fetch, missing):  # where one fails, it cancels those that have not begun
            arrived(size)


def _check_present(folder: Path, files: Files) -> None:
    """Checks that a folder holds these files and nothing else, without following a link."""
    if folder.is_symlink() or not folder.is_dir():
        raise InputError(f"{folder} is there already and is no folder; give another, or remove it")
    with integrity.open_folder(folder, follow=False) as opened:
        if integrity.inspect(opened, {manifest.MANIFEST: files[manifest.MANIFEST]}, lambda _: True)[0]:
            raise InputError(f"{folder} is there already and is not this version; give another folder, or remove it")
        for name, problem in integrity.inspect(opened, files, single=True)[0].items():
            what = "it" if problem == integrity.EXTRA else "the folder"
            raise InputError(f"{folder}: {name} {problem}; remove {what} and pull again")
