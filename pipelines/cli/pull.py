"""`qlora pull`: a registered version's files, verified."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import manifest, mlflow_client, signing, versions
from qlora_pipelines.components.core.store import storage, transfer
from qlora_pipelines.pipelines.local import workspace
from qlora_pipelines.pipelines.registry import pull as pulling


def find(uri: str, public_key: str) -> tuple[Any, manifest.Registered, str]:
    """The version that an address means, its manifest and how it is signed, all checked; the files are not read yet.

    Raises:
        InputError: there is no such version, it was not registered by qlora or not to the end, its files are gone, or
            its manifest or signature is not what the registry or the key says.
    """
    version = versions.resolve(mlflow_client.client(with_store=False), uri)
    transfer.use_endpoint(transfer.models_endpoint())
    whole = manifest.of_version(version)
    return version, whole, manifest.check_signature(whole, public_key)


def inference_service(name: str, source: str) -> str:
    """A KServe InferenceService that serves a version with the Hugging Face runtime, as YAML.

    Raises:
        InputError: the model lies in a local folder, which a cluster cannot read.
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


@click.command("pull")
@click.argument("uri", metavar="models:/NAME@ALIAS")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Folder to make; it appears when whole.")
@click.option("--public-key", default="", envvar=signing.VERIFYING_VARIABLE, show_envvar=True,
              help="PEM file; an unsigned version, or one signed otherwise, is refused.")  # fmt: skip
@click.option("--kserve", is_flag=True, help="Print an InferenceService; without --to nothing is copied.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def pull(uri: str, folder: Path | None, public_key: str, kserve: bool, as_json: bool) -> None:
    r"""Copy a registered version here and verify it: hashes against the registry, and the signature.

    A pull that was cut short is taken up where it ended. The registry is $MLFLOW_TRACKING_URI; the files are read from
    the bucket itself, with your own AWS credentials.

    \b
    Example:
      qlora pull models:/ticket-parser@champion --to models/ticket-parser
      qlora pull models:/ticket-parser@champion --kserve | kubectl apply -f -
    """
    if folder is None and not kserve:
        raise click.UsageError("give --to DIR, --kserve, or both")
    workspace.use_existing()
    version, whole, signed = find(uri, public_key)
    found: dict[str, Any] = {
        "name": version.name,
        "version": str(version.version),
        "source": whole.uri,
        "files": len(whole.files),
        "bytes": whole.size,
        "signature": signed,
    }
    if folder is not None:
        with click.progressbar(
            length=whole.size, label=f"{version.name} version {version.version}", file=sys.stderr
        ) as bar:
            copied = pulling.pull(whole, folder.absolute(), bar.update)
        serve = shlex.join(["vllm", "serve", str(folder / manifest.MODEL), "--served-model-name", version.name])
        found |= {"folder": str(folder), "copied": copied, "serve": serve}
    if kserve:
        found["kserve"] = inference_service(version.name, whole.uri)
    click.echo(json.dumps(found) if as_json else _text(found))


def _text(found: dict[str, Any]) -> str:
    if "kserve" in found:
        return str(found["kserve"]).rstrip()  # for kubectl, so nothing else
    state = "copied and verified" if found["copied"] else "was there already, verified"
    return (
        f"{found['folder']}: {found['name']} version {found['version']} {state},"
        f" {found['files']} files, {found['bytes'] / 1e9:.2f} GB; {found['signature']}\n{found['serve']}"
    )
